"""The wheel, in an environment and a folder that know nothing of this clone: both doors work."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from shell import ROOT

pytestmark = pytest.mark.slow


def call(*command, cwd, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    clean |= {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The console scripts of a fresh environment with the wheel; all but our own package is this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = folder / "source"  # as on a machine that has values of its own
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "site", "build", "__pycache__"))
    (source / "conf/local").mkdir(exist_ok=True)
    (source / "conf/local/default.yaml").write_text("seed: 7\n")
    built = call(*pip, "wheel", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    if "hatchling" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("pip cannot fetch hatchling, which builds the wheel")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    environment = folder / "env"
    venv.create(environment, symlinks=True)
    # Python does not read the .pth files of a folder that a .pth file names: the editable install stays out.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = call(*pip, "--python", environment, "install", "--no-deps", "--ignore-installed", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    where = call(environment / "bin/python", "-c", "import wdro_train; print(wdro_train.__file__)", cwd=folder)
    assert where.stdout.strip() == str(site / "wdro_train/__init__.py")
    return environment / "bin"


def test_doors_of_the_wheel(scripts, tmp_path):
    quick = ["trainer.max_epochs=1", "trainer.limit_train_batches=3", "logger=csv", "callbacks.progress=null"]
    quick += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "data.eval_batch_size=32"]
    done = call(scripts / "wdro-train", *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("runs/2*/*")
    assert (run / "checkpoints/best.ckpt").is_file()
    done = call(scripts / "wdro-evaluate", "poster=null", "limit=20", "distances.steps=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("runs/evaluate/2*/*/report.json")
    assert report.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_configuration_of_the_wheel(scripts):
    """All groups and none of what holds on the machine that built it only."""
    (conf,) = scripts.parent.glob("lib/python*/site-packages/wdro_train/conf")
    assert {path.name for path in conf.iterdir()} == {path.name for path in (ROOT / "conf").iterdir()} - {"local"}


def test_unknown_key_of_the_wheel(scripts, tmp_path):
    """Suggestions come from the wheel's own configuration."""
    done = call(scripts / "wdro-train", "attack.stepz=3", cwd=tmp_path)
    assert done.returncode == 1
    assert "did you mean attack.steps?" in done.stderr
