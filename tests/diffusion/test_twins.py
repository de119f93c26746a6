from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from defectgen.crops import centre, region_of
from defectgen.diffusion.pipelines import DefectInpaintPipeline, DefectOutput
from defectgen.diffusion.twins import BATCH, STRENGTHS, clean_twins
from defectgen.diffusion.unet import build_unet


class Filler:
    """Fills every region with one colour per strength and keeps what it was asked for."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(class_names=["scratch", "pit"], window_px=32)
        self.asked: list[list[int]] = []

    def __call__(
        self, windows: np.ndarray, regions: np.ndarray, class_ids: list[int], *, strength: float, **options: Any
    ) -> DefectOutput:
        self.asked.append(class_ids)
        colour = np.uint8(100 * strength)
        return DefectOutput(np.where(regions[..., None], colour, windows), regions.astype(np.float32))


@pytest.fixture(scope="module")
def pipeline() -> DefectInpaintPipeline:
    torch.manual_seed(0)
    unet = build_unet(2, window_px=32, channels=[16, 32], fold=4).eval()
    return DefectInpaintPipeline(unet, FlowMatchEulerDiscreteScheduler(shift=1.0), ("scratch", "pit"), 32)


def twins_of(pipeline: Any, crops: Any, *, seed: int = 0, clean_probability: Any) -> tuple[np.ndarray, float]:
    """Twins of which none is photographed."""
    photographed = [None] * len(crops)
    return clean_twins(pipeline, crops, photographed=photographed, seed=seed, clean_probability=clean_probability)


def always(probability: float) -> Any:
    return lambda image, region, number: probability


def test_defect_is_replaced_by_class_clean_and_its_surroundings_stay(toys: Any) -> None:
    crops, filler = toys.crops(BATCH // 2 + 2), Filler()
    twins, passed = twins_of(filler, crops, seed=0, clean_probability=always(1))
    assert passed == 1
    assert twins.shape == (BATCH + 4, 32, 32, 3) and twins.dtype == np.uint8
    for crop, twin in zip(crops, twins, strict=True):
        region = region_of(centre(crop.mask, 32), outlined=False)
        assert (twin[region] == 100 * STRENGTHS[0]).all()
        assert (twin[~region] == centre(crop.image, 32)[~region]).all()
    # Two batches of one fixed size, all of the class after the defects'.
    assert filler.asked == [[2] * BATCH] * 2


def test_twin_changes_least_among_those_that_pass_for_clean(toys: Any) -> None:
    crops = toys.crops(2)
    enough = [0.8, 0.94, 1.1, 0.88]  # the strength from which each passes; the third never does

    def clean_probability(image: np.ndarray, region: np.ndarray, number: int) -> float:
        strength = image[region][0, 0] / 100
        if strength >= enough[number] - 0.01:
            return 0.9
        return 0.4 if strength == 0.88 else 0.1

    twins, passed = clean_twins(
        Filler(), crops, photographed=[None] * len(crops), seed=0, clean_probability=clean_probability
    )
    assert passed == 0.75
    filled = [
        int(twin[region_of(centre(crop.mask, 32), outlined=False)][0, 0])
        for crop, twin in zip(crops, twins, strict=True)
    ]
    assert filled == [80, 94, 88, 88]


def test_twin_does_not_depend_on_how_many_there_are(pipeline: DefectInpaintPipeline, toys: Any) -> None:
    crops = toys.crops(BATCH // 2 + 1)
    together, _ = twins_of(pipeline, crops, seed=3, clean_probability=always(0.1))
    assert (twins_of(pipeline, crops[:3], seed=3, clean_probability=always(0.1))[0] == together[:3]).all()
    assert (twins_of(pipeline, crops, seed=4, clean_probability=always(0.1))[0] != together).any()


def test_equal_crops_in_different_batches_get_noise_of_their_own(pipeline: DefectInpaintPipeline, toys: Any) -> None:
    twins, _ = clean_twins(
        pipeline,
        [toys.crops(1)[0]] * (BATCH + 1),
        photographed=[None] * (BATCH + 1),
        seed=0,
        clean_probability=always(1),
    )
    assert len({twin.tobytes() for twin in twins}) == BATCH + 1


def test_photographed_twins_are_taken_and_only_the_others_drawn(toys: Any) -> None:
    crops = toys.crops(2)
    photograph = np.full((32, 32, 3), 7, np.uint8)
    asked: list[int] = []

    def clean_probability(image: np.ndarray, region: np.ndarray, number: int) -> float:
        asked.append(number)
        return 0.2

    photographed = [None, photograph, None, photograph]
    twins, passed = clean_twins(Filler(), crops, photographed=photographed, seed=0, clean_probability=clean_probability)
    assert (twins[1] == 7).all() and (twins[3] == 7).all() and passed == 0.5
    assert set(asked) == {0, 2} and not (twins[0] == 7).all()
