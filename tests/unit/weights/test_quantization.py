"""Compression of the weights of an ONNX file."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.weights.quantization import (
    HALF_SUFFIX,
    INT8_SUFFIX,
    INT8_TOLERANCE,
    MIN_INT8_SIZE,
    SCALE_SUFFIX,
    compress_weights,
    kernels,
)

Kernel = NDArray[np.float32]


def convolution(kernel: Kernel) -> onnx.ModelProto:
    """Return a model of one convolution without padding."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, kernel.shape[1], 8, 8])
    y = helper.make_tensor_value_info(
        "y", TensorProto.FLOAT, [1, len(kernel), 9 - kernel.shape[2], 9 - kernel.shape[3]]
    )
    bias = numpy_helper.from_array(np.zeros(len(kernel), np.float32), "b")
    tensors = [numpy_helper.from_array(kernel, "w"), bias]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w", "b"], ["y"])], "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def answer(model: onnx.ModelProto, x: Kernel) -> Kernel:
    (y,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return np.asarray(y)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_large_kernel_is_kept_in_bytes_and_answers_nearly_the_same(random: np.random.Generator) -> None:
    loudness = np.logspace(-6, 2, 64, dtype=np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
    kernel = random.normal(size=(64, 64, 3, 3)).astype(np.float32) * loudness
    assert kernel.size >= MIN_INT8_SIZE
    model = convolution(kernel)
    x = random.normal(size=(1, 64, 8, 8)).astype(np.float32)
    before, size = answer(model, x), model.ByteSize()
    compress_weights(model.graph, int8=True)
    onnx.checker.check_model(model, full_check=True)
    assert model.ByteSize() < size / 3.9
    assert {tensor.name for tensor in model.graph.initializer} == {"b", f"w{INT8_SUFFIX}", f"w{SCALE_SUFFIX}"}
    (stored,) = kernels(model).values()
    off = np.abs(stored - kernel).max(axis=(1, 2, 3)) / np.abs(kernel).max(axis=(1, 2, 3))
    assert off.max() <= INT8_TOLERANCE, "each channel has a scale of its own: a quiet one is as precise as a loud one"
    error = np.abs(answer(model, x) - before).max(axis=(0, 2, 3)) / np.abs(before).max(axis=(0, 2, 3))
    assert error.max() < 0.03


@pytest.mark.parametrize("shift", [0.1, 0.3, -0.45])
def test_what_was_learnt_after_eight_bits_is_kept_in_eight_bits(random: np.random.Generator, shift: float) -> None:
    """A kernel that moved by less than half a step from whole steps is not rounded back to them."""
    lattice = np.rint(random.normal(size=(64, 64, 3, 3)) * 20).clip(-126, 126).astype(np.float32)
    lattice[:, 0, 0, 0] = 127
    learnt = lattice + shift
    learnt[:, 0, 0, 0] = 127
    model = convolution(learnt)
    x = np.ones((1, 64, 8, 8), np.float32)
    moved = answer(model, x) - answer(convolution(lattice), x)
    compress_weights(model.graph, int8=True)
    np.testing.assert_allclose(answer(model, x) - answer(convolution(lattice), x), moved, atol=1)
    assert np.abs(moved).min() > 50


def test_a_kernel_of_whole_steps_is_kept_as_it_is(random: np.random.Generator) -> None:
    lattice = random.integers(-126, 127, (64, 64, 3, 3)).astype(np.float32)
    lattice[:, 0, 0, 0] = 127
    model = convolution(lattice * np.float32(0.013))
    compress_weights(model.graph, int8=True)
    (stored,) = kernels(model).values()
    np.testing.assert_allclose(stored, lattice * 0.013, rtol=1e-5)


def test_a_smaller_one_is_kept_in_half_precision_and_a_bias_as_it_is(random: np.random.Generator) -> None:
    kernel = random.normal(size=(8, 8, 3, 3)).astype(np.float32)
    model = convolution(kernel)
    compress_weights(model.graph, int8=True)
    assert {tensor.name for tensor in model.graph.initializer} == {"b", f"w{HALF_SUFFIX}"}
    np.testing.assert_array_equal(kernels(model)[f"w{HALF_SUFFIX}"], kernel.astype(np.float16))


def test_a_kernel_of_nothing_stays_nothing() -> None:
    model = convolution(np.zeros((64, 64, 3, 3), np.float32))
    compress_weights(model.graph, int8=True)
    (stored,) = kernels(model).values()
    np.testing.assert_array_equal(stored, 0)
    np.testing.assert_array_equal(answer(model, np.ones((1, 64, 8, 8), np.float32)), 0)


def test_an_export_falls_back_to_half_precision_and_then_gives_up(random: np.random.Generator) -> None:
    from model_export.export import export
    from model_export.export.parity import ChromaDifference, ParityError

    model = convolution(random.normal(size=(64, 64, 3, 3)).astype(np.float32))
    x = random.normal(size=(1, 64, 8, 8)).astype(np.float32)
    wanted = answer(model, x)

    def check(proto: onnx.ModelProto) -> ChromaDifference:
        return ChromaDifference.between(wanted, answer(proto, x))

    in_bytes, stored = export._compress_weights(model, check, 1.0)
    in_half, closer = export._compress_weights(model, check, stored.mean / 2)
    assert {tensor.data_type for tensor in in_bytes.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT8}
    assert {tensor.data_type for tensor in in_half.graph.initializer} == {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert closer.mean < stored.mean / 10
    with pytest.raises(ParityError, match="on average, more than"):
        export._compress_weights(model, check, 0.0)
