"""The known differences between the service and other decoders, with reasons: known.toml."""

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

PAGE = Path(__file__).with_name("known.toml")


@dataclass(frozen=True, slots=True)
class Known:
    """Files of one suite, as shell patterns of paths inside it, that differ for the reason `why`."""

    suite: str
    files: tuple[str, ...]
    why: str

    def covers(self, suite: str, path: str) -> bool:
        """Return whether the entry is about this file."""
        return suite == self.suite and any(fnmatchcase(path, pattern) for pattern in self.files)


def known() -> list[Known]:
    """Return the list."""
    entries = tomllib.loads(PAGE.read_text("utf-8"))["known"]
    return [Known(entry["suite"], tuple(entry["files"]), entry["why"]) for entry in entries]
