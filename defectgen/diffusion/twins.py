"""Clean twins of real defects: what the product looks like without them, as the generator believes.

Few photograph a part before and after its defect. Where no clean image shows the place, the generator, asked for class
*clean* within the region of a real defect, draws what would be there. Placement compares clean images with the twin,
and what differs from it shows how much margin the annotators leave around a visible defect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from defectgen.crops import Crop, centre, region_of
from defectgen.diffusion.pipelines import DefectInpaintPipeline
from defectgen.diffusion.unet import clean_class
from defectgen.seeds import derive_seed

BATCH = 16
# The real window noised so far is what a twin is drawn from. At 0.8 a broken track is joined where it was and a spot of
# copper stays; from pure noise the spot is forgotten, and the track comes back with a bulge or not at all.
STRENGTHS = (0.8, 0.88, 0.94, 1.0)
# Probability of clean from which the class check takes a twin for clean.
CLEAN = 0.5

# (image, region, number of the defect) to the probability that the window shows clean product
CleanCheck = Callable[[np.ndarray, np.ndarray, int], float]


def clean_twins(
    pipeline: DefectInpaintPipeline,
    crops: Sequence[Crop],
    *,
    photographed: Sequence[np.ndarray | None],
    seed: int,
    clean_probability: CleanCheck,
) -> tuple[np.ndarray, float]:
    """uint8 (N, H, W, 3): the window of each crop with its defect replaced by clean product; the share that pass.

    The photographed twin where there is one. Else the one that changes least among those drawn that pass for clean, or
    the cleanest where none does.
    """
    side = pipeline.config.window_px
    windows = [centre(crop.image, side) for crop in crops]
    regions = [region_of(centre(crop.mask, side), outlined=crop.outlined) for crop in crops]
    twins = [window if twin is None else twin for window, twin in zip(windows, photographed, strict=True)]
    probabilities = np.array([-1.0 if twin is None else 1.0 for twin in photographed])
    for strength in STRENGTHS:
        left = [number for number in range(len(crops)) if probabilities[number] < CLEAN]
        drawn = _drawn(pipeline, windows, regions, left, strength=strength, seed=seed)
        for number, twin in zip(left, drawn, strict=True):
            probability = clean_probability(twin, regions[number], number)
            if probability > probabilities[number]:
                twins[number], probabilities[number] = twin, probability
    return np.stack(twins), float((probabilities >= CLEAN).mean())


def _drawn(
    pipeline: DefectInpaintPipeline,
    windows: Sequence[np.ndarray],
    regions: Sequence[np.ndarray],
    numbers: Sequence[int],
    *,
    strength: float,
    seed: int,
) -> list[np.ndarray]:
    clean = clean_class(len(pipeline.config.class_names))
    drawn: list[np.ndarray] = []
    for first in range(0, len(numbers), BATCH):
        part = list(numbers[first : first + BATCH])
        # A fixed batch size: what a twin looks like must not depend on how many there are.
        padded = [*part, *[part[0]] * (BATCH - len(part))]
        images = np.stack([windows[number] for number in padded])
        output = pipeline(
            images,
            np.stack([regions[number] for number in padded]),
            [clean] * BATCH,
            seeds=[derive_seed(seed, "twin", number) for number in padded],
            patches=np.concatenate([images, np.zeros_like(images[..., :1])], axis=3),
            strength=strength,
            guidance=1.0,
        )
        drawn.extend(output.images[: len(part)])
    return drawn
