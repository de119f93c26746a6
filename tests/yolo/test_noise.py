"""A generator broken on purpose: the verdict must not be taken in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from stand_ins import made_set, make_studio

from defectgen.compose import compose
from defectgen.diffusion.pipelines import DefectOutput
from defectgen.progress import silent
from defectgen.recipe import TrainYolo
from defectgen.records import Sources
from defectgen.yolo.train import train_arms

pytestmark = pytest.mark.long


class Noise:
    """Draws noise in each region."""

    def __call__(
        self,
        windows: np.ndarray,
        regions: np.ndarray,
        class_ids: Sequence[int],
        *,
        seeds: Sequence[int],
        **options: Any,
    ) -> DefectOutput:
        images = windows.copy()
        for image, region, seed in zip(images, regions, seeds, strict=True):
            # Within a clean border: what reaches the edge of its region is refused.
            inner = cv2.erode(region.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0).astype(bool)
            image[inner] = np.random.default_rng(seed).integers(0, 256, (int(inner.sum()), 3))
        return DefectOutput(images, regions.astype(np.float32))


def test_noise_in_place_of_defects_is_not_said_to_help(
    tmp_path: Path, toys: Any, make_sources: Callable[..., Sources]
) -> None:
    sources = make_sources(tmp_path / "sources", num_test=16, num_test_clean=4)
    recipe = toys.recipe(
        inpaint={"backend": "diffusion", "start": "place"},
        place={"per_image": (1, 2)},
        synth={"num_images": 24, "clean_share": 0},
    )
    studio = make_studio(recipe, sources)
    plain = [replace(model, twin=np.full_like(model.twin, 100)) for model in studio.models]
    studio = replace(studio, pipeline=Noise(), models=plain)
    folder = made_set(
        tmp_path / "noise", recipe, sources, [compose(recipe, sources, studio, index) for index in range(24)]
    )
    config = TrainYolo(imgsz=64, batch=8, iterations=150, seeds=[0, 1, 2], arms=["real", "real+defectgen"])
    results = train_arms(
        config=config,
        sources=sources,
        synthetic={"real+defectgen": folder},
        out=tmp_path / "yolo",
        seed=0,
        progress=silent,
    )
    assert results["verdict"]["finding"] in ("hurts", "no difference shown")
    assert results["verdict"]["decided_by"]["num_seeds"] == 3
    # There was something to lose.
    assert results["arms"]["real"]["mean"]["map50"] > 0.3
