"""A generator and a class check whose output is known, so that right composites can be told from wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from defectgen.crops import centre
from defectgen.dataset.write import finish, write_composite
from defectgen.diffusion.pipelines import DefectOutput
from defectgen.images import encode_image, read_rgb
from defectgen.inpaint.placement import Model
from defectgen.recipe import Recipe
from defectgen.records import Annotation, Composite, LabelledImage, Sources
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

    def threshold(self, class_id: int, min_probability: float, *, model: int) -> float:
        return min_probability


def make_studio(
    recipe: Any, sources: Sources, *, screen: Any = None, margin: float = 0.0, least_contrast: float = 0.0
) -> Studio:
    """Every real defect of the budget; its own window stands for its clean twin."""
    models = [Model(crop, np.ascontiguousarray(centre(crop.image, SIDE))) for crop in real_crops(recipe, sources)]
    classes = len(sources.class_names)
    return Studio(Blobs(), models, screen, [margin] * classes, [least_contrast] * classes, "f00d")  # type: ignore[arg-type]


def made_set(folder: Path, recipe: Recipe, sources: Sources, composites: list[Composite]) -> Path:
    """A complete data set of `composites` in `folder`."""
    for composite in composites:
        write_composite(folder, composite, image_format="png", task="detect", class_names=sources.class_names)
    finish(
        folder,
        recipe_yaml=recipe.to_yaml(),
        class_names=sources.class_names,
        task="detect",
        num_images=len(composites),
        fingerprint="f00d",
    )
    return folder


def changed(composite: Composite) -> np.ndarray:
    return np.any(composite.image != read_rgb(composite.source.path), axis=2)


def inside(box: Sequence[float], mask: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = int(box[0]), int(box[1]), int(np.ceil(box[2])), int(np.ceil(box[3]))
    return mask[y1:y2, x1:x2]


def block_sources(folder: Path) -> Sources:
    """One grey part with a black and white block at (40, 48) of 16 x 8 px, one grey clean part of the same name."""
    clean = np.full((96, 96, 3), 128, np.uint8)
    real = clean.copy()
    real[48:56, 40:48], real[48:56, 48:56] = 0, 255
    images = []
    for subset, image in (("real", real), ("clean", clean)):
        path = folder / subset / "part.png"
        path.parent.mkdir()
        path.write_bytes(encode_image(image, "png"))
        marks = (Annotation(0, (36, 44, 60, 60)),) if subset == "real" else ()
        images.append(LabelledImage(path, path.name, (96, 96), subset, marks))
    return Sources(("block",), (images[0],), (images[0],), (images[1],), (), ())
