"""Create the benchmark's model: python -m tests.bench.model FILE.onnx

It is a fixed network of 1.3 GMAC that follows the contract, so that figures do not change with the shipped model. It is
a small U-Net with random weights from a seed. Its colours mean nothing, but they are finite, smooth and moderate. The
work of the other stages depends on nothing else.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

from service.imaging.color import Floats
from service.inference.contract import INPUT, OUTPUT, Contract

NAME = "bench"
INPUT_SIZE = 224
GRID = 56
TARGET_MACS = 1.3e9
LARGEST_CHROMA = 40.0
# Found by trial: these give warm colours that are as vivid as a photograph's.
SEED = 1
GAIN = -1.0
FACTS = Contract(NAME, "1", "lab", INPUT_SIZE, "Apache-2.0", "nothing: random weights from a seed")


class _Builder:
    """A collection of nodes and weights. Every method returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))  # type: ignore[arg-type]
        return output

    def constant(self, values: object) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def conv(self, x: str, inside: int, outside: int, *, kernel: int = 3, stride: int = 1) -> str:
        """Add a convolution with the initialization of He et al. (2015), which preserves the variance."""
        weights = self._weights(inside, outside, kernel)
        pads, strides = [kernel // 2] * 4, [stride] * 2
        return self.node("Conv", [x, self.constant(weights)], kernel_shape=[kernel] * 2, pads=pads, strides=strides)

    def head(self, x: str, inside: int, outside: int) -> str:
        """Add a convolution whose weights have a mean of 0, so that the output has no overall cast."""
        weights = self._weights(inside, outside, 3)
        weights = GAIN * (weights - weights.mean(axis=(1, 2, 3), keepdims=True))
        return self.node("Conv", [x, self.constant(weights)], kernel_shape=[3, 3], pads=[1] * 4)

    def _weights(self, inside: int, outside: int, kernel: int) -> Floats:
        spread = math.sqrt(2 / (inside * kernel * kernel))
        return self._random.normal(0, spread, (outside, inside, kernel, kernel)).astype(np.float32)

    def block(self, x: str, inside: int, outside: int, *, stride: int = 1) -> str:
        return self.node("Relu", [self.conv(x, inside, outside, stride=stride)])

    def up(self, x: str) -> str:
        scales = self.constant([1, 1, 2, 2])
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", [x, "", scales], **modes)


def _network(net: _Builder) -> None:
    x = net.block(INPUT, 1, 32, stride=2)
    x = net.block(x, 32, 64, stride=2)
    fine = x = net.block(x, 64, 64)
    x = net.block(x, 64, 128, stride=2)
    x = net.block(x, 128, 128)
    middle = x = net.block(x, 128, 128)
    x = net.block(x, 128, 256, stride=2)
    x = net.block(x, 256, 256)
    x = net.block(x, 256, 256)
    x = net.block(net.up(x), 256, 128)
    x = net.node("Add", [x, net.conv(middle, 128, 128, kernel=1)])
    x = net.block(net.up(x), 128, 64)
    x = net.node("Add", [x, net.conv(fine, 64, 64, kernel=1)])
    x = net.block(x, 64, 32)
    x = net.head(x, 32, 2)
    x = net.node("AveragePool", [x], kernel_shape=[7, 7], pads=[3] * 4)
    x = net.node("Tanh", [x])
    net.node("Mul", [x, _room(net)], OUTPUT)


def _room(net: _Builder) -> str:
    """Return the largest chroma of each pixel, 4 L (1 - L). Black and white have no room for colour."""
    lightness = net.node("AveragePool", [INPUT], kernel_shape=[4, 4], strides=[4, 4])
    rest = net.node("Sub", [net.constant(1), lightness])
    return net.node("Mul", [net.node("Mul", [lightness, rest]), net.constant(4 * LARGEST_CHROMA)])


def build() -> bytes:
    """Return the model as an ONNX file."""
    net = _Builder(SEED)
    _network(net)
    size = INPUT_SIZE
    graph = helper.make_graph(
        net.nodes,
        NAME,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 2, GRID, GRID])],
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, FACTS.to_metadata())
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, list[int]]]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        # The batch axis has no size, so it counts as 1.
        yield value.name, [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]


def macs(data: bytes) -> int:
    """Return the multiply-accumulates per photo, counted over the convolutions; the other nodes are negligible."""
    graph = shape_inference.infer_shapes(onnx.load_model_from_string(data)).graph
    shapes = dict(_shapes(graph))
    weights = {weight.name: list(weight.dims) for weight in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    return sum(math.prod(shapes[node.output[0]]) * math.prod(weights[node.input[1]][1:]) for node in convolutions)


def main() -> None:
    data = build()
    Path(sys.argv[1]).write_bytes(data)
    print(f"{sys.argv[1]}: {macs(data) / 1e9:.3f} GMAC, {len(data) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
