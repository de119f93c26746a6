"""Sample sheets: while the generator is fitted, what it draws from noise beside a real defect of each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from defectgen.crops import Crop, centre
from defectgen.dataset.sheet import sample_sheet
from defectgen.images import encode_image, write_bytes_atomic
from defectgen.recipe import Generator
from defectgen.seeds import derive_seed

if TYPE_CHECKING:
    from defectgen.diffusion.pipelines import DefectPatchPipeline

# Few steps show what is learned; all sheets of a fit together take about this share of its time.
NUM_STEPS, COST_SHARE, MOST_PATCHES = 8, 0.02, 6
_GROUND = 128


def write_sample_sheet(
    folder: Path, pipeline: DefectPatchPipeline, step: int, *, crops: Sequence[Crop], config: Generator, seed: int
) -> Path:
    """The file written, `folder`/step-000400.jpg: per class a row of a real defect and patches.

    A patch starts from the same noise at every step, so that one sees it form.

    Args:
        pipeline: with the weights of that step.
        crops: real defects; the first of each class is shown.
    """
    class_names = pipeline.config.class_names
    num_patches = patches_per_class(config, len(class_names))
    class_ids = [class_id for class_id in range(len(class_names)) for _ in range(num_patches)]
    seeds = [derive_seed(seed, "sample sheet", number) for number in range(len(class_ids))]
    patches = iter(pipeline(class_ids, seeds=seeds, num_steps=NUM_STEPS).images)
    rows = []
    for class_id, name in enumerate(class_names):
        real = next((centre(crop.image, config.window_px) for crop in crops if crop.class_id == class_id), None)
        unknown = np.full((config.window_px, config.window_px, 3), _GROUND, np.uint8)
        rows.append((name, [unknown if real is None else real, *(next(patches) for _ in range(num_patches))]))
    heading = f"step {step} of {config.steps}: a real defect, then patches drawn from noise"
    path = folder / f"step-{step:06d}.jpg"
    write_bytes_atomic(path, encode_image(sample_sheet(rows, heading), "jpg"))
    return path


def patches_per_class(config: Generator, num_classes: int) -> int:
    """How many patches a sheet shows of each class: 1 to MOST_PATCHES, the more the longer the training."""
    from defectgen.diffusion.train import NUM_SAMPLES

    # A window trained on is a pass forward and one back, of twice the work; a patch is two passes per step (guidance).
    passes = COST_SHARE * 3 * config.steps * config.batch / NUM_SAMPLES
    return min(max(round(passes / (2 * NUM_STEPS * num_classes)), 1), MOST_PATCHES)
