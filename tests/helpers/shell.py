"""Tiny networks, real digits, and a quiet Trainer for the tests of the Lightning shell."""

import atexit
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from wdro_train.attacks import WPGD
from wdro_train.data import ImageArrays, ImageDataModule
from wdro_train.models import small_cnn
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.training.module import RobustClassifier

ROOT = Path(__file__).parents[2]
SMALL = ["trainer=cpu", "model.width=4", "data.eval_batch_size=32"]  # a quick run without logs and pictures
SMALL += ["logger=none", "callbacks.images=null", "callbacks.progress=null"]
# Seconds after which something must be wrong, however busy the machine is; no test waits as long when all is well.
PATIENCE = 900


def digits(n, start=0):
    found = load_digits()
    images = torch.tensor(found.images[start : start + n], dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(found.target[start : start + n], dtype=torch.int64)


def network(seed=0, batch_norm=False, dropout=0.0, width=12, scale=4.0):
    """Logits are spread out, so that some digits are right, some wrong, and ReDLR has gradients."""
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(64, width)]
    layers += [nn.BatchNorm1d(width)] if batch_norm else []
    layers += [nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 10)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        model[-1].weight *= scale
    return model


def fitted(**kwargs):
    """A network that has seen the first 300 digits for a moment: most of them right, not all."""
    model = network(**kwargs)
    x, y = digits(300)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def loader(n, batch_size, start=0, **kwargs):
    return DataLoader(TensorDataset(*digits(n, start)), batch_size=batch_size, **kwargs)


class Arrays(ImageDataModule):
    """Digits in memory, `n` for training and validation, 31 for the test."""

    def __init__(self, n=150, **kwargs):
        shape = {"shape": (1, 8, 8), "num_classes": 10, "mean": [0.0], "std": [1.0], "delta": {"linf": 0.1}}
        super().__init__(**{**shape, "batch_size": 16, "eval_batch_size": 16, "val_fraction": 0.3, **kwargs})
        self.n = n

    def load(self):
        return tuple(
            ImageArrays((x * 16).to(torch.uint8), y, scale=16.0) for x, y in (digits(self.n), digits(31, start=1000))
        )


def trainer(callbacks=(), **kwargs):
    """A Trainer that shows nothing and keeps nothing; without the check before a training, which costs as much."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": 1}
    return L.Trainer(callbacks=list(callbacks), **{**quiet, **kwargs})


def adversary(p=2, norm="inf", delta=0.1, **kwargs):
    """A short random-start attack for training, the callback's defaults for validation."""
    attack = {key: kwargs.pop(key) for key in ("steps", "scope", "random_start", "batch_norm", "keep") if key in kwargs}
    attack = {"steps": 2, "random_start": True, **attack}
    return DistributionalAdversary(WPGD(p=p, norm=norm, delta=delta, **attack), **kwargs)


def classifier(model=None, **kwargs):
    return RobustClassifier(network() if model is None else model, **kwargs)


def run(*arguments, cwd, timeout=PATIENCE, env=None):
    """One of the doors, as a process of its own; returns the finished process."""
    with start(*arguments, cwd=cwd, env=env) as process:
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.arguments, code, process.stdout, process.stderr)


def start(*arguments, cwd, env=None):
    """The same, still running: see `Process`."""
    settings = command(*arguments, cwd=cwd)
    return Process(settings["args"][1:], cwd, settings["env"] | (env or {}))


def command(*arguments, cwd):
    """Arguments of `subprocess.run` for one of the doors, or with "-m" for a module, in a new interpreter."""
    script, *rest = arguments
    script = script if script == "-m" else str(ROOT / script)
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "COLUMNS": "120"}
    environment["PYTHONPATH"] = f"{ROOT / 'tests/helpers'}{os.pathsep}{ROOT}"
    environment.pop("PYTEST_CURRENT_TEST", None)
    return {"args": [sys.executable, script, *map(str, rest)], "cwd": cwd, "env": environment}


class Process:
    """A command that runs in a fork of a process which has imported everything; see `template`.

    Attributes:
        pid: Of the process, to send signals to.
        arguments: Of the interpreter.
        returncode: None while it runs; negative for a signal.
    """

    def __init__(self, arguments, cwd, env):
        self.arguments, self.returncode = arguments, None
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_template())
        request = json.dumps({"args": arguments, "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(self._connection, [request], [self._out.fileno(), self._err.fileno()])
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.poll() is None:
            self.kill()
            self.wait()
        self.close()

    def close(self):
        """Give back its output, when it has ended."""
        for file in (self._answers, self._connection, self._out, self._err):
            file.close()

    @property
    def stdout(self):
        """What it has printed so far."""
        return _content(self._out)

    @property
    def stderr(self):
        """What it has printed to standard error so far."""
        return _content(self._err)

    def poll(self):
        """The exit code; None while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout=PATIENCE):
        """The exit code, when it is there."""
        if self.returncode is None and not select.select([self._connection], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.arguments, timeout, self.stdout, self.stderr)
        return self.poll()

    def send_signal(self, number):
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _content(file):
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")  # a letter may be written by half


@functools.cache
def _template():
    """Where the template of this test process listens; it ends when its standard input is closed, with us."""
    folder = tempfile.mkdtemp(prefix="template_")
    address = f"{folder}/socket"
    program = [sys.executable, str(ROOT / "tests/helpers/template.py"), address]
    environment = command("-m", cwd=folder)["env"]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, env=environment, cwd=folder)
    atexit.register(_end, process, folder)
    deadline = time.monotonic() + PATIENCE
    while not os.path.exists(address):
        assert process.poll() is None, "the template did not start"
        assert time.monotonic() < deadline, "the template takes too long to start"
        time.sleep(0.02)
    return address


def _end(process, folder):
    process.stdin.close()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


class WaitForFile(L.Callback):
    """Holds a run at the end of its training until a file is there, so that a test can meddle with it in between."""

    def __init__(self, path):
        self.path = Path(path)

    def on_train_end(self, trainer, pl_module):
        while not self.path.exists():
            time.sleep(0.01)


def dropout_cnn(**kwargs):
    """`small_cnn` that drops out."""
    return nn.Sequential(small_cnn(**kwargs)[:-1], nn.Dropout(0.5), small_cnn(**kwargs)[-1])


def breaking_cnn(**kwargs):
    """`small_cnn` whose logits are NaN in training from the fortieth batch on."""
    return nn.Sequential(small_cnn(**kwargs), _Break(after=39))


class _Break(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.left = after

    def forward(self, logits):
        if self.training:
            self.left -= 1
        return logits if self.left >= 0 else logits * torch.nan


def wandb_history(file):
    """What the W&B client itself reads in an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    return found.stdout
