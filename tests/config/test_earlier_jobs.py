"""`resume=true`: only what came of the same configuration counts, whatever else lies in a run's folder."""

import json
import math

import pytest
from omegaconf import OmegaConf

import wdro_train
from wdro_train.config import earlier_jobs
from wdro_train.config.earlier_jobs import Finished
from wdro_train.utils.errors import UserError

METRICS = {"monitor": "val/adv_acc", "val": {"adv_acc": 0.625, "ratio": None, "bound": "inf"}}


def asked(folder, **changes):
    values = {"run_dir": str(folder), "resume": True, "ckpt_path": None, "trainer": {}, "optimizer": {"lr": 0.1}}
    return OmegaConf.create(values | changes)


@pytest.fixture
def folder(tmp_path):
    """Of a run that has finished; it was begun under another name of its folder."""
    for name in (".run", ".hydra", "checkpoints"):
        (tmp_path / name).mkdir()
    state = {
        "run": "1",
        "state": "finished",
        "process": 1,
        "host": "a",
        "started": "b",
        "version": wdro_train.__version__,
    }
    (tmp_path / ".run/state.json").write_text(json.dumps(state))
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "checkpoints/last.ckpt").touch()
    stored = asked("elsewhere", resume=False, ckpt_path="earlier.ckpt")
    (tmp_path / ".hydra/config.yaml").write_text(OmegaConf.to_yaml(stored))
    return tmp_path


@pytest.mark.parametrize(
    ("monitor", "score"),
    [("val/adv_acc", 0.625), ("val/ratio", math.nan), ("val/bound", math.inf), (None, None), ("val/none", None)],
)
def test_what_a_finished_job_returns(monitor, score, folder):
    """A value that is undefined, and a run in which nothing chose, need not be trained again."""
    (folder / "metrics.json").write_text(json.dumps(METRICS | {"monitor": monitor}))
    found = earlier_jobs.finished(asked(folder))
    assert isinstance(found, Finished)
    assert found.score == score or (math.isnan(score) and math.isnan(found.score))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"monitor": "val/a", "val": {"a": "high"}}', '{"monitor": "a", "val": 1}']
)
def test_metrics_that_cannot_be_read_are_measured_again(text, folder):
    (folder / "metrics.json").write_text(text)
    assert earlier_jobs.finished(asked(folder)) is None
    cfg = asked(folder)
    earlier_jobs.go_on(cfg, sweeping=True)
    assert cfg.ckpt_path == str(folder / "checkpoints/last.ckpt")


def test_other_settings(folder):
    """A job of a sweep starts anew; a single run would lose what was trained, and is refused."""
    cfg = asked(folder, optimizer={"lr": 0.2})
    assert earlier_jobs.finished(cfg) is None
    earlier_jobs.go_on(cfg, sweeping=True)
    assert cfg.ckpt_path is None
    with pytest.raises(UserError, match=r"other settings \(optimizer\); .* ckpt_path=.*last.ckpt"):
        earlier_jobs.go_on(cfg, sweeping=False)
    (folder / "checkpoints/last.ckpt").unlink()
    earlier_jobs.go_on(cfg, sweeping=False)
    assert cfg.ckpt_path is None


def test_processes_of_torchrun_do_not_each_decide(monkeypatch):
    earlier_jobs.refuse_many_processes(True, sweeping=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    earlier_jobs.refuse_many_processes(False, sweeping=True)
    for sweeping in (False, True):
        with pytest.raises(UserError, match="trainer=ddp"):
            earlier_jobs.refuse_many_processes(True, sweeping=sweeping)
