"""Which networks a certificate is asked about."""

import pytest
import torch
from in_process import call
from torch import nn

from wdro_train.certificates import ExactRobustness, LinearRelaxation, LipschitzCertificate
from wdro_train.evaluation.certified_curve import require_covered
from wdro_train.utils.errors import UserError

IMAGES = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class Never:
    """Searches no radius."""

    def __call__(self, *arguments):
        raise AssertionError("a radius was searched")

    retreats = __call__


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), *layers, nn.Linear(6, 3))


def test_a_network_that_is_covered_is_read_and_no_radius_is_searched():
    relaxed = LinearRelaxation(norm="inf", search=Never())
    for certificate in (relaxed, ExactRobustness(norm="inf", relaxation=relaxed), LipschitzCertificate(norm=2)):
        net = network(nn.ReLU()).train()
        require_covered(certificate, net, IMAGES)
        assert net.training


@pytest.mark.parametrize(
    "certificate",
    [
        *(LinearRelaxation(norm="inf", method=method) for method in ("ibp", "crown", "crown_ibp", "alpha_crown")),
        # its radii are found, and its encoding is not
        ExactRobustness(norm="inf", relaxation=LinearRelaxation(norm="inf", method="ibp")),
        LipschitzCertificate(norm=2),
    ],
)
def test_a_network_that_is_not_covered_is_refused(certificate):
    odd = nn.Tanh() if isinstance(certificate, ExactRobustness) else nn.LayerNorm(6)
    with pytest.raises(UserError, match=r"layer 2 \((Tanh|LayerNorm)"):
        require_covered(certificate, network(odd), IMAGES)


def test_a_refusal_comes_before_any_search(tmp_path):
    """From the command line: nothing is said of the worst case."""
    weights = {"model._target_": "odd.network", "model.weights": "own", "data": "digits", "certificate.method": "crown"}
    (tmp_path / "odd.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef network():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh())\n"
    )
    options = [f"{key}={value}" for key, value in weights.items()]
    done = call("evaluate", *options, "limit=4", "first_order=none", "distances.steps=1", cwd=tmp_path)
    assert done.returncode == 1
    assert "layer 2 (Tanh()) on input" in done.stderr
    assert "accuracy left" not in done.stdout
