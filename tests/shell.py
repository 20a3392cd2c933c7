"""Tiny networks, real digits, and a quiet Trainer for the tests of the Lightning shell."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from wdro_train.attacks import WPGD
from wdro_train.callbacks import DistributionalAdversary
from wdro_train.data import ImageArrays, ImageDataModule
from wdro_train.models import small_cnn
from wdro_train.module import RobustClassifier

ROOT = Path(__file__).parents[1]


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
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": 1}
    return L.Trainer(callbacks=list(callbacks), **{**quiet, **kwargs})


def adversary(p=2, norm="inf", delta=0.1, **kwargs):
    """A short random-start attack for training, the callback's defaults for validation."""
    attack = {key: kwargs.pop(key) for key in ("steps", "scope", "random_start", "batch_norm", "keep") if key in kwargs}
    attack = {"steps": 2, "random_start": True, **attack}
    return DistributionalAdversary(WPGD(p=p, norm=norm, delta=delta, **attack), **kwargs)


def classifier(model=None, **kwargs):
    return RobustClassifier(network() if model is None else model, **kwargs)


def run(*arguments, cwd, timeout=300):
    """One of the doors, as a process of its own; returns the finished process."""
    return subprocess.run(**command(*arguments, cwd=cwd), capture_output=True, text=True, timeout=timeout)


def command(*arguments, cwd):
    script, *rest = arguments
    return {
        "args": [sys.executable, str(ROOT / script), *map(str, rest)],
        "cwd": cwd,
        "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests"), "WANDB_SILENT": "true"},
    }


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
