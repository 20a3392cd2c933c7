"""Parity with figures that the authors' code of 2023 gives for two small networks on 500 images."""

import pytest
from oracles import reference_images, reference_network, reference_records

from wdro_train.attacks import WFGSM, WPGD
from wdro_train.theory.losses import correct, resolve_loss

NETWORKS = ["adversarial", "standard"]


def label(record):
    return "-".join(str(record[key]) for key in ("loss", "p", "norm", "delta") if key in record)


def records(kind, keep=lambda network, record: True):
    return [
        pytest.param(network, record, id=f"{network}-{label(record)}")
        for network in NETWORKS
        for record in reference_records(network, kind)
        if keep(network, record)
    ]


LARGER = {"adversarial": (0.05, 0.1, 0.5, 1.0), "standard": (0.02, 0.25)}


def chosen(network, record):
    """The larger radii, where most images flip: all losses under W_2, and one pointwise, where nothing new happens."""
    return record["delta"] in LARGER[network] and (record["p"] == 2 or record["loss"] == "ReDLR")


def threat(record):
    return {key: record[key] for key in ("p", "norm", "loss")}


@pytest.mark.parametrize(("network", "record"), records("clean"))
def test_clean(network, record):
    x, y = reference_images()
    result = WFGSM(**threat(record), delta=0.1, box=False)(reference_network(network), x, y)
    right = correct(result.logits, y)
    assert right.float().mean().item() == pytest.approx(record["accuracy"], abs=1e-6)
    assert result.losses.mean().item() == pytest.approx(record["V0"], rel=1e-4)
    assert result.losses[~right].mean().item() == pytest.approx(record["W0"], rel=1e-4)
    assert result.upsilon.item() == pytest.approx(record["upsilon"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "record"), records("attacks"))
def test_w_fgsm(network, record):
    x, y = reference_images()
    model = reference_network(network)
    logits = model(WFGSM(**threat(record), delta=record["delta"], box=False)(model, x, y).x_adv)
    assert correct(logits, y).float().mean().item() == pytest.approx(record["wfgsm_accuracy"], abs=0.00201)
    mean_loss = resolve_loss(record["loss"])(logits, y).mean().item()
    assert mean_loss == pytest.approx(record["wfgsm_mean_loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "record"), records("attacks", chosen))
def test_w_pgd_is_at_least_as_strong(network, record):
    x, y = reference_images()
    # The recorded W_inf, l_2 attack pushes every image out to the sphere; longer steps get there honestly.
    longer = {"step_size": 5.0} if (record["p"], record["norm"]) == ("inf", 2) else {}
    attack = WPGD(**threat(record), delta=record["delta"], steps=50, keep="cheapest", **longer, random_start=False)
    result = attack(reference_network(network), x, y)
    left = correct(reference_network(network)(result.x_adv), y).float().mean().item()
    allowed = 0.0 if longer else 0.006
    assert left <= record["wpgd50_min_accuracy"] + allowed + 1e-6
    if record["p"] == 2:  # budget is not left on images that never flip
        assert left <= record["wpgd50_min_accuracy"] - 0.004 + 1e-6
    assert attack.ball.spent(result.distances) <= record["delta"] * (1 + 1e-6)
