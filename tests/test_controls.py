"""The control arms' images: right places, right labels, nothing of a generator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from stand_ins import block_sources, changed, inside, make_studio

from defectgen.boxes import iou_xyxy, mask_xyxy, polygon_xyxy
from defectgen.compose import clean_indexes, compose
from defectgen.controls import compose_augmented, compose_copy_paste, compose_procedural
from defectgen.dataset.write import write_composite
from defectgen.errors import RunError
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


def test_small_copy_is_labelled_with_the_margin_of_a_large_one(toys: Any, tmp_path: Path) -> None:
    sources = block_sources(tmp_path)
    recipe = toys.recipe()
    studio = make_studio(recipe, sources)
    (model,) = studio.models
    # A block of 16 x 8 px with 4 px to each side of its box.
    twinned = replace(studio, models=[replace(model, twin=np.full_like(model.twin, 128))])
    window = Window(30, 20, model.crop.window.side // 2)
    row = copy_paste_row(0, window, (0.0, 0.0, 9.0, 9.0), "part.png")
    (placed,) = compose_copy_paste(recipe, sources, twinned, row).placed
    x1, y1, x2, y2 = placed.label_xyxy
    assert (x2 - x1, y2 - y1) == pytest.approx((8 + 2 * 4, 4 + 2 * 4), abs=1.5)
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((30 + window.side / 2, 20 + window.side / 2), abs=1.5)


def test_outline_of_a_copy_is_the_annotators_where_its_change_falls_into_pieces(toys: Any, tmp_path: Path) -> None:
    sources = block_sources(tmp_path)
    (real,) = sources.train
    pixels = read_rgb(real.path)
    # Its middle looks like the product.
    pixels[48:56, 44:54] = 128
    real.path.write_bytes(encode_image(pixels, "png"))
    outline = ((40.0, 48.0), (56.0, 48.0), (56.0, 56.0), (40.0, 56.0))
    marked = replace(real, annotations=(Annotation(0, polygon_xyxy(outline), outline),))
    sources = replace(sources, train=(marked,), train_pool=(marked,))
    recipe = toys.recipe()
    studio = make_studio(recipe, sources)
    own = studio.models[0].crop.window
    window = Window(own.x + 20, own.y + 10, own.side)
    row = copy_paste_row(0, window, (60.0, 58.0, 76.0, 66.0), "part.png")
    composite = compose_copy_paste(recipe, sources, studio, row)
    row = dict(write_composite(tmp_path, composite, image_format="png", task="segment", class_names=("block",)))
    (written,) = row["placed"]
    assert polygon_xyxy(written["polygon"]) == pytest.approx((60, 58, 76, 66), abs=1)
    assert written["label_xyxy"] == pytest.approx((60, 58, 76, 66), abs=1)
    assert (composite.mask[59:65, 61:75] == 1).all()


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
        assert iou_xyxy(one.label_xyxy, tuple(asked["asked_xyxy"])) > 0.3
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
    placed = [{"class_id": 0, "asked_xyxy": box, "placement": {"model": 0, "window": [0, 0, 96]}} for box in boxes]
    row = {"index": 0, "source": "board.png", "placed": placed}
    recipe = toys.recipe(labels={"margin": "tight"})
    studio: Any = SimpleNamespace(
        models=[SimpleNamespace(crop=SimpleNamespace(outlined=False, window=Window(0, 0, 40)))],
        margins=[0.0],
        least_contrasts=[0.0],
    )
    drawn = compose_procedural(recipe, sources, studio, row)
    assert set(np.unique(drawn.image)) == {0, 255}
    for box in boxes:
        assert inside(box, changed(drawn)).any()


def test_drawn_line_fills_the_box_asked_for_and_the_slack_is_in_its_label(
    recipe: Recipe, demo_sources: Sources
) -> None:
    studio = make_studio(recipe, demo_sources, margin=6.0)
    line = replace(studio.models[0], crop=replace(studio.models[0].crop, outlined=True))
    studio = replace(studio, models=[line])
    heights = []
    for index in range(12):
        placement = {"model": 0, "window": [20, 16, 80]}
        placed = {"class_id": 0, "asked_xyxy": (20, 50, 100, 62), "placement": placement}
        row = {"index": index, "source": demo_sources.train_clean[0].name, "placed": [placed]}
        (drawn,) = compose_procedural(recipe, demo_sources, studio, row).placed
        x1, _, x2, _ = drawn.label_xyxy
        assert x2 - x1 > 70
        ys = [y for outline in drawn.polygons for _, y in outline]
        heights.append(max(ys) - min(ys))
    assert np.mean(heights) > 7


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_drawn_defects_are_as_large_as_generated_ones_at_any_scale(
    recipe: Recipe, demo_sources: Sources, scale: float
) -> None:
    # A box of 40 px around 20 px that are seen: annotators leave 10 px, whatever the size.
    margin = 10.0
    studio = make_studio(recipe, demo_sources, margin=margin)
    model = replace(studio.models[0], crop=replace(studio.models[0].crop, outlined=False))
    studio = replace(studio, models=[model])
    side = round(model.crop.window.side * scale)
    corner = round(60 + 20 * scale - side / 2)
    widths = []
    for index in range(24):
        asked = (60, 60, 60 + 40 * scale, 60 + 40 * scale)
        placed = {"class_id": 0, "asked_xyxy": asked, "placement": {"model": 0, "window": [corner, corner, side]}}
        row = {"index": index, "source": demo_sources.train_clean[0].name, "placed": [placed]}
        (drawn,) = compose_procedural(recipe, demo_sources, studio, row).placed
        widths.append(drawn.label_xyxy[2] - drawn.label_xyxy[0])
    assert np.median(widths) == pytest.approx(20 * scale + 2 * margin, abs=4)


@pytest.mark.parametrize("compose_again", [compose_copy_paste, compose_procedural])
def test_what_is_fainter_than_real_defects_is_left_out_of_the_control_arms(
    toys: Any, tmp_path: Path, compose_again: Any
) -> None:
    sources = block_sources(tmp_path)
    studio = make_studio(toys.recipe(), sources)
    crop = studio.models[0].crop
    window = Window(crop.window.x + 20, crop.window.y + 10, crop.window.side)
    row = copy_paste_row(0, window, (56.0, 54.0, 80.0, 70.0), "part.png")
    shown = compose_again(toys.recipe(), sources, studio, row)
    assert len(shown.placed) == 1 and not shown.rejected and shown.mask.any()
    faint = replace(studio, least_contrasts=[300.0])
    left_out = compose_again(toys.recipe(screen={"min_contrast": 1.0}), sources, faint, row)
    assert not left_out.placed and not left_out.mask.any()
    assert [one.reason for one in left_out.rejected] == ["fainter than real ones"]
    assert (left_out.image == read_rgb(left_out.source.path)).all()


def spot(folder: Path, *, colour: tuple[int, int, int] = (90, 110, 130), at: int = 20) -> Sources:
    """One part with a white spot of 8 x 6 px, tightly marked."""
    image = np.empty((64, 96, 3), np.uint8)
    image[...] = colour
    image[30:36, at : at + 8] = 255
    path = folder / f"spot{at}.png"
    path.write_bytes(encode_image(image, "png"))
    real = LabelledImage(path, path.name, (96, 64), "part", (Annotation(0, (at, 30, at + 8, 36)),))
    return Sources(("spot",), (real,), (real,), (real,), (), ())


def test_augmented_boxes_are_right_to_half_a_pixel(toys: Any, tmp_path: Path) -> None:
    sources, recipe = spot(tmp_path), toys.recipe(place={"quarter_turns": True})
    offsets, seen = [], set()
    for index in range(60):
        made = compose_augmented(recipe, sources, index)
        for mark in made.kept:
            grey = made.image.astype(float).mean(axis=2)
            x1, y1, x2, y2 = mark.xyxy
            if min(x1, y1) < 3 or x2 > grey.shape[1] - 3 or y2 > grey.shape[0] - 3:
                continue
            around = np.s_[int(y1) - 3 : int(y2) + 4, int(x1) - 3 : int(x2) + 4]
            weight = np.clip(grey[around] - np.median(grey[around]) - 20, 0, None)
            ys, xs = np.mgrid[around]
            middle = ((xs + 0.5) * weight).sum() / weight.sum(), ((ys + 0.5) * weight).sum() / weight.sum()
            offsets.append((middle[0] - (x1 + x2) / 2, middle[1] - (y1 + y2) / 2))
            seen.add(made.image.shape[:2])
    assert len(offsets) > 30 and seen == {(64, 96), (96, 64)}
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.25
    assert np.abs(offsets).mean() < 0.5


def test_augmented_boxes_of_round_defects_are_no_larger_for_being_turned(toys: Any, tmp_path: Path) -> None:
    image = np.full((160, 160, 3), 100, np.uint8)
    cv2.circle(image, (80 * 16 - 8, 80 * 16 - 8), 24 * 16, (250, 250, 250), -1, cv2.LINE_AA, 4)
    path = tmp_path / "disc.png"
    path.write_bytes(encode_image(image, "png"))
    real = LabelledImage(path, path.name, (160, 160), "part", (Annotation(0, (56, 56, 104, 104)),))
    sources = Sources(("disc",), (real,), (real,), (real,), (), ())
    found = []
    for index in range(40):
        made = compose_augmented(toys.recipe(), sources, index)
        x1, y1, x2, y2 = made.kept[0].xyxy
        if min(x1, y1) < 3 or x2 > 157 or y2 > 157:
            continue
        seen = cv2.GaussianBlur(made.image.mean(axis=2), (5, 5), 0)
        around = seen[int(y1) - 3 : int(y2) + 4, int(x1) - 3 : int(x2) + 4]
        visible = mask_xyxy(around > (around.max() + around.min()) / 2)
        assert visible is not None
        found.append(iou_xyxy((x1 - int(x1) + 3, y1 - int(y1) + 3, x2 - int(x1) + 3, y2 - int(y1) + 3), visible))
    assert len(found) > 20 and np.median(found) > 0.87 and min(found) > 0.6


def test_augmented_images_are_what_the_camera_gives(toys: Any, tmp_path: Path) -> None:
    recipe = toys.recipe()
    grey = spot(tmp_path, colour=(90, 90, 90), at=40)
    for index in range(12):
        image = compose_augmented(recipe, grey, index).image
        assert (image == image[..., :1]).all()
    for index in range(12):
        made = compose_augmented(recipe, spot(tmp_path, colour=(0, 0, 0)), index)
        assert made.image.shape == (*made.mask.shape, 3)
        assert set(np.unique(made.image)) <= {0, 255}
    coloured = [compose_augmented(recipe, spot(tmp_path, at=60), index).image for index in range(4)]
    assert all(len(np.unique(image)) > 10 for image in coloured)


def test_defect_that_an_augmented_image_cuts_is_marked_as_far_as_it_shows(toys: Any, tmp_path: Path) -> None:
    sources, recipe = spot(tmp_path, at=86), toys.recipe()
    cut = 0
    for index in range(40):
        made = compose_augmented(recipe, sources, index)
        (mark,) = made.kept
        height, width = made.image.shape[:2]
        assert 0 <= mark.xyxy[0] < mark.xyxy[2] <= width and 0 <= mark.xyxy[1] < mark.xyxy[3] <= height
        cut += mark.xyxy[2] == width or mark.xyxy[0] == 0
    assert cut > 3


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
        # A black and a white half, on grey product.
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
        # A black and a white half, on grey product, in another light.
        assert np.ptp(inside((x1, y1, x2, y2), grey)) > 120


def turns_and_sides(toys: Any, tmp_path: Path, **train_yolo: float) -> tuple[set[tuple[bool, bool]], np.ndarray]:
    """How augmented images of a marked quarter are mirrored, and the sides (N, 2) of its box over its own."""
    image = np.full((200, 200, 3), 128, np.uint8)
    image[80:100, 80:100], image[80:100, 100:120], image[100:120, 80:100] = 255, 170, 80
    path = tmp_path / "quarters.png"
    path.write_bytes(encode_image(image, "png"))
    quarters = ((80.0, 80.0), (120.0, 80.0), (120.0, 120.0), (80.0, 120.0))
    real = LabelledImage(path, path.name, (200, 200), "part", (Annotation(0, (80, 80, 120, 120), quarters),))
    sources = Sources(("quarters",), (real,), (real,), (real,), (), ())
    mirrored, sides = set(), []
    for index in range(60):
        made = compose_augmented(toys.recipe(train_yolo=train_yolo), sources, index)
        corners = np.array(made.kept[0].polygon)
        grey, middle = made.image.mean(axis=2), corners.mean(axis=0)
        if len(corners) != 4 or not (corners > 2).all() or not (corners < 198).all():
            continue
        corner = [grey[tuple(np.round((corner + middle) / 2).astype(int)[::-1])] for corner in corners]
        brightest = (corners[int(np.argmax(corner))] > middle).tolist()
        mirrored.add((brightest[0], brightest[1]))
        sides.append([np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[3] - corners[0])])
    return mirrored, np.array(sides) / 40


def test_augmented_images_are_mirrored_along_each_axis_by_itself_and_keep_their_aspect(
    toys: Any, tmp_path: Path
) -> None:
    mirrored, sides = turns_and_sides(toys, tmp_path)
    assert len(mirrored) == 4
    assert sides.max() > 1.2 and sides.min() < 0.85
    # What is left is shear: of a square, sides of equal length make a rhombus.
    assert np.abs(np.log(sides[:, 0] / sides[:, 1])).max() < 0.12


def test_what_a_camera_that_never_moves_gives_is_hardly_scaled(toys: Any, tmp_path: Path) -> None:
    mirrored, sides = turns_and_sides(toys, tmp_path, scale_jitter=0.1)
    assert len(mirrored) == 4
    assert 1.03 < sides.max() < 1.12 and 0.9 < sides.min() < 0.97


def test_image_whose_defects_cannot_be_kept_in_view_says_so(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectgen.controls.LEFT_OF_DEFECT", 2.0)
    with pytest.raises(RunError, match=r"spot20\.png: no augmentation keeps a defect in view"):
        compose_augmented(toys.recipe(), spot(tmp_path), 0)


def test_sliver_at_the_edge_stays_in_every_image(toys: Any, tmp_path: Path) -> None:
    clean = np.full((128, 128, 3), 128, np.uint8)
    marked = clean.copy()
    marked[20:60, :1] = 255
    images = []
    for name, pixels in (("real.png", marked), ("clean.png", clean)):
        (tmp_path / name).write_bytes(encode_image(pixels, "png"))
        images.append(LabelledImage(tmp_path / name, name, (128, 128), name))
    real = replace(images[0], annotations=(Annotation(0, (0.0, 20.0, 1.0, 60.0)),))
    sources = Sources(("burr",), (real,), (real,), (images[1],), (), ())
    recipe = toys.recipe(inpaint={"backend": "diffusion"}, synth={"num_images": 60, "clean_share": 0})
    studio = make_studio(recipe, sources)
    for index in (0, 6, 8, 9):
        composite = compose(recipe, sources, studio, index)
        row = write_composite(tmp_path / "set", composite, image_format="png", task="detect", class_names=("burr",))
        for placed in compose_copy_paste(recipe, sources, studio, dict(row)).placed:
            x1, y1, x2, y2 = placed.label_xyxy
            assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 128
