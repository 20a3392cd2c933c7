"""`val/certified_acc` from the command line: logged, chosen by, and refused before any work where it cannot be had."""

import json

import pytest
from shell import SMALL, run

pytestmark = pytest.mark.slow


def test_each_epoch_is_certified_and_the_best_is_kept_by_it(tmp_path):
    options = ("callbacks.adversary.certificate=ibp", "callbacks.checkpoint.monitor=val/certified_acc", "attack.p=inf")
    done = run("train.py", *SMALL, *options, "attack.delta=0.002", "logger=csv", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "certified_acc" in done.stdout
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["monitor"] == "val/certified_acc"
    for stage in ("val", "test"):
        values = found[stage]
        assert 0 < values["certified_acc"] <= values["adv_acc"] <= values["clean_acc"]
        assert values["certified_ratio"] == pytest.approx(values["certified_acc"] / values["clean_acc"], abs=1e-6)
    header = (tmp_path / "out/csv/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/certified_acc", "val/certified_ratio"} <= set(header)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("callbacks.adversary.certificate=milp",), "certificate=milp is no certificate; choose ibp, crown_ibp, crown"),
        (("callbacks.adversary.certificate=crown", "model=preact_resnet18"), "has no linear relaxation"),
        (("callbacks.checkpoint.monitor=val/certified_acc",), "chooses the checkpoint but is not measured"),
        (("callbacks.adversary.certificate=ibp", "attack.norm=3", "attack.delta=0.1"), "norm=3 has no linear"),
    ],
)  # fmt: skip
def test_what_cannot_be_certified_is_refused_before_any_epoch(tmp_path, options, message):
    done = run("train.py", *SMALL, *options, "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "out/checkpoints").exists()
