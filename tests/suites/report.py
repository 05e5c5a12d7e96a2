"""The table of docs/formats.md: what the service does with the files of the suites."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.suites.judge import Verdict
from tests.suites.known import known

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
BEGIN, END = "<!-- suites: begin -->\n", "<!-- suites: end -->\n"
# The maximum number of kinds of files that are named in one row.
MOST_KINDS = 12


def table(versions: Mapping[str, str], verdicts: Iterable[Verdict]) -> str:
    """Return, as Markdown, the suites with their versions, and the number of files per format and outcome."""
    counts = Counter((verdict.outcome, verdict.kind) for verdict in verdicts)
    outcomes: dict[str, Counter[str]] = {}
    for (outcome, kind), count in counts.items():
        outcomes.setdefault(outcome, Counter())[kind] = count
    suites = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [f"The suites: {suites}; {counts.total():,} different files.", ""]
    lines += ["| files | kind of file | outcome |", "| ---: | --- | --- |"]
    for outcome, kinds in sorted(outcomes.items(), key=_order):
        lines.append(f"| {kinds.total():,} | {_kinds(kinds)} | {outcome.replace('|', '/')} |")
    return "\n".join(lines) + "\n\n" + known_differences()


def known_differences() -> str:
    """Return, as Markdown, where the service differs from other decoders, and why."""
    lines = ["On these files the service and other decoders differ, and are meant to:", ""]
    for entry in known():
        names = ", ".join(f"`{name}`" for name in entry.files)
        lines.append(f"- {entry.suite}, {names}: {entry.why}")
    return "\n".join(lines) + "\n"


def _order(row: tuple[str, Counter[str]]) -> tuple[bool, int, str]:
    outcome, kinds = row
    return outcome != "coloured", -kinds.total(), outcome


def _kinds(kinds: Counter[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    named = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(MOST_KINDS))
    more = len(kinds) - MOST_KINDS
    return f"{named}, and {more} more" if more > 0 else named


def on_page() -> str:
    """Return the table on the page. Raises ValueError if there is no table."""
    found = re.search(f"{re.escape(BEGIN)}(.*){re.escape(END)}", PAGE.read_text("utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{PAGE} has no place for the table of the suites")
    return found.group(1)


def versions_line(text: str) -> str:
    """Return the line that names the suites' versions."""
    return text.partition("\n")[0]


def write(text: str) -> None:
    """Replace the table on the page."""
    page = PAGE.read_text("utf-8")
    PAGE.write_text(page.replace(BEGIN + on_page() + END, BEGIN + text + END), "utf-8")
