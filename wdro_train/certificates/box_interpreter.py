"""Networks run on sets of images, operation by operation of the graph of their forward pass."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from wdro_train.certificates.intervals import (
    NoBoundsError,
    boxes_in,
    may_share_memory,
    through_layer,
    through_operation,
)
from wdro_train.certificates.reading import copied
from wdro_train.certificates.value_set import ValueSet
from wdro_train.utils.errors import UserError


class BoxInterpreter(fx.Interpreter):
    """Runs a network on a set of images instead of on images.

    The network is read in evaluation mode: BatchNorm uses its running statistics, and dropout passes everything on.

    Args:
        model: The network.
        dtype: Type to compute in, in which the weights are copied. None: the network's own layers and weights as they
            are at each run, wherever they have been moved, and with them gradients.

    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        graph = traced(model if dtype is None else copied(model, dtype).requires_grad_(False))
        # The graph's module has tensors of its own, which do not follow when the network moves to another device.
        super().__init__(model if dtype is None else graph, graph=graph.graph)
        self.extra_traceback = False  # refusals are sentences of their own
        self._dtype = dtype
        self.graph_module, self._last = graph, _last_linear(graph)

    @property
    def last_layer(self) -> nn.Linear | None:
        """The linear layer whose values are the logits, if the network ends in one."""
        layer = None if self._last is None else self.fetch_attr(str(self._last.target))
        return layer if isinstance(layer, nn.Linear) else None

    def features(self, images: ValueSet) -> ValueSet:
        """What goes into the last linear layer, so that margins are bounded together with its weights; else the logits.

        Args:
            images: What goes into the network.

        Raises:
            UserError: An operation that has no rule, named, or an output that is more than logits.
        """
        found = self.run(images)
        if not isinstance(found, ValueSet):
            raise UserError(
                f"the network returns {type(found).__name__}, of which no interval bounds are found; certify one that "
                "returns its logits alone"
            )
        return found

    def run_node(self, n: fx.Node) -> Any:
        """One operation.

        Args:
            n: Of the graph.

        Raises:
            UserError: An operation that has no rule, named.
        """
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        touched = n.op not in ("placeholder", "output", "get_attr") and boxes_in((args, kwargs))
        if not touched:
            return self._constant(n, args, kwargs)
        if n is self._last:
            return args[0]
        try:
            if n.op == "call_module":
                (box,) = args
                return through_layer(self.fetch_attr(str(n.target)), box)
            return through_operation(n.target, args, kwargs)
        except (NoBoundsError, TypeError, ValueError):  # the last two for arguments that no rule takes
            raise _refused(self.graph_module, n) from None

    def _constant(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        """What an operation makes of constants, computed in float32 as the network does, whatever the bounds are."""
        computed = n.op in ("call_function", "call_method") and self._dtype not in (None, torch.float32)
        if not computed:
            return super().run_node(n)
        args, kwargs = _cast((args, kwargs), self._dtype, torch.float32)
        return _cast(getattr(self, n.op)(n.target, args, kwargs), torch.float32, self._dtype)


def _cast(value: Any, before: torch.dtype | None, after: torch.dtype | None) -> Any:
    """Tensors of one type as tensors of another, wherever they are in a value."""
    return tree_map(lambda part: part.to(after) if isinstance(part, Tensor) and part.dtype == before else part, value)


def _refused(graph: fx.GraphModule, node: fx.Node) -> UserError:
    what = _operation(graph, node)
    name = f"layer {node.target}" if node.op == "call_module" else node.name
    return UserError(
        f"{name} ({getattr(what, '__name__', what)}) of the network has no interval bounds; certify a network of "
        "affine layers, monotone activations, pooling, additions and changes of shape"
    )


def _refuse_shared_changes(graph: fx.GraphModule) -> None:
    """Refuse a value that is changed in place and used elsewhere, too: the graph knows of the value before the change.

    Raises:
        UserError: There is one; names the operation.
    """
    for node in graph.graph.nodes:
        if not _in_place(graph, node):
            continue
        source: Any = node.args[0] if node.args else None
        while isinstance(source, fx.Node):
            if len(source.users) > 1:
                raise _refused(graph, node)
            shares = source.op != "placeholder" and may_share_memory(_operation(graph, source))
            source = source.args[0] if shares else None


def _operation(graph: fx.GraphModule, node: fx.Node) -> Any:
    """The layer, the function, or the name of the method of a node."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target


def _in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    listed = node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    written = (name.endswith("_") and not name.endswith("__")) or listed
    # Activations of torch.nn.functional take `inplace` last, by name or by position.
    return node.op in ("call_function", "call_method") and (
        written or bool(node.kwargs.get("inplace", False)) or any(argument is True for argument in node.args[1:])
    )


def traced(model: nn.Module) -> fx.GraphModule:
    """The graph of a network's forward pass in evaluation mode, with the network's own layers and weights.

    Args:
        model: Any network; its mode is as before afterwards.

    Raises:
        UserError: Its forward pass depends on values, changes one in place that it uses elsewhere, or does what cannot
            be traced.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        graph = fx.symbolic_trace(model.eval())
    except Exception as error:  # whatever a forward pass does with a symbol in place of its images
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the forward pass of {type(model).__name__} has no fixed graph ({reason}); certify a network whose "
            "operations do not depend on the values of its images"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    _refuse_shared_changes(graph)
    return graph


def _last_linear(graph: fx.GraphModule) -> fx.Node | None:
    """The linear layer whose values are the network's logits, if it ends in one."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    node = output.args[0]
    if isinstance(node, fx.Node) and node.op == "call_module":
        layer = graph.get_submodule(str(node.target))
        if type(layer) is nn.Linear:
            return node
    return None
