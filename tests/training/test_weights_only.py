"""Checkpoints without the optimizer's state: everything but resuming takes them, and resuming says what is missing."""

import pytest
import torch
from shell import SMALL, adversary, classifier, loader, run, trainer

import wdro_train
from wdro_train.training.callbacks import RunCheckpoint

SHORT = [*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=4"]
WITHOUT = ["callbacks.checkpoint.save_weights_only=true", "callbacks.last_checkpoint.save_weights_only=true"]


@pytest.mark.slow
def test_every_command_takes_them_and_resuming_says_what_is_missing(tmp_path):
    done = run("train.py", *SHORT, *WITHOUT, "hydra.run.dir=runs/small", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best, last = (tmp_path / f"runs/small/checkpoints/{name}.ckpt" for name in ("best", "last"))
    for file in (best, last):
        assert not {"optimizer_states", "lr_schedulers", "callbacks"} & torch.load(file).keys()
    network = wdro_train.load(tmp_path / "runs/small")
    assert network.figures.clean is not None
    evaluated = run("evaluate.py", f"ckpt_path={best}", "distances.steps=2", "poster=null", "limit=20", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    tuned = run("train.py", *SHORT, f"finetune.ckpt_path={best}", cwd=tmp_path)
    assert tuned.returncode == 0, tuned.stderr
    resumed = run("train.py", *SHORT, "trainer.max_epochs=2", f"ckpt_path={last}", cwd=tmp_path)
    assert resumed.returncode == 1
    assert resumed.stderr == (
        f"error: {last} holds weights and no state of the training, so it cannot be resumed; start a new run from its "
        f"network with finetune.ckpt_path={last}\n"
    )


class Scores(RunCheckpoint):
    """Chooses epochs by scores that are given."""

    def __init__(self, folder, scores, **kwargs):
        super().__init__(folder, "best", "val/adv_acc", mode="max", enable_version_counter=False, **kwargs)
        self.scores = scores

    def _monitor_candidates(self, trainer):
        found = super()._monitor_candidates(trainer)
        return found | {"val/adv_acc": torch.tensor(self.scores[trainer.current_epoch])}


def fitted_in(folder, scores, resume=None):
    """The best callback of a run that keeps weights of the best epoch, and all of the last one."""
    best = Scores(folder, scores, save_weights_only=True)
    last = RunCheckpoint(folder, "last", enable_version_counter=False)
    callbacks = [adversary(val_attack=None, first_order=None), best, last]
    shell = trainer(callbacks, enable_checkpointing=True, max_epochs=len(scores))
    shell.fit(classifier(), loader(32, 16), loader(32, 16), ckpt_path=resume, weights_only=True)
    return best


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_knows_its_best_epoch_by_its_weights_alone(tmp_path):
    fitted_in(tmp_path, [0.5, 0.9, 0.1])
    best = fitted_in(tmp_path, [0.5, 0.9, 0.1, 0.7], tmp_path / "last.ckpt")
    assert float(best.best_model_score) == pytest.approx(0.9)
    assert torch.load(tmp_path / "best.ckpt")["epoch"] == 1


def test_and_notices_that_it_was_replaced(tmp_path):
    fitted_in(tmp_path, [0.5, 0.9, 0.1])
    other = torch.load(tmp_path / "best.ckpt") | {"epoch": 0}
    torch.save(other, tmp_path / "best.ckpt")
    with pytest.warns(UserWarning, match=r"best\.ckpt, has been replaced by another epoch; the best epoch from now on"):
        best = fitted_in(tmp_path, [0.5, 0.9, 0.1, 0.7], tmp_path / "last.ckpt")
    assert float(best.best_model_score) == pytest.approx(0.7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("scores", "best"), [([0.0, 0.0, 0.0], 2), ([0.0, 0.0, 0.3, 0.3], 2), ([0.2, 0.0, 0.0], 0)])
def test_while_nothing_is_certified_the_latest_epoch_is_kept(tmp_path, scores, best):
    """Not the first, which is trained least; above 0 the first of equals stays."""
    assert fitted_in(tmp_path, scores)._best_epoch == best
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == best
