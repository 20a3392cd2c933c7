"""Networks of other authors as users bring them: read, refused where another is asked for, and certified.

The files are not part of this repository; docs/results/third_party says where they are from. `WDRO_THIRD_PARTY` names
their folder.
"""

import math
import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from wdro_train.attacks import MinimalDistance
from wdro_train.certificates import ExactRobustness, LinearRelaxation
from wdro_train.certificates.exact_questions import AtRadius
from wdro_train.config.build import build_model
from wdro_train.data import NumpyDataModule
from wdro_train.models import load_weights
from wdro_train.theory.losses import correct
from wdro_train.tools import third_party_networks
from wdro_train.tools.network_arguments import composed
from wdro_train.tools.published_networks import NETWORKS
from wdro_train.utils.errors import UserError

FOLDER = Path(os.environ.get("WDRO_THIRD_PARTY", "WDRO_THIRD_PARTY is not set"))


def network(name, weights=None):
    """The network as `evaluate.py` makes it of the keys of the table."""
    cfg = composed(["model=own", *NETWORKS[name].model, "data=digits"])
    if weights is not None:
        OmegaConf.update(cfg, "model.weights", str(weights))
    return build_model(cfg.model).eval()


def loaded(name):
    file = FOLDER / NETWORKS[name].file
    if not file.is_file():
        pytest.skip(f"{file.name} is not in {FOLDER}")
    return network(name, file)


def images(kind, shape):
    files = {key: str(FOLDER / f"{kind}_sdp_{key}.npy") for key in ("images", "labels")}
    if not Path(files["images"]).is_file():
        pytest.skip(f"{kind}_sdp_images.npy is not in {FOLDER}")
    options = {"num_classes": 10, "mean": [0.0], "std": [1.0], "delta": {"linf": 0.1, "l2": 1.0}}
    arrays = NumpyDataModule(**files, shape=shape, **options).arrays("test")
    return arrays.batch(torch.arange(len(arrays.labels))), arrays.labels


def some_images(name):
    torch.manual_seed(0)
    return torch.rand((2, 3, 32, 32) if name.startswith("cifar") else (2, 1, 28, 28))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_architecture_is_made_and_takes_its_images(name):
    assert network(name)(some_images(name)).shape == (2, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_file_is_read(name):
    x = some_images(name)
    assert torch.isfinite(loaded(name)(x)).all()


def test_another_architecture_is_refused():
    loaded("mnist_mlp_lpd_0.1")
    with pytest.raises(UserError, match="does not fit this network"):
        load_weights(third_party_networks.conv(), FOLDER / "mnist_mlp_lpd_0.1.pth")


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [("mnist_cnn_a_adv", "mnist", [1, 28, 28]), ("cifar_cnn_a_mix", "cifar10", [3, 32, 32])],
)
def test_networks_know_the_images_that_they_were_published_with(name, kind, shape):
    x, y = images(kind, shape)
    assert len(x) == 200
    assert correct(loaded(name)(x), y).double().mean() > 0.5  # 0.1 where channels or normalisation are wrong


@pytest.mark.slow
def test_a_published_network_is_decided_between_relaxation_and_attack():
    model = loaded("mnist_mlp_lpd_0.1")
    x, y = (part[:60] for part in images("mnist", [1, 28, 28]))
    radii = LinearRelaxation(norm=math.inf)(model, x, y).radii
    distances = MinimalDistance(norm=math.inf)(model, x, y).distances
    open_ = (radii <= 0.1) & (distances > 0.1)
    found = ExactRobustness(norm=math.inf, budget=60)
    answer = found.narrow(model, x[open_], y[open_], radii[open_], distances[open_], AtRadius(0.1))
    assert open_.any()
    assert (answer.proven + answer.flipped == 1).all()
