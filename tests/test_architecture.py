"""The rules of DESIGN.md about who may import whom."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import defectgen

PACKAGE = Path(defectgen.__file__).parent
STAGES = ("data", "diffusion", "inpaint", "dataset", "yolo")
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of the modules that a file imports, at its top or inside functions, with their lines."""
    package = ("defectgen", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            # Of `from a import b`, b may be a module.
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_walk_sees_the_package() -> None:
    assert len(FILES) > 30
    seen = {name for path in FILES for name, _ in imports(path)}
    # Top-level and function-level imports alike.
    assert {"numpy", "defectgen.records.XYXY", "ultralytics", "torch"} <= seen


def test_stages_import_no_sibling() -> None:
    found, num_files = [], 0
    for stage in STAGES:
        siblings = [f"defectgen.{other}" for other in STAGES if other != stage]
        paths = sorted((PACKAGE / stage).rglob("*.py"))
        num_files += len(paths)
        assert len(paths) > 1, f"{stage}/ has no modules"
        for path in paths:
            for name, line in imports(path):
                if any(is_within(name, sibling) for sibling in siblings):
                    found.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert num_files > 20
    assert found == []


def test_shared_modules_below_the_stages_import_no_stage() -> None:
    below = (
        "errors",
        "progress",
        "trackers",
        "seeds",
        "images",
        "boxes",
        "records",
        "recipe",
        "windows",
        "crops",
        "augment",
        "device",
    )
    found = [
        f"{module}.py:{line} imports {name}"
        for module in below
        for name, line in imports(PACKAGE / f"{module}.py")
        if any(is_within(name, f"defectgen.{stage}") for stage in STAGES)
    ]
    assert found == []


def test_the_report_is_made_last() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in FILES
        for name, _ in imports(path)
        if is_within(name, "defectgen.report")
    }
    assert importers == {"cli.py", "report"}


def test_ultralytics_is_imported_under_yolo_alone() -> None:
    where = {
        path.relative_to(PACKAGE).parts[0]
        for path in FILES
        for name, _ in imports(path)
        if is_within(name, "ultralytics")
    }
    assert where == {"yolo"}


def test_command_line_and_recipe_load_no_heavy_library() -> None:
    heavy = "{'torch', 'ultralytics', 'diffusers', 'albumentations'}"
    code = f"import sys, defectgen.cli, defectgen.recipe; print(sorted({heavy} & set(sys.modules)))"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("as_module", [True, False])
def test_command_line_answers(as_module: bool) -> None:
    command = [sys.executable, "-m", "defectgen"] if as_module else [str(Path(sys.executable).parent / "defectgen")]
    version = run(*command, "--version")
    assert version.returncode == 0 and defectgen.__version__ in version.stdout, version.stderr
    help_text = run(*command, "--help")
    assert help_text.returncode == 0, help_text.stderr
    assert all(name in help_text.stdout for name in ("check", "fit", "synth", "verify", "train-yolo"))


def test_every_module_says_what_it_is_for() -> None:
    documented = {"__main__.py"}
    missing = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if path.name not in documented and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert missing == []
    assert all((PACKAGE / stage / "__init__.py") in FILES for stage in STAGES)


def test_library_never_prints() -> None:
    # The workers of yolo/ speak to their parent by their standard output.
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in FILES
        if path.name != "cli.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []
