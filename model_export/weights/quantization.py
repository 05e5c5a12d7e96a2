"""How an ONNX file keeps weights: large kernels in eight bits, what else is not small in half precision.

A runtime widens them once, when it loads the file, and computes with float32. Eight bits have a scale for each output
channel, as in Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (2018). They are rounded
as Floyd and Steinberg round gray to dots, "An adaptive algorithm for spatial greyscale" (1976), along a channel.
"""

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Values of a tensor: smaller ones are not worth a cast, and in eight bits not worth what they lose.
LEAST_HALF = 64
LEAST_BYTES = 2**15
# The largest byte.
STEPS = 127
HALF, BYTES, SCALE = "_half", "_bytes", "_scale"
# As a share of a kernel's largest weight, the most that its stored form is off by: a step, and a little; or half a unit
# in half precision's last place.
PRECISION = 1 / STEPS + 1e-3
HALF_PRECISION = 1e-3


def narrow(graph: onnx.GraphProto, *, in_bytes: bool) -> None:
    """Stores the float32 weights of a graph so; the large kernels in half precision as well unless in_bytes."""
    nodes: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < LEAST_HALF or values.ndim < 2:
            continue
        graph.initializer.remove(tensor)
        if in_bytes and values.ndim == 4 and values.size >= LEAST_BYTES:
            nodes += _in_bytes(graph, tensor.name, values)
        else:
            half = numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}{HALF}")
            graph.initializer.append(half)
            nodes.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)


def _in_bytes(graph: onnx.GraphProto, name: str, kernel: NDArray[np.float32]) -> list[onnx.NodeProto]:
    scale = np.maximum(np.abs(kernel).max(axis=(1, 2, 3), keepdims=True) / STEPS, np.finfo(np.float32).tiny)
    values = _diffused(kernel / scale).astype(np.int8)
    graph.initializer.append(numpy_helper.from_array(values, f"{name}{BYTES}"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}{SCALE}"))
    return [
        helper.make_node("Cast", [f"{name}{BYTES}"], [f"{name}_steps"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_steps", f"{name}{SCALE}"], [name]),
    ]


def _diffused(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to whole steps in -127..127, [out, ...]; what each weight is off by is made up for by the next.

    So the weights of a channel are right together, and an answer is three times nearer than with each rounded by
    itself. Above all, a kernel that was read from eight bits and trained a little is off its old steps by less than a
    half: each rounded by itself, all would go back to where they were, and nothing would have been learnt.
    """
    flat = steps.reshape(len(steps), -1)
    rounded, rest = np.empty_like(flat), np.zeros(len(flat), flat.dtype)
    for column in range(flat.shape[1]):
        wanted = flat[:, column] + rest
        rounded[:, column] = np.rint(wanted).clip(-STEPS, STEPS)
        rest = wanted - rounded[:, column]
    return rounded.reshape(steps.shape)


def kernels(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The kernels that a file keeps, float32 [out, in, rows, columns], by the names of their tensors."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if len(tensor.dims) == 4}
    scales = {name: found.pop(name) for name in list(found) if name.endswith(SCALE)}
    return {
        name: values.astype(np.float32) * scales.get(f"{name.removesuffix(BYTES)}{SCALE}", 1)
        for name, values in found.items()
    }


def stored_name(name: str, stored: Collection[str]) -> str:
    """Return what the tensor `name` is called among the `kernels` of the model once it is narrow."""
    return next(f"{name}{end}" for end in (BYTES, HALF, "") if f"{name}{end}" in stored)
