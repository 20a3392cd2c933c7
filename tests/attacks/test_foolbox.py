"""At p = inf the attacks are the textbook's, image by image, as another library implements them."""

import foolbox as fb
import pytest
import torch
from oracles import reference_images, reference_network

from wdro_train.attacks import WFGSM, WPGD

pytestmark = pytest.mark.slow

FGSM = {"inf": fb.attacks.LinfFastGradientAttack, 2: fb.attacks.L2FastGradientAttack}
PGD = {"inf": fb.attacks.LinfProjectedGradientDescentAttack, 2: fb.attacks.L2ProjectedGradientDescentAttack}
DELTA = {("adversarial", "inf"): 0.1, ("adversarial", 2): 1.0, ("standard", "inf"): 0.02, ("standard", 2): 0.25}


def theirs(attack, model, x, y, delta):
    _, clipped, _ = attack(fb.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=delta)
    return clipped


@pytest.mark.parametrize("network", ["adversarial", "standard"])
@pytest.mark.parametrize("norm", ["inf", 2])
def test_fgsm(network, norm):
    x, y = reference_images()
    model, delta = reference_network(network), DELTA[network, norm]
    ours = WFGSM(p="inf", norm=norm, delta=delta, box=False)(model, x, y).x_adv
    expected = theirs(FGSM[norm](random_start=False), model, x, y, delta)
    assert (expected - x).abs().amax() > delta / 10
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", ["adversarial", "standard"])
@pytest.mark.parametrize("norm", ["inf", 2])
def test_pgd(network, norm):
    x, y = reference_images()
    model, delta, steps = reference_network(network), DELTA[network, norm], 6
    ours = WPGD(p="inf", norm=norm, delta=delta, steps=steps, step_size=steps / 4, box=False, random_start=False)(
        model, x, y
    ).x_adv
    pgd = PGD[norm](abs_stepsize=delta / 4, steps=steps, random_start=False)
    expected = theirs(pgd, model, x, y, delta)
    assert (expected - x).abs().amax() > delta / 10
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
