"""Conversion of third-party colorizers to the service's contract, by nodes around the original graph.

lightness, L*/100 -> gray, scaling, layout -> THIRD-PARTY GRAPH -> layout, scaling, Lab -> chroma, (a*, b*)

An `Interface` describes the input and output of the original graph; a preset is a named interface. Before the file is
written, both graphs run on the same test images. The original graph gets its input from scikit-image, which also
converts its output. The new file runs as in the service.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper, version_converter

from model_export.export.foreign import DTYPES, TOLERANCE, ForeignModel, Interface, first_line
from model_export.export.model_files import check_name, write_model
from model_export.export.parity import ChromaDifference, ParityError
from service.imaging.color import XYZ_TO_RGB, Floats
from service.inference.contract import INPUT, OUTPUT, Contract
from service.inference.session import Engine

# The first opset with all added operators. Their meaning is the same in every later one.
MIN_OPSET = 9
# The first IR version in which an initializer need not be an input, too.
MIN_IR = 4
# The protobuf limit, minus room for everything except the weights.
MAX_BYTES = (1 << 31) - (1 << 24)
# This prefix keeps the original tensor names apart from the contract's and from those of added nodes.
FOREIGN = "foreign/"


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """The result of an adaptation.

    chroma: the difference to the original graph, Lab units. zero_inputs: names of inputs that always get zeros.
    """

    contract: Contract
    chroma: ChromaDifference
    zero_inputs: list[str]


class _GraphBuilder:
    """A list of nodes and their constants. Calling it adds a node and returns the name of its output."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str | ArrayLike, named: str | None = None, **attributes: object) -> str:
        """Add a node. inputs: names, numbers or arrays; floating-point ones become float32 constants."""
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        name = named or f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))  # type: ignore[arg-type]
        return name

    def _constant(self, values: ArrayLike) -> str:
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        name = f"{self.prefix}/constant/{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def _add_gray(add: _GraphBuilder, lightness: str) -> str:
    """Add sRGB gray in 0..1 from L*/100, by CIE 1976 and IEC 61966-2-1, with both branches of each formula."""
    f = add("Div", add("Add", add("Mul", lightness, 100.0), 16.0), 116.0)
    cube = add("Mul", f, add("Mul", f, f))
    line = add("Mul", add("Sub", f, 4 / 29), 108 / 841)
    linear = add("Where", add("Greater", f, 6 / 29), cube, line)
    curve = add("Sub", add("Mul", add("Pow", linear, 1 / 2.4), 1.055), 0.055)
    return add("Where", add("Greater", linear, 0.0031308), curve, add("Mul", linear, 12.92))


def _add_ab(add: _GraphBuilder, rgb: str, *, reverse: bool) -> str:
    """Add (a*, b*) of sRGB [N, 3, h, w] in 0..1, or of BGR if `reverse`. Values outside are clipped."""
    inside = add("Min", add("Max", rgb, 0.0), 1.0)
    curve = add("Pow", add("Div", add("Add", inside, 0.055), 1.055), 2.4)
    linear = add("Where", add("Greater", inside, 0.04045), curve, add("Div", inside, 12.92))
    # A GPU may compute a convolution in TF32, which would tint grays by half a Lab unit. So planes are summed.
    order = (2, 1, 0) if reverse else (0, 1, 2)
    planes = [add("Gather", linear, np.array([channel]), axis=1) for channel in order]
    fx, fy, fz = (_add_f(add, planes, weights) for weights in np.linalg.inv(XYZ_TO_RGB))
    a = add("Mul", add("Sub", fx, fy), 500.0)
    b = add("Mul", add("Sub", fy, fz), 200.0)
    return add("Concat", a, b, axis=1)


def _add_f(add: _GraphBuilder, planes: Sequence[str], weights: Floats) -> str:
    """Add CIE 1976's f of X, Y or Z relative to the white point: a weighted sum of linear RGB planes."""
    red, green, blue = (add("Mul", plane, weight) for plane, weight in zip(planes, weights, strict=True))
    value = add("Add", add("Add", red, green), blue)
    line = add("Div", add("Add", add("Mul", value, 24389 / 27), 16.0), 116.0)
    return add("Where", add("Greater", value, 216 / 24389), add("Pow", value, 1 / 3), line)


def _add_input_nodes(add: _GraphBuilder, foreign: ForeignModel) -> None:
    """Add the nodes between the contract's input and the original inputs."""
    interface = foreign.interface
    plane = INPUT if interface.input_kind == "lightness" else _add_gray(add, INPUT)
    low, high = interface.input_range
    mean, std = (
        np.zeros((1, interface.channels, 1, 1)) + np.reshape(x, (-1, 1, 1)) for x in (interface.mean, interface.std)
    )
    # Each channel has a gain and an offset, so this also repeats the plane.
    scaled = add("Add", add("Mul", plane, (high - low) / std), (low - mean) / std)
    if interface.layout == "nhwc":
        scaled = add("Transpose", scaled, perm=[0, 2, 3, 1])
    type_ = helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES[foreign.image.type]))
    add("Cast", scaled, named=FOREIGN + foreign.image.name, to=type_)
    for port in foreign.zero_inputs:
        batch = add("Gather", add("Shape", INPUT), np.array([0]), axis=0)
        shape = add("Concat", batch, np.array(port.shape[1:], np.int64), axis=0)
        zero = numpy_helper.from_array(np.zeros(1, DTYPES[port.type]))
        add("ConstantOfShape", shape, named=FOREIGN + port.name, value=zero)


def _add_output_nodes(add: _GraphBuilder, foreign: ForeignModel) -> None:
    """Add the nodes between the original output and the contract's output."""
    interface = foreign.interface
    values = add("Cast", FOREIGN + foreign.output.name, to=TensorProto.FLOAT)
    if interface.layout == "nhwc":
        values = add("Transpose", values, perm=[0, 3, 1, 2])
    low, high = interface.output_range
    first, last = (interface.ab_range or interface.output_range) if interface.output_kind == "ab" else (0.0, 1.0)
    gain = (last - first) / (high - low)
    chroma = add("Add", add("Mul", values, gain), first - low * gain)
    if interface.output_kind != "ab":
        chroma = _add_ab(add, chroma, reverse=interface.output_kind == "bgr")
    large, small = foreign.output_size, foreign.chroma_size
    if large != small:
        # Shrinking by area is a matrix product on both sides, which means the same in every opset.
        weights = cv2.resize(np.eye(large, dtype=np.float32), (large, small), interpolation=cv2.INTER_AREA)
        chroma = add("MatMul", add("MatMul", weights, chroma), weights.T)
    add("Identity", chroma, named=OUTPUT)


def _rename(graph: onnx.GraphProto) -> None:
    """Add the prefix FOREIGN to all tensor names, including those in the graphs of branches and loops.

    onnx.compose.add_prefix does not rename a branch's reference to an outer initializer.
    """
    for node in graph.node:
        node.input[:] = [name and FOREIGN + name for name in node.input]
        node.output[:] = [name and FOREIGN + name for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g)
            for inner in attribute.graphs:
                _rename(inner)
    for named in (*graph.input, *graph.output, *graph.initializer, *(each.values for each in graph.sparse_initializer)):
        named.name = FOREIGN + named.name
    # Inferred shapes are not needed, and may contradict a size that is fixed now.
    del graph.value_info[:]


def _load(path: Path) -> onnx.ModelProto:
    """Load the original model with its external weights. Raises ValueError if they don't fit into one file."""
    model = onnx.load(path)
    size = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    if size > MAX_BYTES:
        raise ValueError(f"{path}: its weights have {size:,} bytes, but an ONNX file can hold only {MAX_BYTES:,}")
    if max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0) < MIN_OPSET:
        try:
            model = version_converter.convert_version(model, MIN_OPSET)
        except Exception as error:
            raise ValueError(f"{path}: it can't be converted to opset {MIN_OPSET}: {first_line(error)}") from error
    return model


def _wrap(path: Path, foreign: ForeignModel, contract: Contract) -> bytes:
    """Return the content of the new file."""
    model = _load(path)
    graph = model.graph
    _rename(graph)
    before, after = _GraphBuilder("before"), _GraphBuilder("after")
    _add_input_nodes(before, foreign)
    _add_output_nodes(after, foreign)
    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    batch, size, answered = contract.max_batch or "batch", contract.input_size, foreign.chroma_size
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, 1, size, size]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [batch, 2, answered, answered]))
    model.ir_version = max(model.ir_version, MIN_IR)
    helper.set_model_props(model, contract.to_metadata())
    return bytes(model.SerializeToString())


def _test_images(size: int) -> Floats:
    """Return lightness for the check, float32 [3, 1, size, size]: a ramp, smooth shapes and noise."""
    random = np.random.default_rng(0)
    ramp = np.tile(np.linspace(0, 1, size), (size, 1))
    shapes = cv2.resize(random.random((8, 8)), (size, size), interpolation=cv2.INTER_LINEAR)
    return np.stack([ramp, shapes, random.random((size, size))])[:, np.newaxis].astype(np.float32)


def adapt(  # noqa: PLR0913 - half of them are keyword-only
    path: Path, output: Path, interface: Interface, *, name: str, version: str, size: int | None
) -> AdaptedModel:
    """Wrap the ONNX file at `path`; write `output` and its SHA-256 file.

    size: side of the input, pixels, if the graph does not fix it; that of the interface if None. Raises ValueError if
    the graph has another interface. Raises ParityError if the outputs differ. Nothing is written then.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the file does not exist")
    check_name(output)
    if output.exists() and output.samefile(path):
        raise ValueError(f"{output} is the input file, which would be lost: choose another output file")
    foreign = ForeignModel(path, interface, size)
    lightness = _test_images(foreign.size)
    want = np.concatenate([foreign.chroma(one[np.newaxis]) for one in lightness])
    max_batch = None if foreign.supports_batches(lightness, want) else 1
    contract = Contract(name, version, "lab", foreign.size, interface.license, interface.data, max_batch)
    content = _wrap(path, foreign, contract)
    engine = Engine(output, content, "cpu")
    have = np.concatenate([engine.predict(one[np.newaxis]) for one in lightness])
    _check_parity(want, have, TOLERANCE[foreign.image.type])
    write_model(output, content)
    zero_inputs = [port.name for port in foreign.zero_inputs]
    return AdaptedModel(contract, ChromaDifference.between(want, have), zero_inputs)


def _check_parity(want: Floats, have: Floats, tolerance: float) -> None:
    """Raise ParityError if the outputs differ by more than the tolerance, Lab units."""
    difference = np.abs(want - have)
    if not difference.max() <= tolerance:
        index = np.unravel_index(difference.argmax(), difference.shape)
        raise ParityError(
            f"{('a*', 'b*')[index[1]]} is {have[index]:.2f}, but {want[index]:.2f} in the original graph;"
            f" the difference exceeds {tolerance}, so nothing was written"
        )
