"""The gain and cast of an exported file."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_export.weights.post_processing import CAST, CAST_LAYER, GAIN, PostProcessing, common_to_all, from_onnx

MODELS = Path(__file__).parents[3] / "service" / "models"
BINS = np.array([[a, b] for a in range(-30, 31, 10) for b in range(-30, 31, 10)], np.float32)


def exported(bins: np.ndarray, cast: float | None = None) -> onnx.ModelProto:
    """Return a model with the constants of an export from before its metadata had gain and cast."""
    tensors = [numpy_helper.from_array(bins.astype(np.float16), "bins_half")]
    nodes = []
    if cast is not None:
        tensors.append(numpy_helper.from_array(np.array(cast, np.float32), "share"))
        nodes.append(helper.make_node("Mul", ["share", "mean"], ["taken"], name=f"serving/{CAST_LAYER}_1/mul_1"))
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph(nodes, "g", [port], [port], tensors))


@pytest.mark.parametrize("gain", [1.0, 1.6, 2.4, 0.875])
@pytest.mark.parametrize("cast", [None, 0.36])
def test_older_files_are_read_by_their_constants(gain: float, cast: float | None) -> None:
    moments = np.concatenate([BINS * gain, np.ones((len(BINS), 1))], axis=1).T[:, :, np.newaxis, np.newaxis]
    for kernel in (moments, BINS * gain):
        assert from_onnx(exported(kernel, cast), BINS) == PostProcessing(gain, cast or 0.0)


def test_the_metadata_comes_first() -> None:
    proto = exported(BINS * 2, 0.5)
    helper.set_model_props(proto, PostProcessing(1.25, 0.1).to_metadata())
    assert {entry.key for entry in proto.metadata_props} == {GAIN, CAST}
    assert from_onnx(proto, BINS) == PostProcessing(1.25, 0.1)


def test_what_a_graph_does_not_say_is_unknown() -> None:
    assert from_onnx(exported(BINS[::-1] + 5), BINS) is None
    assert from_onnx(exported(BINS), np.zeros((0, 2), np.float32)) is None


@pytest.mark.parametrize(("name", "gain", "cast"), [("compact", 2.4, 0.36), ("compact-hsv", 1.2, 0.0)])
def test_the_shipped_files_say_theirs(name: str, gain: float, cast: float) -> None:
    proto = onnx.load(MODELS / f"{name}.onnx")
    (document,) = (json.loads(entry.value) for entry in proto.metadata_props if entry.key == "tomau.training")
    assert from_onnx(proto, np.array(document["bins"], np.float32)) == PostProcessing(gain, cast)


def test_several_agree_or_none_is_taken() -> None:
    bold, plain = PostProcessing(2.4, 0.36), PostProcessing(1.6, 0)
    assert common_to_all([bold, bold]) == bold
    assert common_to_all([bold, plain]) is None
    assert common_to_all([bold, None]) is None
    assert common_to_all([]) is None


def test_a_run_keeps_it(tmp_path: Path) -> None:
    assert PostProcessing.load(tmp_path) is None
    PostProcessing(2.4, 0.36).save(tmp_path)
    assert PostProcessing.load(tmp_path) == PostProcessing(2.4, 0.36)
