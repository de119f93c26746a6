"""A real defect copied into another place: what drawing may start from, and the control arm of the evaluation."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from defectgen.crops import annotation_mask
from defectgen.dataset.labels import visible_defect
from defectgen.images import read_rgb, sha256_file
from defectgen.inpaint.backends import composite
from defectgen.inpaint.placement import Turn
from defectgen.recipe import Recipe
from defectgen.records import XYXY, Composite, PlacedDefect, Sources
from defectgen.studio import Studio
from defectgen.windows import Window, crop_window, resize, window_inside


def copied_in(
    recipe: Recipe, sources: Sources, studio: Studio, number: int, turn: Turn, window: Window, image: np.ndarray
) -> np.ndarray:
    """`image` (uint8 (H, W, 3)) with real defect `number` turned, bent and Poisson-blended into `window`."""
    model = studio.models[number]
    crop = model.crop
    real = next(one for one in sources.train if one.name == crop.source)
    # Beyond the edges of its image the window shows mirror images, which are no defects.
    inside = window_inside(crop.window, real.size_wh)
    own = crop_window(annotation_mask(real.annotations[crop.annotation], real.size_wh), crop.window)
    shape: np.ndarray = np.where(inside, own, np.uint8(0))
    if not crop.outlined:
        # Of a box only what is the defect: the product around it is at the place already, and lies as it lies there.
        seen = visible_defect(crop, model.twin, min_change=recipe.labels.min_change)
        grown = cv2.dilate(seen.astype(np.uint8) * 255, np.ones((5, 5), np.uint8))
        visible = cv2.min(shape, resize(grown, shape.shape[0]))
        shape = visible if visible.max() >= 128 else shape

    def moved(array: np.ndarray) -> np.ndarray:
        return turn.bend(resize(turn.apply(array), window.side))

    return composite(
        image,
        window,
        moved(crop_window(_read(real.path), crop.window)),
        outline=moved(shape),
        region=np.ones((window.side, window.side), bool),
        backend="poisson",
        feather_px=recipe.inpaint.feather_px,
    )


def compose_copy_paste(recipe: Recipe, sources: Sources, studio: Studio, row: dict[str, Any]) -> Composite:
    """The image of a manifest row again, with the real defects that its placements follow, Poisson-blended.

    The control arm of the evaluation: the same clean images, places and sizes; only the pixels are copies. Labels are
    the boxes of the real annotations, moved along.
    """
    index = int(row["index"])
    # A clean image may have the name of a defective one.
    bases = sources.train_clean if recipe.data.base == "clean" else sources.train
    base = next(image for image in bases if image.name == row["source"])
    image = read_rgb(base.path)
    mask = np.zeros(image.shape[:2], np.uint8)
    copies = []
    for placed in row["placed"]:
        placement = placed["placement"]
        turn, window = Turn.of_json(placement), Window(*placement["window"])
        before, image = image, copied_in(recipe, sources, studio, placement["model"], turn, window, image)
        mask[np.any(image != before, axis=2)] = placed["class_id"] + 1
        asked: XYXY = tuple(placed["asked_xyxy"])
        rectangle = ((asked[0], asked[1]), (asked[2], asked[1]), (asked[2], asked[3]), (asked[0], asked[3]))
        copies.append(
            PlacedDefect(placed["class_id"], asked, asked, (rectangle,), asked, placement | {"backend": "poisson"})
        )
    return Composite(index, image, mask, base, sha256_file(base.path), base.annotations, tuple(copies), ())


@lru_cache(maxsize=64)
def _read(path: Path) -> np.ndarray:
    return read_rgb(path)
