"""Both commands, called like functions: what they write agrees with itself, and the process is as before afterwards."""

import csv
import json
import math
import os
import signal

import jsonschema
import matplotlib.image
import pytest
import torch
from in_process import LIGHT, call, short_run
from shell import ROOT

from wdro_train.cli import processes
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.training import run as training_run

pytestmark = [pytest.mark.slow, pytest.mark.covers]

SCHEMA = ROOT / "wdro_train/evaluation/report/schema.json"
SHORT = [*LIGHT, "trainer.limit_train_batches=3", "attack.steps=3", "optimizer.lr=0.02"]
SHORT += ["trainer.limit_test_batches=1"]
SHORT.remove("callbacks.images=null")
QUICK_SWEEP = [*LIGHT, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
QUICK_SWEEP += ["logger=none", "test=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("in_process")


@pytest.fixture(scope="module")
def trained(folder):
    """Two epochs on digits, with a CSV file and pictures of every epoch."""
    return call(
        "train",
        *SHORT,
        "logger=csv",
        "callbacks.images.every_n_epochs=1",
        "trainer.max_epochs=2",
        "hydra.run.dir=first",
        cwd=folder,
    )


@pytest.fixture(scope="module")
def judged(folder, trained):
    """Its best checkpoint and a network that saw less, with first-order values, certified radii and a logger."""
    other = short_run(folder, "seed=1")
    both = f"ckpt_path=[first/checkpoints/best.ckpt,{other}]"
    quick = ["limit=60", "distances.steps=8", "poster.pgd_steps=3", "certificate.method=ibp", "logger=csv"]
    done = call("evaluate", both, *quick, "attack.delta=0.02", "hydra.run.dir=judged", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "judged/report.json").read_text())


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_training_reports_the_epoch_that_it_kept(folder, trained):
    assert trained.returncode == 0, trained.stderr
    found = json.loads((folder / "first/metrics.json").read_text())
    kept = torch.load(folder / "first/checkpoints/best.ckpt", weights_only=True)
    assert found["epoch"] == kept["epoch"]
    logged = [row for row in rows(folder / "first/csv/metrics.csv") if row["val/adv_acc"]]
    assert [row["epoch"] for row in logged] == ["0", "1"]
    assert float(logged[found["epoch"]]["val/adv_acc"]) == pytest.approx(found["val"]["adv_acc"], abs=1e-6)
    assert float(logged[found["epoch"]]["val/adv_acc"]) == max(float(row["val/adv_acc"]) for row in logged)
    assert set(found["test"]) == set(found["val"]) | {"worst_acc", "worst_ratio"}
    for name in ("epoch_000.png", "epoch_001.png"):
        assert matplotlib.image.imread(folder / "first/images" / name).ndim == 3
    assert str(folder / "first") in trained.stdout


def test_the_report_agrees_with_its_own_distances(folder, judged):
    """The accuracies are the knapsack over the distances, the certified ones that over the radii."""
    _, report = judged
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    assert len(report["models"]) == 2
    for model in report["models"]:
        attacked = RobustnessCurve([float(value) for value in model["distances"]["values"]])
        radii = RobustnessCurve([float(value) for value in model["certificate"]["radii"]])
        worst = model["worst_case"]
        assert worst["accuracy"] == pytest.approx(attacked.accuracy(0.02, 2), abs=1e-9)
        for curve in model["curves"]:
            p = float(curve["p"])
            assert curve["accuracy"] == pytest.approx([attacked.accuracy(d, p) for d in curve["deltas"]], abs=1e-9)
            assert curve["certified"] == pytest.approx([radii.accuracy(d, p) for d in curve["deltas"]], abs=1e-9)
            assert all(low <= high for low, high in zip(curve["certified"], curve["accuracy"], strict=True))
        for row in model["poster"]:
            assert worst["accuracy"] <= row["pgd_acc"] + 1e-9 or row["delta"] < worst["delta"]


def test_the_report_is_published_whole(folder, judged):
    """A page that needs no network, pictures, and the figures in the logger."""
    done, report = judged
    page = (folder / "judged/report.html").read_text()
    assert "<script src" not in page
    figures = sorted((folder / "judged/figures").glob("*.png"))
    assert {figure.stem for figure in figures} >= {"robustness_curves", "ratios", "distances"}
    for figure in figures:
        assert matplotlib.image.imread(figure).std() > 0
    (logged,) = rows(folder / "judged/csv/metrics.csv")
    for model in report["models"]:
        assert model["name"] in done.stdout
        assert model["name"] in page
        name = f"{model['name']}/worst_case/accuracy"
        assert float(logged[name]) == pytest.approx(model["worst_case"]["accuracy"], abs=1e-6)
    assert str(folder / "judged/report.json") in done.stdout or "judged/report.json" in done.stdout


def test_networks_are_compared_on_the_same_images(judged):
    _, report = judged
    (row,) = report["differences"]["rows"]
    first, second = (model["worst_case"]["accuracy"] for model in report["models"])
    assert row["attacked"] == pytest.approx(first - second, abs=1e-9)
    assert row["attacked_low"] <= row["attacked"] <= row["attacked_high"]


def test_a_run_goes_on_where_it_ended(folder, trained):
    """The third epoch comes after the two of the checkpoint, and the finished folder is not written over."""
    again = [*SHORT, "logger=csv", "callbacks.images=null", "trainer.max_epochs=3", "test=false"]
    last = "ckpt_path=first/checkpoints/last.ckpt"
    refused = call("train", *again, "hydra.run.dir=first", cwd=folder)
    assert refused.returncode == 1
    assert "first holds another run; choose another folder" in refused.stderr
    done = call("train", *again, last, "hydra.run.dir=second", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resume  at epoch 3" in done.stdout
    found = json.loads((folder / "second/metrics.json").read_text())
    assert found["epochs"] == 3
    steps = torch.load(folder / "second/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert steps == 9


def test_a_dry_run_writes_nothing(tmp_path):
    done = call("train", *SHORT, "dry_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "passes" in done.stdout
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("metrics.json"))


def test_a_dry_run_leaves_the_log_of_a_finished_run_alone(tmp_path):
    short_run(tmp_path)
    before = (tmp_path / "run/train.log").read_text()
    done = call("train", *SHORT, "dry_run=true", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data    digits")
    assert (tmp_path / "run/train.log").read_text() == before


@pytest.mark.parametrize("key", ["run_dir", "hydra.run.dir", "hydra.sweep.dir"])
def test_a_run_in_latest_stays_where_it_began(key, tmp_path, monkeypatch):
    """Another run starts meanwhile and is the newest from then on; nothing of this one may get into its folder."""
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "latest").symlink_to("mine")

    def train(cfg):
        (tmp_path / "latest").unlink()
        (tmp_path / "latest").symlink_to("other")
        return training(cfg)

    training = training_run.train
    monkeypatch.setattr(training_run, "train", train)
    many = ["-m", "seed=0,1"] if key == "hydra.sweep.dir" else []
    done = call("train", *many, *QUICK_SWEEP, f"{key}=latest", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "other").iterdir())
    jobs = ["0", "1"] if many else ["."]
    assert all((tmp_path / "mine" / job / "metrics.json").is_file() for job in jobs)


def test_a_sweep_outlives_a_failing_job(tmp_path):
    """The job that cannot be leaves its reason; the table has all jobs, and the exit code tells."""
    done = call("train", "-m", "attack.p=2,0.5", *QUICK_SWEEP, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 1
    works, fails = rows(tmp_path / "sweep/sweep.csv")
    assert fails["error"] == "error: attack.p=0.5 is not a Wasserstein order; choose p in [1, inf]"
    found = json.loads((tmp_path / "sweep/0/metrics.json").read_text())
    assert float(works["val/adv_acc"]) == pytest.approx(found["val"]["adv_acc"], abs=1e-9)
    assert "0.5 is not a Wasserstein order" in (tmp_path / "sweep/1/error.txt").read_text()
    assert "1 of 2 jobs failed: 1" in done.stderr
    assert done.stdout.startswith("job 1/2  attack.p=2")  # a line for a job that is over, and none for one that begins
    assert "[HYDRA]" not in done.stdout


def test_evaluations_sweep_too(folder, trained):
    """One checkpoint in two balls: what is left under W_1 is at most what is left under W_inf."""
    quick = ["limit=20", "distances.steps=5", "poster=null", "pictures=0", "ckpt_path=first/checkpoints/best.ckpt"]
    done = call("evaluate", "-m", "attack.p=1,inf", *quick, "hydra.sweep.dir=orders", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = [json.loads((folder / f"orders/{job}/report.json").read_text()) for job in (0, 1)]
    one, infinite = (report["models"][0]["worst_case"] for report in found)
    assert (float(one["p"]), float(infinite["p"])) == (1, math.inf)
    assert one["accuracy"] <= infinite["accuracy"]
    assert [row["overrides"].split()[0] for row in rows(folder / "orders/sweep.csv")] == ["attack.p=1", "attack.p=inf"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["atack.p=2"], "attack"),
        (["attack=w_pdg"], "w_pgd"),
        (["ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
        (["run_dir=null"], "run_dir=null is not a path"),
        (["hydra.run.dir=file/inside"], "file"),
    ],
)
def test_a_refusal_is_one_sentence(arguments, said, tmp_path):
    """It comes before anything is written."""
    (tmp_path / "file").write_text("no folder")
    done = call("train", *QUICK_SWEEP, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_nobody_foresaw_leaves_its_traceback(tmp_path, monkeypatch):
    def broken(cfg):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(training_run, "train", broken)
    done = call("train", *QUICK_SWEEP, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: ZeroDivisionError: a bug; nobody foresaw this" in done.stderr
    assert "in broken" in (tmp_path / "run/traceback.txt").read_text()
    with pytest.raises(ZeroDivisionError):
        call("train", *QUICK_SWEEP, "hydra.run.dir=other", cwd=tmp_path, env={"HYDRA_FULL_ERROR": "1"})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_in_a_sentence(number, code, tmp_path, monkeypatch):
    def struck(cfg):
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)

    monkeypatch.setattr(training_run, "train", struck)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    done = call("train", *QUICK_SWEEP, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == code
    assert "interrupted; no epoch was finished, start again with python train.py" in done.stderr
    assert before == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]


def test_a_job_on_several_devices_has_processes_of_its_own(tmp_path, monkeypatch):
    """Its command is that of a single run, and what it returned is the sweep's."""
    asked = []

    class Finished:
        stderr, returncode = ["a line of its own\n"], 0

        def __init__(self, command, *, cwd, env, **_):
            asked.append(command)
            with open(env["WDRO_TRAIN_RETURN"], "w") as file:
                file.write("0.25")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(processes.subprocess, "Popen", Finished)
    done = call("train", "-m", "trainer=ddp_sim", "seed=3", *QUICK_SWEEP[1:], "hydra.sweep.dir=out", cwd=tmp_path)
    (command,) = asked
    assert command[1:3] == ["-m", "wdro_train.cli.train"]
    assert "seed=3" in command
    assert f"hydra.run.dir='{tmp_path / 'out/0'}'" in command
    assert "a line of its own" in done.stderr


def test_help_lists_the_groups(tmp_path):
    done = call("train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "worst_case" in done.stdout
    assert "$APP_CONFIG_GROUPS" not in done.stdout
