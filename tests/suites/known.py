"""What is known to differ between the service and other decoders, and why: known.toml."""

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

PAGE = Path(__file__).with_name("known.toml")


@dataclass(frozen=True, slots=True)
class Known:
    """Files of one suite, as shell patterns of paths inside it, that all differ for the reason that `why` tells."""

    suite: str
    files: tuple[str, ...]
    why: str

    def covers(self, suite: str, path: str) -> bool:
        """Return whether this is said of the file."""
        return suite == self.suite and any(fnmatchcase(path, pattern) for pattern in self.files)


def known() -> list[Known]:
    """Return the list."""
    entries = tomllib.loads(PAGE.read_text("utf-8"))["known"]
    return [Known(entry["suite"], tuple(entry["files"]), entry["why"]) for entry in entries]
