"""The interfaces of third-party colorizers, and the errors for graphs that do not match them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_export import cli
from model_export.export import wrap
from model_export.export.foreign import PRESETS
from tests.samples.colorizers import SIZE, ddcolor, deoldify, model

NCHW = [1, 3, SIZE, SIZE]


@pytest.mark.parametrize(
    ("inputs", "outputs", "preset", "said"),
    [
        ({"x": [1, 1, SIZE, SIZE]}, {"y": [1, 2, SIZE, SIZE]}, "ddcolor", r"'x' is .*\[1, 1, 32, 32\], but .*3, size"),
        ({"x": NCHW}, {"y": [1, 2, SIZE, SIZE]}, "eccv16", r"'x' is .*\[1, 3, 32, 32\], but .*batch, 1, size, size"),
        ({"x": [3, SIZE, SIZE]}, {"y": [2, SIZE, SIZE]}, "ddcolor", r"'x' is tensor\(float\) \[3, 32, 32\], but"),
        ({"x": [1, 3, SIZE, 64]}, {"y": [1, 2, SIZE, 64]}, "ddcolor", r"'x' is .*\[1, 3, 32, 64\], but"),
        ({"x": [4, 3, SIZE, SIZE]}, {"y": [4, 2, SIZE, SIZE]}, "ddcolor", "'x' is .*batch size is fixed at 4"),
        ({"x": [1, 3, 20, 20]}, {"y": [1, 3, 20, 20]}, "deoldify", "'x': the size 20 is not a multiple of 16$"),
        ({"x": NCHW}, {"y": NCHW}, "ddcolor", r"'y' is .*\[1, 3, 32, 32\]; exactly one .*\[1, 2, s, s\]"),
        ({"x": NCHW}, {"y": [1, 2, SIZE, SIZE], "z": [1, 2, 8, 8]}, "ddcolor", r"'y' is .*'z' is .*exactly one"),
        ({"x": NCHW, "h": [1, "c", 4, 4]}, {"y": NCHW}, "deoldify", r"'h' is .*\[1, \?, 4, 4\], but .* gets zeros"),
    ],
)
def test_another_interface_is_refused_by_name(
    tmp_path: Path, inputs: dict[str, list], outputs: dict[str, list], preset: str, said: str
) -> None:
    tensors = [
        numpy_helper.from_array(np.zeros(list(shape), np.float32), f"{name}_value") for name, shape in outputs.items()
    ]
    nodes = [helper.make_node("Identity", [f"{name}_value"], [name]) for name in outputs]
    onnx.save(model(nodes, tensors, inputs, outputs), tmp_path / "source.onnx")
    output = tmp_path / "out.onnx"
    with pytest.raises(SystemExit, match=said) as refusal:
        cli.main(["adapt", str(tmp_path / "source.onnx"), "--preset", preset, "-o", str(output)])
    assert "\n" not in str(refusal.value)
    assert not output.exists()


def test_other_numbers_than_floats_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = model([node], [], {"x": NCHW}, {"y": NCHW}, element=TensorProto.UINT8)
    onnx.save(graph, tmp_path / "source.onnx")
    with pytest.raises(ValueError, match=r"'x' is tensor\(uint8\)"):
        wrap.adapt(tmp_path / "source.onnx", tmp_path / "o.onnx", PRESETS["deoldify"], name="o", version="1", size=None)


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (None, "--preset ddcolor", "the file does not exist"),
        (b"", "--preset ddcolor", r"source\.onnx: ONNX Runtime can't load it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "--preset ddcolor", r"source\.onnx: ONNX Runtime can't load"),
        (ddcolor(), "--preset ddcolor --size 64", r"but a float tensor \[batch, 3, 64, 64\]"),
        (ddcolor(side="side"), "--preset ddcolor --size 0", "'input': the size 0 is not in 1..4096"),
        (ddcolor(side="side"), "--preset ddcolor --size -32", "'input': the size -32 is not in 1..4096"),
        (ddcolor(side="side"), "--preset ddcolor --size 4097", "'input': the size 4097 is not in 1..4096"),
        (deoldify(side="side"), "--preset deoldify --size 40", "'input': the size 40 is not a multiple of 16"),
        (ddcolor(), "--preset ddcolor --size 0", r"but a float tensor \[batch, 3, 0, 0\]"),
        (ddcolor(side="side"), "--input rgb --output ab --license CC0-1.0", "does not fix its size.* --size"),
        (ddcolor(), "--input rgb --output ab", "without --preset, --license must be given"),
        (ddcolor(), "", "without --preset, --input, --output, --license must be given"),
        (ddcolor(), "--preset ddcolor --mean 1 2", "--mean has 2 numbers, but the input has 3 channels"),
        (ddcolor(), "--preset ddcolor --std 0", "--std has a 0"),
        (ddcolor(), "--preset ddcolor --input-range 1 1", "--input-range 1 1 is empty"),
        (ddcolor(), "--preset ddcolor --name màu", "tomau.name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, content: bytes | onnx.ModelProto | None, arguments: str, said: str
) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "out.onnx"
    if content is not None:
        source.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(SystemExit, match=said) as refusal:
        cli.main(["adapt", str(source), *arguments.split(), "-o", str(output)])
    assert "\n" not in str(refusal.value)
    assert not output.exists()
