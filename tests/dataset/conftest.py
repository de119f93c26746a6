"""A small data set: random product images of 64 x 48 pixels, defects drawn as filled rectangles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.dataset.write import finish, write_composite
from defectgen.images import encode_image, sha256_bytes
from defectgen.records import Annotation, Composite, LabelledImage, PlacedDefect, Rejection

CLASS_NAMES = ("scratch", "pit")
SIZE_WH = (64, 48)
RECIPE_YAML = "name: small\nseed: 3\ndata:\n  root: /home/someone/factory/parts\n  train_images: defects\n"


def clean_image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(40, 200, (SIZE_WH[1], SIZE_WH[0], 3), dtype=np.uint8)


def make_composite(
    index: int,
    defects: tuple[tuple[int, tuple[int, int, int, int]], ...] = (),
    *,
    kept: tuple[Annotation, ...] = (),
    rejected: tuple[Rejection, ...] = (),
    margin_px: float = 2.0,
) -> Composite:
    image, mask = clean_image(index), np.zeros((SIZE_WH[1], SIZE_WH[0]), np.uint8)
    source_sha256 = sha256_bytes(encode_image(image, "png"))
    placed = []
    for class_id, (x1, y1, x2, y2) in defects:
        image[y1:y2, x1:x2] = 255 * class_id
        mask[y1:y2, x1:x2] = class_id + 1
        label = (x1 - margin_px, y1 - margin_px, x2 + margin_px, y2 + margin_px)
        outline = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
        placement = {"model": "real/a.png#0", "scale": np.float32(1 / 3), "at": (x1, y1), "flip": False}
        placed.append(PlacedDefect(class_id, label, (x1, y1, x2, y2), (outline,), label, placement))
    source = LabelledImage(Path(f"/somewhere/clean/{index}.png"), f"{index}.png", SIZE_WH, str(index))
    return Composite(index, image, mask, source, source_sha256, kept, tuple(placed), rejected)


def composites() -> list[Composite]:
    """Four images: one scratch; a scratch and two pits; a clean one with refusals; a pit beside a real scratch."""
    kept = Annotation(0, (2.0, 2.0, 12.5, 8.25))
    refused = (Rejection(1, "no visible change", "3 of 255"), Rejection(0, "wrong class", "pit 0.81"))
    return [
        make_composite(0, ((0, (10, 10, 30, 14)),)),
        make_composite(1, ((0, (4, 30, 40, 34)), (1, (50, 5, 56, 11)), (1, (20, 5, 26, 12)))),
        make_composite(2, rejected=refused),
        make_composite(3, ((1, (40, 30, 48, 40)),), kept=(kept,), rejected=refused[:1]),
    ]


def finish_set(
    folder: Path, *, task: str = "detect", num_images: int = 4, rejected: tuple[int, ...] = ()
) -> dict[str, Any]:
    return finish(
        folder,
        recipe_yaml=RECIPE_YAML,
        class_names=CLASS_NAMES,
        task=task,  # type: ignore[arg-type]
        num_images=num_images,
        fingerprint="f00d",
        rejected=rejected,
        licence_note="Parts of plant 7, internal.",
    )


def write_set(folder: Path, *, task: str = "detect", image_format: str = "png") -> Path:
    for composite in composites():
        write_composite(
            folder,
            composite,
            image_format=image_format,  # type: ignore[arg-type]
            task=task,  # type: ignore[arg-type]
            class_names=CLASS_NAMES,
        )
    finish_set(folder, task=task)
    return folder


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


@pytest.fixture
def new_set(tmp_path: Path) -> Callable[..., Path]:
    """`new_set(name, task=..., image_format=...)` -> folder of a finished set."""
    return lambda name, **options: write_set(tmp_path / name, **options)


@pytest.fixture
def parts() -> Any:
    """The functions above, for tests that take the steps one by one."""

    class Parts:
        class_names = CLASS_NAMES
        clean_image = staticmethod(clean_image)
        make_composite = staticmethod(make_composite)
        composites = staticmethod(composites)
        finish_set = staticmethod(finish_set)

        @staticmethod
        def write(folder: Path, composite: Composite, task: str = "detect") -> Any:
            return write_composite(
                folder,
                composite,
                image_format="png",
                task=task,  # type: ignore[arg-type]
                class_names=CLASS_NAMES,
            )

    return Parts
