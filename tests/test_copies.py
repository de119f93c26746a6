"""Real defects copied into other places: the start of drawing and the control arm of the evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import Blobs, changed, inside, make_studio

from defectgen.boxes import iou_xyxy
from defectgen.compose import clean_indexes, compose
from defectgen.copies import compose_copy_paste, copied_in
from defectgen.diffusion.pipelines import DefectOutput
from defectgen.images import encode_image, read_rgb
from defectgen.inpaint.placement import Turn, annotated_box
from defectgen.records import Annotation, LabelledImage, Sources
from defectgen.windows import Window


def copy_paste_row(model: int, window: Window, asked: tuple[float, ...], source: str, **turn: Any) -> dict[str, Any]:
    placement = {"angle_deg": 0.0, "flip_x": False, "flip_y": False, "warp": 0.0, "warp_seed": 0, "difference": 0.0}
    placement |= {"model": model, "window": [window.x, window.y, window.side]} | turn
    return {"index": 5, "source": source, "placed": [{"class_id": 0, "asked_xyxy": asked, "placement": placement}]}


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


@pytest.mark.parametrize("flip_x", [False, True])
def test_copy_paste_puts_the_real_pixels_into_the_same_box(toys: Any, tmp_path: Path, flip_x: bool) -> None:
    sources = block_sources(tmp_path)
    recipe = toys.recipe()
    studio = make_studio(recipe, sources)
    crop = studio.models[0].crop
    # The model's window, moved by 20 px right and 10 px down.
    window = Window(crop.window.x + 20, crop.window.y + 10, crop.window.side)
    asked = (56.0, 54.0, 80.0, 70.0)
    composite = compose_copy_paste(recipe, sources, studio, copy_paste_row(0, window, asked, "part.png", flip_x=flip_x))
    (placed,) = composite.placed
    assert placed.label_xyxy == placed.changed_xyxy == placed.asked_xyxy == asked
    assert placed.placement["backend"] == "poisson"
    assert composite.index == 5 and composite.source == sources.train_clean[0] and composite.rejected == ()
    dark, bright = composite.image[59:65, 61:67].mean(), composite.image[59:65, 69:75].mean()
    dark, bright = (bright, dark) if flip_x else (dark, bright)
    # Flat surroundings on both sides: Poisson blending gives the real grey levels back.
    assert dark < 20 and bright > 235
    around, outside = np.ones((2, 96, 96), bool)
    inside(asked, around)[...] = False
    inside((52, 50, 84, 74), outside)[...] = False
    # The Poisson solver rounds near its border, by a grey level.
    assert np.abs(composite.image[around].astype(int) - 128).max() <= 1
    assert (composite.image[outside] == 128).all() and not composite.mask[outside].any()
    assert (composite.mask[58:66, 60:76] == 1).all()


def test_copy_paste_repeats_the_places_of_a_made_set(toys: Any, demo_sources: Sources) -> None:
    from defectgen.dataset.write import write_composite

    recipe = toys.recipe(
        inpaint={"backend": "diffusion", "start": "place"}, synth={"num_images": 12, "clean_share": 0.25}
    )
    studio = make_studio(recipe, demo_sources)

    index = next(index for index in range(12) if index not in clean_indexes(recipe))
    composite = compose(recipe, demo_sources, studio, index)
    names = demo_sources.class_names
    folder = Path(composite.source.path).parents[3] / "rows"
    row = write_composite(folder, composite, image_format="png", task="detect", class_names=names)
    copied = compose_copy_paste(recipe, demo_sources, studio, dict(row))
    assert copied.source == composite.source and len(copied.placed) == len(composite.placed)
    for one, other in zip(copied.placed, composite.placed, strict=True):
        assert one.class_id == other.class_id
        # Of the unbent real defect, so not quite what the composite asked for.
        assert iou_xyxy(one.label_xyxy, other.asked_xyxy) > 0.6
        assert inside(one.label_xyxy, changed(copied)).any()


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
        copy = copied_in(toys.recipe(), sources, one, 0, Turn(), window, clean + np.uint8(40))
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
    copy = copied_in(toys.recipe(), sources, studio, 0, Turn(warp=0.05), window, image)
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
        copy = copied_in(recipe, demo_sources, studio, placement["model"], turn, window, clean)
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
    copy = copied_in(toys.recipe(), sources, studio, 0, turn, window, clean)
    ys, xs = np.nonzero(np.abs(copy.astype(int) - 128).max(axis=2) > 40)
    x1, y1, x2, y2 = annotated_box(studio.models[0], turn, window, (96, 96))
    # The block of 16 x 8 px lies in the middle of its box of 24 x 16.
    seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    margin = 4 * 1.2
    assert seen == pytest.approx((x1 + margin, y1 + margin, x2 - margin, y2 - margin), abs=3.5)
