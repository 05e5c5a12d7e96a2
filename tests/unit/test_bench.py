from pathlib import Path

import pytest

from model_export import sources
from tests.bench import data


def test_fewer_photographs_than_a_batch_are_measured(tmp_path: Path) -> None:
    entries = sources.find([data.write_shard(tmp_path / "made.tar", 3, 64)])
    assert data.stream(entries, 32, 1) == 3


def test_the_benchmark_runs_on_few_photographs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--photographs 2 --rounds 1 --threads 1 --short 64"
    monkeypatch.setattr("sys.argv", ["data", *options.split()])
    data.main()
    assert len(capsys.readouterr().out.splitlines()) == 3 + len(data.SIDES)


def test_no_photographs_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["data", "--photographs", "0"])
    with pytest.raises(SystemExit):
        data.main()
    assert "--photographs: at least 1" in capsys.readouterr().err
