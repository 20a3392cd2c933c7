"""The files in which a network can leave the framework, each written and read back by the library it is for.

| format         | file                | holds   | opened by                                               |
|----------------|---------------------|---------|---------------------------------------------------------|
| `state_dict`   | `model.pt`          | weights | `wdro_train.load`, `torch.load(..., weights_only=True)` |
| `safetensors`  | `model.safetensors` | weights | `wdro_train.load`, `safetensors.torch.load_file`        |
| `onnx`         | `model.onnx`        | program | onnxruntime and other runtimes, without PyTorch         |
| `torch_export` | `model.pt2`         | program | `torch.export.load`, without this package               |

A program maps images, float32 [B, C, H, W] in [0, 1] with any B >= 1, to logits [B, m].
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from wdro_train.evaluation.trained import TrainedNetwork
from wdro_train.models import load_weights
from wdro_train.models.lipschitz_layers import OrthogonalLinear
from wdro_train.utils.contract import logits_of
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import replacing
from wdro_train.utils.optional_imports import optional

INPUT, OUTPUT = "images", "logits"
"""What a program calls what goes in and what comes out."""
_ONE_FILE = 1_900_000_000  # bytes; protobuf, in which ONNX is written, ends at 2 GiB, and larger weights lie beside it


class Format(Protocol):
    """One kind of file.

    Attributes:
        file: Its name in the exported folder.
    """

    file: str

    def require(self) -> None:
        """Refuse to begin without the packages that it needs."""
        ...

    def write(self, network: TrainedNetwork, path: Path) -> None:
        """Write the network."""
        ...

    def read(self, network: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
        """What computes the logits of images from the file alone, or for weights from the file and the architecture."""
        ...


class _Weights:
    """The tensors of the network by name, for a network of the same architecture."""

    def require(self) -> None:
        """Nothing is needed."""

    def read(self, network: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
        """A copy of the network, whose weights are overwritten with those of the file."""
        again = copy.deepcopy(network)
        with torch.no_grad():
            for tensor in [*again.network.parameters(), *(again.network.state_dict().values())]:
                tensor.zero_()
        load_weights(again.network, path)
        return again


class StateDict(_Weights):
    """Tensors as `torch.save` writes them."""

    file = "model.pt"

    def write(self, network: TrainedNetwork, path: Path) -> None:
        """Write the state dict of the network itself, without a prefix."""
        with replacing(path, setting="--out") as file:
            torch.save(tensors(network.network), file)


class Safetensors(_Weights):
    """Tensors in a format that holds nothing else and can be read by other languages."""

    file = "model.safetensors"

    def write(self, network: TrainedNetwork, path: Path) -> None:
        """Write the state dict of the network itself, without a prefix."""
        with replacing(path, setting="--out") as file:
            file.write(safetensors.torch.save(tensors(network.network), {"format": "pt"}))


class TorchExport:
    """A program of PyTorch's core operators, which runs without the network's Python code."""

    file = "model.pt2"

    def require(self) -> None:
        """Nothing is needed."""

    def write(self, network: TrainedNetwork, path: Path) -> None:
        """Write the program with its weights."""
        content = io.BytesIO()
        torch.export.save(program(network), content)
        with replacing(path, setting="--out") as file:
            file.write(content.getbuffer())

    def read(self, network: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
        """The program in the file; `network` is not used."""
        found: nn.Module = torch.export.load(path).module()
        return found


class Onnx:
    """A program in the exchange format of many runtimes, which need neither Python nor PyTorch."""

    file = "model.onnx"

    def require(self) -> None:
        """Refuse to begin without onnx, onnxscript and onnxruntime."""
        for package in ("onnx", "onnxscript", "onnxruntime"):
            optional(package, "export")

    def write(self, network: TrainedNetwork, path: Path) -> None:
        """Write the program; weights of more than 1.9 GB lie beside it in `model.onnx.data`."""
        size = sum(tensor.nbytes for tensor in network.network.state_dict().values())
        with _quietly():
            torch.onnx.export(
                program(network),
                f=path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=size > _ONE_FILE,
                verbose=False,
            )

    def read(self, network: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
        """The program in the file, run by onnxruntime on the CPU; `network` is not used."""
        session = optional("onnxruntime", "export").InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


FORMATS: Mapping[str, Format] = {
    "state_dict": StateDict(),
    "safetensors": Safetensors(),
    "onnx": Onnx(),
    "torch_export": TorchExport(),
}
"""By the value of `--format`."""


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with memory of its own for each tensor, which safetensors asks for.

    Args:
        network: Any network.
    """
    return {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}


def program(network: TrainedNetwork) -> ExportedProgram:
    """What the network computes, operator by operator, for any number of images.

    Args:
        network: On the CPU.

    Raises:
        UserError: It does something that depends on the values it computes, which no program of this kind can say.
    """
    example = torch.full((2, *network.shape), 0.5)  # of one image, the size 1 would be taken for a constant
    try:
        with _quietly(), torch.no_grad():
            network_alone = _OnlyLogits(_with_fixed_weights(network.network))
            return _without_traces(torch.export.export(network_alone, (example,), dynamic_shapes=({0: Dim("batch")},)))
    except Exception as error:  # what torch raises here is of many kinds, and none is documented
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{network.name} cannot be written as a program ({reason}); export its weights with --format safetensors"
        ) from error


def _without_traces(found: ExportedProgram) -> ExportedProgram:
    """The program without the lines of source that it came from: their files lie in folders of this machine."""
    for module in found.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return found


def _with_fixed_weights(network: nn.Module) -> nn.Module:
    """A copy whose orthogonal layers are plain ones of the same weights: ONNX knows no Cholesky factor."""
    found = copy.deepcopy(network).eval()
    for name, layer in list(found.named_modules()):
        if isinstance(layer, OrthogonalLinear):
            weight = layer.weight()
            plain = nn.Linear(weight.shape[1], weight.shape[0])
            plain.weight.data, plain.bias.data = weight.detach().contiguous(), layer.bias.detach()
            parent, _, last = name.rpartition(".")
            setattr(found.get_submodule(parent), last, plain)
    return found


class _OnlyLogits(nn.Module):
    """The network with one tensor in and one out, whatever it wraps its logits in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(images)
        return found if isinstance(found, Tensor) else logits_of(found, images.shape[0])


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporters say about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
