"""The wrapping of third-party colorizers: small graphs, with expected output computed in NumPy."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from skimage.color import rgb2lab

from model_export import cli
from model_export.export import wrap
from model_export.export.foreign import PRESETS, Interface
from model_export.export.parity import ParityError
from service.imaging.color import split
from service.inference.registry import ModelRegistry
from service.inference.session import Engine
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from tests.conftest import Serve, decoded
from tests.samples.colorizers import (
    AB_OFFSET,
    FLOAT,
    SIZE,
    TO_AB,
    Array,
    ab_of_ddcolor,
    ab_of_deoldify,
    ab_of_zhang,
    conv,
    ddcolor,
    deoldify,
    gray_of,
    model,
    zhang,
)


@pytest.fixture
def adapted(tmp_path: Path) -> Callable[..., Engine]:
    """Return a function that adapts a graph and loads the new file as the service does."""

    def run(graph: onnx.ModelProto, interface: Interface, size: int | None = None, name: str = "foreign") -> Engine:
        source, output = tmp_path / "source.onnx", tmp_path / "models" / f"{name}.onnx"
        onnx.save(graph, source)
        wrap.adapt(source, output, interface, name=name, version="1", size=size)
        onnx.checker.check_model(onnx.load(output), full_check=True)
        return Engine(output, output.read_bytes(), "cpu")

    return run


@pytest.fixture
def lightness(gray: Array) -> Array:
    """Return a photograph's lightness, float32 [1, 1, S, S]."""
    return split(gray, "lab", SIZE)[np.newaxis]


def generic(**changes: object) -> Interface:
    facts = {"input_kind": "lightness", "output_kind": "ab", "license": "CC0-1.0"}
    return Interface(**(facts | changes))  # type: ignore[arg-type]


def test_ddcolor(adapted: Callable[..., Engine], lightness: Array) -> None:
    engine = adapted(ddcolor(), PRESETS["ddcolor"])
    np.testing.assert_allclose(engine.predict(lightness)[0], ab_of_ddcolor(lightness[0, 0]), atol=0.01)
    assert engine.contract.max_batch is None
    assert engine.contract.license == "Apache-2.0"
    assert "ImageNet" in engine.contract.data


def test_deoldify(adapted: Callable[..., Engine], lightness: Array) -> None:
    engine = adapted(deoldify(), PRESETS["deoldify"])
    np.testing.assert_allclose(engine.predict(lightness)[0], ab_of_deoldify(lightness[0, 0]), atol=0.02)
    assert engine.contract.max_batch == 1


@pytest.mark.parametrize("level", [0.0, 0.0001, 0.01, 0.05, 0.0799, 0.0801, 0.1, 0.5, 1.0])
def test_dark_and_light_grays_are_exact(adapted: Callable[..., Engine], level: float) -> None:
    """The levels cover both branches of every formula. Gray stays without chroma."""
    node = helper.make_node("Identity", ["input"], ["out"])
    shape = [1, 3, 16, 16]
    engine = adapted(model([node], [], {"input": shape}, {"out": shape}), PRESETS["deoldify"])
    flat = np.full((1, 1, 16, 16), level, np.float32)
    np.testing.assert_allclose(engine.predict(flat), 0, atol=0.02)
    tinted = adapted(ddcolor(side=16), PRESETS["ddcolor"]).predict(flat)
    np.testing.assert_allclose(tinted[0], ab_of_ddcolor(flat[0, 0]), atol=0.001)


@pytest.mark.parametrize(("preset", "hints"), [("eccv16", False), ("siggraph17", False), ("siggraph17", True)])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_zhang(adapted: Callable[..., Engine], lightness: Array, preset: str, hints: bool, batch: int | str) -> None:
    engine = adapted(zhang(hints=hints, batch=batch), PRESETS[preset])
    np.testing.assert_allclose(engine.predict(lightness)[0], ab_of_zhang(lightness[0, 0]), atol=0.01)
    assert engine.contract.max_batch == (1 if batch == 1 else None)


@pytest.mark.parametrize("hints", [False, True])
def test_an_open_batch_stays_open(
    tmp_path: Path, adapted: Callable[..., Engine], lightness: Array, hints: bool
) -> None:
    engine = adapted(zhang(hints=hints), PRESETS["siggraph17"])
    several = np.concatenate([lightness, lightness[..., ::-1], lightness * 0.5])
    together = engine.predict(several)
    np.testing.assert_allclose(together, [ab_of_zhang(one[0]) for one in several], atol=0.01)
    (port,) = onnx.load(tmp_path / "models" / "foreign.onnx").graph.input
    assert [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim] == ["batch", 1, SIZE, SIZE]


@pytest.mark.parametrize("batch", [1, "batch"])
def test_half_precision(adapted: Callable[..., Engine], lightness: Array, batch: int | str) -> None:
    engine = adapted(ddcolor(half=True, batch=batch), PRESETS["ddcolor"])
    np.testing.assert_allclose(engine.predict(lightness)[0], ab_of_ddcolor(lightness[0, 0]), atol=0.2)


def test_open_sizes_are_pinned(adapted: Callable[..., Engine], lightness: Array) -> None:
    engine = adapted(ddcolor(side="side"), PRESETS["ddcolor"], SIZE)
    assert engine.contract.input_size == SIZE
    np.testing.assert_allclose(engine.predict(lightness)[0], ab_of_ddcolor(lightness[0, 0]), atol=0.01)
    assert adapted(deoldify(side="side"), PRESETS["deoldify"]).contract.input_size == 256


@pytest.mark.parametrize("opset", [8, 9, 11, 13, 18, 21])
def test_opsets(adapted: Callable[..., Engine], lightness: Array, opset: int) -> None:
    engine = adapted(ddcolor(opset=opset), PRESETS["ddcolor"])
    np.testing.assert_allclose(engine.predict(lightness)[0], ab_of_ddcolor(lightness[0, 0]), atol=0.01)


def test_a_batch_that_is_only_promised_is_not_declared(adapted: Callable[..., Engine], lightness: Array) -> None:
    """A traced export may declare a dynamic batch but reshape to a batch of 1."""
    node, tensors = conv("input", "coloured", TO_AB, AB_OFFSET)
    shape = numpy_helper.from_array(np.array([1, 2, SIZE, SIZE]), "shape")
    reshape = helper.make_node("Reshape", ["coloured", "shape"], ["output"])
    shapes = {"input": ["batch", 3, SIZE, SIZE]}, {"output": ["batch", 2, SIZE, SIZE]}
    engine = adapted(model([node, reshape], [*tensors, shape], *shapes), PRESETS["ddcolor"])
    assert engine.contract.max_batch == 1
    np.testing.assert_allclose(engine.predict(lightness)[0], ab_of_ddcolor(lightness[0, 0]), atol=0.01)


@pytest.mark.parametrize(("factor", "side"), [(2, SIZE), (3, SIZE), (0.25, SIZE // 4), (1.25, SIZE)])
def test_chroma_is_no_larger_than_the_input(adapted: Callable[..., Engine], factor: float, side: int) -> None:
    ramp = np.tile(np.linspace(0.2, 0.9, SIZE, dtype=np.float32), (1, 1, SIZE, 1))
    node, tensors = conv("input", "coloured", TO_AB, AB_OFFSET)
    scales = numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), "scales")
    resize = helper.make_node("Resize", ["coloured", "", "scales"], ["output"], mode="linear")
    shapes = {"input": [1, 3, SIZE, SIZE]}, {"output": [1, 2, "h", "w"]}
    engine = adapted(model([node, resize], [*tensors, scales], *shapes), PRESETS["ddcolor"])
    chroma = engine.predict(ramp)[0]
    assert chroma.shape == (2, side, side)
    area = [cv2.resize(c, (side, side), interpolation=cv2.INTER_AREA) for c in ab_of_ddcolor(ramp[0, 0])]
    np.testing.assert_allclose(chroma, area, atol=0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layout_normalisation_and_ranges(adapted: Callable[..., Engine], lightness: Array, dtype: type) -> None:
    """A graph as Keras makes it: channels last, ImageNet's mean and deviation, and tanh's -1..1 for -110..110."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    weights = numpy_helper.from_array(TO_AB.T.astype(dtype) / 100, "weights")
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("MatMul", ["image", "weights"], ["ab"])
    graph = model([node], [weights], {"image": ["n", SIZE, SIZE, 3]}, {"ab": ["n", SIZE, SIZE, 2]}, element=element)
    interface = generic(input_kind="rgb", mean=mean, std=std, layout="nhwc", output_range=(-1, 1), ab_range=(-110, 110))
    gray = gray_of(lightness[0, 0])
    normalised = np.stack([(gray - m) / s for m, s in zip(mean, std, strict=True)])
    expected = 110 * np.einsum("oc,chw->ohw", TO_AB / 100, normalised)
    np.testing.assert_allclose(adapted(graph, interface).predict(lightness)[0], expected, atol=0.01)


def test_blue_first_and_one_gray_channel(adapted: Callable[..., Engine], lightness: Array) -> None:
    node, tensors = conv("gray", "bgr", np.array([[0.2], [0.5], [0.9]]), np.zeros(3))
    graph = model([node], tensors, {"gray": [1, 1, SIZE, SIZE]}, {"bgr": [1, 3, SIZE, SIZE]})
    gray = gray_of(lightness[0, 0])
    expected = np.moveaxis(rgb2lab(np.stack([0.9 * gray, 0.5 * gray, 0.2 * gray], axis=-1)), -1, 0)[1:]
    engine = adapted(graph, generic(input_kind="gray", output_kind="bgr"))
    np.testing.assert_allclose(engine.predict(lightness)[0], expected, atol=0.02)


def test_names_of_the_contract_within_and_branches(adapted: Callable[..., Engine], lightness: Array) -> None:
    """The original graph uses our tensor names, and a branch uses an outer weight."""
    node, tensors = conv("chroma", "lightness", TO_AB, AB_OFFSET)
    outer = numpy_helper.from_array(np.array([3.0], np.float32), "before/0")
    double = helper.make_graph(
        [helper.make_node("Mul", ["lightness", "before/0"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", FLOAT, None)],
    )
    condition = numpy_helper.from_array(np.array(1, bool), "condition")
    branch = helper.make_node("If", ["condition"], ["after/0"], then_branch=double, else_branch=double)
    shapes = {"chroma": [1, 3, SIZE, SIZE]}, {"after/0": [1, 2, SIZE, SIZE]}
    graph = model([node, branch], [*tensors, outer, condition], *shapes)
    engine = adapted(graph, PRESETS["ddcolor"])
    np.testing.assert_allclose(engine.predict(lightness)[0], 3 * ab_of_ddcolor(lightness[0, 0]), atol=0.02)


def test_weights_beside_the_graph_are_taken_in(tmp_path: Path, lightness: Array) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "one.onnx"
    onnx.save(ddcolor(), source, save_as_external_data=True, location="source.data", size_threshold=0)
    assert (tmp_path / "source.data").is_file()
    wrap.adapt(source, output, PRESETS["ddcolor"], name="one", version="1", size=None)
    (tmp_path / "source.data").unlink()
    engine = Engine(output, output.read_bytes(), "cpu")
    np.testing.assert_allclose(engine.predict(lightness)[0], ab_of_ddcolor(lightness[0, 0]), atol=0.01)


def test_the_service_serves_it(tmp_path: Path, jpeg: bytes, serve: Serve) -> None:
    """The command line adapts a graph, and the service returns the same image in-process and over HTTP."""
    source, output = tmp_path / "source.onnx", tmp_path / "models" / "mine.onnx"
    onnx.save(deoldify(side="side"), source)
    cli.main(["adapt", str(source), "--preset", "deoldify", "--size", "64", "-o", str(output), "--license", "MIT-0"])
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert output.with_suffix(".onnx.sha256").read_text("utf-8") == f"{digest}  mine.onnx\n"

    settings = Settings(models=output.parent, default_model="mine", device="cpu")
    here = Colorizer(ModelRegistry(settings), settings).colorize(jpeg, Options())
    assert here.model == "mine/1"
    with serve(models=output.parent, default_model="mine") as server:
        answer = httpx.post(f"{server.url}/colorize", files={"file": jpeg}, timeout=30)
        listed = httpx.get(f"{server.url}/models", timeout=30).json()
    assert answer.status_code == 200
    assert "MIT-0" in str(listed)
    np.testing.assert_array_equal(decoded(answer.content), decoded(here.data))
    rgb = decoded(answer.content).astype(int)
    assert (rgb[..., 0] - rgb[..., 2]).mean() > 20


def test_the_generic_form_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(zhang(hints=True), tmp_path / "source.onnx")
    options = "--input lightness --input-range 0 100 --output ab --license CC0-1.0 --data none --name other --version 3"
    cli.main(["adapt", str(tmp_path / "source.onnx"), *options.split(), "-o", str(tmp_path / "n.onnx")])
    said = capsys.readouterr().out
    assert "batches of any size" in said
    assert "hints, mask" in said
    contract = Engine(tmp_path / "n.onnx", (tmp_path / "n.onnx").read_bytes(), "cpu").contract
    assert (contract.name, contract.version, contract.license, contract.data) == ("other", "3", "CC0-1.0", "none")


def test_the_command_line_knows_the_presets() -> None:
    assert tuple(PRESETS) == cli.PRESETS


def test_a_name_that_would_not_be_served_is_refused(tmp_path: Path) -> None:
    onnx.save(ddcolor(), tmp_path / "source.onnx")
    with pytest.raises(ValueError, match=r"end in \.onnx"):
        wrap.adapt(tmp_path / "source.onnx", tmp_path / "out", PRESETS["ddcolor"], name="out", version="1", size=None)


@pytest.mark.parametrize("name", ["source.onnx", "link.onnx"])
def test_the_graph_itself_is_not_overwritten(tmp_path: Path, name: str) -> None:
    onnx.save(ddcolor(), tmp_path / "source.onnx")
    (tmp_path / "link.onnx").symlink_to("source.onnx")
    content = (tmp_path / "source.onnx").read_bytes()
    with pytest.raises(ValueError, match="choose another output file"):
        wrap.adapt(tmp_path / "source.onnx", tmp_path / name, PRESETS["ddcolor"], name="o", version="1", size=None)
    assert (tmp_path / "source.onnx").read_bytes() == content
    assert (tmp_path / "link.onnx").is_symlink()


def test_weights_that_no_file_can_hold_are_refused(
    adapted: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrap, "MAX_BYTES", 20)
    with pytest.raises(ValueError, match="an ONNX file can hold only 20"):
        adapted(ddcolor(), PRESETS["ddcolor"])


def test_a_wrapping_gone_wrong_is_not_written(
    adapted: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrap, "_add_gray", lambda add, lightness: lightness)
    with pytest.raises(ParityError, match=r"[ab]\* is -?\d+\.\d\d, but -?\d+\.\d\d"):
        adapted(ddcolor(), PRESETS["ddcolor"])
    assert not (tmp_path / "models").exists()
