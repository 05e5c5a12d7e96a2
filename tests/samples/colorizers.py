"""Small graphs with the interfaces of third-party colorizers, and functions that compute their output."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from skimage.color import lab2rgb, rgb2lab

SIZE = 32
FLOAT = TensorProto.FLOAT
Array = np.ndarray
# Maps three channels to two. A gray value becomes 52 times as much a* and -34 times as much b*, plus an offset.
TO_AB = np.array([[40.0, 30.0, -18.0], [-60.0, 20.0, 6.0]], np.float32)
AB_OFFSET = np.array([-5.0, 8.0], np.float32)
# Gives a gray image a colour cast. Some values leave 0..255.
TO_RGB = np.array([[0.9, 0.2, 0.1], [0.1, 0.5, 0.2], [0.3, 0.1, 0.1]], np.float32)
RGB_OFFSET = np.array([-10.0, 20.0, 5.0], np.float32)


def conv(inputs: str, output: str, weights: Array, offset: Array, dtype: type = np.float32) -> tuple:
    """Return a 1 x 1 convolution and its weights."""
    tensors = [
        numpy_helper.from_array(weights.astype(dtype)[..., None, None], f"{output}_weights"),
        numpy_helper.from_array(offset.astype(dtype), f"{output}_offset"),
    ]
    return helper.make_node("Conv", [inputs, tensors[0].name, tensors[1].name], [output]), tensors


def model(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
    inputs: Mapping[str, Sequence],
    outputs: Mapping[str, Sequence],
    *,
    opset: int = 17,
    element: int = FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "foreign",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, element, shape) for name, shape in outputs.items()],
        list(tensors),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def ddcolor(
    *, batch: int | str = "batch", side: int | str = SIZE, opset: int = 17, half: bool = False
) -> onnx.ModelProto:
    dtype, element = (np.float16, TensorProto.FLOAT16) if half else (np.float32, FLOAT)
    node, tensors = conv("input", "output", TO_AB, AB_OFFSET, dtype)
    shapes = {"input": [batch, 3, side, side]}, {"output": [batch, 2, side, side]}
    return model([node], tensors, *shapes, opset=opset, element=element)


def deoldify(*, side: int | str = SIZE) -> onnx.ModelProto:
    node, tensors = conv("input", "out", TO_RGB, RGB_OFFSET)
    return model([node], tensors, {"input": [1, 3, side, side]}, {"out": [1, 3, side, side]}, opset=12)


def zhang(*, hints: bool, batch: int | str = "batch") -> onnx.ModelProto:
    """Return a graph that normalizes L* inside. With `hints`, it also takes hints and their mask, as siggraph17."""
    nodes = [
        helper.make_node("Sub", ["l", "fifty"], ["centred"]),
        helper.make_node("Div", ["centred", "hundred"], ["unit"]),
    ]
    constants = {"fifty": 50.0, "hundred": 100.0, "ab_norm": 110.0}
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()]
    inputs = {"l": [batch, 1, SIZE, SIZE]}
    weights = np.array([[0.5], [-0.7]], np.float32)
    joined = "unit"
    if hints:
        inputs |= {"hints": [batch, 2, "height", "width"], "mask": [batch, 1, SIZE, SIZE]}
        nodes.append(helper.make_node("Concat", ["unit", "hints", "mask"], ["joined"], axis=1))
        weights = np.concatenate([weights, np.full((2, 3), 9.0, np.float32)], axis=1)
        joined = "joined"
    node, more = conv(joined, "small", weights, np.array([0.1, 0.2]))
    nodes += [node, helper.make_node("Mul", ["small", "ab_norm"], ["ab"])]
    return model(nodes, [*tensors, *more], inputs, {"ab": [batch, 2, SIZE, SIZE]})


def gray_of(lightness: Array) -> Array:
    """Return sRGB gray in 0..1 of L*/100, [..., H, W]."""
    lab = np.stack([lightness * 100.0, lightness * 0.0, lightness * 0.0], axis=-1).astype(np.float64)
    return lab2rgb(lab)[..., 0]


def ab_of_ddcolor(lightness: Array) -> Array:
    gray = gray_of(lightness)
    return np.stack([TO_AB[n].sum() * gray + AB_OFFSET[n] for n in range(2)])


def ab_of_deoldify(lightness: Array) -> Array:
    gray = 255 * gray_of(lightness)
    rgb = np.stack([TO_RGB[n].sum() * gray + RGB_OFFSET[n] for n in range(3)], axis=-1) / 255
    return np.moveaxis(rgb2lab(np.clip(rgb, 0, 1)), -1, 0)[1:]


def ab_of_zhang(lightness: Array) -> Array:
    unit = (lightness * 100 - 50) / 100
    return np.stack([110 * (0.5 * unit + 0.1), 110 * (-0.7 * unit + 0.2)])
