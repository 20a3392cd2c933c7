"""Which attacks of other authors find nearest flips, and how far each goes with a given number of gradients.

The packages are optional. Foolbox and pyautoattack come with `pip install 'wdro-train[peers]'`. adv-lib asks for
visdom, for plots that no attack draws, and `pip install --no-deps adv-lib` does without it. Brendel and Bethge's attack
needs numba.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.evaluation.autoattack import brought_inside, require
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.errors import UserError

Attacker = Callable[[nn.Module, Tensor, Tensor], Tensor]
PACKAGES = ("foolbox", "pyautoattack", "adv_lib")
_NAMES = {math.inf: "LInf", 2.0: "L2", 1.0: "L1"}
_DEEPFOOL_CANDIDATES = 10  # rival classes that DeepFool considers, foolbox's default
_ANY = (1.0, 2.0, math.inf)


@dataclass(frozen=True)
class Task:
    """What an attack is asked for.

    Attributes:
        ball: Its norm is the one to minimise. Only attacks on one radius look at the radius.
        gradients: Gradient evaluations an image, at most.
        classes: Number of logits.
        seed: Of random starts.
    """

    ball: WassersteinBall
    gradients: int
    classes: int
    seed: int = 0


@dataclass(frozen=True)
class Peer:
    """An attack of other authors.

    Attributes:
        name: For tables and figures.
        package: Its import name, one of `PACKAGES`.
        norms: Ground norms that it is made for.
        build: Turns a task into a function from model, images and labels to images. It imports the package.
    """

    name: str
    package: str
    norms: tuple[float, ...]
    build: Callable[[Task], Attacker]


def peers(norm: float, package: str) -> Iterator[Peer]:
    """The attacks of a package for a norm.

    Args:
        norm: 1, 2 or inf.
        package: One of `PACKAGES`.
    """
    return (peer for peer in _PEERS if peer.package == package and norm in peer.norms)


def _fmn(task: Task, **options: float) -> Attacker:
    attack = getattr(require("foolbox").attacks, f"{_NAMES[task.ball.norm]}FMNAttack")
    return _foolbox(attack(steps=task.gradients, **options))


def _ddn(task: Task) -> Attacker:
    return _foolbox(require("foolbox").attacks.DDNAttack(steps=task.gradients))


def _deepfool(task: Task) -> Attacker:
    """One gradient a step and rival class."""
    attacks = require("foolbox").attacks
    attack = attacks.L2DeepFoolAttack if task.ball.norm == 2 else attacks.LinfDeepFoolAttack
    candidates = min(_DEEPFOOL_CANDIDATES, task.classes)
    return _foolbox(attack(steps=max(task.gradients // candidates, 1), candidates=candidates))


def _brendel_bethge(task: Task) -> Attacker:
    attacks = require("foolbox").attacks
    names = {1.0: "L1BrendelBethgeAttack", 2.0: "L2BrendelBethgeAttack", math.inf: "LinfinityBrendelBethgeAttack"}
    try:
        return _foolbox(getattr(attacks, names[task.ball.norm])(steps=task.gradients), nearest_of_another_class)
    except ImportError:
        fix = "run pip install numba"
        raise UserError(
            f"numba, which foolbox needs for Brendel and Bethge's attack, is not installed; {fix}"
        ) from None


def _foolbox(attack: Any, start: Callable[[Tensor, Tensor], Tensor] | None = None) -> Attacker:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = require("foolbox").PyTorchModel(model, bounds=(0, 1), device=x.device)
        started = {} if start is None else {"starting_points": start(x, y)}
        points: Tensor = attack(wrapped, x, y, epsilons=None, **started)[1]
        return points

    return run


def nearest_of_another_class(x: Tensor, y: Tensor) -> Tensor:
    """A starting point for each image: the nearest (in l_2) of the images with another label.

    Of a network that is right about all of them each is misclassified in the place of the image; noise, which foolbox
    starts from, is not always.

    Args:
        x: Images, shape [N, ...].
        y: Labels, shape [N].

    Raises:
        UserError: All images have the same label.
    """
    if (y == y[0]).all():
        raise UserError("all images have the same label, so there is none to start from")
    apart = torch.cdist(x.flatten(1).double(), x.flatten(1).double())
    return x[apart.masked_fill(y[:, None] == y[None], math.inf).argmin(dim=1)]


def _apgd(task: Task) -> Attacker:
    """Auto-PGD on cross-entropy at the radius of the ball; its first gradient is taken before the first step."""
    require("pyautoattack")
    attack = importlib.import_module("pyautoattack.autopgd_base").APGDAttack

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        steps = max(task.gradients - 1, 1)
        settings = {"n_iter": steps, "norm": _NAMES[task.ball.norm].replace("I", "i"), "eps": task.ball.delta}
        found = attack(partial(forward, model), loss="ce", seed=task.seed, device=str(x.device), **settings)
        return brought_inside(task.ball, x, found.perturb(x, y).to(x))

    return run


def _fab(task: Task) -> Attacker:
    """The fast adaptive boundary attack towards the nearest rival class, one gradient a step.

    Without a target it takes a gradient for each class and step.
    """
    require("pyautoattack")
    attack = importlib.import_module("pyautoattack.fab_pt").FABAttack_PT

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        anywhere = {"eps": 1e9, "targeted": True, "n_target_classes": 1}
        norm = _NAMES[task.ball.norm].replace("I", "i")
        made = attack(
            partial(forward, model), norm=norm, n_iter=task.gradients, seed=task.seed, device=x.device, **anywhere
        )
        points: Tensor = made.perturb(x, y)
        return points

    return run


def adv_lib() -> ModuleType:
    """The attacks of adv-lib, which imports visdom for plots that are not drawn here.

    Where visdom is missing, an empty module stands in its place during the import.

    Raises:
        UserError: adv-lib, or something else it needs, is not installed.
    """
    stand_in = "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None
    if stand_in:
        sys.modules["visdom"] = ModuleType("visdom")
    try:
        return importlib.import_module("adv_lib.attacks")
    except ImportError as error:
        missing = (error.name or "adv_lib").partition(".")[0]
        needed = "adv_lib" if missing == "adv_lib" else f"{missing}, which adv_lib needs,"
        fix = "adv-lib" if missing == "adv_lib" else missing
        raise UserError(f"{needed} is not installed; run pip install --no-deps {fix}") from None
    finally:
        if stand_in:
            del sys.modules["visdom"]


def _adv_lib_attack(name: str, **options: Any) -> Callable[[Task], Attacker]:
    """An attack of adv-lib that takes one gradient a step.

    Args:
        name: Of its function.
        **options: Its arguments; those that are functions are given the task.
    """

    def build(task: Task) -> Attacker:
        attack = getattr(adv_lib(), name)
        settings = {key: value(task) if callable(value) else value for key, value in options.items()}
        return lambda model, x, y: attack(partial(forward, model), x, y, **settings).detach()

    return build


def _superdeepfool(task: Task) -> dict[str, int]:
    """Steps of SuperDeepFool and of the DeepFool in it; at most steps (df_steps (classes - 1) + 1) gradients.

    Where a step has led is looked at by the next one, so there are two at least.
    """
    rivals = task.classes - 1
    steps = max(task.gradients // (3 * task.classes), 2)  # three steps of DeepFool reach most boundaries
    return {"steps": steps, "df_steps": max((task.gradients - steps) // (steps * rivals), 1)}


def _gradients(task: Task) -> int:
    return task.gradients


def _norm(task: Task) -> float:
    return task.ball.norm


_PEERS = (
    Peer("FMN", "foolbox", _ANY, _fmn),
    # A tenth of foolbox's step suits images in [0, 1] better under l_inf.
    Peer("FMN, step 0.1", "foolbox", _ANY, lambda task: _fmn(task, max_stepsize=0.1)),
    Peer("DDN", "foolbox", (2.0,), _ddn),
    Peer("DeepFool", "foolbox", (2.0, math.inf), _deepfool),
    Peer("Brendel-Bethge", "foolbox", _ANY, _brendel_bethge),
    Peer("APGD-CE, one radius", "pyautoattack", _ANY, _apgd),
    Peer("FAB, nearest rival", "pyautoattack", _ANY, _fab),
    Peer("FMN", "adv_lib", _ANY, _adv_lib_attack("fmn", norm=_norm, steps=_gradients)),
    Peer("DDN", "adv_lib", (2.0,), _adv_lib_attack("ddn", steps=_gradients, levels=None)),
    Peer("ALMA", "adv_lib", (2.0,), _adv_lib_attack("alma", num_steps=_gradients, distance="l2", init_lr_distance=0.5)),
    Peer("ALMA", "adv_lib", (1.0,), _adv_lib_attack("alma", num_steps=_gradients, distance="l1", init_lr_distance=0.5)),
    Peer("PDGD", "adv_lib", (2.0,), _adv_lib_attack("pdgd", num_steps=_gradients)),
    Peer("PDPGD", "adv_lib", _ANY, _adv_lib_attack("pdpgd", num_steps=_gradients, norm=_norm)),
    Peer(
        "SuperDeepFool",
        "adv_lib",
        (2.0,),
        _adv_lib_attack(
            "sdf",
            steps=lambda task: _superdeepfool(task)["steps"],
            df_steps=lambda task: _superdeepfool(task)["df_steps"],
        ),
    ),
)
