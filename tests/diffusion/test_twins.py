from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from defectgen.crops import centre, region_of
from defectgen.diffusion.pipelines import DefectInpaintPipeline, DefectOutput
from defectgen.diffusion.twins import BATCH, clean_twins
from defectgen.diffusion.unet import build_unet


class Filler:
    """Fills every region with one colour and keeps what it was asked for."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(class_names=["scratch", "pit"], window_px=32)
        self.asked: list[list[int]] = []

    def __call__(self, windows: np.ndarray, regions: np.ndarray, class_ids: list[int], **options: Any) -> DefectOutput:
        self.asked.append(class_ids)
        return DefectOutput(np.where(regions[..., None], np.uint8(77), windows), regions.astype(np.float32))


@pytest.fixture(scope="module")
def pipeline() -> DefectInpaintPipeline:
    torch.manual_seed(0)
    unet = build_unet(2, window_px=32, channels=[16, 32], fold=4).eval()
    return DefectInpaintPipeline(unet, FlowMatchEulerDiscreteScheduler(shift=1.0), ("scratch", "pit"), 32)


def test_defect_is_replaced_by_class_clean_and_its_surroundings_stay(toys: Any) -> None:
    crops, filler = toys.crops(BATCH // 2 + 2), Filler()
    twins = clean_twins(filler, crops, seed=0)
    assert twins.shape == (BATCH + 4, 32, 32, 3) and twins.dtype == np.uint8
    for crop, twin in zip(crops, twins, strict=True):
        region = region_of(centre(crop.mask, 32), outlined=False)
        assert (twin[region] == 77).all()
        assert (twin[~region] == centre(crop.image, 32)[~region]).all()
    # Two batches of one fixed size, all of the class after the defects'.
    assert filler.asked == [[2] * BATCH] * 2


def test_twin_does_not_depend_on_how_many_there_are(pipeline: DefectInpaintPipeline, toys: Any) -> None:
    crops = toys.crops(BATCH // 2 + 1)
    together = clean_twins(pipeline, crops, seed=3)
    assert (clean_twins(pipeline, crops[:3], seed=3) == together[:3]).all()
    assert (clean_twins(pipeline, crops, seed=4) != together).any()


def test_equal_crops_in_different_batches_get_noise_of_their_own(pipeline: DefectInpaintPipeline, toys: Any) -> None:
    twins = clean_twins(pipeline, [toys.crops(1)[0]] * (BATCH + 1), seed=0)
    assert len({twin.tobytes() for twin in twins}) == BATCH + 1
