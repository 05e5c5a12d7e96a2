"""Weights that are read back from an ONNX file. Slow only because Keras takes its time to be imported."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Kernel = NDArray[np.float32]


def graph_of(kernels: dict[str, Kernel]) -> onnx.ModelProto:
    """A model that holds the kernels as a graph does, [out, in, rows, columns] in half precision."""
    tensors = [
        numpy_helper.from_array(kernel.transpose(3, 2, 0, 1).astype(np.float16), name)
        for name, kernel in kernels.items()
    ]
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([], "g", [port], [port], tensors))


@pytest.mark.parametrize("loudness", [0, 1e-9, 3e-8, 1e-6, 1e-5, 1e-4])
def test_kernels_that_their_batch_norm_has_silenced_take_no_other_kernels_place(
    tmp_path: Path, loudness: float
) -> None:
    """So a network is that has hardly been trained. 1e-5 is in the range where half precision keeps few digits."""
    from model_export import readback
    from model_export.checkpoint import Setup

    random = np.random.default_rng(0)
    heard, silent, other = (random.normal(size=(3, 3, 6, 6)).astype(np.float32) for _ in range(3))
    factors = random.uniform(0.5, 2, 6).astype(np.float32)
    proto = graph_of({"other": other * loudness * factors, "silent": silent * loudness, "heard": heard * factors})
    given_weights = [heard, silent, other, factors]
    bins = np.zeros((1, 2), np.float32)
    readback.embed(proto, given_weights, Setup(Recipe(name="x"), bins, ["a"], contents=["7-abc"]))
    onnx.save(proto, tmp_path / "m.onnx")

    weights, setup = readback.load(tmp_path / "m.onnx")
    assert setup.recipe.name == "x"
    assert setup.contents == ["7-abc"]
    for read, given in zip(weights, given_weights, strict=True):
        np.testing.assert_allclose(read, given, atol=0.005 * np.abs(given).max())


@pytest.mark.parametrize("channels", [8, 4096])
def test_depthwise_kernels_and_those_of_bytes_are_read_back(tmp_path: Path, channels: int) -> None:
    """Keras has a depthwise kernel's single channel last, ONNX where the others have their inputs.

    And a kernel of one output is of the same form as a depthwise one in Keras, and of another in ONNX.
    """
    from model_export import readback
    from model_export.checkpoint import Setup
    from model_export.narrow import narrow

    random = np.random.default_rng(0)
    depthwise = random.normal(size=(3, 3, channels, 1)).astype(np.float32)
    of_one = random.normal(size=(3, 3, 1, channels)).astype(np.float32)
    to_one = random.normal(size=(3, 3, channels, 1)).astype(np.float32)
    factors = random.uniform(0.5, 2, channels).astype(np.float32)
    proto = graph_of({})
    for name, kernel in (("a", depthwise.transpose(2, 3, 0, 1)), ("b", of_one.transpose(3, 2, 0, 1))):
        tensor = numpy_helper.from_array(kernel * factors[:, np.newaxis, np.newaxis, np.newaxis], name)
        proto.graph.initializer.append(tensor)
    proto.graph.initializer.append(numpy_helper.from_array(to_one.transpose(3, 2, 0, 1), "c"))
    narrow(proto.graph, in_bytes=True)
    given_weights = [to_one, depthwise, of_one, factors]
    readback.embed(proto, given_weights, Setup(Recipe(name="x"), np.zeros((1, 2), np.float32), []))
    onnx.save(proto, tmp_path / "m.onnx")
    weights, _ = readback.load(tmp_path / "m.onnx")
    for read, given in zip(weights, given_weights, strict=True):
        np.testing.assert_allclose(read, given, atol=0.005 * np.abs(given).max())


def test_a_graph_without_a_kernel_is_refused() -> None:
    from model_export import readback
    from model_export.checkpoint import Setup

    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    with pytest.raises(readback.NoWeights, match="no tensor"):
        readback.embed(graph_of({"other": kernel[::-1]}), [kernel], Setup(Recipe(name="x"), np.zeros((1, 2)), []))


def test_a_file_that_was_exported_before_there_were_contents_is_read(tmp_path: Path) -> None:
    from model_export import readback
    from model_export.checkpoint import Setup

    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    proto = graph_of({"kernel": kernel})
    bins = np.zeros((1, 2), np.float32)
    readback.embed(proto, [kernel], Setup(Recipe(name="x"), bins, ["a"], contents=["7-abc"]))
    (entry,) = (entry for entry in proto.metadata_props if entry.key == readback.KEY)
    document = json.loads(entry.value)
    del document["contents"]
    entry.value = json.dumps(document)
    onnx.save(proto, tmp_path / "m.onnx")

    _, setup = readback.load(tmp_path / "m.onnx")
    assert len(setup.held_out) == 1
    assert setup.contents == []
