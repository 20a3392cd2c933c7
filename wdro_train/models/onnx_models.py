"""Networks in ONNX files, whatever program has written them, as PyTorch networks with gradients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wdro_train.utils.errors import UserError
from wdro_train.utils.optional_imports import optional
from wdro_train.utils.tensor_files import load_failure

_OPSET = 16  # the newest of which onnx2torch 1.5 knows all operations that classifiers are made of
_IMAGES = 3  # of the comparison, by noise: more than one, to see whether the network takes any number of images
# Two programs that sum float32 numbers in other orders agree to some 1e-5 of the largest logit; another operation, or
# another meaning of an attribute, is off by far more.
_AGREEMENT = 1e-3


def onnx_model(path: str, shape: Sequence[int]) -> nn.Module:
    """The network of an ONNX file, by onnx2torch, once its logits agree with those of ONNX's own interpreter.

    onnx2torch knows the operations as they were up to opset 16. Where a file of a later opset says the same in another
    form, it is rewritten; the comparison on noise images finds out if it says something else. Trained on, it learns the
    weights of its convolutions, linear layers (Gemm) and normalisations; other numbers in the file are constants to it.

    Args:
        path: The file. Weights that it keeps in a second file are looked for beside it.
        shape: (C, H, W) of the images.

    Raises:
        UserError: onnx or onnx2torch is not installed; no such file; no network of one image batch; an operation that
            onnx2torch does not know; or logits that differ.
    """
    onnx, onnx2torch = optional("onnx", "onnx"), optional("onnx2torch", "onnx")
    interpreter = optional("onnx.reference", "onnx").ReferenceEvaluator
    if not Path(path).is_file():
        raise UserError(f"there is no file model.path={path}; give the path of an .onnx file")
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
        known = {initializer.name for initializer in proto.graph.initializer}
        inputs = [one.name for one in proto.graph.input if one.name not in known]
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"model.path={path} cannot be read ({load_failure(error)}); export the network again"
        ) from error
    if len(inputs) != 1:
        raise UserError(
            f"model.path={path} takes {len(inputs)} inputs ({', '.join(inputs)}); export a network of images alone"
        )
    try:
        network: nn.Module = onnx2torch.convert(_rewritten(onnx, proto))
    except Exception as error:  # operations, types and attributes that it does not know, each in its own way
        raise UserError(
            f"model.path={path} is not read by onnx2torch ({load_failure(error)}); export it with opset {_OPSET} or "
            "lower"
        ) from error
    _compare(interpreter, proto, inputs[0], network.eval(), shape, path)
    return network.train()


def _rewritten(onnx: Any, proto: Any) -> Any:
    """The same network in the form that onnx2torch reads."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    weights = {one.name: one for one in proto.graph.initializer}
    # Exporters keep equal weights once and refer to them by Identity, which onnx2torch takes for an operation.
    same = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "Identity" and n.input[0] in weights}
    for number, node in enumerate(proto.graph.node):
        # onnx2torch makes Python code of these names, into which a file could write what it likes.
        node.name = f"{re.sub(r'[^0-9A-Za-z]', '_', node.op_type)}_{number}"
        node.input[:] = [same.get(name, name) for name in node.input]
    own = next((opset for opset in proto.opset_import if opset.domain in ("", "ai.onnx")), None)
    if own is not None and own.version > _OPSET:
        own.version = _OPSET
        _say_as_before(onnx, proto, {name: onnx.numpy_helper.to_array(one) for name, one in weights.items()})
    return proto


def _say_as_before(onnx: Any, proto: Any, constants: dict[str, Any]) -> None:
    """Write in the operations of opset 16 what later ones say in another form."""
    for node in proto.graph.node:
        if node.op_type == "Constant":
            value = next((a for a in node.attribute if a.name == "value"), None)
            constants |= {} if value is None else {node.output[0]: onnx.numpy_helper.to_array(value.t)}
    for node in proto.graph.node:
        if node.op_type == "Reshape":  # with it zeros in a shape mean empty sides, and no batch of images has one
            _without(node, "allowzero")
        if node.op_type in ("ReduceMean", "ReduceMax", "ReduceMin") and len(node.input) == 2:  # from opset 18 on
            axes = constants.get(node.input.pop())
            _without(node, "noop_with_empty_axes")
            if axes is not None:
                node.attribute.append(onnx.helper.make_attribute("axes", [int(axis) for axis in axes]))


def _without(node: Any, name: str) -> None:
    """Take an attribute off an operation."""
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name == name:
            del node.attribute[index]


def _compare(interpreter: Any, proto: Any, name: str, network: nn.Module, shape: Sequence[int], path: str) -> None:
    """Refuse a network whose logits are not those of the file.

    Raises:
        UserError: They differ, or one of the two does not take the images.
    """
    noise = torch.rand(_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    try:
        reference = interpreter(proto)
        rows = [reference.run(None, {name: image[None].numpy()})[0] for image in noise]
        wanted = np.concatenate(rows).astype(np.float64)
    except Exception as error:
        raise UserError(
            f"model.path={path} does not take images of shape {tuple(shape)} ({load_failure(error)}); choose the data "
            "it was made for"
        ) from error
    try:
        with torch.no_grad():
            output = network(noise)
        found = (output[0] if isinstance(output, list | tuple) else output).double().numpy()
    except Exception as error:
        raise UserError(
            f"model.path={path} does not take {_IMAGES} images at once ({load_failure(error)}); export it with a first "
            "dimension of any size"
        ) from error
    if wanted.size == 0 or not np.isfinite(wanted).all():
        raise UserError(f"model.path={path} gives NaN, infinite or no logits of noise images; repair the network")
    scale = max(float(np.abs(wanted).max()), 1e-30)
    if found.shape != wanted.shape or not np.abs(found - wanted).max() <= _AGREEMENT * scale:
        raise UserError(
            f"model.path={path} computes other logits in PyTorch than in ONNX; export it with opset {_OPSET} or lower"
        )
