"""A real defect copied into another place: what drawing may start from, and what a control arm is made of."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from defectgen.crops import annotation_mask, centre
from defectgen.dataset.labels import visible_defect
from defectgen.images import read_rgb
from defectgen.inpaint.backends import composite
from defectgen.inpaint.placement import Turn
from defectgen.recipe import Recipe
from defectgen.records import LabelledImage, Sources
from defectgen.studio import Studio
from defectgen.windows import Window, crop_window, resize, window_inside

# Windows up to this side are kept, 64 of them, 600 MB at most; larger ones are read anew each time.
LARGEST_KEPT_PX = 1024


def copied_in(
    recipe: Recipe, sources: Sources, studio: Studio, number: int, turn: Turn, window: Window, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`image` (uint8 (H, W, 3)) with real defect `number` turned, bent and Poisson-blended into `window`.

    And bool (side, side): where in the window the copied defect is.
    """
    model = studio.models[number]
    real = next(one for one in sources.train if one.name == model.crop.source)
    read = _kept_defect if model.crop.window.side <= LARGEST_KEPT_PX else _real_defect
    pixels, shape = read(real, model.crop.annotation, model.crop.window)
    side = model.crop.window.side
    if not model.crop.outlined:
        # Of a box only what is the defect: the product around it is at the place already, and lies as it lies there.
        seen = visible_defect(model.crop, model.twin, min_change=recipe.labels.min_change)
        grown = cv2.dilate(seen.astype(np.uint8) * 255, np.ones((5, 5), np.uint8))
        visible = cv2.min(shape, np.pad(resize(grown, side), (len(shape) - side) // 2))
        shape = visible if visible.max() >= 128 else shape

    def moved(array: np.ndarray) -> np.ndarray:
        return turn.bend(resize(centre(turn.apply(array), side), window.side))

    outline = moved(shape)
    copied = composite(
        image,
        window,
        moved(pixels),
        outline=outline,
        region=np.ones((window.side, window.side), bool),
        backend="poisson",
        feather_px=recipe.inpaint.feather_px,
    )
    return copied, outline >= 128


def _real_defect(real: LabelledImage, annotation: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (S, S, 3) and mask (S, S), both uint8, of a real defect and what surrounds its window, for rotations."""
    pad = window.side // 4
    around = Window(window.x - pad, window.y - pad, window.side + 2 * pad)
    shape = crop_window(annotation_mask(real.annotations[annotation], real.size_wh), around)
    # Beyond the edges of its image the window shows mirror images, which are no defects.
    own: np.ndarray = np.where(window_inside(around, real.size_wh), shape, np.uint8(0))
    return np.ascontiguousarray(crop_window(read_rgb(real.path), around)), own


_kept_defect = lru_cache(maxsize=64)(_real_defect)
