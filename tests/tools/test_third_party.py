"""The table of networks that others trained: published figures, checks, and what is judged again and what is not."""

import csv
import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datafiles import image_set, write_idx

from wdro_train.certificates.base import THE_NETWORK
from wdro_train.cli.endings import Ending
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import third_party, third_party_networks, third_party_table
from wdro_train.tools.compare_efforts import Row
from wdro_train.tools.enclosure_table import enclosed
from wdro_train.tools.published_networks import NETWORKS
from wdro_train.tools.third_party_checks import checks
from wdro_train.tools.third_party_jobs import SETTINGS_FILE
from wdro_train.tools.third_party_table import Judged
from wdro_train.utils import tables
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number

FOLDER = Path(os.environ.get("WDRO_THIRD_PARTY", "WDRO_THIRD_PARTY is not set"))
LPD, CNN_A = NETWORKS["mnist_mlp_lpd_0.1"], NETWORKS["mnist_cnn_a_adv"]


def report(name, distances, radii=None, encloses=True):
    """A hand-made report: an image is misclassified where its distance is 0."""
    sure = {"method": "crown", "radii": radii, "about": THE_NETWORK, "encloses": encloses}
    model = {
        "name": name,
        "images": len(distances),
        "sample": "all",
        "certificate": None if radii is None else sure,
        "distances": {"attack": {"effort": "auto", "steps": 30, "restarts": 1, "targets": 0}, "values": distances},
        "band": {"width": 0.0136, "level": 0.95},
        "passes": [{"measurement": "distances", "forward": 30 * len(distances), "backward": 10 * len(distances)}],
    }
    made_by = {
        "config": {"certificate": {"radii": [0.05, 0.1]}},
        "seed": 0,
        "git_revision": "abc",
        "command": "/opt/evaluate.py model.weights=/data/a.pth",
    }
    return {"threat": {"p": "inf", "norm": "inf", "delta": 0.1}, "models": [model], **made_by}


def ten_thousand(clean, certified, attacked, radius=0.1):
    """So many of 10,000 images are correct, certified at the radius, and not flipped at it."""
    kinds = [(0.0, 0.0)] * (10_000 - clean) + [(2 * radius, 2 * radius)] * certified
    kinds += [(0.0, 2 * radius)] * (attacked - certified) + [(0.0, radius / 4)] * (clean - attacked)
    radii, distances = zip(*kinds, strict=True)
    return report(LPD.name, list(distances), list(radii))


# ---- what is published


def test_there_are_nine_networks_with_plausible_figures():
    assert len(NETWORKS) == 9
    for name, network in NETWORKS.items():
        assert network.file.startswith(name + ".")
        assert 0 < parse_number(network.radius, "radius") < 1
        assert len(network.sha256) == 64
        assert network.source
        assert network.licence
        at = {kind: [f.value for f in network.figures if f.kind == kind] for kind in ("clean", "exact", "at least")}
        most = [figure.value for figure in network.figures if figure.kind == "at most"]
        order = [*sorted(at["at least"]), *at["exact"], *sorted(most), *at["clean"]]
        assert order == sorted(order), name  # certified <= exact <= attacked <= clean
        assert all(0 < value < 100 for value in order)


# ---- checks on hand-made reports


def outcome(found, network=LPD):
    model = found["models"][0]
    return [check.holds for check in checks(network, model, enclosed(model, parse_number(network.radius, "radius")))]


@pytest.mark.parametrize(
    ("clean", "certified", "attacked", "holds"),
    [
        (9591, 8208, 8578, [True] * 5),
        (9593, 8208, 8578, [True] * 5),  # two images of 10,000 are 0.02 points
        (9594, 8208, 8578, [False, True, True, True, True]),
        (9591, 8555, 8555, [True] * 5),
        (9591, 8556, 8578, [True, True, False, True, True]),  # certified above the exact value
        (9591, 8208, 8554, [True, True, False, True, True]),  # attacked below it
        (9591, 8700, 8800, [True, False, False, True, True]),  # certified above what a published attack leaves
        (9591, 8000, 8200, [True, True, False, False, True]),  # attacked below what others have proven
    ],
)
def test_a_figure_that_is_contradicted_fails(clean, certified, attacked, holds):
    assert outcome(ten_thousand(clean, certified, attacked)) == holds


def test_the_last_printed_digit_says_how_far_a_figure_may_be_off():
    network = NETWORKS["mnist_conv_kw_0.1"]  # clean 98.2
    for clean, holds in ((9815, True), (9814, False), (9825, True), (9826, False)):
        assert outcome(ten_thousand(clean, 9430, 9530), network)[0] is holds


def test_without_certificate_an_interval_begins_at_zero():
    found = ten_thousand(9591, 8208, 8578)
    found["models"][0]["certificate"] = None
    assert outcome(found) == [True] * 5
    assert "0.00 .. 85.78" in third_party_table.Judged(LPD, found).checks[2].says


def test_other_images_are_not_compared():
    assert outcome(report(LPD.name, [0.0, 0.05, 0.2])) == [None]
    resnet = NETWORKS["cifar_resnet20"]
    distances = [0.0] * 5000 + [0.1] * 5000
    assert outcome(report(resnet.name, distances), resnet) == [None]
    assert outcome(report("cifar_oval_base", distances), NETWORKS["cifar_oval_base"]) == [None]


def test_the_clean_accuracy_of_all_images_is_compared_whatever_was_judged():
    found = Judged(LPD, report(LPD.name, [0.0, 0.05, 0.2]), clean_of_all=0.9591)
    assert [check.holds for check in found.checks] == [True, None]
    assert "ours is 95.91 on the same images" in found.checks[0].says
    assert [check.holds for check in Judged(LPD, found.report, clean_of_all=0.9588).checks] == [False, None]


def test_a_contradicted_certificate_fails_whatever_the_images():
    found = report(LPD.name, [0.0, 0.05], [0.0, 0.2], encloses=False)
    assert outcome(found) == [False, None]


# ---- the table


def test_rows_are_the_knapsacks_at_the_radius_and_at_half_of_it(tmp_path):
    distances, radii = [0.0, 0.08, 0.15, "inf"], [0.0, 0.04, 0.12, 0.3]
    rivals = [Row("auto", 0.5, 300.0, 9, False, 2.0), Row("AutoAttack", 0.75, 4000.0, 0, False, 20.0)]
    judged = Judged(LPD, report(LPD.name, distances, radii), rivals, 3)
    third_party_table.write([judged], tmp_path)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    kept = json.loads((tmp_path / "table.json").read_text())
    assert [float(row["radius"]) for row in rows] == [0.1, 0.05]
    for row, stored in zip(rows, kept["rows"], strict=True):
        for p in (math.inf, 2.0, 1.0):
            for kind, values in (("attacked", [0.0, 0.08, 0.15, math.inf]), ("certified", radii)):
                exact = RobustnessCurve(values).accuracy(float(row["radius"]), p)
                assert float(row[f"{kind}_W_{p:g}"]) == pytest.approx(exact, abs=1e-12)
                assert stored[f"{kind}_W_{p:g}"] == pytest.approx(exact, abs=1e-12)
        assert (row["passes"], row["autoattack_passes"], row["search_seconds"]) == ("20.0", "4000.0", "2.0")
        assert row["command"] == "evaluate.py model.weights=a.pth"
    text = (tmp_path / "table.md").read_text()
    assert "| mnist_mlp_lpd_0.1 | all 4 of MNIST | 0.1 " in text
    assert "| half the radius " in text
    assert "75.00 (4,000 passes, 20 s) beside auto 50.00 (300 passes, 2 s) on 3" in text
    assert "MILP exactly 85.55" in text
    assert "| crown, at 0.05 and 0.1 alone |" in text
    assert "not compared: mnist_mlp_lpd_0.1, published figures are about 10,000 images, ours about 4" in text
    assert kept["published"][LPD.name]["figures"][2]["percent"] == "85.55"


def test_the_committed_table_contradicts_nothing_that_is_published():
    folder = Path(__file__).parents[2] / "docs/results/third_party"
    kept = json.loads((folder / "table.json").read_text())
    assert kept["rows"]
    assert not [check for check in kept["checks"] if check["holds"] is False]
    text = (folder / "table.md").read_text()
    for row in kept["rows"]:
        assert row["certified_W_inf"] <= row["attacked_W_inf"] <= row["clean"]
        assert f"| {tables.rounded_down(100 * row['certified_W_2'], 2)} .. " in text
        assert f" .. {tables.rounded_up(100 * row['attacked_W_2'], 2)} " in text
        assert not row["revision"].endswith("+")


# ---- what is judged, and what is not


@pytest.fixture
def folder(tmp_path):
    """Two networks with weights of no meaning, and the images of one of them; those of MNIST are missing."""
    made = tmp_path / "networks"
    made.mkdir()
    torch.manual_seed(0)
    torch.save(third_party_networks.conv().state_dict(), made / CNN_A.file)
    torch.save(third_party_networks.mlp().state_dict(), made / LPD.file)
    rng = np.random.default_rng(0)
    np.save(made / "mnist_sdp_images.npy", rng.random((12, 28, 28), dtype=np.float32))
    np.save(made / "mnist_sdp_labels.npy", np.arange(12) % 10)
    return made


@pytest.fixture
def called(monkeypatch):
    """Stands for `evaluate.py`: writes a report of the network that its keys name, or fails."""
    calls = []

    def evaluate(keys, folder):
        given = dict(key.split("=", 1) for key in keys)
        calls.append(given)
        if "fails" in calls[0]:
            return 1
        name = Path(given["model.weights"]).stem
        (folder / "report.json").write_text(json.dumps(report(name, [0.0, 0.1, 0.4], [0.0, 0.1, 0.2])))
        return 0

    monkeypatch.setattr(third_party, "evaluate", evaluate)
    monkeypatch.setattr(third_party, "ending", Ending())
    return calls


def test_what_is_there_is_not_judged_again(folder, called, tmp_path, capsys):
    command = [str(folder), "--out", str(tmp_path / "out"), "--only", CNN_A.name]
    assert len(third_party.main(command)) == 1
    assert third_party.ending.advice == "the same command goes on from what is finished"
    said = capsys.readouterr().out
    assert "1 of 1: mnist_cnn_a_adv, judging" in said
    assert "is another file than the published one" in said
    assert (called[0]["attack.delta"], called[0]["certificate.method"]) == ("0.3", "crown")
    assert (tmp_path / "out/table.md").is_file()
    third_party.main([*command, "--certificate", "ibp", "--limit", "3", "--at-the-radii"])
    assert len(called) == 2
    assert called[1]["limit"] == "3"
    assert called[1]["certificate.radii"] == "[0.15,0.3]"
    capsys.readouterr()
    assert len(third_party.main(command)) == 2  # rows of both are in the table
    assert "1 of 1: mnist_cnn_a_adv, judged before" in capsys.readouterr().out
    assert len(called) == 2


def test_other_settings_are_refused_before_any_work(folder, called, tmp_path):
    command = [str(folder), "--out", str(tmp_path / "out"), "--only", CNN_A.name]
    third_party.main(command)
    weights, labels = (folder / CNN_A.file).read_bytes(), folder / "mnist_sdp_labels.npy"
    with pytest.raises(UserError, match=r"other settings \(distances.effort\)"):
        third_party.main([*command, "--effort", "quick"])
    torch.save(third_party_networks.conv().state_dict(), folder / CNN_A.file)
    with pytest.raises(UserError, match=r"other settings \(weights\)"):
        third_party.main(command)
    (folder / CNN_A.file).write_bytes(weights)
    np.save(labels, np.arange(12) % 7)
    with pytest.raises(UserError, match=r"other settings \(data.labels\)"):
        third_party.main(command)
    np.save(labels, np.arange(12) % 10)
    next((tmp_path / "out/runs").glob(f"*/{SETTINGS_FILE}")).unlink()  # as if it had been made by hand
    with pytest.raises(UserError, match=r"other settings \(.*weights"):
        third_party.main(command)
    assert len(called) == 1


def test_missing_files_are_named_and_left_out(folder, called, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = third_party.main([str(folder), "--mnist", str(tmp_path / "nowhere")])
    said = capsys.readouterr().out
    assert [one.network.name for one in found] == [CNN_A.name]
    for name in set(NETWORKS) - {CNN_A.name}:
        assert said.count(f"{name} is left out: ") == 1
    assert "mnist_conv_kw_0.1 is left out: there is no " in said
    assert "mnist_mlp_lpd_0.1 is left out: " in said  # its images are missing
    assert "nowhere" in said


def test_the_clean_accuracy_is_that_of_all_images(folder, called, tmp_path, monkeypatch):
    """Of a network that calls everything 3, on images that come in their order."""
    model = third_party_networks.mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[-1].bias[3] = 1
    torch.save(model.state_dict(), folder / LPD.file)
    few = dataclasses.replace(LPD, images=dataclasses.replace(LPD.images, number=40))
    monkeypatch.setattr(third_party, "NETWORKS", {LPD.name: few})
    sets = {"train": image_set(200, (28, 28)), "test": image_set(40, (28, 28))}
    write_idx(tmp_path / "mnist", sets, packed=True)
    command = [str(folder), "--out", str(tmp_path / "out"), "--mnist", str(tmp_path / "mnist"), "--limit", "3"]
    with pytest.raises(UserError, match=r"figures are contradicted: .* clean 95.91 is published, ours is 10.00"):
        third_party.main([*command, "--only", LPD.name])


def test_nothing_to_show_is_an_error(tmp_path, called):
    with pytest.raises(UserError, match="there is nothing to show"):
        third_party.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert not called


def test_a_file_of_another_network_is_left_out(folder, called, tmp_path, capsys):
    torch.save(third_party_networks.mlp().state_dict(), folder / CNN_A.file)
    with pytest.raises(UserError, match="there is nothing to show"):
        third_party.main([str(folder), "--out", str(tmp_path / "out"), "--only", CNN_A.name])
    assert "does not fit this network" in capsys.readouterr().out


def test_a_failure_is_named_and_the_others_are_shown(folder, called, tmp_path):
    called.append("fails")
    elsewhere = tmp_path / "report.json"
    elsewhere.write_text(json.dumps(report("fashion_conv_kw_0.1", [0.0, 0.2], [0.0, 0.1])))
    command = [str(folder), "--out", str(tmp_path / "out"), "--only", CNN_A.name, "--report", str(elsewhere)]
    with pytest.raises(UserError, match="mnist_cnn_a_adv could not be judged"):
        third_party.main(command)
    assert "fashion_conv_kw_0.1" in (tmp_path / "out/table.md").read_text()


def test_a_contradiction_ends_in_an_error_after_the_table(folder, called, tmp_path, capsys):
    elsewhere = tmp_path / "report.json"
    elsewhere.write_text(json.dumps(ten_thousand(9591, 8556, 8578)))
    command = [str(folder), "--out", str(tmp_path / "out"), "--only", CNN_A.name, "--report", str(elsewhere)]
    with pytest.raises(UserError, match=r"figures are contradicted: FAILS: mnist_mlp_lpd_0.1, MILP exactly"):
        third_party.main(command)
    assert "FAILS: mnist_mlp_lpd_0.1" in (tmp_path / "out/table.md").read_text()
    assert "holds: mnist_mlp_lpd_0.1, clean 95.91" in capsys.readouterr().out


# ---- whole runs


@pytest.mark.slow
def test_a_network_is_judged_by_evaluate(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [str(folder), "--only", CNN_A.name, "--limit", "6", "--certificate", "ibp", "--effort", "quick"]
    (one,) = third_party.main(command)
    assert one.model["images"] == 6
    assert one.report["threat"]["delta"] == 0.3
    assert one.at_radius.certified[math.inf] <= one.at_radius.attacked[math.inf] <= one.at_half.attacked[math.inf]
    before = (tmp_path / "runs/third_party/runs/mnist_cnn_a_adv_ibp_6/report.json").stat().st_mtime_ns
    third_party.main(command)
    assert (tmp_path / "runs/third_party/runs/mnist_cnn_a_adv_ibp_6/report.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_cnn_a_adv", "cifar_cnn_a_mix"])
def test_a_published_network_is_enclosed(name, tmp_path):
    if not (FOLDER / NETWORKS[name].file).is_file():
        pytest.skip(f"{NETWORKS[name].file} is not in {FOLDER}")
    pytest.importorskip("pyautoattack")
    command = [str(FOLDER), "--out", str(tmp_path), "--only", name, "--limit", "5", "--autoattack", "2"]
    (one,) = third_party.main(command)
    assert 0 < one.at_half.certified[math.inf] <= one.at_half.attacked[math.inf] <= one.at_half.clean
    assert [row.effort for row in one.rivals] == ["auto", "AutoAttack"]
