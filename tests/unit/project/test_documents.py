"""Checks that the pages agree with the code."""

import re
from pathlib import Path

import pytest

from service import errors
from service.errors import ClientGone, Problem
from service.pipeline.options import Options
from service.settings import SHIPPED_MODELS, Settings, table

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_settings_page_is_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TOMAU_{name.upper()}", raising=False)
    expected = table(Settings()).replace(str(SHIPPED_MODELS), "service/models")
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert page.endswith("\n\n" + expected)


def test_the_errors_page_is_the_problems() -> None:
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert page.endswith("\n\n" + errors.table())


def test_every_problem_says_what_it_means_and_what_to_do() -> None:
    assert ClientGone not in errors.kinds()
    for kind in errors.kinds():
        assert kind.__doc__, kind
        assert "advice" in vars(kind), kind
        assert kind.advice, kind
        assert "|" not in kind.__doc__ + kind.advice + kind.retry, "it would break the table"


def test_the_readme_names_every_option() -> None:
    listed = re.findall(r"^\| `([a-z]\w*)` \| .* \|$", README, re.MULTILINE)
    assert listed == list(Options.model_fields)


def test_the_readme_names_every_code_and_its_status() -> None:
    listed = {
        (int(status), code)
        for statuses, codes in re.findall(r"^\| ([45]\d\d(?:, \d+)*) \| (.*) \|$", README, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", codes)
        for status in statuses.split(", ")
    }
    assert listed == {(kind.status, kind.code) for kind in errors.kinds()}


def test_every_problem_has_its_own_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Problem)]
    assert {*errors.kinds(), ClientGone, Problem} == set(kinds), "no kind of problem is missing"
    codes = [kind.code for kind in kinds if kind is not Problem]
    assert len(codes) == len(set(codes))


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "service" / "models").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
