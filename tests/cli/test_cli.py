"""`python train.py`, as a user types it. A process costs seconds, so each one is asked several questions."""

import csv
import json

import pytest
import torch
from shell import run, wandb_history

pytestmark = pytest.mark.slow

QUICK = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu", "data.eval_batch_size=64"]
QUICK += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
LIGHT = ["logger=csv", "callbacks.progress=null", "callbacks.images=null", "model.width=4"]


def train(folder, *arguments):
    """Run train.py in a folder of its own."""
    return run("train.py", *arguments, cwd=folder)


def metrics(folder):
    report = json.loads((folder / "metrics.json").read_text())
    return {part: report[part] for part in ("val", "test")}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """One sweep with the default logger: three jobs that work and one that does not."""
    folder = tmp_path_factory.mktemp("sweep")
    done = train(
        folder,
        "-m",
        "attack.p=1.5,2,0.5,inf",
        *QUICK,
        "model.width=4",
        "callbacks.images.every_n_epochs=1",
        "hydra.sweep.dir=out",
    )
    return done, folder / "out"


def test_sweep_survives_a_failed_job(sweep):
    done, out = sweep
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: attack.p=0.5 is not a Wasserstein order; choose p in [1, inf]" in done.stderr
    assert done.stderr.strip().endswith("error: 1 of 4 jobs failed: 2")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]


def test_sweep_table(sweep):
    done, out = sweep
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["overrides"].split()[0] for row in rows] == [f"attack.p={p}" for p in ("1.5", "2", "0.5", "inf")]
    for row in rows:
        failed = row["job"] == "2"
        assert bool(row["error"]) == failed
        if not failed:
            values = metrics(out / row["job"])
            for part in ("val", "test"):
                for key in ("clean_acc", "adv_acc", "ratio", "ratio_upper", "ratio_lower"):
                    assert float(row[f"{part}/{key}"]) == values[part][key]
    table = done.stdout[done.stdout.index("sweep of 4 jobs, all with trainer.max_epochs=1") :]
    for row in rows:
        line = next(line for line in table.splitlines() if row["overrides"].split()[0] in line)
        assert (f"{float(row['test/adv_acc'] or 0):.4f}" in line) == (not row["error"])


def test_each_job_leaves_its_folder(sweep):
    _, out = sweep
    for job in ("0", "1", "3"):
        for name in ("best.ckpt", "last.ckpt"):
            torch.load(out / job / "checkpoints" / name, weights_only=True)
        assert "val/adv_acc" in (out / job / "csv" / "metrics.csv").read_text()
        assert list((out / job / "images").glob("*.png"))


def test_each_job_closes_its_own_wandb_run(sweep):
    done, out = sweep
    assert "wandb:" not in done.stdout + done.stderr
    runs = [path for job in ("0", "1", "2", "3") for path in (out / job).glob("wandb/offline-run-*/*.wandb")]
    assert [path.parents[2].name for path in runs] == ["0", "1", "3"]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("dashboard   wandb sync "))
    assert sorted(out.parent.glob(line.removeprefix("dashboard   wandb sync "))) == [path.parent for path in runs]
    for path, p in zip(runs, ("1.5", "2", "inf"), strict=True):
        text = wandb_history(path)
        for key in ("val/adv_acc", "test/adv_acc", "adversarial_images", "max_epochs"):
            assert key in text
        assert f"digits_small_cnn_adversarial_W{p}" in text


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Seeds 0, 0 and 1 in one sweep; also as another process, alone."""
    folder = tmp_path_factory.mktemp("seeds")
    done = train(folder, "-m", "seed=0,1", "+again=1,2", *QUICK, *LIGHT, "hydra.sweep.dir=out")
    assert done.returncode == 0, done.stderr
    return [metrics(folder / "out" / str(job)) for job in range(4)]


def test_seeds(seeds):
    assert seeds[0] == seeds[1]
    assert seeds[2] == seeds[3]
    assert seeds[0]["val"]["v_q"] != seeds[2]["val"]["v_q"]


def test_single_run_repeats_the_sweep(seeds, tmp_path):
    """A job depends neither on the jobs before it nor on the process. The last words say where everything is."""
    done = train(tmp_path, "seed=0", *QUICK, *LIGHT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (run,) = tmp_path.glob("runs/2*/*")
    assert (tmp_path / "runs/latest").resolve() == run
    assert metrics(run) == seeds[0]
    assert f"checkpoint  {run}/checkpoints/best.ckpt" in done.stdout
    assert f"run folder  {run}" in done.stdout


def test_objectives_without_attack(tmp_path):
    """The adversary judges what `objective=standard` trains; without it only clean accuracy is left."""
    common = [*QUICK, *LIGHT, "hydra.sweep.dir=out"]
    done = train(tmp_path, "-m", "objective=standard", "callbacks=default,no_adversary", *common)
    assert done.returncode == 0, done.stderr
    judged, clean = (metrics(tmp_path / "out" / job) for job in "01")
    assert set(clean["test"]) == {"clean_acc", "loss"}
    assert judged["test"]["clean_acc"] == clean["test"]["clean_acc"]
    assert judged["test"]["adv_acc"] <= judged["test"]["clean_acc"]
    with (tmp_path / "out" / "0" / "csv" / "metrics.csv").open() as file:
        keys = next(csv.reader(file))
    assert "train/clean_acc" in keys
    assert not {"train/adv_acc", "train/upsilon"} & set(keys)


def test_bad_input_is_one_sentence(tmp_path):
    done = train(tmp_path, "data=mnist", "data.root=nowhere", "logger=none")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: MNIST is missing or damaged under {tmp_path / 'nowhere'}; run once with")
    assert done.stderr.count("\n") == 1


def test_unknown_model(tmp_path):
    done = train(tmp_path, "model=nosuch")
    assert done.returncode == 1
    assert "model=nosuch is not an option" in done.stderr
    assert "small_cnn" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 12


def test_checkpoints_that_do_not_fit(tmp_path):
    """A missing file, a foreign one, one of another model, and a good one from which training goes on."""
    first = train(tmp_path, *QUICK, *LIGHT, "test=false", "hydra.run.dir=first")
    assert first.returncode == 0, first.stderr
    good = tmp_path / "first" / "checkpoints" / "last.ckpt"
    torch.save({"weights": torch.ones(2)}, tmp_path / "foreign.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    done = train(
        tmp_path,
        "-m",
        "ckpt_path=missing.ckpt,foreign.ckpt,text.ckpt," + str(good),
        "model.width=4,8",
        *LIGHT[:-1],
        *[item for item in QUICK if "max_epochs" not in item],
        "trainer.max_epochs=2",
        "hydra.sweep.dir=out",
    )
    with (tmp_path / "out" / "sweep.csv").open() as file:
        errors = [row["error"] for row in csv.DictReader(file)]
    expected = ["there is no checkpoint at missing.ckpt"] * 2
    expected += ["foreign.ckpt was not written by wdro_train"] * 2
    expected += ["text.ckpt cannot be read as a checkpoint"] * 2
    expected += ["", f"{good} holds another network"]
    assert [e.removeprefix("error: ").startswith(x) for e, x in zip(errors, expected, strict=True)] == [True] * 8
    assert done.returncode == 1
    assert json.loads((tmp_path / "out" / "6" / "metrics.json").read_text())["epochs"] == 2
