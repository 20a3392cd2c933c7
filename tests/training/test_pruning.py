"""Trials that are behind are stopped, by Optuna's own pruner, and by nothing else."""

import json
import warnings

import pytest
from shell import adversary, classifier, fitted, loader, run, trainer

from wdro_train.attacks import WPGD
from wdro_train.training.callbacks import TrialPruning
from wdro_train.training.callbacks.pruning import CURVE_FILE
from wdro_train.utils.errors import UserError

optuna = pytest.importorskip("optuna")

QUICK = ["trainer.max_epochs=3", "attack.steps=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
QUICK += ["model.width=4", "trainer.accelerator=cpu", "hydra.sweep.dir=out", "data.eval_batch_size=64"]


QUICK_ATTACK = WPGD(p=2, norm="inf", delta=0.02, steps=2)


def others(folder, *curves, monitor="val/adv_acc", pruned=False):
    """What finished jobs have left."""
    for number, curve in enumerate(curves):
        content = {"monitor": monitor, "pruned": pruned, "values": list(enumerate(curve))}
        (folder / str(number)).mkdir()
        (folder / str(number) / CURVE_FILE).write_text(json.dumps(content))


def fit(folder, epochs=4, **kwargs):
    """A job of the same search, whose adversarial accuracy is about one half."""
    (folder / "mine").mkdir(exist_ok=True)
    pruner = kwargs.pop("pruner", optuna.pruners.MedianPruner(n_startup_trials=2))
    settings = {"monitor": "val/adv_acc", **kwargs}
    callback = TrialPruning(str(folder), str(folder / "mine"), pruner=pruner, **settings)
    door = trainer([adversary(delta=0.02, first_order=None, val_attack=QUICK_ATTACK), callback], max_epochs=epochs)
    door.fit(classifier(fitted()), loader(48, 16), loader(41, 16, start=300))
    return callback, door.current_epoch


def test_a_trial_below_the_median_is_stopped(tmp_path):
    others(tmp_path, [0.99] * 4, [0.98] * 4, [1.0] * 4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        callback, epochs = fit(tmp_path)
    assert not [one for one in said if issubclass(one.category, optuna.exceptions.ExperimentalWarning)]
    assert (callback.pruned, epochs) == (True, 1)
    left = json.loads((tmp_path / "mine" / CURVE_FILE).read_text())
    assert left == {"monitor": "val/adv_acc", "pruned": True, "values": [[0, callback.values[0]]]}


@pytest.mark.parametrize(
    ("curves", "settings"),
    [
        (([0.01] * 4, [0.02] * 4), {}),  # it is ahead
        (([0.99] * 4, [0.98] * 4), {"mode": "min"}),  # and here, too
        (([0.99] * 4,), {}),  # too few have finished
        (([0.99] * 4, [0.98] * 4), {"pruner": optuna.pruners.NopPruner()}),
    ],
)
def test_others_go_on(curves, settings, tmp_path):
    others(tmp_path, *curves)
    callback, epochs = fit(tmp_path, **settings)
    assert (callback.pruned, epochs) == (False, 4)
    assert len(callback.values) == 4


def test_values_of_another_kind_and_of_the_same_job_do_not_count(tmp_path):
    others(tmp_path, [0.99] * 4, [0.98] * 4, monitor="val/clean_acc")
    others(tmp_path / "0", [0.99] * 4, [0.98] * 4, monitor="val/adv_acc", pruned=True)  # pruned ones set no median
    assert not fit(tmp_path)[0].pruned
    assert not fit(tmp_path)[0].pruned


def test_what_is_not_measured_is_refused(tmp_path):
    with pytest.raises(UserError, match="val/worst_acc decides about pruning but is not measured"):
        fit(tmp_path, monitor="val/worst_acc")
    with pytest.raises(UserError, match="mode=up"):
        TrialPruning("a", "b", mode="up")


@pytest.mark.slow
def test_a_search_prunes_and_can_be_resumed(tmp_path):
    """The first trial of five epochs' length sets the median; resumed, the same trials are suggested, and none runs."""
    search = ["train.py", "hparams_search=optuna", *QUICK, "hydra.sweeper.n_trials=3"]
    search += ["callbacks.pruning.pruner.n_startup_trials=1", "callbacks.pruning.pruner.n_warmup_steps=0"]
    done = run(*search, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob(f"out/*/{CURVE_FILE}")}
    assert sorted(files) == ["0", "1", "2"]
    assert not files["0"]["pruned"]
    for file in files.values():
        assert len(file["values"]) == 3 or file["pruned"]
    best = (tmp_path / "out/optimization_results.yaml").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/metrics.json")}
    again = run(*search, "resume=true", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 3
    assert (tmp_path / "out/optimization_results.yaml").read_text() == best
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/metrics.json")} == stamps
