"""Small real and synthetic data sets for the tests of yolo/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from defectgen.images import encode_image
from defectgen.records import Annotation, LabelledImage, Sources

CLASSES = ("scratch", "spot")


def _draw_part(boxes: Sequence[tuple[int, int, int, int]], *, seed: int, size: int = 64) -> np.ndarray:
    """A grey part with fine noise and a bright block per box."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (size, size, 3)).astype(np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 230
    return image


def _images(
    folder: Path, count: int, *, defective: bool, seed: int, size: int = 64, polygons: bool = False
) -> tuple[LabelledImage, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = []
    for index in range(count):
        x, y = (int(value) for value in rng.integers(4, size - 28, 2))
        boxes = [(x, y, x + 20, y + 14)] if defective else []
        path = folder / f"{folder.name}{index}.png"
        path.write_bytes(encode_image(_draw_part(boxes, seed=seed * 1000 + index, size=size), "png"))
        annotations = []
        for x1, y1, x2, y2 in boxes:
            outline = ((x1, y1), (x2, y1), (x2, y2), (x1, y2)) if polygons else None
            annotations.append(Annotation(index % 2, (x1, y1, x2, y2), outline))
        images.append(LabelledImage(path, path.name, (size, size), path.stem, tuple(annotations)))
    return tuple(images)


def _sources(
    folder: Path, *, size: int = 64, polygons: bool = False, num_test: int = 3, num_test_clean: int = 2
) -> Sources:
    """Five real defective images, three clean ones, `num_test` and `num_test_clean` held out."""
    train = _images(folder / "train", 5, defective=True, seed=1, size=size, polygons=polygons)
    return Sources(
        class_names=CLASSES,
        train=train,
        train_pool=train,
        train_clean=_images(folder / "clean", 3, defective=False, seed=2, size=size),
        test=_images(folder / "test", num_test, defective=True, seed=3, size=size, polygons=polygons),
        test_clean=_images(folder / "test_clean", num_test_clean, defective=False, seed=4, size=size),
    )


def _synthetic(folder: Path, count: int, *, rows: str = "0 0.5 0.5 0.25 0.25\n", seed: int = 9) -> Path:
    """A YOLO data set of `count` images with the label `rows`, and one clean image."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(count + 1):
        boxes = [(24, 24, 40, 40)] if index < count else []
        image = _draw_part(boxes, seed=seed * 1000 + index)
        (folder / "images" / f"{index:04d}.png").write_bytes(encode_image(image, "png"))
        (folder / "labels" / f"{index:04d}.txt").write_text(rows if index < count else "")
    (folder / "manifest.jsonl").write_text("")
    return folder


@pytest.fixture
def make_sources() -> Callable[..., Sources]:
    return _sources


@pytest.fixture
def make_synthetic() -> Callable[..., Path]:
    return _synthetic
