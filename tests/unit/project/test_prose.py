"""The wording checker finds what it should, and only that."""

from pathlib import Path

import pytest

from tests import prose

LONG = " ".join(["word"] * 26)


def advice(path: Path, text: str) -> list[str]:
    path.write_text(text, "utf-8")
    found = prose.in_python(path) if path.suffix == ".py" else prose.in_markdown(path)
    return [f"{finding.line}: {finding.advice.split(' (')[0]}" for finding in found]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (f'"""{LONG}."""\n', ["1: a sentence of 26 words"]),
        (f"# {LONG[:60]}\n# {LONG[60:]}\nx = 1\n", ["1: a sentence of 26 words"]),
        (f'x = 1\ny = f("{LONG}")\n', ["2: a sentence of 26 words"]),
        (f'n = 1\ny = f"{{n}} {LONG[5:]}"\n', ["2: a sentence of 26 words"]),
        ('"""Try anew."""\n', ["1: 'anew': again"]),
        ('"""What it does."""\n', ["1: a docstring that begins with a question word: begin with a verb or a noun"]),
        (f'"""{LONG[5:]}. {LONG[5:]}."""\nx = "{LONG[:19]}"\n', []),
        ("x = 1  # noqa: E501 so many\n", []),
        (f"x = 1  # {LONG[:60]}\ny = 2  # {LONG[60:]}\n", []),
        ('"""One word `and code so many`, e.g. this."""\n', []),
    ],
)
def test_python(tmp_path: Path, code: str, expected: list[str]) -> None:
    assert advice(tmp_path / "module.py", code) == expected


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (f"# Title\n\n{LONG}\n", ["3: a sentence of 26 words"]),
        (f"- {LONG[5:]}\n- {LONG[5:]}\n", []),
        (f"```\n{LONG}\n```\n\n{LONG}\n", ["5: a sentence of 26 words"]),
        (
            f"| {LONG} {LONG} | x |\n| try anew | `anew` |\n",
            ["1: a cell of 52 words", "2: 'anew': again"],
        ),
        ("a " * 20 + "[b](" + "c" * 200 + ")\n", ["1: a line of 245 characters"]),
    ],
)
def test_markdown(tmp_path: Path, page: str, expected: list[str]) -> None:
    assert advice(tmp_path / "page.md", page) == expected
