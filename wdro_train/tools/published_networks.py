"""What is published about networks of other authors: which file, which architecture, on which images, which figures.

Figures are accuracies in per cent, as the sources print them (or 100 minus the error that they print), so that their
last digit says how far they were rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

Kind = Literal["clean", "exact", "at least", "at most"]


@dataclass(frozen=True)
class Figure:
    """One published accuracy.

    Attributes:
        kind: `clean`; or of the accuracy that is left at the radius, under W_inf: `exact`, `at least` (certified) or
            `at most` (attacked, or bounded from above).
        percent: In per cent, as it is printed.
        by: The method, as its authors call it; empty for a clean accuracy.
    """

    kind: Kind
    percent: str
    by: str = ""

    @property
    def value(self) -> float:
        """In per cent."""
        return float(self.percent)

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit, in per cent.

        >>> Figure("clean", "98.2").rounding
        0.05
        """
        return float(Decimal(1).scaleb(int(Decimal(self.percent).as_tuple().exponent)) / 2)

    def __str__(self) -> str:
        """In words.

        >>> print(Figure("exact", "85.55", "MILP"))
        MILP exactly 85.55
        """
        said = {"clean": "clean", "exact": "exactly"}.get(self.kind, self.kind)
        return " ".join(filter(None, (self.by, said, self.percent)))


@dataclass(frozen=True)
class Images:
    """The images on which a network is judged.

    Attributes:
        name: In words.
        keys: Keys of `evaluate.py`; those ending in `.images` and `.labels` name files of the networks' folder.
        root: The option of the command that says where the images are; empty for files of the networks' folder.
        number: How many there are.
        original: They are those of the publications, pixel by pixel.
    """

    name: str
    keys: tuple[str, ...]
    root: str = ""
    number: int = 10_000
    original: bool = True


@dataclass(frozen=True)
class PublishedNetwork:
    """One network, and what is published about it.

    Attributes:
        file: The state dict, in the networks' folder.
        sha256: Checksum of the file that the figures here are about; another one is no reason to refuse it.
        radius: In the l_inf norm, as it is published, or as verification benchmarks take it.
        images: What it is judged on.
        model: Keys of `evaluate.py` for the architecture.
        figures: What is published about it.
        source: Where.
        licence: Of the file.
        certificate: The one that is feasible and tight for this network.
    """

    file: str
    sha256: str
    radius: str
    images: Images
    model: tuple[str, ...]
    figures: tuple[Figure, ...]
    source: str
    licence: str
    certificate: str = "crown"
    name: str = field(init=False)

    def __post_init__(self) -> None:
        """The name is that of the file, which is what reports call the network."""
        object.__setattr__(self, "name", Path(self.file).stem)


_HERE = "model._target_=wdro_train.tools.third_party_networks"
_MLP = (f"{_HERE}.mlp",)
_CONV = (f"{_HERE}.conv",)
_COLOUR = ("+model.channels=3", "+model.side=32")

MNIST = Images("MNIST", ("data=mnist",), "mnist")
FASHION_MNIST = Images("Fashion-MNIST", ("data=fashion_mnist",), "fashion_mnist")
CIFAR10_JPEG = Images("CIFAR-10, JPEG", ("data=cifar10_jpeg",), "cifar10", original=False)
MNIST_200 = Images(
    "MNIST (200 published)",
    ("data=numpy", "data.images=mnist_sdp_images.npy", "data.labels=mnist_sdp_labels.npy"),
    number=200,
)
CIFAR10_200 = Images(
    "CIFAR-10 (200 published, lossless)",
    (
        "data=numpy",
        "data.images=cifar10_sdp_images.npy",
        "data.labels=cifar10_sdp_labels.npy",
        "data.shape=[3,32,32]",
    ),
    number=200,
)

_SALMAN = "Salman et al. 2019, arXiv 1902.08722, github Hadisalman/robust-verify-benchmark"
_WONG = "Wong and Kolter 2018, arXiv 1711.00851, github locuslab/convex_adversarial"
_SDP = "Dathathri et al. 2020, arXiv 2010.11645, github Verified-Intelligence/alpha-beta-CROWN"

NETWORKS: Mapping[str, PublishedNetwork] = {
    network.name: network
    for network in (
        PublishedNetwork(
            file="mnist_mlp_lpd_0.1.pth",
            sha256="6f01f9174008be5c0690e8b81d4752caeef484113da1141e2272cb848040036e",
            radius="0.1",
            images=MNIST,
            model=_MLP,
            figures=(
                Figure("clean", "95.91"),
                Figure("at most", "86.61", "PGD"),
                Figure("exact", "85.55", "MILP"),
                Figure("at least", "82.76", "LP"),
                Figure("at least", "81.68", "greedy LP"),
            ),
            source=_SALMAN,
            licence="MIT",
        ),
        PublishedNetwork(
            file="mnist_mlp_adv_0.1.pth",
            sha256="91f82b4fb087e7ea49f36011bb7540beebfb80c1afb14a25b6158d1347e4e262",
            radius="0.1",
            images=MNIST,
            model=_MLP,
            figures=(
                Figure("clean", "96.67"),
                Figure("at most", "84.14", "PGD"),
                Figure("at most", "83.75", "MILP"),
                Figure("at least", "65.63", "MILP"),
                Figure("at least", "28.66", "greedy LP"),
            ),
            source=_SALMAN,
            licence="MIT",
        ),
        PublishedNetwork(
            file="mnist_mlp_adv_0.03.pth",
            sha256="1328446879b2a4d71ffc88d618fe90e1f0337206a496fe033e7e8e7645387319",
            radius="0.03",
            images=MNIST,
            model=_MLP,
            figures=(
                Figure("clean", "98.47"),
                Figure("at most", "95.83", "PGD"),
                Figure("at most", "95.82", "MILP"),
                Figure("at least", "94.22", "MILP"),
                Figure("at least", "86.60", "greedy LP"),
            ),
            source=_SALMAN,
            licence="MIT",
        ),
        PublishedNetwork(
            file="mnist_conv_kw_0.1.pth",
            sha256="95014ab0c04c73f48b3be0cb7acc42aff60ce4420c6c43bec25e9a1447279e08",
            radius="0.1",
            images=MNIST,
            model=_CONV,
            figures=(
                Figure("clean", "98.2"),
                Figure("at most", "95.9", "PGD"),
                Figure("at least", "94.2", "certified"),
            ),
            source=_WONG,
            licence="MIT",
        ),
        PublishedNetwork(
            file="fashion_conv_kw_0.1.pth",
            sha256="b90cca41cc42b427d5ba1d1c10d90a5a8b6b5219538a3a4d1c6f825d3f612bc5",
            radius="0.1",
            images=FASHION_MNIST,
            model=_CONV,
            figures=(Figure("clean", "78.27"), Figure("at most", "68.53", "PGD-40")),
            source=f"{_WONG}; figures measured from the published file",
            licence="MIT",
        ),
        PublishedNetwork(
            file="mnist_cnn_a_adv.pt",
            sha256="3a1dbfc656e45be2cf6e8ae709c43da0fa0f3b71762c8a0842df72868f2b3459",
            radius="0.3",
            images=MNIST_200,
            model=_CONV,
            figures=(
                Figure("at most", "79.5", "PGD-100"),
                Figure("at most", "76.5"),
                Figure("at least", "76.0", "verified"),
            ),
            source=_SDP,
            licence="BSD-3",
        ),
        PublishedNetwork(
            file="cifar_cnn_a_mix.pt",
            sha256="5a1370f41961766db169ad9f945e9cc3157c9afd7986eac73bf2786c35dc3773",
            radius="2/255",
            images=CIFAR10_200,
            model=(
                *_CONV,
                *_COLOUR,
                "model.normalize=[[0.4913725490196078,0.4823529411764706,0.4466666666666667],"
                "[0.24705882352941178,0.24352941176470588,0.2615686274509804]]",
            ),
            figures=(Figure("at most", "53.0"), Figure("at least", "48.0", "verified")),
            source=_SDP,
            licence="BSD-3",
        ),
        PublishedNetwork(
            file="cifar_oval_base.pth",
            sha256="a1b07b56b4bbb758e4fb3471b2c140e8e8a43679bb8c032c2691095b2327275a",
            radius="1/255",
            images=CIFAR10_JPEG,
            model=(
                *_CONV,
                *_COLOUR,
                "+model.widths=[8,16]",
                "model.normalize=[[0.485,0.456,0.406],[0.225,0.225,0.225]]",
            ),
            figures=(),
            source="verification benchmark OVAL21, github Verified-Intelligence/alpha-beta-CROWN",
            licence="BSD-3",
        ),
        PublishedNetwork(
            file="cifar_resnet20.th",
            sha256="12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
            radius="1/255",
            images=CIFAR10_JPEG,
            model=(f"{_HERE}.ResNet20", "model.normalize=[[0.485,0.456,0.406],[0.229,0.224,0.225]]"),
            figures=(Figure("clean", "91.73"),),
            source="He et al. 2015, arXiv 1512.03385, github akamaster/pytorch_resnet_cifar10",
            licence="BSD-2",
            certificate="ibp",
        ),
    )
}
"""By the name of the file without its ending."""
