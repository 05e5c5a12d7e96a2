from pathlib import Path

import pytest

from service.runtime.atomic_file import unfinished


@pytest.mark.parametrize("unique", [False, True])
def test_a_file_is_complete_or_as_it_was(tmp_path: Path, unique: bool) -> None:
    path = tmp_path / "a.jpg"
    with unfinished(path, unique=unique) as temporary:
        temporary.write_bytes(b"first")
        assert not path.exists()
        temporary.replace(path)

    def fail() -> None:
        with unfinished(path, unique=unique) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.jpg", b"first")]


def test_unique_names_differ_and_are_hidden(tmp_path: Path) -> None:
    with unfinished(tmp_path / "a", unique=True) as one, unfinished(tmp_path / "a", unique=True) as other:
        assert one != other
        assert one.name.startswith(".")
    with unfinished(tmp_path / "a") as one:
        assert one == tmp_path / "a.new"
