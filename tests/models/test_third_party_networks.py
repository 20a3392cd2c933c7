"""Networks of other authors as users bring them: read, refused where another is asked for, and certified.

The files are not part of this repository; docs/results/third_party says where they are from. `WDRO_THIRD_PARTY` names
their folder.
"""

import importlib.util
import math
import os
from pathlib import Path

import pytest
import torch

from wdro_train.attacks import MinimalDistance
from wdro_train.certificates import ExactRobustness, LinearRelaxation
from wdro_train.certificates.exact_questions import AtRadius
from wdro_train.models import load_weights
from wdro_train.theory.losses import correct
from wdro_train.utils.errors import UserError

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("WDRO_THIRD_PARTY", "WDRO_THIRD_PARTY is not set"))
NAMES = (
    *("mnist_mlp_lpd_0.1.pth", "mnist_mlp_adv_0.1.pth", "mnist_mlp_adv_0.03.pth", "mnist_conv_kw_0.1.pth"),
    *("fashion_conv_kw_0.1.pth", "mnist_cnn_a_adv.pt", "cifar_cnn_a_mix.pt", "cifar_oval_base.pth"),
    "cifar_resnet20.th",
)


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("third_party", ROOT / "docs/results/third_party/third_party.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(made, name):
    if not (FOLDER / name).is_file():
        pytest.skip(f"{name} is not in {FOLDER}")
    model = made.NETWORKS[name]()
    load_weights(model, FOLDER / name)
    return model.eval()


def images(made, kind, shape):
    files = {key: str(FOLDER / f"{kind}_sdp_{key}.npy") for key in ("images", "labels")}
    if not Path(files["images"]).is_file():
        pytest.skip(f"{kind}_sdp_images.npy is not in {FOLDER}")
    options = {"num_classes": 10, "mean": [0.0], "std": [1.0], "delta": {"linf": 0.1, "l2": 1.0}}
    arrays = made.NumpyImages(**files, shape=shape, **options).arrays("test")
    return arrays.batch(torch.arange(len(arrays.labels))), arrays.labels


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_is_made_and_takes_its_images(made, name):
    assert set(made.NETWORKS) == set(NAMES)
    shape = (2, 3, 32, 32) if name.startswith("cifar") else (2, 1, 28, 28)
    assert made.NETWORKS[name]().eval()(torch.rand(shape)).shape == (2, 10)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_read(made, name):
    model = loaded(made, name)
    shape = (2, 3, 32, 32) if name.startswith("cifar") else (2, 1, 28, 28)
    assert torch.isfinite(model(torch.rand(shape))).all()


def test_another_architecture_is_refused(made):
    loaded(made, "mnist_mlp_lpd_0.1.pth")
    with pytest.raises(UserError, match="does not fit this network"):
        load_weights(made.conv(), FOLDER / "mnist_mlp_lpd_0.1.pth")


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [("mnist_cnn_a_adv.pt", "mnist", [1, 28, 28]), ("cifar_cnn_a_mix.pt", "cifar10", [3, 32, 32])],
)
def test_networks_know_the_images_that_they_were_published_with(made, name, kind, shape):
    x, y = images(made, kind, shape)
    assert len(x) == 200
    assert correct(loaded(made, name)(x), y).double().mean() > 0.5  # 0.1 where channels or normalisation are wrong


@pytest.mark.slow
def test_a_published_network_is_decided_between_relaxation_and_attack(made):
    model = loaded(made, "mnist_mlp_lpd_0.1.pth")
    x, y = (part[:60] for part in images(made, "mnist", [1, 28, 28]))
    radii = LinearRelaxation(norm=math.inf)(model, x, y).radii
    distances = MinimalDistance(norm=math.inf)(model, x, y).distances
    open_ = (radii <= 0.1) & (distances > 0.1)
    found = ExactRobustness(norm=math.inf, budget=60)
    answer = found.narrow(model, x[open_], y[open_], radii[open_], distances[open_], AtRadius(0.1))
    assert open_.any()
    assert (answer.proven + answer.flipped == 1).all()
