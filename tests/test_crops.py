from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectgen.boxes import mask_xyxy, polygon_mask, polygon_xyxy
from defectgen.crops import (
    annotation_mask,
    centre,
    clean_crops,
    crop_side,
    defect_crops,
    own_mask,
    region_of,
)
from defectgen.images import encode_image
from defectgen.records import XYXY, Annotation, LabelledImage, Polygon
from defectgen.windows import Window, crop_window, resize

SIZE_WH = (200, 150)
BOXES: list[XYXY] = [(80, 60, 101, 75), (0, 40, 12, 52), (188, 138, 200, 150), (30, 3, 33, 6), (10, 70, 190, 90)]


def image_of(
    folder: Path, *annotations: Annotation, name: str = "part.png", size_wh: tuple[int, int] = SIZE_WH
) -> LabelledImage:
    """A dark image with every annotated defect in white."""
    pixels = np.full((size_wh[1], size_wh[0], 3), 20, np.uint8)
    for annotation in annotations:
        pixels[annotation_mask(annotation, size_wh) > 0] = 250
    path = folder / name
    path.write_bytes(encode_image(pixels, "png"))
    return LabelledImage(path, name, size_wh, name, annotations)


def line(start: tuple[float, float], end: tuple[float, float], width: float) -> Annotation:
    along = np.subtract(end, start) / np.hypot(*np.subtract(end, start))
    across = np.array([-along[1], along[0]]) * width / 2
    corners = [np.add(start, across), np.add(end, across), np.subtract(end, across), np.subtract(start, across)]
    polygon: Polygon = tuple((float(x), float(y)) for x, y in corners)
    return Annotation(0, polygon_xyxy(polygon), polygon)


@pytest.mark.parametrize("xyxy", BOXES)
def test_window_of_a_crop_shows_the_defect_where_it_is_annotated(tmp_path: Path, xyxy: XYXY) -> None:
    item = image_of(tmp_path, Annotation(0, xyxy))
    (crop,) = defect_crops([item], window_px=64, context_factor=2.0, hold_out=0, seed=0)
    assert crop.image.shape == (crop_side(64),) * 2 + (3,) and crop.image.dtype == np.uint8
    asked = crop.window.to_window(xyxy, 64)
    within = 1 + 64 / crop.window.side  # a window pixel and an image pixel
    assert mask_xyxy(centre(crop.image, 64)[..., 0] > 135) == pytest.approx(asked, abs=within)
    assert mask_xyxy(centre(crop.mask, 64) >= 128) == pytest.approx(asked, abs=within)


def test_crop_tells_where_it_is_from(tmp_path: Path) -> None:
    polygon: Polygon = ((0, 20), (30, 20), (30, 150), (0, 150))
    annotations = (Annotation(1, (80, 60, 101, 75)), Annotation(0, polygon_xyxy(polygon), polygon))
    first, second = defect_crops(
        [image_of(tmp_path, *annotations, name="board_7.png")], window_px=32, context_factor=2.0, hold_out=0, seed=0
    )
    assert (first.class_id, first.source, first.annotation, first.outlined) == (1, "board_7.png", 0, False)
    assert (second.class_id, second.annotation, second.outlined) == (0, 1, True)
    assert second.xyxy == (0, 20, 30, 150)
    assert first.touches == (False, False, False, False)
    assert second.touches == (True, False, False, True)


def test_mask_of_a_box_is_its_pixels_and_never_empty() -> None:
    mask = annotation_mask(Annotation(0, (2, 3, 5, 4)), (8, 6))
    assert mask_xyxy(mask > 0) == (2, 3, 5, 4) and mask.max() == 255
    sliver = annotation_mask(Annotation(0, (2.1, 3.1, 2.3, 3.3)), (8, 6))
    assert mask_xyxy(sliver > 0) == (2, 3, 3, 4)


def test_mask_of_a_polygon_is_its_surface_to_within_a_pixel() -> None:
    polygon: Polygon = ((10, 10), (40, 14), (30, 45), (12, 30))
    mask = annotation_mask(Annotation(0, polygon_xyxy(polygon), polygon), (60, 50)) > 0
    exact = polygon_mask(polygon, (60, 50))
    assert not (exact & ~mask).any()
    grown = np.zeros_like(exact)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            grown |= np.roll(exact, (dy, dx), axis=(0, 1))
    assert not (mask & ~grown).any()


@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
def test_thin_crack_leaves_no_gap_in_its_mask(width: float) -> None:
    mask = annotation_mask(line((5, 10), (90, 47), width), (100, 60)) > 0
    assert mask.any(axis=0)[6:89].all()


@pytest.mark.parametrize("width", [1.0, 3.0])
def test_thin_crack_does_not_vanish_when_its_crop_is_scaled_down(tmp_path: Path, width: float) -> None:
    crack = line((40, 60), (840, 300), width)
    knot: Polygon = (*crack.polygon[:2], (500, 230), (480, 230), *crack.polygon[2:])  # type: ignore[index]
    item = image_of(tmp_path, Annotation(0, polygon_xyxy(knot), knot), size_wh=(900, 400))
    (crop,) = defect_crops([item], window_px=64, context_factor=2.0, hold_out=0, seed=0)
    x1, y1, x2, y2 = crop.window.to_window(crop.xyxy, 64)
    shown = own_mask(crop, 64) >= 128
    start = (crop.mask.shape[0] - 64) // 2
    assert mask_xyxy(shown) == pytest.approx((x1 + start, y1 + start, x2 + start, y2 + start), abs=2)
    columns = shown.any(axis=0)[round(x1) + start + 1 : round(x2) + start - 1]
    assert len(columns) > 40 and columns.all()


def test_own_mask_lacks_the_mirror_images_beyond_the_edges(tmp_path: Path) -> None:
    # The window reaches 16 px past the image, where the crack at its top edge is mirrored.
    item = image_of(tmp_path, Annotation(0, (0, 4, 256, 24)), size_wh=(256, 256))
    (crop,) = defect_crops([item], window_px=64, context_factor=2.0, hold_out=0, seed=0)
    assert crop.window == Window(-16, -16, 288)
    asked = crop.window.to_window((0, 4, 256, 24), 64)
    assert mask_xyxy(centre(own_mask(crop, 64), 64) >= 128) == pytest.approx(asked, abs=1)
    assert mask_xyxy(centre(crop.mask, 64) >= 128) != pytest.approx(asked, abs=1)


def test_held_out_share_leaves_each_class_four_defects_to_train_on(tmp_path: Path) -> None:
    def marked(class_id: int, count: int) -> list[Annotation]:
        return [Annotation(class_id, (10 * i, 20 * class_id, 10 * i + 5, 20 * class_id + 5)) for i in range(count)]

    items = [
        image_of(tmp_path, *marked(0, 12), *marked(1, 5), name="a.png"),
        image_of(tmp_path, *marked(0, 8), *marked(2, 3), name="b.png"),
    ]

    def held_out(seed: int) -> list[tuple[str, int, int | None]]:
        crops = defect_crops(items, window_px=32, context_factor=2.0, hold_out=0.3, seed=seed)
        assert len(crops) == 28
        return [(crop.source, crop.annotation, crop.class_id) for crop in crops if crop.is_held_out]

    by_class = [class_id for _, _, class_id in held_out(0)]
    # 0.3 x 20; of 5 one may go; of 3 none.
    assert [by_class.count(class_id) for class_id in range(3)] == [6, 1, 0]
    assert held_out(0) == held_out(0) != held_out(1)


@pytest.mark.parametrize("longest", [17, 31, 45, 63])
def test_middle_of_a_crop_is_its_window(tmp_path: Path, longest: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    image = cv2.resize(noise, (400, 400), interpolation=cv2.INTER_CUBIC)
    item = image_of(tmp_path, Annotation(0, (150, 160, 150 + longest, 170)), name="smooth.png")
    item.path.write_bytes(encode_image(image, "png"))
    item = replace(item, size_wh=(400, 400))
    (crop,) = defect_crops([item], window_px=32, context_factor=2.0, hold_out=0, seed=0)
    window = resize(crop_window(image, crop.window), 32)
    away = np.abs(centre(crop.image, 32).astype(int) - window)[3:-3, 3:-3]
    # Half a pixel off, they differ by 2 to 6.
    assert away.max() <= 1


def test_solid_mask_is_not_widened(tmp_path: Path) -> None:
    # Longest sides at which a pixel of the generator is 3 to 8 of the image.
    for longest in (96, 128, 180, 240):
        item = image_of(tmp_path, Annotation(0, (100, 100, 100 + longest, 100 + longest)), name="wide.png")
        item = replace(item, size_wh=(600, 600))
        item.path.write_bytes(encode_image(np.zeros((600, 600, 3), np.uint8), "png"))
        (crop,) = defect_crops([item], window_px=64, context_factor=2.0, hold_out=0, seed=0)
        found = mask_xyxy(centre(crop.mask, 64) >= 128)
        assert found is not None
        asked = crop.window.to_window(item.annotations[0].xyxy, 64)
        assert np.abs(np.subtract(found, asked)).max() <= 0.5


def test_defects_that_others_crops_show_are_not_held_out(tmp_path: Path) -> None:
    pairs = [Annotation(0, (20, 20, 60, 60)), Annotation(0, (64, 20, 70, 26))]
    items = [image_of(tmp_path, *pairs, name=f"{number}.png") for number in range(4)]
    items += [image_of(tmp_path, pairs[0], name=f"{number}.png") for number in range(4, 8)]
    for seed in range(4):
        crops = defect_crops(items, window_px=32, context_factor=2.0, hold_out=0.25, seed=seed)
        chosen = {crop.source for crop in crops if crop.is_held_out}
        assert len(chosen) == 3 and chosen < {"4.png", "5.png", "6.png", "7.png"}


def test_parts_of_which_there_are_many_shots_are_not_held_out(tmp_path: Path) -> None:
    mark = Annotation(0, (20, 20, 60, 60))
    items = [
        replace(image_of(tmp_path, mark, name=f"{number}.png"), group=f"part {number // 3}") for number in range(6)
    ]
    items += [replace(image_of(tmp_path, mark, name=f"{number}.png"), group=f"part {number}") for number in range(6, 9)]
    for seed in range(4):
        crops = defect_crops(items, window_px=32, context_factor=2.0, hold_out=0.25, seed=seed)
        chosen = {crop.source for crop in crops if crop.is_held_out}
        assert len(chosen) == 2 and chosen < {"6.png", "7.png", "8.png"}


def test_parts_are_held_out_whole_where_they_are_small(tmp_path: Path) -> None:
    mark = Annotation(0, (20, 20, 60, 60))
    groups = ["large"] * 12 + ["one"] * 2 + ["two"] * 2 + ["three"] * 2
    items = [replace(image_of(tmp_path, mark, name=f"{n}.png"), group=group) for n, group in enumerate(groups)]
    chosen = set()
    for seed in range(8):
        crops = defect_crops(items, window_px=32, context_factor=2.0, hold_out=0.12, seed=seed)
        (part,) = {groups[int(crop.source.removesuffix(".png"))] for crop in crops if crop.is_held_out}
        assert sum(crop.is_held_out for crop in crops) == 2
        chosen.add(part)
    assert chosen == {"one", "two", "three"}


def test_no_part_is_preferred_where_none_can_be_held_out_whole(tmp_path: Path) -> None:
    mark = Annotation(0, (20, 20, 60, 60))
    groups = ["rare"] * 4 + ["common"] * 16
    items = [replace(image_of(tmp_path, mark, name=f"{n}.png"), group=group) for n, group in enumerate(groups)]
    found = [
        groups[int(crop.source.removesuffix(".png"))]
        for seed in range(20)
        for crop in defect_crops(items, window_px=32, context_factor=2.0, hold_out=0.15, seed=seed)
        if crop.is_held_out
    ]
    # A fifth of 60.
    assert len(found) == 60 and 3 <= found.count("rare") <= 22


def test_clean_crops_show_no_marked_defect(tmp_path: Path) -> None:
    defect = Annotation(0, (70, 40, 110, 80))
    marked = image_of(tmp_path, defect, name="marked.png")
    spotless = image_of(tmp_path, name="spotless.png")
    defects = defect_crops([marked], window_px=32, context_factor=1.2, hold_out=0, seed=0)
    crops = clean_crops([marked, spotless], defects, window_px=32, num_crops=120, seed=0)
    sources = [crop.source for crop in crops]
    assert sources.count("spotless.png") == 60 and 10 < sources.count("marked.png") < 60
    for crop in crops:
        assert crop.image.max() < 40
        assert crop.class_id is None and not crop.mask.any()
        assert crop.window.side == defects[0].window.side
        x1, y1, x2, y2 = crop.window.xyxy
        assert x1 >= 0 and y1 >= 0 and x2 <= SIZE_WH[0] and y2 <= SIZE_WH[1]
    again = clean_crops([marked, spotless], defects, window_px=32, num_crops=120, seed=0)
    assert [crop.window for crop in again] == [crop.window for crop in crops]
    assert len({crop.window for crop in crops}) > 60


def test_image_that_is_all_defect_gives_no_clean_crop(tmp_path: Path) -> None:
    item = image_of(tmp_path, Annotation(0, (0, 0, *SIZE_WH)))
    defects = defect_crops([item], window_px=32, context_factor=2.0, hold_out=0, seed=0)
    assert clean_crops([item], defects, window_px=32, num_crops=10, seed=0) == []


def test_region_of_a_box_grows_by_a_tenth_on_each_side_between_2_and_6_px() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[30:60, 20:60] = 255  # 40 x 30: 4 px
    assert mask_xyxy(region_of(mask, outlined=False)) == (16, 26, 64, 64)
    assert region_of(mask, outlined=False).sum() == 48 * 38
    assert mask_xyxy(region_of(mask, outlined=False, grow=0.5)) == (18, 28, 62, 62)
    pit = np.zeros((100, 100), np.uint8)
    pit[50:53, 0:3] = 255  # 2 px, cut at the edge
    assert mask_xyxy(region_of(pit, outlined=False)) == (0, 48, 5, 55)
    large = np.zeros((100, 100), np.uint8)
    large[5:95, 10:90] = 255  # 6 px
    assert mask_xyxy(region_of(large, outlined=False)) == (4, 0, 96, 100)


def test_region_of_an_outline_follows_it_and_that_of_a_box_does_not() -> None:
    mask = np.zeros((64, 64), np.uint8)
    for i in range(10, 50):
        mask[i, i : i + 2] = 255
    outline, box = region_of(mask, outlined=True), region_of(mask, outlined=False)
    assert mask_xyxy(outline) == (8, 8, 53, 52) and mask_xyxy(box) == (6, 6, 55, 54)
    assert box.sum() == 49 * 48 and outline.sum() < 0.2 * box.sum()
    assert not outline[12, 45] and box[12, 45]


def test_region_of_a_thin_outline_grows_by_its_width_at_most() -> None:
    scratch, patch = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint8)
    scratch[20:80, 50:53] = 255
    patch[20:80, 30:60] = 255
    assert mask_xyxy(region_of(scratch, outlined=True)) == (46, 16, 57, 84)
    assert mask_xyxy(region_of(patch, outlined=True)) == (24, 14, 66, 86)


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.5, 1.0, 1.5]))
def test_region_covers_the_mask(seed: int, outlined: bool, grow: float) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((24, 24)) < rng.uniform(0.002, 0.3)).astype(np.uint8) * 255
    mask[rng.integers(24), rng.integers(24)] = 255
    region = region_of(mask, outlined=outlined, grow=grow)
    assert region.dtype == bool and not ((mask > 0) & ~region).any()


def test_region_of_a_faded_mask_lies_where_it_is_strongest() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[20, 20:23] = 90
    mask[5, 5] = 20
    assert mask_xyxy(region_of(mask, outlined=True)) == (18, 18, 25, 23)
