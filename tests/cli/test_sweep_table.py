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
    assert best_value(tmp_path) == pytest.approx(max(float(row["val/adv_acc"]) for row in table(tmp_path)))


def best_value(folder):
    text = (folder / "out/optimization_results.yaml").read_text()
    return float(text.partition("best_value: ")[2])


def test_a_search_judges_every_trial_in_one_ball(tmp_path):
    """The learning rate and the attack's step differ between trials; what is maximised means the same in all."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    few = [item for item in QUICK if not item.startswith(("test", "callbacks"))] + ["hydra.sweeper.n_trials=3"]
    done = run("train.py", "hparams_search=optuna", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"out/{job}/metrics.json").read_text()) for job in range(3)]
    assert [one["threat"] for one in found] == [{"p": 2, "norm": "inf", "delta": 0.1}] * 3
    assert [one["monitor"] for one in found] == ["val/worst_acc"] * 3
    assert not any("test" in one for one in found)
    assert best_value(tmp_path) == pytest.approx(max(one["val"]["worst_acc"] for one in found))
    for key in ("optimizer.lr=", "attack.step_size="):
        typed = [next(item for item in row["overrides"].split() if item.startswith(key)) for row in table(tmp_path)]
        assert len(set(typed)) == 3


@pytest.mark.parametrize("more", [[], ["method=worst_case", "experiment=fashion_mnist", "data=digits"]])
def test_debug_fast(more, tmp_path):
    """A whole run in moments, with its test, and nothing for W&B."""
    done = run("train.py", "debug=fast", *more, "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert report["epochs"] == 1
    assert report["test"]
    assert not (tmp_path / "out/wandb").exists()


def test_debug_overfit(tmp_path):
    """Three batches are learnt by heart."""
    few = ["objective=standard", "callbacks=no_adversary", "callbacks.progress=null", "trainer.max_epochs=40"]
    done = run("train.py", "debug=overfit", *few, "trainer.accelerator=cpu", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out/csv/metrics.csv").open() as file:
        learnt = [float(row["train/clean_acc"]) for row in csv.DictReader(file) if row["train/clean_acc"]]
    assert learnt[0] < 0.5
    assert learnt[-1] == 1.0
    assert "test" not in json.loads((tmp_path / "out/metrics.json").read_text())


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("attack.stepz=3", "did you mean attack.steps?"),
        ("model=resnet8", "did you mean model=resnet18?"),
        ("+attack.steps=3", "attack.steps is there already; leave out the +"),
        ("experiment=pgd_at", "experiment=pgd_at is now method=pgd_at"),
        ("+study=fashion_linf", "+study=fashion_linf is now study=fashion_linf"),
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
    few = ["attack.steps=3", "logger=none", "model.width=8", f"method={recipe}"]
    done = run("train.py", "dry_run=true", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"1,149 images an epoch, each {pairs} times forward and {pairs} times backward" in done.stdout
    assert not list(tmp_path.rglob("*.ckpt"))
