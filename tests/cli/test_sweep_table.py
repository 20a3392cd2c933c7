"""Sweeps with every launcher, on one device and on two; a failed job costs no other."""

import csv
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from shell import ROOT, run, wandb_history

from wdro_train.cli import sweep_table
from wdro_train.cli.seeds import seed_groups
from wdro_train.cli.sweep_progress import SweepProgress
from wdro_train.config import latest, new_folders, sweep_job
from wdro_train.config.sweep_job import SweepJob

QUICK = ["trainer.max_epochs=1", "attack.steps=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
QUICK += ["test=false", "callbacks.images=null", "model.width=4", "hydra.sweep.dir=out"]
LAUNCHERS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}


def _end_of_a_sweep(seed, folder, begin):
    begin.wait()
    return sweep_table._write_table([{"job": f"seed{seed}", "val/clean_acc": "0.5"}], folder)


def test_sweeps_that_end_at_the_same_moment(tmp_path):
    """None replaces the table of another: each file has the jobs of the sweep that was told its name."""
    sweeps = 8
    begin = multiprocessing.Manager().Barrier(sweeps)
    with ProcessPoolExecutor(sweeps, mp_context=multiprocessing.get_context("fork")) as pool:
        files = list(pool.map(_end_of_a_sweep, range(sweeps), [tmp_path] * sweeps, [begin] * sweeps))
    assert [sweep_table._jobs_in(file) for file in files] == [{f"seed{seed}"} for seed in range(sweeps)]
    assert {path.name for path in tmp_path.iterdir()} == {file.name for file in files}


def table(folder):
    with (folder / "out/sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["method=worst_case", "experiment=fashion_mnist", "data=digits"]])
def test_debug_fast(more, tmp_path):
    """A whole run in moments, with its test, and nothing for W&B."""
    few = ["model.width=4", "data.eval_batch_size=32", "hydra.run.dir=out"]
    done = run("train.py", "debug=fast", *more, *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert report["epochs"] == 1
    assert report["test"]
    assert not (tmp_path / "out/wandb").exists()


@pytest.mark.slow
def test_debug_overfit(tmp_path):
    """Three batches are learnt by heart."""
    few = ["objective=standard", "callbacks=no_adversary", "callbacks.progress=null", "trainer.max_epochs=20"]
    few += ["optimizer.lr=0.01"]
    done = run("train.py", "debug=overfit", *few, "trainer.accelerator=cpu", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out/csv/metrics.csv").open() as file:
        learnt = [float(row["train/clean_acc"]) for row in csv.DictReader(file) if row["train/clean_acc"]]
    assert learnt[0] < 0.5
    assert learnt[-1] == 1.0
    assert "test" not in json.loads((tmp_path / "out/metrics.json").read_text())


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "pairs"), [("w_pgd_at", 4), ("awp", 5)])
def test_dry_run_counts(tmp_path, recipe, pairs):
    """One pass forward and one back for a step of the attack, for the weights, and for their perturbation."""
    few = ["attack.steps=3", "logger=none", "model.width=8", f"method={recipe}"]
    done = run("train.py", "dry_run=true", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"1,149 images an epoch, each {pairs} times forward and {pairs} times backward" in done.stdout
    assert not list(tmp_path.rglob("*.ckpt"))


def job(overrides, **numbers):
    return overrides.split(), {"a": "", "b": ""} | {key: str(value) for key, value in numbers.items()}


def test_groups_of_seeds():
    """Mean and the sample's standard deviation, by hand: 1, 2 and 6 have mean 3 and deviation sqrt(7)."""
    jobs = [job("p=2 seed=0", a=1, b=0.5), job("p=2 seed=1", a=2), job("p=inf seed=0", a=5), job("p=2 seed=2", a=6)]
    jobs += [job("p=2 seed=3"), job("p=1 seed=0")]  # both have failed
    first, second, third = seed_groups(jobs, ["a", "b"])
    assert (first.overrides, first.seeds) == (("p=2",), ("0", "1", "2"))
    assert first.mean("a") == 3
    assert first.deviation("a") == pytest.approx(7**0.5)
    assert (first.mean("b"), first.deviation("b")) == (0.5, None)
    assert (first.shown("a"), first.shown("b")) == ("3.0000 ± 2.6458", "0.5000")
    assert (second.seeds, second.deviation("a")) == (("0",), None)
    assert (third.seeds, third.shown("a")) == ((), "-")


@pytest.mark.parametrize(
    "jobs",
    [
        [job("p=2", a=1), job("p=inf", a=2)],  # no seeds
        [job("p=2 seed=0", a=1), job("p=inf seed=0", a=2)],  # one seed
        [job("p=2 seed=0", a=1), job("p=2 seed=0", a=2)],  # the same twice
    ],
)
def test_no_groups_without_seeds(jobs):
    assert seed_groups(jobs, ["a", "b"]) == []


def sweep(*overrides, **sweeper):
    return OmegaConf.create({"hydra": {"overrides": {"task": list(overrides)}, "sweeper": sweeper}})


@pytest.mark.parametrize(
    ("config", "total", "varied"),
    [
        (sweep("attack.p=1.5,2,inf", "seed=0,1", "test=false"), 6, {"attack.p", "seed"}),
        (sweep("seed=range(0,5)", "+again=1,2"), 10, {"seed", "again"}),
        (sweep("method=pgd_at", params={"seed": "0,1,2"}), 3, {"seed"}),
        (sweep("test=false", params={"optimizer.lr": "interval(1e-3,1e-2)"}, n_trials=20), 20, {"optimizer.lr"}),
        (sweep("attack.p=2"), 1, set()),
        # What is typed stands in the place of a study's list.
        (sweep("method=pgd_at", "seed=1", params={"seed": "0,1,2", "method": "pgd_at,trades"}), 1, set()),
        (sweep("seed=3,4", params={"seed": "0,1,2", "method": "pgd_at,trades"}), 4, {"seed", "method"}),
        (sweep("method=glob(*)", "seed=0,1"), None, {"method", "seed"}),
        (sweep("optimizer.lr=interval(1e-3,1e-2)", max_trials=9), None, {"optimizer.lr"}),
    ],
)
def test_how_many_jobs_there_are(config, total, varied):
    found = SweepProgress.of(config)
    assert (found.total, set(found.varied)) == (total, varied)


def test_the_line_of_a_job():
    progress = SweepProgress.of(sweep("attack.p=2,inf", "test=false"))
    try:
        progress.begins(0, ["attack.p=2", "test=false"])
        assert sweep_job.current() == SweepJob(1, 2, "attack.p=2", alone=True, each=None)
        line = progress.ends({"val/adv_acc": "0.61111", "val/worst_acc": "", "error": ""}, skipped=False)
        assert line == "job 1/2  attack.p=2  val/adv_acc 0.6111  0 s"
        assert sweep_job.current() is None
        progress.begins(1, ["attack.p=inf", "test=false"])
        assert sweep_job.current().each == pytest.approx(0, abs=1)
        assert (
            progress.ends({"error": "error: no"}, skipped=True) == "job 2/2  attack.p=inf  error: no  finished before"
        )
    finally:
        sweep_job.forget()


def test_bounds_of_a_sweep_are_rounded_to_their_side(capsys):
    """As in the table of a run: what guarantees 0.12349 does not guarantee 0.1235, and 0.42221 is more than 0.4222."""
    key, other = "test/worst_acc", "val/certified_acc"
    progress = SweepProgress.of(sweep("seed=0,1"))
    try:
        progress.begins(0, ["seed=0"])
        line = progress.ends({key: "0.42221", other: "0.12349", "error": ""}, skipped=False)
    finally:
        sweep_job.forget()
    assert f"{other} 0.1234" in line
    assert f"{key} 0.4223" in line
    rows = [{"job": "0", "overrides": "seed=0", key: "0.42221", other: "0.12349", "error": ""}]
    shown = sweep_table.SweepTable()
    rows[0] = dict.fromkeys(shown.columns, "") | rows[0]
    shown._show(rows, [["seed=0"]], Path("sweep.csv"))
    printed = capsys.readouterr().out
    assert "0.1234" in printed
    assert "0.4223" in printed
    (group,) = seed_groups([(["seed=0"], rows[0]), (["seed=1"], rows[0])], [key, other])
    assert [group.shown(one) for one in (key, other)] == ["0.4223 ± 0.0000", "0.1234 ± 0.0000"]


def test_latest_leads_to_the_newest_folder_with_something_in_it(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "day" / name).mkdir(parents=True)
        latest.plan(tmp_path / "day" / name, tmp_path)
    assert not (tmp_path / "latest").exists()
    latest.begun(tmp_path / "day/a")
    latest.begun(tmp_path / "day/b")
    assert (tmp_path / "latest").resolve() == tmp_path / "day/b"
    assert not (tmp_path / "latest").readlink().is_absolute()  # the whole folder can be moved
    (tmp_path / "day/b").rmdir()
    latest.removed(tmp_path / "day/b")
    assert (tmp_path / "latest").resolve() == tmp_path / "day/a"
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    latest.begun(tmp_path / "day/c")  # what somebody has put there stays
    assert not (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize(
    ("folder", "root"),
    [
        ("runs/${run_folder:${now:%Y}/${now:%H}}", Path("runs")),
        ("runs/exp_${now:%H}", Path("runs")),
        ("/runs/a/${now:%Y}/b", Path("/runs/a")),
        ("${now:%Y}", Path()),
        ("${oc.env:HOME}/runs/${now:%Y}", None),  # and not beside wherever the command was typed
    ],
)
def test_latest_is_beside_the_folders_of_its_kind(folder, root):
    assert new_folders._root(OmegaConf.create({"dir": folder})) == root


@pytest.mark.slow
def test_a_sweep_says_one_line_a_job_and_can_be_resumed(tmp_path):
    """Two jobs: one has finished and is skipped, one was begun and goes on; what comes out is what one go gives."""
    again = ["train.py", "-m", "seed=0,1", "trainer.max_epochs=2", "logger=csv", *QUICK[1:]]
    done = run(*again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epoch" not in done.stdout.partition("sweep of")[0].replace("trainer.max_epochs", "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("job ")]
    assert [line[:15] for line in lines] == ["job 1/2  seed=0", "job 2/2  seed=1"]
    assert "mean ± standard deviation over seeds" in done.stdout
    with (tmp_path / "out/seeds.csv").open() as file:
        (row,) = csv.DictReader(file)
    values = [float(one["val/adv_acc"]) for one in table(tmp_path)]
    assert float(row["val/adv_acc mean"]) == pytest.approx(sum(values) / 2)
    assert float(row["val/adv_acc std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "epoch 2/2" in (tmp_path / "out/0/train.log").read_text()
    before = table(tmp_path)
    stamp = (tmp_path / "out/0/metrics.json").stat().st_mtime_ns
    state = json.loads((tmp_path / "out/1/.run/state.json").read_text())
    (tmp_path / "out/1/.run/state.json").write_text(json.dumps(state | {"state": "running"}))
    done = run(*again, "resume=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/0/metrics.json").stat().st_mtime_ns == stamp
    assert done.stdout.count("finished before") == 1
    assert "resume  at epoch 3" in (tmp_path / "out/1/train.log").read_text()
    assert table(tmp_path) == before
    done = run(*again, "resume=true", "attack.delta=0.05", cwd=tmp_path)  # neither is the same run
    assert done.returncode == 0, done.stderr
    assert "finished before" not in done.stdout


@pytest.mark.slow
def test_a_job_of_several_processes_with_other_settings_starts_anew(tmp_path):
    """The process that the sweep starts for it finds the present settings and the earlier checkpoint in its folder."""
    again = ["train.py", "-m", "trainer=ddp_sim", "seed=0", "logger=csv", *QUICK]
    assert run(*again, cwd=tmp_path).returncode == 0
    done = run(*again, "optimizer.lr=0.02", "resume=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resume  at epoch" not in (tmp_path / "out/0/train.log").read_text()
    state = tmp_path / "out/0/.run/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"state": "running"}))
    done = run(*again, "optimizer.lr=0.02", "resume=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resume  at epoch 2" in (tmp_path / "out/0/train.log").read_text()


@pytest.mark.slow
def test_resuming_needs_a_folder(tmp_path):
    for more in ((), ("-m", "seed=0,1")):
        done = run("train.py", *more, "resume=true", cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "resume=true goes on in a folder that is there; name it with hydra." in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_file_for_sweeps_of_wandb(tmp_path):
    """What an agent types, by the client's own code, is a run whose summary has the metric that the sweep looks at."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    content = yaml.safe_load((ROOT / "docs/wandb_sweep.yaml").read_text())
    ranges = {key: (one["min"], one["max"]) for key, one in content["parameters"].items()}
    suggested = {key: {"value": round((low * high) ** 0.5, 6)} for key, (low, high) in ranges.items()}
    filled = {"env": [], "interpreter": [], "program": []} | utils.create_sweep_command_args({"args": suggested})
    typed = []
    for word in content["command"]:
        typed += filled[word[2:-1]] if word.startswith("${") else [word]
    assert typed[-2:] == ["optimizer.lr=0.003", "attack.step_size=2.0"]
    typed.remove("logger.wandb.offline=false")
    done = run(content["program"], *typed, *QUICK[:4], "model.width=4", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("out/wandb/offline-run-*/*.wandb")
    updates = [json.loads(line) for line in wandb_history(file).splitlines()]
    summary = {}
    for record in updates:
        summary |= record["summary"]["update"] if record["type"] == "summary" else {}
    best = json.loads((tmp_path / "out/metrics.json").read_text())["val"]["worst_acc"]
    assert summary[content["metric"]["name"]] == pytest.approx(best)
