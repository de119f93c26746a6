"""Real defects copied into other places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import Blobs, block_sources, changed, make_studio

from defectgen.boxes import iou_xyxy
from defectgen.compose import compose
from defectgen.copies import copied_in
from defectgen.diffusion.pipelines import DefectOutput
from defectgen.images import read_rgb
from defectgen.inpaint.placement import Turn, annotated_box
from defectgen.records import Sources
from defectgen.windows import Window


def test_of_a_marked_box_only_the_visible_defect_is_copied(toys: Any, tmp_path: Path) -> None:
    sources = block_sources(tmp_path)
    studio = make_studio(toys.recipe(), sources)
    model = studio.models[0]
    clean = read_rgb(sources.train_clean[0].path)
    # The box is 24 x 16 px; a clean twin shows that the defect fills 16 x 8 of it.
    twinned = replace(studio, models=[replace(model, twin=np.full_like(model.twin, 128))])
    window = Window(model.crop.window.x, model.crop.window.y, model.crop.window.side)
    reach = []
    for one in (studio, twinned):
        copy, _ = copied_in(toys.recipe(), sources, one, 0, Turn(), window, clean + np.uint8(40))
        ys, xs = np.nonzero(np.any(copy != 168, axis=2))
        reach.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        assert copy[52, 44].max() < 90 and copy[52, 52].min() > 230
    assert reach[0][0] <= reach[1][0] <= 40 and 56 <= reach[1][2] <= reach[0][2]
    assert reach[1][2] - reach[1][0] < reach[0][2] - reach[0][0]


def test_copy_changes_nothing_outside_its_window_and_not_the_image_given(toys: Any, tmp_path: Path) -> None:
    sources = block_sources(tmp_path)
    studio = make_studio(toys.recipe(), sources)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    before = image.copy()
    window = Window(-4, 30, studio.models[0].crop.window.side)
    copy, _ = copied_in(toys.recipe(), sources, studio, 0, Turn(warp=0.05), window, image)
    assert (image == before).all() and (copy != before).any()
    outside = np.ones((96, 96), bool)
    outside[max(window.y, 0) : window.y + window.side, : window.x + window.side] = False
    assert (copy[outside] == before[outside]).all()


class Echo(Blobs):
    """Draws what it starts from."""

    def __call__(self, windows: np.ndarray, regions: np.ndarray, class_ids: Any, **options: Any) -> DefectOutput:
        patches = options["patches"]
        return DefectOutput(np.where(regions[..., None], patches[..., :3], windows), regions.astype(np.float32))


def test_what_was_drawn_over_a_copy_keeps_the_copys_own_resolution(toys: Any, demo_sources: Sources) -> None:
    recipe = toys.recipe(
        inpaint={"backend": "diffusion", "start": "copy", "strength": 0.5, "feather_px": 0},
        place={"per_image": (1, 1)},
        synth={"num_images": 6, "clean_share": 0},
    )
    studio = replace(make_studio(recipe, demo_sources), pipeline=Echo())
    for index in range(6):
        made = compose(recipe, demo_sources, studio, index)
        (placed,) = made.placed
        placement = placed.placement
        turn, window = Turn.of_json(placement), Window(*placement["window"])
        clean = read_rgb(made.source.path)
        copy, _ = copied_in(recipe, demo_sources, studio, placement["model"], turn, window, clean)
        # Drawing changed nothing, so the composite is the copy, pixel by pixel; but along the border of its region.
        differs = changed(made)
        assert differs.any() and (made.image[differs] == copy[differs]).all(axis=1).mean() > 0.8
        assert iou_xyxy(placed.label_xyxy, placed.asked_xyxy) > 0.3


@pytest.mark.parametrize("turn", [Turn(flip_y=True), Turn(angle_deg=90), Turn(True, False, 270), Turn(warp=0.05)])
def test_copy_lies_in_the_box_that_was_asked_for(toys: Any, tmp_path: Path, turn: Turn) -> None:
    sources = block_sources(tmp_path)
    studio = make_studio(toys.recipe(), sources)
    window = Window(20, 24, round(1.2 * studio.models[0].crop.window.side))
    clean = read_rgb(sources.train_clean[0].path)
    copy, _ = copied_in(toys.recipe(), sources, studio, 0, turn, window, clean)
    ys, xs = np.nonzero(np.abs(copy.astype(int) - 128).max(axis=2) > 40)
    x1, y1, x2, y2 = annotated_box(studio.models[0], turn, window, (96, 96))
    # The block of 16 x 8 px lies in the middle of its box of 24 x 16.
    seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    margin = 4 * 1.2
    assert seen == pytest.approx((x1 + margin, y1 + margin, x2 - margin, y2 - margin), abs=3.5)
