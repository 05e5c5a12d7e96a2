"""Conversion of a model to half precision: NAME.fp16.onnx, which the service uses on a GPU.

ONNX Runtime's converter does the conversion. Input, output and operators that need more precision stay float32, and the
metadata is copied. The file is written only if both models agree on photographs.
"""

import graphlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from model_export.data import sources
from model_export.evaluation import metrics
from model_export.export.model_files import write_model
from model_export.export.parity import ChromaDifference, ParityError
from service.imaging import color
from service.imaging.color import Bytes, Floats
from service.inference.contract import Contract
from service.inference.half_precision import SUFFIX, half_of
from service.inference.session import Engine

__all__ = ["ColorDifference", "compare", "convert", "emulate_fp16", "half_of", "to_fp16"]

# Limits of the CIEDE2000 between both outputs: on average over the photographs, and for the worst one. A difference of
# 1 is just visible between two adjacent uniform fields.
MEAN_LIMIT = 0.25
WORST_LIMIT = 1.0
# A half has 13 of float32's 24 significant bits less. Its largest number is 65,504.
SPLIT = 2.0**13 + 1
LARGEST = 65504.0


@dataclass(frozen=True, slots=True)
class ColorDifference:
    """Differences between the images that two models colour.

    de00: mean CIEDE2000 over the photographs. worst: mean CIEDE2000 of the photograph that differs most.
    chroma: the difference of the chroma alone.
    """

    de00: float
    worst: float
    chroma: ChromaDifference


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in half precision; input and output stay float32."""
    # Imported here, because the import changes sys.path.
    from onnxruntime.transformers.float16 import convert_float_to_float16

    too_narrow = _running_sum_nodes(model.graph)
    half = cast("onnx.ModelProto", convert_float_to_float16(model, keep_io_types=True, node_block_list=too_narrow))
    _drop_redundant_casts(half.graph)
    _sort(half.graph)
    onnx.checker.check_model(half)
    return half


def _running_sum_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of all CumSum nodes and of the nodes that depend on them; unnamed ones get a name.

    They stay float32: the differences between late sums need all digits.
    """
    made, names = set[str](), []
    for number, node in enumerate(graph.node):
        if node.op_type == "CumSum" or not made.isdisjoint(node.input):
            made.update(node.output)
            node.name = node.name or f"from_running_sum_{number}"
            names.append(node.name)
    return names


def _drop_redundant_casts(graph: onnx.GraphProto) -> None:
    """Remove casts that have no effect after the conversion.

    Our exports store weights in half precision and cast them. The converter adds a pair of casts around each node that
    stays float32, and repeats casts under the same name.
    """
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    last = {port.name for port in graph.output}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in last]
    to_half = {node.output[0]: node.input[0] for node in casts if node.attribute[0].i == TensorProto.FLOAT16}
    idle = {made: taken for made, taken in to_half.items() if taken in halves}
    idle |= {
        node.output[0]: to_half[node.input[0]]
        for node in casts
        if node.attribute[0].i == TensorProto.FLOAT and node.input[0] in to_half
    }
    nodes = list({node.output[0]: node for node in graph.node if node.output[0] not in idle}.values())
    for node in nodes:
        node.input[:] = [idle.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)


def _sort(graph: onnx.GraphProto) -> None:
    """Sort the nodes topologically, as ONNX requires; the converter appends its own at the end."""
    made_by = {name: number for number, node in enumerate(graph.node) for name in node.output}
    needs = {
        number: {made_by[name] for name in _inputs_of(node) if name in made_by}
        for number, node in enumerate(graph.node)
    }
    nodes = [graph.node[number] for number in graphlib.TopologicalSorter(needs).static_order()]
    del graph.node[:]
    graph.node.extend(nodes)


def _inputs_of(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of a node's inputs, including what its branches and loops use from outside."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from _inputs_of(each)


def emulate_fp16(half: onnx.ModelProto) -> bytes:
    """Return a float32 model that rounds every half-precision tensor as a GPU does.

    Sums stay float32, as in a GPU's convolutions. ONNX Runtime's CPU provider computes a half-precision model in
    float32 throughout, which would hide the rounding.
    """
    model = shape_inference.infer_shapes(half)
    graph = model.graph
    halves = {value.name for value in graph.value_info if _is_half(value)}
    del graph.value_info[:]
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        made = [name for name in node.output if name in halves]
        _node_to_float32(node)
        node.output[:] = [f"{name}/whole" if name in made else name for name in node.output]
        nodes += [node, *(each for name in made for each in _rounding(f"{name}/whole", name))]
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        _tensor_to_float32(tensor)
    constants = (("half/split", SPLIT), ("half/largest", LARGEST))
    graph.initializer.extend(numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants)
    return bytes(model.SerializeToString())


def _is_half(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _tensor_to_float32(tensor: onnx.TensorProto) -> None:
    """Convert a float16 tensor to float32, in place."""
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _node_to_float32(node: onnx.NodeProto) -> None:
    """Convert a node's float16 results and constants to float32. Raises ValueError for branches and loops."""
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise ValueError("models with branches or loops can't be converted to half precision")
        _tensor_to_float32(attribute.t)
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT


def _rounding(value: str, name: str) -> list[onnx.NodeProto]:
    """Return nodes that round float32 to a half's 11 bits (Veltkamp splitting); too large values become infinite."""
    return [
        helper.make_node("Mul", [value, "half/split"], [f"{name}/scaled"]),
        helper.make_node("Sub", [f"{name}/scaled", value], [f"{name}/rest"]),
        helper.make_node("Sub", [f"{name}/scaled", f"{name}/rest"], [f"{name}/rounded"]),
        helper.make_node("Abs", [f"{name}/rounded"], [f"{name}/size"]),
        helper.make_node("LessOrEqual", [f"{name}/size", "half/largest"], [f"{name}/fits"]),
        helper.make_node("Cast", [f"{name}/fits"], [f"{name}/one"], to=TensorProto.FLOAT),
        helper.make_node("Div", [f"{name}/rounded", f"{name}/one"], [name]),
    ]


def _coloured(luma: Bytes, chroma: Floats, contract: Contract) -> Bytes:
    """Return a square photograph, luma [S, S] and chroma [2, s, s], as RGB, uint8 [S, S, 3]."""
    return color.rgb_at(luma, *color.enlarge(chroma, *luma.shape), contract.color_space)


def compare(whole: Engine, half: Engine, photographs: Sequence[sources.Entry]) -> ColorDifference:
    """Return the difference of two models on photographs, computed on the CPU. half: made by `emulate_fp16`."""
    contract = whole.contract
    differences, expected, actual = [], [], []
    for entry in photographs:
        luma = color.square(color.luma_of_rgb(entry.read()), contract.input_size)
        lightness = color.split(luma, contract.color_space, contract.input_size)[np.newaxis]
        (want,), (have,) = whole.predict(lightness), half.predict(lightness)
        expected.append(want)
        actual.append(have)
        images = (_coloured(luma, chroma, contract) for chroma in (have, want))
        differences.append(metrics.mean_ciede2000(*images))
    if not differences:
        raise ValueError("the parity check needs at least one photograph: see --data")
    chroma = ChromaDifference.between(np.stack(expected), np.stack(actual))
    return ColorDifference(float(np.mean(differences)), max(differences), chroma)


def convert(path: Path, output: Path, photographs: Sequence[sources.Entry]) -> ColorDifference:
    """Write the half-precision version of the model at `path`, and its SHA-256 file; return the difference.

    Raises ParityError, and writes nothing, if the difference exceeds MEAN_LIMIT or WORST_LIMIT.
    """
    if not output.name.endswith(SUFFIX):
        raise ValueError(f"{output}: the name must end in {SUFFIX}, or the service does not find the file")
    whole = Engine(path, path.read_bytes(), "cpu")
    half = to_fp16(onnx.load(path))
    content = half.SerializeToString()
    found = compare(whole, Engine(output, emulate_fp16(half), "cpu"), photographs)
    if not (found.de00 <= MEAN_LIMIT and found.worst <= WORST_LIMIT):
        raise ParityError(
            f"the outputs differ by {found.de00:.3f} CIEDE2000, and by {found.worst:.3f} on the worst photograph;"
            f" at most {MEAN_LIMIT} and {WORST_LIMIT} are allowed, so nothing was written"
        )
    write_model(output, content)
    return found
