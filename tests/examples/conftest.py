"""The examples as a user starts them, and as modules; and a small run that the first of them makes for the others."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Completed = subprocess.CompletedProcess[str]


def start(name: str, *args: object, cwd: Path, python: str = sys.executable, **environment: str) -> Completed:
    """What `python examples/NAME ARGS` said; it ended well."""
    command = [python, str(EXAMPLES / name), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look their module up.
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Example:
    """For tests, which cannot import a conftest."""

    folder: Path = EXAMPLES
    start: Callable[..., Completed] = start
    load: Callable[[str], ModuleType] = load


@pytest.fixture(scope="session")
def example() -> Example:
    return Example()


@dataclass(frozen=True)
class Made:
    """What examples/python_api.py made and said, of the demo product: not to be written to."""

    run: Path
    done: Completed


@pytest.fixture(scope="session")
def made(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(fitted.out, folder / "runs/tiny")
    recipe = folder / "tiny.yaml"
    recipe.write_text(fitted.recipe.to_yaml())
    done = start("python_api.py", recipe.name, "train_yolo.arms=[real,real+defectgen]", cwd=folder)
    return Made(folder / "runs/tiny", done)
