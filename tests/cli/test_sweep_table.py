"""Sweeps with every launcher, on one device and on two; a failed job costs no other."""

import csv
import json

import pytest
from shell import run

pytestmark = pytest.mark.slow

QUICK = ["trainer.max_epochs=1", "attack.steps=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
QUICK += ["test=false", "callbacks.progress=null", "callbacks.images=null", "model.width=8", "hydra.sweep.dir=out"]
LAUNCHERS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}


def table(folder):
    with (folder / "out/sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_devices(tmp_path):
    """Every job leaves its own folder and nothing else, and the one that fails says why."""
    done = run("train.py", "-m", "trainer=ddp_sim", "attack.p=2,0.5", "seed=0", "logger=csv", *QUICK, cwd=tmp_path)
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["0", "1"]
    good, bad = table(tmp_path)
    assert float(good["val/adv_acc"]) == json.loads((tmp_path / "out/0/metrics.json").read_text())["val"]["adv_acc"]
    assert bad["error"].startswith("error: attack.p=0.5 is not a Wasserstein order")
    assert (tmp_path / "out/1/error.txt").read_text().strip() == bad["error"]
    assert not list((tmp_path / "out").glob("*/.returned.json"))


def test_a_failed_job_has_no_result_of_an_earlier_one(tmp_path):
    again = ["train.py", "-m", "seed=0", "logger=csv", "hydra.sweep.subdir=same", *QUICK]
    done = run(*again, "attack.p=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run(*again, "attack.p=0.5", cwd=tmp_path).returncode == 1
    (row,) = table(tmp_path)
    assert row["val/adv_acc"] == ""
    assert row["error"].startswith("error: attack.p=0.5")
    done = run(*again, "attack.p=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not table(tmp_path)[0]["error"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launcher(launcher, tmp_path):
    pytest.importorskip(LAUNCHERS[launcher])
    done = run(
        "train.py", "-m", f"hydra/launcher={launcher}", "attack.p=2,0.5", "logger=csv", *QUICK, cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 1
    good, bad = table(tmp_path)
    assert 0 <= float(good["val/adv_acc"]) <= 1
    assert "is not a Wasserstein order" in bad["error"]
    assert "sweep of 2 jobs" in done.stdout


def test_optuna_looks_for_the_highest(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "attack.p=choice(2,inf)", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    search += ["hydra/sweeper/sampler=grid"]
    done = run("train.py", "-m", *search, "logger=csv", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = (tmp_path / "out/optimization_results.yaml").read_text()
    highest = max(float(row["val/adv_acc"]) for row in table(tmp_path))
    assert float(best.partition("best_value: ")[2]) == pytest.approx(highest)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("attack.stepz=3", "did you mean attack.steps?"),
        ("model=resnet8", "did you mean model=resnet18?"),
        ("+attack.steps=3", "attack.steps is there already; leave out the +"),
    ],
)
def test_suggestions(argument, said, tmp_path):
    done = run("train.py", argument, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("recipe", "pairs"), [("w_pgd_at", 4), ("awp", 5)])
def test_dry_run_counts(tmp_path, recipe, pairs):
    """One pass forward and one back for a step of the attack, for the weights, and for their perturbation."""
    few = ["attack.steps=3", "logger=none", "model.width=8", f"experiment={recipe}"]
    done = run("train.py", "dry_run=true", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"1,149 images an epoch, each {pairs} times forward and {pairs} times backward" in done.stdout
    assert not list(tmp_path.rglob("*.ckpt"))
