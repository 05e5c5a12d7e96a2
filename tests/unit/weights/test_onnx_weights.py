"""Weights that are restored from an ONNX file. Slow only because importing Keras takes time."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.recipe import Recipe
from model_export.weights import UnusableWeights
from model_export.weights.quantization import INT8_TOLERANCE

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Kernel = NDArray[np.float32]


def graph_of(kernels: dict[str, Kernel]) -> onnx.ModelProto:
    """Return a model with kernels in the layout of a converted one, float32 [out, in, rows, columns]."""
    tensors = [numpy_helper.from_array(kernel.transpose(3, 2, 0, 1), name) for name, kernel in kernels.items()]
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([], "g", [port], [port], tensors))


def narrowed(whole: onnx.ModelProto) -> onnx.ModelProto:
    from model_export.weights.quantization import compress_weights

    proto = onnx.ModelProto()
    proto.CopyFrom(whole)
    compress_weights(proto.graph, int8=True)
    return proto


def embedded(whole: onnx.ModelProto, weights: list[Kernel], path: Path) -> onnx.ModelProto:
    """Write a model with compressed weights and the metadata that restore them."""
    from model_export.weights import onnx_weights
    from model_export.weights.checkpoint import Setup

    proto = narrowed(whole)
    setup = Setup(Recipe(name="x"), np.zeros((1, 2), np.float32), ["a"], content_ids=["7-abc"])
    onnx_weights.embed(proto, whole, weights, setup)
    onnx.save(proto, path)
    return proto


@pytest.mark.parametrize("loudness", [0, 1e-9, 3e-8, 1e-6, 1e-5, 1e-4])
def test_kernels_that_their_batch_norm_has_silenced_take_no_other_kernels_place(
    tmp_path: Path, loudness: float
) -> None:
    """A network with little training has such kernels. Half precision keeps few digits of numbers around 1e-5."""
    from model_export.weights import onnx_weights

    random = np.random.default_rng(0)
    heard, silent, other = (random.normal(size=(3, 3, 6, 6)).astype(np.float32) for _ in range(3))
    factors = random.uniform(0.5, 2, 6).astype(np.float32)
    proto = graph_of({"other": other * loudness * factors, "silent": silent * loudness, "heard": heard * factors})
    given_weights = [heard, silent, other, factors]
    embedded(proto, given_weights, tmp_path / "m.onnx")
    weights, setup = onnx_weights.load(tmp_path / "m.onnx")
    assert setup.recipe.name == "x"
    assert setup.content_ids == ["7-abc"]
    for read, given in zip(weights, given_weights, strict=True):
        np.testing.assert_allclose(read, given, atol=0.005 * np.abs(given).max())


@pytest.mark.parametrize("channels", [8, 4096])
def test_depthwise_kernels_and_those_of_bytes_are_read_back(tmp_path: Path, channels: int) -> None:
    """A depthwise kernel has its single channel last in Keras, and on the axis of inputs in ONNX.

    A kernel with one output has the same shape as a depthwise one in Keras, and another in ONNX.
    """
    from model_export.weights import onnx_weights

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
    given_weights = [to_one, depthwise, of_one, factors]
    embedded(proto, given_weights, tmp_path / "m.onnx")
    weights, _ = onnx_weights.load(tmp_path / "m.onnx")
    for read, given in zip(weights, given_weights, strict=True):
        np.testing.assert_allclose(read, given, atol=INT8_TOLERANCE * np.abs(given).max())


@pytest.mark.parametrize("change", [0.0, 0.003, 0.03])
def test_what_was_read_from_eight_bits_is_kept_and_read_again(tmp_path: Path, change: float) -> None:
    """A restored kernel lies on a lattice of eight bits, and a short training moves it off a little.

    All weights of a channel are then rounded in the same direction, which biases a factor estimated from them.
    """
    from model_export.weights import onnx_weights

    random = np.random.default_rng(0)
    kernel = random.normal(size=(3, 3, 64, 64)).astype(np.float32)
    for around in range(3):
        factors = random.uniform(0.5, 2, 64).astype(np.float32)
        file = tmp_path / f"{around}.onnx"
        embedded(graph_of({"kernel": kernel * factors}), [kernel], file)
        (read,), _ = onnx_weights.load(file)
        step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
        assert (np.abs(read - kernel) <= 1.01 * step + 1e-6).all()
        # The largest weights of a channel grow, which changes the lattice of the whole channel.
        kernel = np.where(np.abs(read) > 0.9 * np.abs(read).max(axis=(0, 1, 2)), read * (1 + change), read)


def test_a_kernel_that_the_graph_lacks_is_kept_whole(tmp_path: Path) -> None:
    """A converter stores several kernels of zeros as one tensor, for example."""
    from model_export.weights import onnx_weights

    random = np.random.default_rng(0)
    kernel, depthwise = (random.normal(size=shape).astype(np.float32) for shape in ((3, 3, 2, 2), (3, 3, 4, 1)))
    nothing = np.zeros((3, 3, 2, 2), np.float32)
    given_weights = [kernel, nothing, nothing, depthwise]
    embedded(graph_of({"other": kernel[::-1], "nothing": nothing}), given_weights, tmp_path / "m.onnx")
    weights, _ = onnx_weights.load(tmp_path / "m.onnx")
    for read, given in zip(weights, given_weights, strict=True):
        np.testing.assert_allclose(read, given, rtol=1e-3)


def test_weights_that_would_be_read_back_wrongly_are_refused(tmp_path: Path) -> None:
    from model_export.weights import onnx_weights
    from model_export.weights.checkpoint import Setup

    kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    whole, proto = graph_of({"kernel": kernel}), narrowed(graph_of({"kernel": kernel}))
    wrong = [np.full(8, np.nan, np.float32)]
    with pytest.raises(UnusableWeights, match="weight 0, of shape"):
        onnx_weights.embed(proto, whole, wrong, Setup(Recipe(name="x"), np.zeros((1, 2), np.float32), []))
    assert not proto.metadata_props


def test_a_file_that_was_exported_before_there_were_contents_is_read(tmp_path: Path) -> None:
    from model_export.weights import onnx_weights

    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    proto = embedded(graph_of({"kernel": kernel}), [kernel], tmp_path / "m.onnx")
    (entry,) = (entry for entry in proto.metadata_props if entry.key == onnx_weights.METADATA_KEY)
    document = json.loads(entry.value)
    del document["contents"]
    entry.value = json.dumps(document)
    onnx.save(proto, tmp_path / "m.onnx")

    _, setup = onnx_weights.load(tmp_path / "m.onnx")
    assert len(setup.held_out) == 1
    assert setup.content_ids == []
