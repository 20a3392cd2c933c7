"""Networks run on boxes of images, operation by operation of the graph of their forward pass."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from wdro_train.certificates.intervals import (
    NoBoundsError,
    boxes_in,
    may_share_memory,
    through_layer,
    through_operation,
)
from wdro_train.utils.errors import UserError


class BoxInterpreter(fx.Interpreter):
    """Runs a traced network on a box of images instead of on images.

    Args:
        graph: The network, in evaluation mode, traced by `traced`.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.graph_module, self.last = graph, _last_linear(graph)

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
            return super().run_node(n)
        if n is self.last:  # the margins are bounded from what goes into the last layer, together with its weights
            return args[0]
        try:
            if n.op == "call_module":
                (box,) = args
                return through_layer(self.fetch_attr(str(n.target)), box)
            return through_operation(n.target, args, kwargs)
        except (NoBoundsError, TypeError, ValueError):  # the last two for arguments that no rule takes
            raise _refused(self.graph_module, n) from None


def _refused(graph: fx.GraphModule, node: fx.Node) -> UserError:
    what = _operation(graph, node)
    return UserError(
        f"{node.name} ({getattr(what, '__name__', what)}) of the network has no interval bounds; certify a network of "
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
    """The graph of a network's forward pass.

    Args:
        model: In evaluation mode.

    Raises:
        UserError: Its forward pass depends on values, changes one in place that it uses elsewhere, or does what cannot
            be traced.
    """
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:  # whatever a forward pass does with a symbol in place of its images
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the forward pass of {type(model).__name__} has no fixed graph ({reason}); certify a network whose "
            "operations do not depend on the values of its images"
        ) from error
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
