"""Every curl example of the README, run unchanged against the shipped model."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Serve, decoded, encoded, luma

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
EXAMPLES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("curl")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_every_curl_example(tmp_path: Path, serve: Serve, gray: np.ndarray, jpeg: bytes) -> None:
    assert len(EXAMPLES) >= 6
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    (tmp_path / "portrait.png").write_bytes(encoded(gray, "PNG"))
    environment = os.environ | {"KEY": "the-key-of-the-readme"}
    with serve(models=None) as server, serve(models=None, api_keys=environment["KEY"]) as guarded:
        answers = {}
        for line in EXAMPLES:
            port = guarded.port if "$KEY" in line else server.port
            command = ["bash", "-c", line.replace("localhost:8000", f"127.0.0.1:{port}")]
            ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=False)
            assert ended.returncode == 0, f"{line}: {ended.stderr.decode()}"
            answers[line] = ended.stdout
    coloured = (tmp_path / "coloured.jpg").read_bytes()
    assert np.abs(luma(coloured) - luma(jpeg)).mean() < 1
    assert (tmp_path / "with-a-key.jpg").read_bytes() == coloured
    assert decoded(coloured).shape[:2] == luma(jpeg).shape
    assert (tmp_path / "bolder.webp").read_bytes()[8:12] == b"WEBP"
    assert max(decoded((tmp_path / "preview.png").read_bytes()).shape) == 320
    with zipfile.ZipFile(tmp_path / "coloured.zip") as batch:
        assert set(batch.namelist()) == {"photo.jpg", "portrait.png", "report.json"}
        assert batch.read("photo.jpg") == coloured
        report = json.loads(batch.read("report.json"))["photos"]
    shown_report, shown_problem = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL))
    for photo, shown in zip(report, shown_report["photos"], strict=True):
        varies = {"model": "...", "seconds": "..."}
        assert photo | varies == shown | varies
        assert photo["seconds"].keys() == shown["seconds"].keys()
    problem = next(json.loads(answer) for line, answer in answers.items() if "strength=3" in line)
    assert problem | {"instance": "..."} == shown_problem
