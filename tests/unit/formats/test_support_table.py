"""Tests of the format tables: docs/formats.md has them, and they name every format."""

from pathlib import Path
from typing import get_args

from service.formats import support_table
from service.formats.registry import FORMATS, Source

PAGE = Path(__file__).parents[3] / "docs" / "formats.md"


def test_the_formats_page_has_the_tables() -> None:
    page = PAGE.read_text("utf-8")
    for block in support_table.table().split("\n\n"):
        assert f"\n\n{block.strip()}\n" in page


def test_every_format_is_in_the_tables() -> None:
    assert set(support_table.UPLOADS) == set(get_args(Source))
    assert set(support_table.OUTPUTS) == set(FORMATS)
