"""The command: python -m tests.suites [--write] [--only NAME ...]."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.suites import judge, report, sources
from tests.suites.judge import Verdict
from tests.suites.known import known
from tests.suites.worker import Worker

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Tried:
    """A file of a suite, with its path inside the suite, and the verdict on the service's result."""

    suite: str
    path: str
    verdict: Verdict


def main() -> int:
    """Run the suites. Return 1 if a file's outcome is wrong and not known, or if the table on the page is outdated."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.suites", description="Run the image suites of other projects through the service."
    )
    parser.add_argument("--cache", type=Path, default=ROOT / ".suites", help="folder of the source packages")
    parser.add_argument("--only", nargs="*", default=[], help="names of suites, as Pillow (default: all)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/formats.md")
    parser.add_argument("--details", type=Path, help="file for all results of each image, as lines of JSON")
    arguments = parser.parse_args()
    suites = [suite for suite in sources.SUITES if not arguments.only or suite.name in arguments.only]
    unpacked = list(_fetched(suites, arguments.cache))
    tried = list(_tried(unpacked, arguments.details))
    wrong = _print_wrong(tried)
    is_whole = len(unpacked) == len(sources.SUITES)
    table = report.table({one.suite.name: one.version for one in unpacked}, (one.verdict for one in tried))
    if arguments.write and is_whole:
        report.write(table)
    stale = is_whole and _is_stale(table)
    print(f"{len(tried) - wrong} passed, {wrong + stale} failed, {len(suites) - len(unpacked)} suites skipped")
    return bool(wrong or stale)


def _fetched(suites: list[sources.Suite], cache: Path) -> Iterator[sources.Unpacked]:
    for suite in suites:
        try:
            yield sources.fetch(suite, cache)
        except sources.Unavailable as error:
            print(f"SKIPPED: {suite.name} is not available: {error}", flush=True)


def _tried(suites: list[sources.Unpacked], details: Path | None) -> Iterator[Tried]:
    coloring, reference = Worker("tests.suites.coloring"), Worker("tests.suites.reference")
    seen: set[bytes] = set()
    log = details.open("w", encoding="utf-8") if details else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.png"
            for suite in suites:
                for path in sources.images(suite, seen):
                    answer.unlink(missing_ok=True)
                    question: dict[str, Any] = {"path": str(path), "answer": str(answer)}
                    ours, other = coloring.ask(question), reference.ask(question)
                    name = "/".join(path.relative_to(suite.root).parts[1:])
                    verdict = judge.judge(ours, other)
                    if log:
                        print(json.dumps([suite.suite.name, name, verdict.wrong, ours, other]), file=log, flush=True)
                    yield Tried(suite.suite.name, name, verdict)
    finally:
        coloring.stop()
        reference.stop()
        if log:
            log.close()


def _print_wrong(tried: list[Tried]) -> int:
    """Print the files whose outcome is wrong and not known. Return their number."""
    listed = known()
    unused = set(listed)
    wrong = 0
    for one in tried:
        if not one.verdict.wrong:
            continue
        covering = [entry for entry in listed if entry.covers(one.suite, one.path)]
        unused.difference_update(covering)
        if not covering:
            wrong += 1
            print(f"WRONG: {one.suite}: {one.path}: {'; '.join(one.verdict.wrong)}")
    for entry in unused & {entry for entry in listed if entry.suite in {one.suite for one in tried}}:
        print(f"no longer needed in known.toml: {entry.suite}: {', '.join(entry.files)}")
    return wrong


def _is_stale(table: str) -> bool:
    """Return whether the page has other results for the same suites. Other versions of the suites are not an error."""
    on_page = report.on_page()
    if report.versions_line(on_page) != report.versions_line(table):
        print("the table of docs/formats.md is for other versions of the suites; --write updates it")
        return False
    if on_page != table:
        print("the table of docs/formats.md differs from these results; --write updates it")
    return on_page != table


if __name__ == "__main__":
    sys.exit(main())
