"""Folders that a recipe has no field for are checked like the rest, as training data or as held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defectgen.data.aside import with_aside
from defectgen.data.layout import Aside
from defectgen.data.look import look
from defectgen.draft import read_layout
from defectgen.images import encode_image
from defectgen.records import Sources


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three splits, with clean parts in each, and a second camera for training."""
    rng = np.random.default_rng(3)
    for number, folder in enumerate(("train/images", "train/more/images", "val/images", "test/images")):
        _write(tmp_path / folder, f"p{number}", rng)
    for number, folder in enumerate(("train/clean", "val/clean", "test/clean")):
        _write(tmp_path / folder, f"c{number}", rng, row=None)
    (tmp_path / "data.yaml").write_text("train: train/images\nval: val/images\ntest: test/images\nnames: [pit]\n")
    return tmp_path


def _write(folder: Path, name: str, rng: np.random.Generator, row: str | None = "0 0.5 0.5 0.2 0.2\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(encode_image(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), "png"))
    if row is not None:
        labels = folder.parent / "labels"
        labels.mkdir(exist_ok=True)
        (labels / f"{name}.txt").write_text(row)


def _read(root: Path) -> Sources:
    layout = look(root, "yolo")[0]
    return with_aside(read_layout(root, layout)[1], root, layout)


def test_layout_names_what_it_leaves_aside(tree: Path) -> None:
    layout = look(tree, "yolo")[0]
    assert set(layout.aside) == {
        Aside("train/more/images", None, is_clean=False, split="train"),
        Aside("val/images", None, is_clean=False, split="val"),
        Aside("val/clean", None, is_clean=True, split="val"),
    }
    assert "left aside: val/images (validation)" in layout.notes


def test_what_is_left_aside_counts_on_its_side_of_the_split_and_not_for_the_budget(tree: Path) -> None:
    sources = _read(tree)
    names = {
        field: sorted(image.path.stem for image in getattr(sources, field))
        for field in ("train", "train_pool", "train_clean", "test", "test_clean")
    }
    assert names == {
        "train": ["p0"],
        "train_pool": ["p0", "p1"],
        "train_clean": ["c0"],
        "test": ["p2", "p3"],
        "test_clean": ["c1", "c2"],
    }
    assert sources.problems == ()


def test_faults_there_are_found_each_once(tree: Path) -> None:
    (tree / "val/labels/p2.txt").write_text("0 0.5 0.5 0 0.2\n")
    (tree / "val/clean/c1.png").write_bytes(b"no picture")
    (tree / "train/more/images/p1.png").unlink()
    (tree / "train/more/images/p1.png").symlink_to(tree / "test/images/p3.png")
    lines = [str(problem) for problem in _read(tree).problems]
    assert len(lines) == 3, lines
    assert any("val/labels/p2.txt" in line and "row 1" in line for line in lines)
    assert any("val/clean/c1.png" in line for line in lines)
    assert any("leaks: 1 for training, 1 held out" in line and "p3.png" in line for line in lines)
