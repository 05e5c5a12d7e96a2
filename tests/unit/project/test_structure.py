"""The tree of tests mirrors the tree of packages, and files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "tests" / "unit"
PACKAGES = ("service", "model_export")
MAX_LINES = 400
# Modules without a test file of their own, and what tests them instead.
TESTED_ELSEWHERE = {
    "service/__init__.py": "tests/unit/project/test_deployment.py",
    "service/healthcheck.py": "tests/api/test_health.py",
    "service/imaging/decoders/tiff_chunks.py": "tests/unit/imaging/decoders/test_tiff_files.py",
    "service/imaging/decoders/tiff_page.py": "tests/unit/imaging/decoders/test_tiff_files.py",
    "service/imaging/decoders/tiff_samples.py": "tests/unit/imaging/decoders/test_tiff_files.py",
    "service/imaging/photo.py": "tests/unit/imaging/test_decoding.py",
    "service/inference/session.py": "tests/unit/inference/test_executor.py",
    "service/web/options.py": "tests/api/test_problems.py",
    "service/web/routes.py": "tests/api/test_colorize.py",
    "service/web/schemas.py": "tests/unit/web/test_openapi.py",
    "service/web/state.py": "tests/unit/web/test_app.py",
    "model_export/__main__.py": "tests/e2e/test_training.py",
    "model_export/evaluation/tables.py": "tests/unit/evaluation/test_evaluate.py",
    "model_export/export/parity.py": "tests/unit/export/test_fp16.py",
    "model_export/files.py": "tests/unit/weights/test_checkpoint.py",
    "model_export/networks/__init__.py": "tests/unit/networks/test_compact.py",
    "model_export/networks/efficientnet.py": "tests/unit/weights/test_pretrained.py",
    "model_export/weights/__init__.py": "tests/unit/weights/test_onnx_weights.py",
}
# Test files about a kind of input instead of one module.
ABOUT_A_KIND = {
    "tests/unit/imaging/decoders/test_tiff_bombs.py",
    "tests/unit/imaging/decoders/test_tiff_files.py",
    "tests/unit/imaging/test_bombs.py",
    "tests/unit/imaging/test_damaged_profiles.py",
    "tests/unit/imaging/test_kinds_of_files.py",
    "tests/unit/imaging/test_profiled_files.py",
    "tests/unit/imaging/test_webp.py",
    "tests/unit/metadata/test_outputs.py",
    "tests/unit/pipeline/test_directory_names.py",
    "tests/unit/web/test_upload_of_batches.py",
}


def modules() -> list[Path]:
    """Return the modules with code of their own, relative to their top-level package's parent."""
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in found if path.stem != "__init__" or len(body(path)) > 1]


def body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text("utf-8")).body


def mirror_of(module: Path) -> Path:
    """Return where a module's unit tests belong: service/web/app.py -> tests/unit/web/test_app.py."""
    inside = Path(*module.parts[1:])
    if inside.stem == "__init__":
        return UNIT / inside.parent / f"test_{inside.parent.name}.py"
    return UNIT / inside.parent / f"test_{inside.stem}.py"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_module_has_a_test_file(module: Path) -> None:
    has_file = mirror_of(module).exists()
    elsewhere = TESTED_ELSEWHERE.get(str(module))
    assert has_file != bool(elsewhere), f"add {mirror_of(module).relative_to(ROOT)}, or its entry above"
    if elsewhere:
        assert (ROOT / elsewhere).exists(), elsewhere


def test_every_test_file_mirrors_a_module() -> None:
    mirrored = {mirror_of(module) for module in modules()} | {ROOT / file for file in ABOUT_A_KIND}
    strays = [path for path in UNIT.rglob("test_*.py") if path not in mirrored and path.parent.name != "project"]
    assert not strays, "rename them after the module that they test, or list them above"
    assert all((ROOT / file).exists() for file in ABOUT_A_KIND)
    files = [mirror_of(module) for module in modules()]
    shared = {file.name for file in files if files.count(file) > 1}
    assert shared == {"test_cli.py"}, "only the two command lines may share a test file"


def test_every_package_says_what_it_is_for() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_files_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for folder in (*PACKAGES, "tests")
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text("utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"split them: at most {MAX_LINES} lines"
