"""The table of efforts: more effort leaves no more, and the passes are those of the network."""

import pytest

from wdro_train.tools import compare_efforts
from wdro_train.utils.errors import UserError


@pytest.mark.slow
def test_a_search_that_goes_on_leaves_less(capsys, tmp_path):
    from shell import run

    trained = run("train.py", "trainer=cpu", "trainer.max_epochs=1", "test=false", "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    rows = compare_efforts.main(
        [f"ckpt_path={tmp_path}/run/checkpoints/best.ckpt", "limit=60", "accelerator=cpu", "attack.p=2"]
    )
    quick, auto = rows
    assert auto.accuracy < quick.accuracy
    assert auto.passes > quick.passes > 30
    assert auto.rounds > quick.rounds == 1
    assert "auto" in capsys.readouterr().out


def test_efforts_are_checked_first():
    with pytest.raises(UserError, match="hard"):
        compare_efforts.main(["--efforts", "hard"])
