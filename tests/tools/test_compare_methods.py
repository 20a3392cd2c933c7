"""The study's table comes from its runs; a step's cost is counted."""

import csv
import errno
import json
import math
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from shell import ROOT, run

from wdro_train.attacks import MinimalDistance
from wdro_train.certificates import LinearRelaxation
from wdro_train.evaluation.networks import load_arrays, load_network
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import compare_methods, step_cost
from wdro_train.tools.method_tables import figures, images_note
from wdro_train.tools.study_files import read_judged
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import write_csv, write_json, write_text

STUDIES = ROOT / "docs/results"
UNREAD = {
    "command",
    "trained_for",
    "epochs",
    "limit",
    "delta",
    "minimal_distance",
    "usual",
    "attacked",
    "attacked_curves",
}
"""What neither the table nor the figures hold."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The study's own command on digits, two methods, two seeds, two at a time."""
    folder = tmp_path_factory.mktemp("study")
    few = ["trainer.max_epochs=2", "trainer.limit_train_batches=15", "data=digits", "model.width=8"]
    few += ["trainer.limit_val_batches=1", "data.eval_batch_size=64", "test=false"]
    what = ["seed=0,1", "method=pgd_at,worst_case", "hydra.sweep.dir=runs"]
    done = run("train.py", "study=fashion_linf", *few, *what, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.mark.parametrize("study", sorted(path.parent.name for path in STUDIES.glob("*/clean_against_w2.png")))
@pytest.mark.parametrize(
    ("copies", "name"),
    [
        (1, lambda method, _: method),
        (3, lambda method, k: f"{method}-{k}"),
        (2, lambda method, k: f"{method}-limit{k}-from-the-best-epoch-of-another-run-with-a-long-name"),
    ],
    ids=["as_it_is", "many", "long"],
)
def test_nothing_sticks_out_of_the_figures(study, copies, name, tmp_path, monkeypatch):
    """Labels and legends of the figures of every study of the documents, with its own methods, lie inside of them."""
    results = [json.loads(path.read_text("utf-8")) for path in (STUDIES / study / "runs").glob("*.json")]
    results = [result | {"method": name(result["method"], k)} for result in results for k in range(copies)]
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: seen.append(figure))
    figures(
        results, [float(radius) for radius in results[0]["accuracies"]["2"]], tmp_path, {r["method"] for r in results}
    )
    assert len(seen) == 2
    for figure in seen:
        FigureCanvasAgg(figure).draw()  # and with it the layout
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.02


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ("digits_resnet18", "the table is on 360 test images"),
        (
            "fashion_linf",
            "the table is on 10000 test images, AutoAttack on the first 500, more effort on the first 2000",
        ),
    ],
)
def test_the_table_says_on_how_many_images_it_is(study, said):
    results = [json.loads(path.read_text("utf-8")) for path in (STUDIES / study / "runs").glob("*.json")]
    assert images_note(results) == said


def test_methods_checked_on_other_images_are_named():
    results = [{"method": name, "images": 50, "check": {"images": n}} for name, n in (("a", 5), ("b", 6), ("a", 5))]
    assert images_note(results) == "the table is on 50 test images, AutoAttack on the first 5 (a) and 6 (b)"


@pytest.mark.slow
def test_table_is_made_of_the_runs(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = [str(runs), "--out", str(tmp_path), "--deltas", "0.02,0.05", "--limit", "60"]
    compare_methods.main(command)
    rows = {row["training"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert set(rows) == {"pgd_at", "worst_case"}
    for method, row in rows.items():
        worst, clean = [], []
        for seed in (0, 1):
            network = load_network(runs / f"{method}_{seed}/checkpoints/best.ckpt")
            arrays = load_arrays(network.config, "test", 60)
            x = arrays.batch(torch.arange(60))
            curve = RobustnessCurve(MinimalDistance(norm=math.inf)(network.model, x, arrays.labels).distances)
            worst.append(100 * curve.accuracy(0.05, 2))
            clean.append(100 * curve.clean_accuracy)
        assert row["seeds"] == "2"
        for key, values in (("W_2 0.05", worst), ("clean", clean)):
            mean, spread = (float(part) for part in row[key].split(" ± "))
            assert mean == pytest.approx(np.mean(values), abs=0.3)
            assert spread == pytest.approx(np.std(values, ddof=1), abs=0.3)
    assert float(rows["pgd_at"]["passes"]) == 9
    made = {"runs", "table.csv", "table.md", "curves.png", "clean_against_w2.png"}
    assert {path.name for path in tmp_path.iterdir()} == made
    title, _, *text, _, header, rule = (page := (tmp_path / "table.md").read_text().splitlines())[: -len(rows)]
    lines = page[-len(rows) :]
    assert title == "# Full table"
    assert "upper bounds" in " ".join(text)
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(rows["pgd_at"])
    assert set(rule) == set("|-")
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells == list(rows[cells[0]].values())
    record = json.loads((tmp_path / "runs/worst_case_1.json").read_text())
    assert record["seed"] == 1
    assert "study=fashion_linf" in record["command"]
    assert record["curves"]["2"][0] == pytest.approx(record["clean"], abs=1e-6)
    printed = capsys.readouterr().out
    assert all(value in printed for row in rows.values() for value in row.values())


@pytest.mark.slow
def test_certified_columns_are_made_of_radii(runs, tmp_path, capsys):
    command = [str(runs), "--out", str(tmp_path), "--deltas", "0.02,0.05", "--limit", "30"]
    compare_methods.main([*command, "--certificate", "ibp,worst_case=crown", "--certificate-images", "20"])
    rows = {row["training"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    for method, name in (("pgd_at", "ibp"), ("worst_case", "crown")):
        values = {p: [] for p in ("1", "2", "inf")}
        for seed in (0, 1):
            network = load_network(runs / f"{method}_{seed}/checkpoints/best.ckpt")
            arrays = load_arrays(network.config, "test", 20)
            x = arrays.batch(torch.arange(20))
            radii = LinearRelaxation(norm=math.inf, method=name)(network.model, x, arrays.labels).radii
            part = json.loads((tmp_path / f"runs/{method}_{seed}.json").read_text())["certified"]
            assert (part["method"], part["images"]) == (name, 20)
            for p in values:
                values[p].append(RobustnessCurve(radii).accuracy(0.05, float(p)))
                assert part["accuracies"][p]["0.05"] == pytest.approx(values[p][-1], abs=1e-6)
                assert np.all(np.array(part["curves"][p]) <= np.array(part["attacked_curves"][p]) + 1e-6)
        for p, found in values.items():
            assert float(rows[method][f"certified W_{p} 0.05"].split(" ± ")[0]) == pytest.approx(
                100 * np.mean(found) - 0.05, abs=0.06
            )
    said = "lower bounds, rounded down, by ibp on 20 images (pgd_at); crown on 20 images (worst_case)"
    assert said in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="pgd_at_0 was certified by ibp on 20 images; give --certificate pgd_at=ibp"):
        compare_methods.main([*command, "--certificate", "pgd_at=crown", "--certificate-images", "20"])


@pytest.mark.slow
def test_what_was_judged_is_not_judged_again(runs, tmp_path, monkeypatch):
    command = [str(runs), "--out", str(tmp_path), "--deltas", "0.02,0.05", "--limit", "20", "--certificate", "ibp"]
    compare_methods.main(command)
    before = (tmp_path / "table.csv").read_text()

    def never(*arguments):
        raise AssertionError("judged again")

    for name in ("judge_run", "attacked_curve", "certify", "refuse_uncovered"):
        monkeypatch.setattr(compare_methods, name, never)
    monkeypatch.setattr(compare_methods, "chosen_network", never)
    compare_methods.main(command)
    assert (tmp_path / "table.csv").read_text() == before


@pytest.mark.slow
def test_autoattack_joins_the_table(runs, tmp_path):
    (tmp_path / "of_one_seed").mkdir()
    for name in ("pgd_at_0", "worst_case_0"):
        (tmp_path / "of_one_seed" / name).symlink_to(runs / name)
    command = [str(tmp_path / "of_one_seed"), "--out", str(tmp_path), "--deltas", "0.02,0.05", "--limit", "20"]
    compare_methods.main([*command, "--autoattack", "worst_case", "--autoattack-images", "20"])
    found = json.loads((tmp_path / "runs/worst_case_0.json").read_text())["check"]
    assert found["images"] == 20
    assert 0 <= found["minimal_distance"] <= found["clean"]
    assert abs(found["autoattack"] - found["minimal_distance"]) <= 0.1
    rows = {row["training"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert rows["pgd_at"]["AutoAttack 0.05"] == ""
    assert rows["worst_case"]["AutoAttack 0.05"]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--autoattack", "--effort", "--curves"])
def test_an_unknown_method_is_named_before_anything_is_judged(runs, tmp_path, option):
    with pytest.raises(UserError, match=f"{option}: no run of pgd_et; choose from pgd_at, worst_case"):
        compare_methods.main([str(runs), "--out", str(tmp_path / "out"), option, "pgd_at,pgd_et"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_questions_need_another_folder(runs, tmp_path):
    command = [str(runs), "--out", str(tmp_path), "--deltas", "0.02,0.05", "--limit", "20"]
    compare_methods.main([*command, "--effort", "pgd_at", "--effort-images", "10"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for options, message in (
        (["--norm", "2"], r"pgd_at_0.json was judged with --norm inf --deltas 0.02,0.05 --limit 20; give the same"),
        (["--deltas", "0.05,0.1"], "--deltas 0.02,0.05"),
        (["--limit", "15"], "--limit 20"),
        (["--effort", "pgd_at"], "pgd_at_0 has its effort on 10 images; give --effort-images 10"),
    ):
        with pytest.raises(UserError, match=message):
            compare_methods.main([*command, *options])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


@pytest.mark.slow
def test_a_run_without_a_seed_in_its_name_says_so(runs, tmp_path):
    (tmp_path / "best").symlink_to(runs / "pgd_at_0")
    with pytest.raises(UserError, match=r"best is not named <method>_<seed>"):
        compare_methods.main([str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "write", [write_text, write_json, lambda path, _, **options: write_csv(path, [{"a": 1}], **options)]
)
def test_a_full_disk_names_the_option(write, tmp_path, monkeypatch):
    """Results go where `--out` says, and no key `run_dir` would move them."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*--out"):
        write(tmp_path / "table.csv", "text", setting="--out")
    assert [*tmp_path.iterdir()] == []


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        compare_methods.main([str(tmp_path), "--out", str(tmp_path / "out")])


def finished_run(folder):
    """A folder that looks like a finished run, until its checkpoint is read."""
    (folder / "pgd_at_0/checkpoints").mkdir(parents=True)
    (folder / "pgd_at_0/checkpoints/best.ckpt").write_text("")
    (folder / "pgd_at_0/metrics.json").write_text('{"command": "", "threat": {}, "epochs": 1}')
    return folder


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"x": 1}', "", "null", "\x00", '{"command": 1, "threat": {}, "epochs": 1}']
)
def test_damaged_files_are_named_before_any_work(text, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_methods, "chosen_network", None)
    command = [str(finished_run(tmp_path / "study")), "--out", str(tmp_path / "out")]
    file = tmp_path / "out/runs/pgd_at_0.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(UserError, match=f"{file} is not what this command writes; remove it to judge its run again"):
        compare_methods.main(command)
    file.unlink()
    file = tmp_path / "study/pgd_at_0/metrics.json"
    file.write_text(text)
    with pytest.raises(UserError, match=f"{file} is not what train.py writes; train this run again, or remove"):
        compare_methods.main(command)


def test_parts_of_results_that_are_missing_are_noticed(tmp_path):
    """Whatever is taken out of a result with a certificate, or with both checks, it is refused and breaks nothing."""
    for source in ("fashion_linf_certified/runs/ibp_0.json", "fashion_linf/runs/pgd_at_0.json"):
        whole, file = json.loads((STUDIES / source).read_text()), tmp_path / Path(source).name
        for part in [None, *({"certified", "effort", "check"} & whole.keys())]:
            for key in (whole if part is None else whole[part]).keys() - UNREAD - ({"clean"} if part else set()):
                content = json.loads(json.dumps(whole))
                (content if part is None else content[part])[key] = None
                file.write_text(json.dumps(content))
                with pytest.raises(UserError, match="is not what this command writes"):
                    read_judged(file)


def test_a_result_is_about_the_run_that_its_file_names(tmp_path):
    text = (STUDIES / "fashion_linf/runs/pgd_at_0.json").read_text()
    for name, fits in (("pgd_at_0", True), ("pgd_at_00", True), ("pgd_at_1", False), ("mart_0", False), ("x", False)):
        (tmp_path / f"{name}.json").write_text(text)
        with nullcontext() if fits else pytest.raises(UserError, match="is not what this command writes"):
            assert read_judged(tmp_path / f"{name}.json")["seed"] == 0


@pytest.mark.parametrize("file", sorted(STUDIES.glob("**/runs/*_0.json")), ids=lambda file: file.parts[-3])
def test_results_of_earlier_versions_are_accepted(file):
    assert read_judged(file)["method"]


def test_two_runs_of_one_method_and_seed_are_refused(tmp_path):
    """Whether both are in the folder, or one among the results."""
    folder, text = finished_run(tmp_path / "study"), (STUDIES / "fashion_linf/runs/pgd_at_0.json").read_text()
    (folder / "pgd_at_0").rename(folder / "pgd_at_00")
    (tmp_path / "out/runs").mkdir(parents=True)
    (tmp_path / "out/runs/pgd_at_0.json").write_text(text)
    said = f"pgd_at_0 and pgd_at_00 are both seed 0 of pgd_at; remove one of them from {folder} and {tmp_path}/out/runs"
    with pytest.raises(UserError, match=said):
        compare_methods.main([str(folder), "--out", str(tmp_path / "out")])
    finished_run(folder)
    with pytest.raises(UserError, match="pgd_at_0 and pgd_at_00 are both seed 0"):
        compare_methods.main([str(folder), "--out", str(tmp_path / "new")])


def test_a_bar_in_a_name_is_no_column_of_the_table(tmp_path):
    """What was judged is published although its run is gone."""
    content = json.loads((STUDIES / "fashion_linf/runs/pgd_at_0.json").read_text()) | {"method": "pgd|at"}
    (tmp_path / "out/runs").mkdir(parents=True)
    (tmp_path / "out/runs/pgd|at_0.json").write_text(json.dumps(content))
    compare_methods.main([str(tmp_path), "--out", str(tmp_path / "out")])
    header, _, row = (tmp_path / "out/table.md").read_text().splitlines()[-3:]
    assert row.startswith(r"| pgd\|at ")
    assert row.replace(r"\|", "").count("|") == header.count("|")
    assert next(csv.DictReader((tmp_path / "out/table.csv").open()))["training"] == "pgd|at"


@pytest.mark.parametrize(
    ("deltas", "said"),
    [
        ("0.1000001,0.1", "--deltas 0.1000001,0.1 has two radii that agree in six digits; give one"),
        ("0.05,0.1,0.2", "--deltas 0.05,0.1,0.2 has 3 radii; give one or two"),
        ("0.1,0.1,0.1", "--deltas 0.1,0.1,0.1 has 3 radii"),
        ("0.1", "no finished run"),
        ("0.1,0.1", "no finished run"),
        ("1/10,0.1", "no finished run"),
    ],
)
def test_radii_that_columns_cannot_tell_apart_are_refused(deltas, said, tmp_path):
    with pytest.raises(UserError, match=said):
        compare_methods.main([str(tmp_path), "--out", str(tmp_path / "out"), "--deltas", deltas])


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out=.*file/out cannot be a folder, since .*file is a file; choose another"):
        compare_methods.main([str(finished_run(tmp_path / "study")), "--out", str(tmp_path / "file/out")])
    monkeypatch.setattr(compare_methods, "refuse_mixed", lambda *_: None)  # which would read the checkpoint
    (tmp_path / "out").mkdir()
    (tmp_path / "out/runs").write_text("")
    for out in (tmp_path / "out", "/proc/out"):
        with pytest.raises(UserError, match=f"--out={out} cannot .*; choose another"):
            compare_methods.main([str(tmp_path / "study"), "--out", str(out)])


@pytest.mark.slow
def test_step_cost(runs, capsys):
    checkpoint = str(runs / "worst_case_0/checkpoints/best.ckpt")
    found = {name: pairs for name, pairs, _ in step_cost.main([checkpoint, "--steps", "4", "--repeats", "1"])}
    assert found["PGD-AT, 4 steps"] == 5
    assert found["standard"] == 1
    assert found["one step, random start"] == found["W-FGSM"] == 2
    assert found["first-order penalty"] == 1.5  # a double backward counts once
    assert found["TRADES, 4 steps"] == 6.5
    assert found["MART, 4 steps"] == 6
    assert found["SR-WDRO, 4 steps"] == 5
    assert found["W-PGD, 4 steps"] == found["Lagrangian, 4 steps"] == found["WRM, 4 steps"] == 5
    assert 1.5 < found["worst case, 4 steps"] <= 1.3 * 5
    assert "worst case, 4 steps" in capsys.readouterr().out
