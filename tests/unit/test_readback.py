"""Weights that are read back from an ONNX file. Slow only because Keras takes its time to be imported."""

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


def test_a_kernel_that_its_batch_norm_has_silenced_takes_no_other_kernels_place(tmp_path: Path) -> None:
    from model_export import readback
    from model_export.checkpoint import Setup

    random = np.random.default_rng(0)
    heard, silent = (random.normal(size=(3, 3, 6, 6)).astype(np.float32) for _ in range(2))
    factors = random.uniform(0.5, 2, 6).astype(np.float32)
    proto = graph_of({"silent": np.zeros_like(silent), "heard": heard * factors})
    readback.embed(proto, [heard, silent, factors], Setup(Recipe(name="x"), np.zeros((1, 2), np.float32), ["a"]))
    onnx.save(proto, tmp_path / "m.onnx")

    weights, setup = readback.load(tmp_path / "m.onnx")
    assert setup.recipe.name == "x"
    for read, given in zip(weights, [heard, silent, factors], strict=True):
        np.testing.assert_allclose(read, given, atol=5e-3)


def test_a_graph_without_a_kernel_is_refused() -> None:
    from model_export import readback
    from model_export.checkpoint import Setup

    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    with pytest.raises(readback.NoWeights, match="no tensor"):
        readback.embed(graph_of({"other": kernel[::-1]}), [kernel], Setup(Recipe(name="x"), np.zeros((1, 2)), []))
