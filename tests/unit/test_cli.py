"""The command line of `python -m model_export`: its arguments, and what it prints."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model_export import cli
from model_export.data import sources
from model_export.evaluation import evaluate
from tests.unit.data.test_batching import photographs, write_folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_sheet_has_a_photograph(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "evaluate", "--model", "m.onnx", "--data", "d", "--output", "o", f"--sheet={count}")
    assert f"--sheet: {count}: must be a whole number of at least 1" in said


def test_a_sheet_is_a_jpeg(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from model_export.evaluation import contact_sheet

    said = refusal(capsys, "evaluate", "--model", "m.onnx", "--data", "d", "--output", "o", "--sheet", "1276")
    assert "--sheet: 1276: must be at most 1,275" in said
    one = write_folder(tmp_path / "one", photographs(1))
    row = contact_sheet.draw(sources.find([one]), evaluate.Predictor(lambda _: np.zeros((2, 1, 1), np.float32), "lab"))
    contact_sheet.save(
        np.zeros((len(row) * -(-cli.MAX_SHEET_PHOTOGRAPHS // 3), 8, 3), np.uint8), tmp_path / "sheet.jpg"
    )


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        *(("--max-minutes", wrong) for wrong in ("0", "-1", "nan", "inf", "soon")),
        *(("--stop-after", wrong) for wrong in ("-1", "nan")),
        *(("--checkpoint-minutes", wrong) for wrong in ("-0.5", "nan")),
    ],
)
def test_no_time_is_less_than_nothing(option: str, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "train", "compact", "--data", "d", "--run", "r", f"{option}={wrong}")
    assert f"{option}: {wrong}: " in said


@pytest.mark.parametrize(
    ("option", "wrong"), [("--gain", "0"), ("--gain", "-1"), ("--gain", "nan"), ("--size", "0"), ("--size", "100")]
)
def test_an_export_has_a_gain_and_a_side(option: str, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "export", "--run", "r", "--output", "o.onnx", "--data", "d", f"{option}={wrong}")
    assert f"{option}: {wrong}: " in said


def test_the_command_goes_on_without_what_can_not_be_read(tmp_path: Path, models: Path) -> None:
    folders = [tmp_path / name for name in ("data", "neutral", "training")]
    for folder in folders:
        write_folder(folder, photographs(3) | {"made/bad.jpg": b"no"})
    (tmp_path / "history.jsonl").write_text('{"views": 5, "loss": 2.5, "validation_loss": 2.5}\n', "utf-8")
    paths = [text for folder in folders for text in (f"--{folder.name}", str(folder))]
    output = tmp_path / "figures"
    command = ["evaluate", "--model", str(models / "warm.onnx"), *paths, "--run", str(tmp_path)]
    cli.main([*command, "--output", str(output)])
    page = (output / "figures.md").read_text("utf-8")
    assert "3 photographs, 2,048 pixels of each; 3 nearly neutral photographs." in page
    assert "the mean colour of 3 training photographs. 3 unreadable photographs are left out." in page
    assert {"sheet.jpg", "best.jpg", "worst.jpg", "hues.png", "curves.png"} < {file.name for file in output.iterdir()}


def test_what_can_not_be_read_is_told_of_by_name_and_not_by_the_decoder(tmp_path: Path, models: Path) -> None:
    data = write_folder(tmp_path / "data", photographs(3) | {os.fsdecode(b"caf\xe9.tif"): b"II*\0\x08\0\0\0"})
    paths = ["--model", models / "warm.onnx", "--data", data, "--output", tmp_path / "figures"]
    command = [sys.executable, "-m", "model_export", "evaluate", *map(str, paths)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert r"left out: caf\xe9.tif" in ended.stderr
    assert "[ERROR" not in ended.stderr
    assert "3 photographs" in (tmp_path / "figures" / "figures.md").read_text("utf-8")
