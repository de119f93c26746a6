"""A generator and a class check whose output is known, so that right composites can be told from wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from defectgen.crops import centre
from defectgen.diffusion.pipelines import DefectOutput
from defectgen.images import read_rgb
from defectgen.inpaint.placement import Model
from defectgen.records import Composite, Sources
from defectgen.studio import Studio, real_crops

SIDE = 32


class Blobs:
    """Draws a blob inside each region, darker or brighter than the product there; its seed sets by how much.

    `margin` pixels along the border of the region stay clean.
    """

    def __init__(self, margin: int = 2) -> None:
        self.kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
        self.calls: list[tuple[tuple[int, ...], list[int]]] = []

    def __call__(
        self,
        windows: np.ndarray,
        regions: np.ndarray,
        class_ids: Sequence[int],
        *,
        seeds: Sequence[int],
        **options: Any,
    ) -> DefectOutput:
        self.calls.append((windows.shape, list(seeds)))
        images = windows.copy()
        for image, region, seed in zip(images, regions, seeds, strict=True):
            inner = cv2.erode(region.astype(np.uint8), self.kernel, borderValue=0).astype(bool)
            shift = 60 + seed % 40
            brighter = image.mean() < 128
            image[inner] = np.clip(image[inner].astype(int) + (shift if brighter else -shift), 0, 255)
        return DefectOutput(images=images, masks=regions.astype(np.float32))


class Verdict:
    """A screen that gives every window the same probabilities."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        self.given = np.array(probabilities, np.float32)

    def probabilities(self, image: np.ndarray, region: np.ndarray, *, model: int) -> np.ndarray:
        assert image.shape == (SIDE, SIDE, 3) and region.shape == (SIDE, SIDE) and model >= 0
        return self.given

    def threshold(self, class_id: int, min_probability: float) -> float:
        return min_probability


def make_studio(
    recipe: Any, sources: Sources, *, screen: Any = None, margin: float = 0.0, least_contrast: float = 0.0
) -> Studio:
    """Every real defect of the budget; its own window stands for its clean twin."""
    models = [Model(crop, np.ascontiguousarray(centre(crop.image, SIDE))) for crop in real_crops(recipe, sources)]
    classes = len(sources.class_names)
    return Studio(Blobs(), models, screen, [margin] * classes, [least_contrast] * classes, "f00d")  # type: ignore[arg-type]


def changed(composite: Composite) -> np.ndarray:
    return np.any(composite.image != read_rgb(composite.source.path), axis=2)


def inside(box: Sequence[float], mask: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = int(box[0]), int(box[1]), int(np.ceil(box[2])), int(np.ceil(box[3]))
    return mask[y1:y2, x1:x2]
