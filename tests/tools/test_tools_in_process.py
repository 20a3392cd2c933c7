"""The tools on a network that `train.py` wrote a moment ago: what they print is what they measured."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from in_process import short_run

from wdro_train.attacks import WPGD, MinimalDistance
from wdro_train.certificates import LinearRelaxation
from wdro_train.cli.endings import ending
from wdro_train.evaluation.networks import load_arrays, load_network
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import (
    attack_cost,
    certificate_tightness,
    compare_attacks,
    compare_methods,
    gradient_masking,
    step_cost,
    wandb_workspace,
)
from wdro_train.training.module import CONFIG_KEY
from wdro_train.utils.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.covers]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two methods, named as those of a study; their networks have learnt for a few steps."""
    folder = tmp_path_factory.mktemp("study")
    learn = ["optimizer.lr=0.03", "attack.steps=2", "trainer.limit_train_batches=8"]
    for name, method in (("pgd_at_0", "pgd_at"), ("pgd_at_1", "pgd_at"), ("standard_0", "standard")):
        short_run(folder, f"method={method}", f"seed={name[-1]}", *learn, f"hydra.run.dir={name}")
    return folder


@pytest.fixture(scope="module")
def checkpoint(runs):
    return runs / "pgd_at_0/checkpoints/best.ckpt"


def changed(file, **values):
    """Write other values into a JSON file; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_steps_are_counted(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(step_cost, "_ADAPTATION", 1)
    found = step_cost.main([str(checkpoint), "--steps", "3", "--repeats", "1", "--batch", "16"])
    passes = {name: pairs for name, pairs, _ in found}
    assert passes["PGD-AT, 3 steps"] == 4
    assert passes["standard"] == 1
    assert passes["one step, random start"] == 2
    assert passes["first-order penalty"] == 1.5
    assert found[0][2] == 1
    printed = capsys.readouterr().out
    for name, pairs, _ in found:
        assert name in printed
        assert f"{pairs:.2f}" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "bf16-mixed", "--channels-last"], "bf16-mixed, channels_last"),
        (["--compile"], "32-true, compile"),
    ],
)
def test_steps_are_timed_as_they_are_computed(checkpoint, options, said, capsys, monkeypatch):
    """Passes are those of the network itself; what cannot be compiled, a gradient of a gradient, is left out."""
    monkeypatch.setattr(step_cost, "_ADAPTATION", 1)
    few = ["--steps", "2", "--repeats", "1", "--batch", "16", "--only", "standard,first-order"]
    found = {name: passes for name, passes, _ in step_cost.main([str(checkpoint), *few, *options])}
    expected = {"PGD-AT, 2 steps": 3, "standard": 1, "first-order penalty": 1.5}
    if "--compile" in options:
        del expected["first-order penalty"]
    assert found == expected
    assert said in " ".join(capsys.readouterr().out.split())


def test_masking_is_measured_on_the_validation_set(checkpoint, capsys):
    """The rows hold what the attacks leave, and their differences from what training reported."""
    found = dict(gradient_masking.main([str(checkpoint), "--steps", "2"]))
    network = load_network(checkpoint)
    arrays = load_arrays(network.config, "val")
    x, y = arrays.batch(torch.arange(len(arrays.labels))), arrays.labels
    ball = network.threat()
    attack = WPGD(p=math.inf, norm=ball.norm, delta=ball.delta, loss="ce", steps=2, keep="best", random_start=False)
    left = correct(attack(network.model, x, y).adv_logits, y).double().mean().item()
    assert found["PGD-2, pointwise, ce, clean start"] == pytest.approx(left, abs=1e-9)
    reported = json.loads((checkpoint.parents[1] / "metrics.json").read_text())["val"]["adv_acc"]
    printed = capsys.readouterr().out
    assert f"{reported:.4f}" in printed
    assert f"{100 * (left - reported):+.1f}" in printed


def test_masking_compares_no_other_images_and_no_other_figures(runs, tmp_path, capsys):
    """Training reported on the whole set, and where it was told to, another figure than the accuracy under attack."""
    shutil.copytree(runs / "pgd_at_0", tmp_path / "run")
    best, metrics = str(tmp_path / "run/checkpoints/best.ckpt"), tmp_path / "run/metrics.json"
    command = [best, "--steps", "1", "--limit", "9"]
    gradient_masking.main(command)
    printed = capsys.readouterr().out
    assert "the first 9 validation images" in printed
    assert not re.search(r"[+-]\d+\.\d", printed)
    metrics.write_text('{"val": {"worst_acc": 0.5}}')
    gradient_masking.main(command)
    assert "as training reported it" not in capsys.readouterr().out
    for damaged in ("{", "[]", '{"x": 1}'):
        metrics.write_text(damaged)
        with pytest.raises(UserError, match=r"metrics.json is damaged .* remove it"):
            gradient_masking.main(command)


def test_steps_of_no_method_are_refused(checkpoint):
    with pytest.raises(
        UserError, match="--only nosuch is the beginning of no method here; choose from PGD-AT, 8 steps"
    ):
        step_cost.main([str(checkpoint), "--only", "standard,nosuch"])


def test_attacks_are_compared_on_the_same_images(checkpoint, capsys):
    command = [str(checkpoint), "--norm", "2", "--delta", "0.3", "--limit", "20", "--steps", "3", "--p", "2"]
    [compared] = compare_attacks.main(command).values()
    first, *others = compared.outcomes
    assert first.name == "MinimalDistance"
    assert "DDN" in {other.name for other in others}
    printed = capsys.readouterr().out
    assert "20 test images, l_2" in printed
    for found in (first, *others):
        assert (found.distances == 0).tolist() == (first.distances == 0).tolist()  # the same images are misclassified
        left = RobustnessCurve(found.distances).accuracy(0.3, 2)
        assert f"{left:.4f}" in printed


def test_methods_are_judged_alike(runs, tmp_path, capsys, monkeypatch):
    """Attack, certificate and effort of every run; what was judged before is not judged again."""
    monkeypatch.setenv("COLUMNS", "200")
    options = ["--deltas", "0.02,0.05", "--limit", "30", "--certificate", "ibp", "--certificate-images", "20"]
    command = [str(runs), "--out", str(tmp_path), *options, "--effort", "standard", "--effort-images", "8"]
    compare_methods.main(command)
    table = {row["training"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert {name: row["seeds"] for name, row in table.items()} == {"pgd_at": "2", "standard": "1"}
    attacked, certified = [], []
    for seed in (0, 1):
        network = load_network(runs / f"pgd_at_{seed}/checkpoints/best.ckpt")
        arrays = load_arrays(network.config, "test", 30)
        x, y = arrays.batch(torch.arange(30)), arrays.labels[:30]
        attacked.append(
            RobustnessCurve(MinimalDistance(norm=math.inf)(network.model, x, y).distances).accuracy(0.05, 2)
        )
        radii = LinearRelaxation(norm=math.inf, method="ibp")(network.model, x[:20], y[:20]).radii
        certified.append(RobustnessCurve(radii).accuracy(0.05, 2))
    mean, spread = map(float, table["pgd_at"]["W_2 0.05"].split(" ± "))
    assert (mean, spread) == pytest.approx((100 * np.mean(attacked), 100 * np.std(attacked, ddof=1)), abs=0.3)
    assert float(table["pgd_at"]["certified W_2 0.05"].split(" ± ")[0]) <= 100 * np.mean(certified) + 1e-6
    more = json.loads((tmp_path / "runs/standard_0.json").read_text())["effort"]
    assert more["images"] == 8
    assert all(more["more"][p][d] <= more["usual"][p][d] for p in more["more"] for d in more["more"][p])
    printed = capsys.readouterr().out
    assert all(value in printed for row in table.values() for value in row.values())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}

    def never(*arguments):
        raise AssertionError("judged again")

    for name in ("judge_run", "attacked_curve", "certify", "effort"):
        monkeypatch.setattr(compare_methods, name, never)
    compare_methods.main(command)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    for wrong, message in (
        (["--deltas", "0.1"], "--deltas 0.02,0.05"),
        (["--limit", "20"], "--limit 30"),
        (["--effort-images", "9"], "standard_0 has its effort on 8 images; give --effort-images 8"),
        (["--certificate", "crown"], "was certified by ibp on 20 images"),
        (["--curves", "pgd"], "--curves: no run of pgd; choose from pgd_at, standard"),
    ):
        with pytest.raises(UserError, match=message):
            compare_methods.main([*command, *wrong])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}


def test_a_network_that_is_never_right_is_judged_like_the_others(runs, tmp_path, capsys):
    """Trainings collapse, and then predict one class: no figure may stop the table of the others."""
    folder = tmp_path / "study"
    shutil.copytree(runs, folder)
    path = folder / "standard_0/checkpoints/best.ckpt"
    labels = load_arrays(load_network(path).config, "test", 4).labels
    kept = torch.load(path, weights_only=False)
    weights = [name for name in kept["state_dict"] if name.endswith("bias")]
    last = kept["state_dict"][weights[-1]]
    last[min(set(range(10)) - set(labels.tolist()))] += 1e6
    torch.save(kept, path)
    options = ["--deltas", "0.02,0.05", "--limit", "4", "--certificate", "ibp", "--effort", "standard"]
    command = [str(folder), "--out", str(tmp_path / "out"), *options, "--autoattack", "standard,pgd_at"]
    compare_methods.main(command)
    kept = json.loads((tmp_path / "out/runs/standard_0.json").read_text())
    assert kept["check"]["images"] == kept["effort"]["images"] == 4  # the images of the row, and not 1000 and 2000
    said = "able is on 4 test images, AutoAttack on the first 4, more effort on the first 4"
    assert said in " ".join((tmp_path / "out/table.md").read_text().split())
    assert said in " ".join(capsys.readouterr().out.split())
    table = {row["training"]: row for row in csv.DictReader((tmp_path / "out/table.csv").open())}
    names = ("clean", "W_inf 0.05", "W_2 0.05", "certified W_2 0.05", "AutoAttack 0.05", "W_2 0.05, more effort")
    assert [table["standard"][name] for name in names] == ["0.0"] * 6
    assert "nan" not in " ".join(table["standard"].values())
    assert table["pgd_at"]["AutoAttack 0.05"]
    changed(tmp_path / "out/runs/standard_0.json", check=kept["check"] | {"images": 1000})
    with pytest.raises(UserError, match="standard_0 has its check on 1000 images; the others are on 4; remove"):
        compare_methods.main(command)


@pytest.fixture
def unloaded(monkeypatch):
    """No network may be loaded: what is wrong is said before any work."""

    def never(*arguments):
        raise AssertionError("work has begun")

    return lambda: monkeypatch.setattr(compare_methods, "chosen_network", never)


@pytest.fixture
def judged(runs, tmp_path):
    """A copy of the study, judged on a few images, and the command that did it."""
    folder = tmp_path / "study"
    shutil.copytree(runs, folder)
    command = [str(folder), "--out", str(tmp_path / "out"), "--deltas", "0.02,0.05", "--limit", "4"]
    compare_methods.main(command)
    return folder, tmp_path / "out", command


def test_figures_of_a_network_that_was_replaced_are_refused(judged, unloaded):
    folder, out, command = judged
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    shutil.rmtree(folder / "pgd_at_0")
    shutil.copytree(folder / "pgd_at_1", folder / "pgd_at_0")
    unloaded()
    said = f"pgd_at_0 was judged from another checkpoint; give another --out, or remove {out}/runs/pgd_at_0.json"
    with pytest.raises(UserError, match=said):
        compare_methods.main(command)
    assert before == {path: path.read_bytes() for path in out.rglob("*.*")}
    changed(out / "runs/pgd_at_0.json", checkpoint=None)
    compare_methods.main(command)  # as earlier versions wrote it


def test_runs_of_different_data_are_not_put_into_one_table(judged, unloaded):
    folder, out, command = judged
    assert json.loads((out / "runs/pgd_at_0.json").read_text())["data"] == "Digits"
    checkpoint = folder / "pgd_at_1/checkpoints/best.ckpt"
    kept = torch.load(checkpoint, weights_only=False)
    kept[CONFIG_KEY]["data"]["name"] = "Others"
    torch.save(kept, checkpoint)
    (out / "runs/pgd_at_1.json").unlink()
    unloaded()
    with pytest.raises(UserError, match="pgd_at_0 is about Digits and pgd_at_1 about Others, which no table can hold"):
        compare_methods.main(command)
    shutil.rmtree(folder / "pgd_at_1")
    changed(out / "runs/standard_0.json", images=5, data=None)
    with pytest.raises(UserError, match="pgd_at_0 is about 4 test images and standard_0 about 5 test images"):
        compare_methods.main(command)
    changed(out / "runs/standard_0.json", images=4)
    compare_methods.main(command)  # as earlier versions wrote it


def test_a_run_of_another_number_of_images_is_not_kept(judged):
    """Without the names of their data, only judging shows how many images they have."""
    _, out, command = judged
    (out / "runs/pgd_at_1.json").unlink()
    for name in ("pgd_at_0", "standard_0"):
        changed(out / f"runs/{name}.json", images=5, data=None)
    with pytest.raises(UserError, match="pgd_at_0 is about 5 test images and pgd_at_1 about 4 test images"):
        compare_methods.main(command)
    assert not (out / "runs/pgd_at_1.json").exists()


def test_other_images_of_the_same_name_and_number_are_noticed_before_they_are_attacked(judged, monkeypatch):
    _, out, command = judged
    results = {file.stem: json.loads(file.read_text()) for file in out.glob("runs/*.json")}
    assert len({result["test_images"] for result in results.values()}) == 1
    (out / "runs/pgd_at_1.json").unlink()
    for name in ("pgd_at_0", "standard_0"):
        changed(out / f"runs/{name}.json", test_images="0" * 64)
    monkeypatch.setattr(compare_methods, "attacked_curve", None)
    with pytest.raises(UserError, match="pgd_at_0 is about test images of digest 000000000000 and pgd_at_1"):
        compare_methods.main(command)
    assert not (out / "runs/pgd_at_1.json").exists()


def test_an_interrupted_command_goes_on_from_what_is_finished(runs, tmp_path, monkeypatch):
    """Ctrl-C during AutoAttack, and once more during the effort: every part that had ended is on the disk."""
    monkeypatch.setattr(ending, "advice", "nothing was begun")
    command = [str(runs), "--out", str(tmp_path), "--deltas", "0.02,0.05", "--limit", "4", "--certificate", "ibp"]
    command += ["--autoattack", "pgd_at", "--effort", "pgd_at"]

    def interrupted(*arguments):
        raise KeyboardInterrupt

    def never(*arguments):
        raise AssertionError("done again")

    file, parts = tmp_path / "runs/pgd_at_0.json", {"certified"}
    for part, finished in (("check", "certified"), ("effort", "check")):
        with monkeypatch.context() as patch:
            patch.setattr(compare_methods, part, interrupted)
            if part == "effort":
                patch.setattr(compare_methods, "judge_run", never)
                patch.setattr(compare_methods, "certify", never)
            with pytest.raises(KeyboardInterrupt):
                compare_methods.main(command)
        parts.add(finished)
        assert {"certified", "check", "effort"} & json.loads(file.read_text()).keys() == parts
        assert ending.advice == "what is finished is kept, and the same command goes on from it"
    compare_methods.main(command)
    assert {"certified", "check", "effort"} <= json.loads(file.read_text()).keys()


def test_a_run_without_a_seed_in_its_name_says_so(runs, tmp_path):
    (tmp_path / "best").symlink_to(runs / "pgd_at_0")
    with pytest.raises(UserError, match=r"best is not named <method>_<seed>"):
        compare_methods.main([str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_table_of_tightness_has_what_was_measured(capsys, monkeypatch):
    asked = []

    def measured(*arguments):
        asked.append(arguments)
        row = certificate_tightness.Tightness("crown", 0.25, 0.5, 0.875, 0, 7)
        return [row], certificate_tightness.LeftOut(1, 2, 3)

    monkeypatch.setattr(certificate_tightness, "tightness", measured)
    monkeypatch.setattr("sys.argv", ["certificate_tightness", "--networks", "5", "--images", "2", "--seed", "4"])
    certificate_tightness.main()
    assert asked == [(5, 2, 4)]
    printed = capsys.readouterr().out
    assert "7 images of 5 random networks" in printed
    assert [value for value in ("0.250", "0.500", "0.875") if value not in printed] == []


def test_a_workspace_is_sent_or_refused_in_a_sentence(capsys, monkeypatch):
    class Refused:
        url = "https://example.com/me/robust"

        def save(self):
            if not self.taken:
                raise wandb_workspace.wandb.Error("no such\nteam")

    monkeypatch.setattr(wandb_workspace, "workspace", lambda entity, project: Refused())
    monkeypatch.setattr("sys.argv", ["wandb_workspace", "--entity", "me", "--project", "robust"])
    Refused.taken = False
    with pytest.raises(UserError, match=r"not take the workspace for me/robust \(no such team\); run wandb login"):
        wandb_workspace.main()
    Refused.taken = True
    wandb_workspace.main()
    assert Refused.url in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["wandb_workspace"])
    with pytest.raises(UserError, match="--entity is missing"):
        wandb_workspace.main()


def test_radii_are_written_as_they_were_typed(checkpoint, capsys):
    few = ["--images", "8", "--repeats", "1", "--steps", "1"]
    attack_cost.main([str(checkpoint), *few, "--delta", "4/255"])
    assert "radius 4/255," in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("attack", None, "does not say for which p and norm and delta it was trained; give them"),
        ("attack", ["x"], "does not say for which p and norm and delta it was trained; give them"),
        ("attack", "x", "does not say for which p and norm and delta it was trained; give them"),
        ("attack", {"p": 2, "norm": "inf"}, "does not say for which delta it was trained; give them"),
        ("data", {"delta": ["0.1"]}, "choose the model and data it was trained with"),
    ],
)
def test_a_checkpoint_whose_radii_are_none_is_refused_in_a_sentence(checkpoint, part, value, said, tmp_path):
    kept = torch.load(checkpoint, weights_only=False)
    config = kept[CONFIG_KEY]
    config[part] = config[part] | value if part == "data" else value
    torch.save(kept, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=said):
        attack_cost.main([str(tmp_path / "best.ckpt"), "--images", "8", "--repeats", "1", "--steps", "1"])
