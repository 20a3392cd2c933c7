"""The W&B workspace shows what training logs, and runs carry images and reports."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import run

from wdro_train.training.callbacks.images import COLUMNS

pytestmark = pytest.mark.slow

QUICK = ["trainer.max_epochs=1", "attack.steps=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
QUICK += ["callbacks.progress=null", "model.width=8", "trainer.log_every_n_steps=1", "logger=wandb"]
QUICK += ["trainer.limit_test_batches=1"]


def records(folder):
    """What the W&B client itself reads in the offline run under a folder."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    found = subprocess.run(inspect, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


def items(folder, kind, key):
    """All values of one kind of record, joined; later ones win."""
    joined = {}
    for record in records(folder):
        if record["type"] == kind:
            joined |= record[kind][key]
    return joined


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two short runs with W&B, judged by W-PGD and by the exact worst case."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(folder))  # where artifacts wait for their upload
        for callbacks in ("default", "worst_case"):
            images = ["callbacks.images.every_n_epochs=1", "callbacks.images.number=3"]
            where = [f"callbacks={callbacks}", f"hydra.run.dir={callbacks}", "callbacks.adversary.certificate=ibp"]
            done = run("train.py", *QUICK, *where, *images, cwd=folder)
            assert done.returncode == 0, done.stderr
        yield folder


def dashboard(*arguments, cwd, **environment):
    return run("-m", "wdro_train.tools.wandb_workspace", *arguments, cwd=cwd, env=environment)


def test_workspace_shows_what_training_logs(trained, tmp_path):
    pytest.importorskip("wandb_workspaces")
    done = dashboard("--entity", "me", "--project", "robust", "--json", "workspace.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "workspace.json").read_text())
    assert (made["entity"], made["project"]) == ("me", "robust")
    sections = made["spec"]["section"]["panelBankConfig"]["sections"]
    names = ["training", "accuracy", "ratios and bounds", "first order", "test", "images", "sweeps"]
    assert [section["name"] for section in sections] == names
    logged, config, summary = {}, {}, {}
    for name in ("default", "worst_case"):
        logged |= items(trained / name, "history", "item")
        config |= items(trained / name, "config", "update")
        summary |= items(trained / name, "summary", "update")
    plots = [panel for section in sections for panel in section["panels"]]
    shown = {key for plot in plots for key in plot["config"].get("metrics", ())}
    assert shown >= {f"val/{key}" for key in ("clean_acc", "adv_acc", "worst_acc", "ratio", "upsilon", "spent")}
    assert shown >= {"val/certified_acc", "val/certified_ratio"}
    assert shown >= {"train/loss_step", "train/learning_rate", "test/worst_acc"}
    assert shown - {"train/clean_acc"} <= set(logged)  # which objectives without attacked images log
    for plot in (plot["config"] for plot in plots if "xAxis" in plot["config"]):
        assert plot["xAxis"] == ("trainer/global_step" if plot["metrics"] == ["train/loss_step"] else "epoch")
    media = {key for plot in plots for key in plot["config"].get("mediaKeys", ())}
    assert {key.partition(".")[0] for key in logged} >= media == {"adversarial_images", "adversarial_examples"}
    accessors = {column["accessor"] for plot in plots for column in plot["config"].get("columns", ())}
    assert len(accessors) == 7
    for accessor in accessors:
        place, _, path = accessor.partition(":")
        if place == "config":
            found = config
            for key in path.replace(".value", "", 1).split("."):
                found = found[key]
        else:
            assert summary[path] == logged[path]


def test_summary_is_the_best_epoch(tmp_path):
    """All of its values, and not the best of each; the loss of a step has an axis of its own."""
    more = ["trainer.max_epochs=4", "trainer.limit_val_batches=2", "callbacks.images=null", "hydra.run.dir=out"]
    done = run("train.py", *QUICK, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    summary = items(tmp_path / "out", "summary", "update")
    assert summary["best_epoch"] == content["epoch"]
    for key, value in content["val"].items():
        assert summary[f"val/{key}"] == pytest.approx(value), key
    for key, value in content["test"].items():
        assert summary[f"test/{key}"] == pytest.approx(value), key
    assert summary["train/learning_rate"] < 1e-3  # the schedule has gone down from Adam's
    axes = {}
    for record in records(tmp_path / "out"):
        if record["type"] == "metric":
            axes[record["metric"].get("name") or record["metric"].get("glob_name")] = record["metric"].get(
                "step_metric"
            )
    assert axes["train/loss_step"] == "trainer/global_step"
    assert axes["val/*"] == axes["train/*"] == "epoch"


def test_tensorboard_has_the_same_keys(tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = ["logger=tensorboard", "callbacks.images.every_n_epochs=1", "hydra.run.dir=out"]
    done = run("train.py", *[item for item in QUICK if "logger" not in item], *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = event.EventAccumulator(str(tmp_path / "out/tensorboard")).Reload()
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    expected = {f"{part}/{key}" for part in ("val", "test") for key in content[part]}
    assert set(found.Tags()["scalars"]) >= expected | {"train/loss", "train/loss_step", "train/learning_rate"}
    assert found.Tags()["images"] == ["adversarial_images"]
    assert found.Scalars("val/adv_acc")[-1].value == pytest.approx(content["val"]["adv_acc"])


def test_workspace_needs_an_owner_and_an_account(tmp_path):
    pytest.importorskip("wandb_workspaces")
    done = dashboard(cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--entity is missing" in done.stderr
    nobody = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = dashboard("--entity", "me", cwd=tmp_path, **nobody)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "for me/wdro_train (No API key configured" in done.stderr


def artifact(folder, end):
    """The files of an artifact of the offline run under a folder, as they would be uploaded."""
    found = [record["artifact"] for record in records(folder) if record["type"] == "artifact"]
    (contents,) = (one["manifest"]["contents"] for one in found if one["name"].endswith(end))
    return {entry["path"]: Path(entry["local_path"]) for entry in contents}


@pytest.mark.parametrize("callbacks", ["default", "worst_case"])
def test_table_of_adversarial_images(trained, callbacks):
    files = artifact(trained / callbacks, "adversarial_examples")
    content = json.loads(files["adversarial_examples.table.json"].read_text())
    assert content["columns"] == COLUMNS
    assert len(content["data"]) == 3
    assert items(trained / callbacks, "history", "item")["adversarial_examples.nrows"] == 3
    for clean, adversarial, label, before, after, distance in content["data"]:
        pictures = (Image.open(files[image["path"]]) for image in (clean, adversarial))
        x, x_adv = (np.asarray(picture, dtype=float) / 255 for picture in pictures)
        assert x.shape == x_adv.shape == (8, 8)
        assert abs(x_adv - x).max() == pytest.approx(distance, abs=1.01 / 255)
        assert {label, before, after} <= set(range(10))
    if callbacks == "default":
        assert max(row[-1] for row in content["data"]) > 0


def test_evaluation_leaves_report_and_curves(trained):
    options = ["ckpt_path=default/checkpoints/best.ckpt", "limit=20", "poster=null", "distances.steps=3", "pictures=0"]
    done = run("evaluate.py", *options, "logger=wandb", "hydra.run.dir=judged", cwd=trained)
    assert done.returncode == 0, done.stderr
    folder = trained / "judged"
    curves = json.loads((folder / "report.json").read_text())["models"][0]["curves"]
    content = json.loads(artifact(folder, "robustness_curves_table")["robustness_curves_table.table.json"].read_text())
    drawn = {}
    for delta, name, accuracy in content["data"]:
        drawn.setdefault(name, []).append((delta, accuracy))
    assert set(drawn) == {"W_1", "W_1.5", "W_2", "W_inf"}
    for curve in curves:
        assert drawn[f"W_{float(curve['p']):g}"] == list(zip(curve["deltas"], curve["accuracy"], strict=True))
    assert set(artifact(folder, "report")) == {"report.json", "report.html"}
