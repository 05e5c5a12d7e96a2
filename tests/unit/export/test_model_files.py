"""The names of model files, and which files may be replaced."""

import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from model_export import cli
from model_export.export import model_files

ROOT = Path(__file__).parents[3]


def test_a_file_that_is_there_is_replaced_only_by_who_wrote_it(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "m.onnx"
    run.mkdir()

    def check(*, force: bool = False) -> None:
        model_files.check_replaceable(output, force=force, written=model_files.exports_of(run))

    check()
    model_files.write_model(output, b"one")
    with pytest.raises(FileExistsError, match=r"m\.onnx already exists: replace it with --force"):
        check()
    check(force=True)
    model_files.note_export(run, output)
    check()
    # Another program has overwritten the file since.
    output.write_bytes(b"other")
    with pytest.raises(FileExistsError):
        check()


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--run", "{run}", "--output", "{there}", "--data", "{run}"],
        ["half", "{there}", "-o", "{there}", "--data", "{run}"],
        ["adapt", "{there}", "-o", "{there}", "--preset", "ddcolor"],
    ],
)
def test_no_command_replaces_a_shipped_model_unasked(tmp_path: Path, arguments: list[str]) -> None:
    there = shutil.copy(ROOT / "service" / "models" / "compact-hsv.onnx", tmp_path)
    before = Path(there).read_bytes()
    with pytest.raises(SystemExit, match=r"FileExistsError: .*compact-hsv\.onnx already exists"):
        cli.main([argument.format(run=tmp_path, there=there) for argument in arguments])
    assert Path(there).read_bytes() == before


def test_a_model_of_half_precision_that_is_out_of_date_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model_files.write_model(tmp_path / "m.fp16.onnx", b"half")
        assert not caplog.text
        model_files.write_model(tmp_path / "m.onnx", b"whole")
    assert "m.fp16.onnx belongs to the previous model" in caplog.text


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("given", "output"),
    [
        ([], "runs/compact/compact.onnx"),
        (["RUN=runs/ours", "RECIPE=compact-even"], "runs/ours/compact-even.onnx"),
        (["OUTPUT=my-models/ours.onnx"], "my-models/ours.onnx"),
    ],
)
def test_make_export_writes_beside_the_run(given: list[str], output: str) -> None:
    command = ["make", "--dry-run", "--no-print-directory", "export", "DATA=held-out/", *given]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert f"--output {output} --data held-out/" in said
    assert "--force" not in said
    ignored = subprocess.run(["git", "check-ignore", "-q", "runs/compact/compact.onnx"], cwd=ROOT, check=False)
    assert ignored.returncode in (0, 128)
