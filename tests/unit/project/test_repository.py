"""The repository's own files agree: make targets, versions, paths and links on pages, workflows, hooks."""

import re
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import COMPOSE_VARIABLES, FORMER_NAMES, Settings

ROOT = Path(__file__).parents[3]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([\w./-]+):(?!=)", MAKEFILE.replace("$(VENV)", ".venv"), re.MULTILINE))
PHONY = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("service/models/*.md"))]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"
BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
# A file or a folder of ours, as a page names it.
PATH = re.compile(r"`((?:service|model_export|tests|docker|docs|requirements)/[\w./-]*)`")


def named_targets(code: str) -> set[str]:
    """Return the targets of the `make` calls in shell code."""
    calls = re.findall(r"(?:^|[`;&|(]|\b[A-Z_]+=\S+)\s*make((?: [^\s#;&|`)]+)+)", code, re.MULTILINE)
    return {
        word
        for call in calls
        for word in takewhile(lambda one: "=" not in one, call.split())
        if re.fullmatch(r"[\w./-]+", word)
    }


def code_of(page: Path) -> str:
    """Return the code of a page: its blocks, and its code spans, each on a line of its own."""
    text = page.read_text("utf-8")
    return "\n".join([*BLOCK.findall(text), *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))])


def test_calls_of_make_are_found() -> None:
    assert named_targets("make lint\nKEY=1 make serve A=1 no\nmake fuzz soak # x\nto make sure") == {
        *("lint", "serve", "fuzz", "soak"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_call_make_targets_that_exist(page: Path) -> None:
    assert named_targets(code_of(page)) <= TARGETS


@pytest.mark.parametrize("file", [*WORKFLOWS, HOOKS, ROOT / ".ci" / "run"], ids=lambda file: file.name)
def test_checks_call_make_targets_that_exist(file: Path) -> None:
    code = re.sub(r"^target ", "make ", file.read_text("utf-8").replace("- run: ", ""), flags=re.MULTILINE)
    found = named_targets(code)
    assert found <= TARGETS
    assert found or file == HOOKS


def test_contributing_lists_every_make_target() -> None:
    rows = re.findall(r"^\| (`make .*?) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    assert {target for row in rows for target in named_targets(row)} == PHONY


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    images = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "docker" / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert images == [version] * 2
    released = re.findall(r"^## \[(\d.*?)\]", CHANGELOG.read_text("utf-8"), re.MULTILINE)
    assert released[0] == version


def test_the_changelog_has_every_model() -> None:
    listed = re.findall(r"^### ([\w-]+)$", CHANGELOG.read_text("utf-8").split("\n## Models\n")[1], re.MULTILINE)
    assert sorted(listed) == sorted(file.stem for file in (ROOT / "service" / "models").glob("*.onnx"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_paths_that_exist(page: Path) -> None:
    missing = {path for path in PATH.findall(page.read_text("utf-8")) if not (ROOT / path).exists()}
    assert not missing


def test_the_architecture_shows_the_layers_that_are_checked() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    diagrams = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)[: len(layers)]
    for diagram, checked in zip(diagrams, layers, strict=True):
        names = {name for level in checked for name in re.findall(r"(\w+)(?: |$)", level)}
        assert {name for name in names if not re.search(rf"\b{name}\b", diagram)} == set()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\](\([^)]*\))?", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = BLOCK.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


# The changelog names settings of earlier versions, too.
@pytest.mark.parametrize("page", [page for page in PAGES if page != CHANGELOG], ids=lambda page: page.name)
def test_pages_name_settings_that_exist(page: Path) -> None:
    known = {name.upper() for name in (*Settings.model_fields, *FORMER_NAMES.values())} | COMPOSE_VARIABLES
    assert set(re.findall(r"\bTOMAU_([A-Z][A-Z0-9_]*[A-Z0-9])\b", page.read_text("utf-8"))) <= known


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_are_pinned_and_have_the_least_rights(file: Path) -> None:
    text = file.read_text("utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"])
            assert f"{step['uses']} # v" in text, "the release that the SHA is of"
        else:
            # Text that a pull request chooses must not become shell code.
            assert "${{" not in step["run"]
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


def test_the_workflow_runs_what_ci_runs() -> None:
    workflows = [yaml.safe_load(file.read_text("utf-8")) for file in WORKFLOWS]
    run = {step.get("run") for workflow in workflows for step in steps(workflow)}
    ci = re.findall(r"^target (.*)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert {f"make {call}" for call in ci} <= run


def test_hooks_are_local_and_need_no_network() -> None:
    hooks = yaml.safe_load(HOOKS.read_text("utf-8"))
    for repository in hooks["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert hook["entry"].startswith(".venv/bin/")
            assert hook["language"] == "system"


def test_both_packages_are_typed() -> None:
    for package in ("service", "model_export"):
        assert (ROOT / package / "py.typed").is_file()
