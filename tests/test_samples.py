from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.diffusion.train import NUM_SAMPLES
from defectgen.images import read_rgb
from defectgen.recipe import Generator
from defectgen.samples import COST_SHARE, NUM_STEPS, patches_per_class, write_sample_sheet

CONFIG = Generator(window_px=32, channels=[16, 32], fold=4, steps=600, batch=4)


class Stub:
    """Draws of each class one grey, and notes what it was asked for."""

    class config:
        class_names = ("dark", "bright", "unseen")

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], list[int]]] = []

    def __call__(self, class_ids: list[int], *, seeds: list[int], num_steps: int) -> Any:
        assert num_steps == NUM_STEPS
        self.asked.append((class_ids, seeds))
        images = np.stack([np.full((32, 32, 3), 40 + 80 * class_id, np.uint8) for class_id in class_ids])
        return type("Output", (), {"images": images})


def test_a_sheet_shows_of_each_class_a_real_defect_then_patches(tmp_path: Path, toys: Any) -> None:
    crops = toys.crops(2)
    pipeline: Any = Stub()
    path = write_sample_sheet(tmp_path / "samples", pipeline, 400, crops=crops, config=CONFIG, seed=0)
    assert path == tmp_path / "samples/step-000400.jpg" and [p.name for p in path.parent.iterdir()] == [path.name]
    sheet = read_rgb(path).astype(int)
    ((class_ids, seeds),) = pipeline.asked
    num = patches_per_class(CONFIG, 3)
    assert class_ids == [0] * num + [1] * num + [2] * num and len(set(seeds)) == 3 * num
    for class_id in range(3):
        top = 26 + class_id * 148 + 20
        for column in range(num):
            patch = sheet[top : top + 128, (column + 1) * 134 : (column + 1) * 134 + 128]
            assert abs(patch - (40 + 80 * class_id)).max() < 10
    # The block in the middle of the real defect: the darker the lower its class; of the third there is none.
    middle = [sheet[26 + class_id * 148 + 20 + 64, 64].mean() for class_id in range(3)]
    assert middle[0] < 40 and middle[1] > 200 and abs(middle[2] - 128) < 4


def test_patches_start_from_the_same_noise_at_every_step_and_other_noise_with_another_seed(
    tmp_path: Path, toys: Any
) -> None:
    pipeline: Any = Stub()
    for step, seed in ((100, 0), (200, 0), (200, 1)):
        write_sample_sheet(tmp_path, pipeline, step, crops=toys.crops(1), config=CONFIG, seed=seed)
    seeds = [asked for _, asked in pipeline.asked]
    assert seeds[0] == seeds[1] and not set(seeds[0]) & set(seeds[2])


@pytest.mark.parametrize(
    ("steps", "batch", "num_classes"), [(1000, 16, 4), (2600, 16, 6), (600, 32, 2), (5000, 16, 30)]
)
def test_all_sheets_together_cost_a_small_share_of_the_fit(steps: int, batch: int, num_classes: int) -> None:
    config = Generator(steps=steps, batch=batch)
    # Passes forward: two a sampling step, three a window trained on.
    sheets = NUM_SAMPLES * patches_per_class(config, num_classes) * num_classes * NUM_STEPS * 2
    assert sheets / (3 * steps * batch) < 1.3 * COST_SHARE
    assert 1 <= patches_per_class(config, num_classes) <= 6
