"""Clean twins of real defects: what the product looks like without them, as the generator believes.

Nobody photographs a part before and after its defect. The generator, asked for class *clean* within the region of a
real defect, draws what would be there; placement compares clean images with it, and what differs from it shows how
much margin the annotators leave around a visible defect.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from defectgen.crops import Crop, centre, region_of
from defectgen.diffusion.pipelines import DefectInpaintPipeline
from defectgen.diffusion.unet import clean_class
from defectgen.seeds import derive_seed

BATCH = 16
# Drawn from the real window noised so far: broken tracks are joined where they were, a spot of copper is forgotten. On
# DeepPCB, from pure noise, tracks came back with bulges; at 0.85 spots of copper stayed.
STRENGTH = 0.94


def clean_twins(pipeline: DefectInpaintPipeline, crops: Sequence[Crop], *, seed: int) -> np.ndarray:
    """uint8 (N, H, W, 3): the window of each crop with its defect replaced by clean product."""
    side = pipeline.config.window_px
    clean = clean_class(len(pipeline.config.class_names))
    twins = []
    for first in range(0, len(crops), BATCH):
        part = crops[first : first + BATCH]
        # A fixed batch size: what a twin looks like must not depend on how many there are.
        padded = [*part, *[part[0]] * (BATCH - len(part))]
        windows = np.stack([centre(crop.image, side) for crop in padded])
        output = pipeline(
            windows,
            np.stack([region_of(centre(crop.mask, side), outlined=crop.outlined) for crop in padded]),
            [clean] * BATCH,
            seeds=[derive_seed(seed, "twin", first + i) for i in range(BATCH)],
            patches=np.concatenate([windows, np.zeros_like(windows[..., :1])], axis=3),
            strength=STRENGTH,
            guidance=1.0,
        )
        twins.append(output.images[: len(part)])
    return np.concatenate(twins)
