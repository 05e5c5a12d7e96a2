"""The conversion of models to half precision, on the CPU, with small graphs."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import skimage.data
from onnx import TensorProto, helper, numpy_helper

from model_export import cli
from model_export.data import sources
from model_export.export import fp16
from model_export.export.parity import ParityError
from service.inference.contract import INPUT, OUTPUT, Contract
from service.inference.executor import EngineError
from service.inference.session import Engine
from tests.conftest import contract, tint_model


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[sources.Entry]:
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "coffee"):
        small = cv2.resize(getattr(skimage.data, name)(), (96, 64), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{name}.png"), small[..., ::-1])
    return sources.find([folder])


def shifted(facts: Contract, there: float, back: str = "Sub") -> bytes:
    """Return a model that loses low bits: it adds a large number to lightness and subtracts it again."""
    size = facts.input_size
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", [INPUT], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Conv", ["small", "weight"], ["chroma/0"]),
            helper.make_node("Add" if back == "Sub" else "Mul", ["chroma/0", "there"], ["chroma/1"]),
            helper.make_node(back, ["chroma/1", "there"], [OUTPUT]),
        ],
        "shifted",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 2, size // 4, size // 4])],
        [
            numpy_helper.from_array(np.array([20, 30], np.float32).reshape(2, 1, 1, 1), "weight"),
            numpy_helper.from_array(np.float32(there), "there"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, facts.to_metadata())
    return model.SerializeToString()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_half_of_a_model_says_and_answers_the_same(tmp_path: Path, photographs: list[sources.Entry]) -> None:
    path = write(tmp_path / "tint.onnx", tint_model(contract(), (20, 30)))
    output = tmp_path / "tint.fp16.onnx"
    found = fp16.convert(path, output, photographs)
    assert 0 < found.chroma.mean <= found.chroma.largest < 0.05
    assert 0 <= found.de00 <= found.worst < 0.1
    model = onnx.load(output)
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    engine = Engine(output, output.read_bytes(), "cpu")
    assert engine.contract == contract()
    ports = (*model.graph.input, *model.graph.output)
    assert {port.type.tensor_type.elem_type for port in ports} == {TensorProto.FLOAT}
    assert (tmp_path / "tint.fp16.onnx.sha256").read_text().endswith("  tint.fp16.onnx\n")


def test_what_is_emulated_is_rounded_as_numpy_rounds(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
        ],
        "round",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(fp16.emulate_fp16(model), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    x = (random.normal(size=10_000) * 10.0 ** random.uniform(-3, 5, 10_000)).astype(np.float32)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16).astype(np.float32)
    assert np.isinf(want).any()
    # Below the smallest normal half, NumPy rounds to multiples of 2^-24.
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=0, atol=2.0**-24)


def test_weights_that_are_stored_as_halves_are_not_cast_to_halves(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(tint_model(contract(), (20, 30)))
    (weight,) = model.graph.initializer
    stored = numpy_helper.to_array(weight).astype(np.float16)
    weight.CopyFrom(numpy_helper.from_array(stored, "weight_half"))
    model.graph.node.insert(0, helper.make_node("Cast", ["weight_half"], ["weight"], to=TensorProto.FLOAT))
    nodes = fp16.to_fp16(model).graph.node
    assert [node.op_type for node in nodes] == ["Cast", "AveragePool", "Conv", "Cast"]
    assert nodes[2].input[1] == "weight_half"


def test_what_comes_from_a_running_sum_stays_float32(tmp_path: Path) -> None:
    """The sums reach 100,000, which a half can't represent, and their steps of 0.5 are below a half's resolution."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "large"], ["steps"]),
            helper.make_node("CumSum", ["steps", "axis"], ["sums"]),
            helper.make_node("Slice", ["sums", "one", "end", "axis"], ["late"]),
            helper.make_node("Slice", ["sums", "zero", "last", "axis"], ["early"]),
            helper.make_node("Sub", ["late", "early"], ["between"]),
            helper.make_node("Relu", ["between"], ["y"]),
        ],
        "steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1001])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1000])],
        [
            numpy_helper.from_array(np.float32(100), "large"),
            *(
                numpy_helper.from_array(np.array([value], np.int64), name)
                for name, value in (("axis", 1), ("zero", 0), ("one", 1), ("last", -1), ("end", 2000))
            ),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    halved = fp16.to_fp16(model)
    assert {node.name for node in halved.graph.node if node.op_type in ("Mul", "CumSum")} >= {"from_running_sum_1"}
    x = np.ones((1, 1001), np.float32)
    x[0, 500:] = 1.005
    for proto in (halved.SerializeToString(), fp16.emulate_fp16(halved)):
        session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
        steps = session.run(None, {"x": x})[0][0]
        np.testing.assert_allclose(steps[[0, 400, 600, 999]], [100, 100, 100.5, 100.5], atol=0.07)


def test_a_model_that_needs_more_than_half_precision_is_not_written(
    tmp_path: Path, photographs: list[sources.Entry]
) -> None:
    path = write(tmp_path / "shifted.onnx", shifted(contract(), 30_000))
    with pytest.raises(ParityError, match=r"0\.25 and 1\.0 are allowed, so nothing was written"):
        fp16.convert(path, tmp_path / "shifted.fp16.onnx", photographs)
    large = write(tmp_path / "large.onnx", shifted(contract(), 60_000, "Div"))
    with pytest.raises(EngineError, match="finite"):
        fp16.convert(large, tmp_path / "large.fp16.onnx", photographs)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "shifted.onnx"]


def test_another_name_is_refused(tmp_path: Path, photographs: list[sources.Entry]) -> None:
    path = write(tmp_path / "tint.onnx", tint_model(contract(), (20, 30)))
    with pytest.raises(ValueError, match=r"must end in \.fp16\.onnx"):
        fp16.convert(path, tmp_path / "half.onnx", photographs)


def test_the_command_writes_beside_the_model(
    tmp_path: Path, photographs: list[sources.Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "v1.2.onnx", tint_model(contract(), (20, 30)))
    cli.main(["half", str(path), "--data", str(Path(photographs[0].file).parent)])
    assert f"{tmp_path / 'v1.2.fp16.onnx'}: differs by 0.0" in capsys.readouterr().out
    assert (tmp_path / "v1.2.fp16.onnx").is_file()
