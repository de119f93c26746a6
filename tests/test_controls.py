"""The control arms' images: right places, right labels, nothing of a generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import block_sources, changed, inside, make_studio

from defectgen.boxes import iou_xyxy
from defectgen.compose import clean_indexes, compose
from defectgen.controls import compose_augmented, compose_copy_paste, compose_procedural
from defectgen.dataset.write import write_composite
from defectgen.images import encode_image, read_rgb
from defectgen.recipe import Recipe
from defectgen.records import Annotation, LabelledImage, Sources
from defectgen.windows import Window


def copy_paste_row(model: int, window: Window, asked: tuple[float, ...], source: str, **turn: Any) -> dict[str, Any]:
    placement = {"angle_deg": 0.0, "flip_x": False, "flip_y": False, "warp": 0.0, "warp_seed": 0, "difference": 0.0}
    placement |= {"model": model, "window": [window.x, window.y, window.side]} | turn
    return {"index": 5, "source": source, "placed": [{"class_id": 0, "asked_xyxy": asked, "placement": placement}]}


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


def made_row(recipe: Recipe, sources: Sources, studio: Any, folder: Path) -> dict[str, Any]:
    """The manifest row of an image with defects."""
    index = next(index for index in range(12) if index not in clean_indexes(recipe))
    composite = compose(recipe, sources, studio, index)
    return dict(write_composite(folder, composite, image_format="png", task="detect", class_names=sources.class_names))


@pytest.fixture
def recipe(toys: Any) -> Recipe:
    made: Recipe = toys.recipe(
        inpaint={"backend": "diffusion", "start": "place"},
        place={"per_image": (3, 3)},
        synth={"num_images": 12, "clean_share": 0.25},
    )
    return made


def test_drawn_defects_show_in_their_labels_and_nowhere_else(
    recipe: Recipe, demo_sources: Sources, tmp_path: Path
) -> None:
    studio = make_studio(recipe, demo_sources)
    row = made_row(recipe, demo_sources, studio, tmp_path)
    drawn = compose_procedural(recipe, demo_sources, studio, row)
    again = compose_procedural(recipe, demo_sources, studio, row)
    assert (drawn.image == again.image).all() and drawn.placed == again.placed
    assert [one.class_id for one in drawn.placed] == [one["class_id"] for one in row["placed"]]
    visible = np.abs(drawn.image.astype(int) - read_rgb(drawn.source.path)).max(axis=2) >= recipe.labels.min_change
    everywhere = np.zeros_like(visible)
    for one, asked in zip(drawn.placed, row["placed"], strict=True):
        assert inside(one.label_xyxy, visible).any()
        assert iou_xyxy(one.label_xyxy, tuple(asked["asked_xyxy"])) > 0.15
        inside(one.label_xyxy, everywhere)[...] = True
    assert not (visible & ~everywhere).any()
    assert {one.placement["backend"] for one in drawn.placed} == {"procedural"}


def test_drawn_defects_keep_a_binarised_image_binary(toys: Any, tmp_path: Path) -> None:
    board = np.zeros((96, 96, 3), np.uint8)
    board[:, 48:] = 255
    path = tmp_path / "board.png"
    path.write_bytes(encode_image(board, "png"))
    image = LabelledImage(path, path.name, (96, 96), "board")
    sources = Sources(("open",), (image,), (image,), (image,), (), ())
    boxes = [(10, 10, 30, 30), (40, 40, 60, 60), (66, 70, 90, 84)]
    placed = [{"class_id": 0, "asked_xyxy": box, "placement": {}} for box in boxes]
    row = {"index": 0, "source": "board.png", "placed": placed}
    recipe = toys.recipe(labels={"margin": "tight"})
    drawn = compose_procedural(recipe, sources, None, row)  # type: ignore[arg-type]
    assert set(np.unique(drawn.image)) == {0, 255}
    for box in boxes:
        assert inside(box, changed(drawn)).any()


def test_augmented_images_show_the_marked_defect_in_its_moved_box(toys: Any, tmp_path: Path) -> None:
    sources = block_sources(tmp_path)
    recipe = toys.recipe()
    images = [compose_augmented(recipe, sources, index) for index in range(12)]
    assert all(made.placed == () and made.image.shape == (96, 96, 3) for made in images)
    boxes = set()
    for made in images:
        (mark,) = made.kept
        grey = made.image.astype(int).mean(axis=2)
        x1, y1, x2, y2 = (round(value) for value in mark.xyxy)
        # A black and a white half, on grey product: the contrast lies in the box, and only there.
        assert np.ptp(inside((x1, y1, x2, y2), grey)) > 120
        boxes.add(mark.xyxy)
        outline = mark.polygon
        assert outline is None
    assert len(boxes) == 12
    again = compose_augmented(recipe, sources, 3)
    assert (again.image == images[3].image).all() and again.kept == images[3].kept


def test_augmented_outline_moves_with_its_image(toys: Any, tmp_path: Path) -> None:
    sources = block_sources(tmp_path)
    (real,) = sources.train
    block = ((40.0, 48.0), (56.0, 48.0), (56.0, 56.0), (40.0, 56.0))
    outlined = LabelledImage(real.path, real.name, real.size_wh, real.group, (Annotation(0, (40, 48, 56, 56), block),))
    sources = Sources(sources.class_names, (outlined,), (outlined,), sources.train_clean, (), ())
    for index in range(8):
        made = compose_augmented(toys.recipe(), sources, index)
        (mark,) = made.kept
        assert mark.polygon is not None and len(mark.polygon) == 4
        grey = made.image.astype(int).mean(axis=2)
        x1, y1, x2, y2 = mark.xyxy
        dark_and_bright = inside((x1, y1, x2, y2), grey)
        assert dark_and_bright.min() < 75 and dark_and_bright.max() > 165
