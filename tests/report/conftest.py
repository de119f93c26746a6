"""A run with everything in it that a report shows: a set of pasted patches, two arms of two trainings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from defectgen.report.page import write_report
from defectgen.run import run_train_yolo


@pytest.fixture(scope="session")
def run_folder(fitted: Any, toys: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to but by `write_report`."""
    out = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(fitted.out, out)
    recipe = toys.recipe(
        # Which drawings pass is chance with a generator of four steps: every score must show.
        screen={"classifier": True, "min_probability": 0.02, "min_contrast": 0},
        synth={"num_images": 10, "clean_share": 0.2},
        train_yolo={"arms": ["real", "real+defectgen"], "seeds": [0, 1]},
    )
    run_train_yolo(recipe, out, workers=1, progress=lambda *_: None)
    return out


@pytest.fixture(scope="session")
def page(run_folder: Path) -> Path:
    return write_report(run_folder, progress=lambda *_: None)
