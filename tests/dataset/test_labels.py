from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectgen.boxes import mask_outlines, mask_xyxy, polygon_mask, polygon_xyxy
from defectgen.crops import Crop, centre, crop_side, with_surroundings
from defectgen.dataset.labels import (
    Measured,
    annotators_margin,
    contrast,
    cut_off,
    even_margin,
    label_box,
    least_contrasts,
    measure,
    own_margin,
    visible_change,
    window_view,
)
from defectgen.records import XYXY
from defectgen.windows import Window, crop_window, resize

CLEAN = np.full((80, 100, 3), 100, np.uint8)


def changed(*boxes: tuple[int, int, int, int], by: int = 60) -> np.ndarray:
    """The clean image with every box (x1, y1, x2, y2) brighter."""
    image = CLEAN.copy()
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] += by
    return image


def measured(image: np.ndarray, window: Window | None = None, *, min_change: int = 14) -> Measured | None:
    return measure(image, CLEAN, window or Window(0, 0, 64), min_change=min_change, window_px=64, weak_change=None)


def box_of(image: np.ndarray, window: Window | None = None) -> XYXY:
    found = measured(image, window)
    assert found is not None
    return found.xyxy


def test_box_is_tight_around_what_changed() -> None:
    found = measured(changed((20, 30, 41, 39)))
    assert found is not None
    assert found.xyxy == (20, 30, 41, 39)
    assert found.mask.shape == CLEAN.shape[:2] and found.mask.sum() == 21 * 9
    assert [polygon_xyxy(polygon) for polygon in found.polygons] == [(20, 30, 41, 39)]


def test_round_change_is_measured_to_within_a_pixel() -> None:
    image = CLEAN.copy()
    cv2.circle(image, (40, 35), 12, (150, 150, 150), -1)
    assert box_of(image) == pytest.approx((28, 23, 53, 48), abs=1)


def test_change_in_one_channel_counts_from_the_threshold_on() -> None:
    image = CLEAN.copy()
    image[20:30, 20:30, 2] -= 14
    image[40:50, 20:30, 2] -= 13
    assert box_of(image) == (20, 20, 30, 30)


def test_nothing_changed_visibly_is_none() -> None:
    assert measured(CLEAN.copy()) is None
    assert measured(changed((20, 20, 40, 40), by=13)) is None
    assert measured(changed((20, 20, 21, 22))) is None  # two pixels are a speck


def test_change_outside_the_window_is_not_measured() -> None:
    image = changed((5, 5, 15, 15), (60, 50, 70, 60))
    assert box_of(image, Window(40, 30, 40)) == (60, 50, 70, 60)
    assert box_of(image, Window(-20, -20, 40)) == (5, 5, 15, 15)
    assert measured(image, Window(20, 20, 20)) is None


def test_window_larger_than_the_image_measures_all_of_it() -> None:
    assert box_of(changed((0, 70, 100, 80)), Window(-10, -20, 120)) == (0, 70, 100, 80)


def test_scratch_of_a_single_pixel_is_measured() -> None:
    found = measured(changed((10, 30, 50, 31)))
    assert found is not None and found.xyxy == (10, 30, 50, 31)
    assert len(found.polygons) == 1 and polygon_xyxy(found.polygons[0]) == (10, 30, 50, 31)
    slanted = CLEAN.copy()
    for i in range(40):
        slanted[10 + i, 12 + i] = 200
    assert box_of(slanted) == (12, 10, 52, 50)


def test_hair_line_along_an_edge_beside_a_defect_is_dropped() -> None:
    blob = (20, 20, 40, 40)
    # Apart from the blob, and growing out of it.
    assert box_of(changed(blob, (5, 50, 60, 51))) == blob
    assert box_of(changed(blob, (40, 30, 64, 32))) == pytest.approx(blob, abs=1)


def test_width_of_a_hair_line_is_measured_in_the_generators_pixels() -> None:
    # 4 px of the image are one pixel of the generator in a window of 64 px drawn at 16.
    blob, line = (10, 10, 40, 40), (40, 20, 60, 24)
    image = changed(blob, line)
    coarse = visible_change(image, CLEAN, min_change=14, grain_px=4.0)
    fine = visible_change(image, CLEAN, min_change=14, grain_px=1.0)
    assert mask_xyxy(coarse) == pytest.approx(blob, abs=1)
    assert mask_xyxy(fine) == (10, 10, 60, 40)


def test_sliver_of_a_broad_defect_at_the_edge_of_the_image_is_no_hair_line() -> None:
    # The last two rows of a disc that goes on beyond the image: 7 and 11 pixels wide.
    height = CLEAN.shape[0]
    image = changed((20, height - 2, 27, height - 1), (18, height - 1, 29, height))
    assert box_of(image, Window(0, height - 64, 64)) == (18, height - 2, 29, height)


def test_specks_beside_a_defect_are_dropped_and_large_pieces_kept() -> None:
    blob, speck, piece = (20, 20, 40, 40), (50, 5, 54, 9), (45, 45, 55, 55)
    # 16 of 400 pixels are no part of it, 100 are.
    assert box_of(changed(blob, speck)) == blob
    found = measured(changed(blob, speck, piece))
    assert found is not None and found.xyxy == (20, 20, 55, 55)
    assert [polygon_xyxy(polygon) for polygon in found.polygons] == [blob, piece]


def test_outline_runs_along_pixel_borders() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    (polygon,) = mask_outlines(mask)
    assert set(polygon) == {(2, 1), (7, 1), (7, 3), (2, 3)} and len(polygon) == 4
    pixel = np.zeros((6, 8), bool)
    pixel[5, 7] = True
    assert set(mask_outlines(pixel)[0]) == {(7, 5), (8, 5), (8, 6), (7, 6)}
    assert mask_outlines(np.zeros((6, 8), bool)) == ()
    assert set(mask_outlines(np.ones((6, 8), bool))[0]) == {(0, 0), (8, 0), (8, 6), (0, 6)}


@given(st.integers(0, 100_000), st.floats(1.0, 4.0), st.floats(-0.3, 1.5))
def test_outlines_raster_back_to_the_mask_to_within_a_pixel(seed: int, smoothness: float, level: float) -> None:
    noise = np.random.default_rng(seed).standard_normal((40, 50)).astype(np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), smoothness)
    square = np.ones((3, 3), np.uint8)
    mask = cv2.morphologyEx((field > level * field.std()).astype(np.uint8), cv2.MORPH_OPEN, square).astype(bool)
    raster = np.zeros_like(mask)
    polygons = mask_outlines(mask)
    for polygon in polygons:
        assert len(polygon) >= 3
        assert min(min(point) for point in polygon) >= 0
        raster |= polygon_mask(polygon, (50, 40))
    # Outer outlines close the holes.
    holes = mask.copy().astype(np.uint8)
    contours, _ = cv2.findContours(holes, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(holes, contours, -1, 1, cv2.FILLED)
    assert not (cv2.erode(filled, square, borderValue=0).astype(bool) & ~raster).any()
    assert not (raster & ~cv2.dilate(filled, square).astype(bool)).any()
    if mask.any():
        boxes = np.array([polygon_xyxy(polygon) for polygon in polygons])
        assert (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)) == mask_xyxy(mask)
        areas = [polygon_mask(polygon, (50, 40)).sum() for polygon in polygons]
        # Pieces of a few pixels may swap places in the raster.
        assert areas[0] + 3 >= 0.9 * max(areas)


def test_thin_end_counts_where_the_defect_is_expected() -> None:
    clean = np.full((40, 60, 3), 120, np.uint8)
    image = clean.copy()
    image[14:26, 10:22] = 20
    image[20, 22:40] = 20  # its thin end
    image[5, 5:50] = 20  # an edge of the product, drawn a pixel beside its place
    expected = np.zeros((40, 60), bool)
    expected[12:28, 8:42] = True
    window = Window(0, 0, 60)

    def box(expected: np.ndarray | None) -> XYXY:
        found = measure(image, clean, window, min_change=14, window_px=60, weak_change=None, expected=expected)
        assert found is not None
        return found.xyxy

    assert box(None) == (10, 14, 23, 26)
    assert box(expected) == (10, 14, 40, 26)
    shifted = Window(-6, -4, 60)
    moved = np.zeros((60, 60), bool)
    moved[16:32, 14:48] = True
    found = measure(image, clean, shifted, min_change=14, window_px=60, weak_change=None, expected=moved)
    assert found is not None and found.xyxy == (10, 14, 40, 26)


def test_cut_off_is_the_changed_share_of_the_regions_border() -> None:
    clean = np.full((32, 32, 3), 100, np.uint8)
    region = np.zeros((32, 32), bool)
    region[8:18, 8:18] = True  # a border of 36 pixels
    inner, whole, half = clean.copy(), clean.copy(), clean.copy()
    inner[10:16, 10:16] = 180
    whole[...] = 180
    half[:, 8:13] = 180  # two rows of 5 and a column of 10, less 2 corners
    assert cut_off(inner, clean, region, min_change=14) == 0
    assert cut_off(whole, clean, region, min_change=14) == 1
    assert cut_off(half, clean, region, min_change=14) == pytest.approx(18 / 36)
    assert cut_off(clean, clean, region, min_change=14) == 0


def test_edge_of_the_window_does_not_cut_off() -> None:
    clean = np.full((32, 32, 3), 100, np.uint8)
    drawn = clean.copy()
    drawn[:10, 10:20] = 180
    region = np.zeros((32, 32), bool)
    region[:14, 6:24] = True
    assert cut_off(drawn, clean, region, min_change=14) == 0
    assert cut_off(np.full_like(clean, 180), clean, np.ones((32, 32), bool), min_change=14) == 0


def marked(class_id: int, visible_px: int, margin_px: int, *, side: int = 64, outlined: bool = False) -> Crop:
    """A defect whose visible square has `visible_px`, annotated `margin_px` further out, both in image pixels."""
    scale = 64 / side
    image = np.full((crop_side(64),) * 2 + (3,), 100, np.uint8)
    middle, half = crop_side(64) // 2, round(visible_px * scale / 2)
    image[middle - half : middle + half, middle - half : middle + half] = 200
    reach = visible_px / 2 + margin_px
    xyxy = (300 + side / 2 - reach, 200 + side / 2 - reach, 300 + side / 2 + reach, 200 + side / 2 + reach)
    return Crop(image, image[..., 0], class_id, "part.png", 0, Window(300, 200, side), xyxy, outlined)


def margins(crops: list[Crop], num_classes: int, *, photographed: bool = False) -> list[float]:
    twins = np.full((len(crops), 64, 64, 3), 100, np.uint8)
    return annotators_margin(
        crops, twins, photographed=[photographed] * len(crops), num_classes=num_classes, min_change=14
    )


def test_annotators_margin_of_a_fifth_of_the_side_is_recovered() -> None:
    # 20 % of 20 px; at the second scale 20 % of 60 px.
    assert margins([marked(0, 20, 4)] * 6, 1) == pytest.approx([4], abs=1)
    assert margins([marked(0, 60, 12, side=128)] * 6, 1) == pytest.approx([12], abs=2)


def test_annotators_margin_is_of_the_class_or_of_all_where_the_class_is_small() -> None:
    crops = [marked(0, 20, 3)] * 9 + [marked(1, 20, 8)] * 6 + [marked(2, 20, 12)]
    of_0, of_1, of_2, of_3 = margins(crops, 4)
    assert (of_0, of_1) == pytest.approx((3, 8), abs=1)
    assert of_2 == of_3 == pytest.approx(8, abs=1)  # the upper quantile of all 16


def test_annotators_margin_is_the_median_where_twins_are_photographed() -> None:
    crops = [marked(0, 20, 2)] * 2 + [marked(0, 20, 4)] * 2 + [marked(0, 20, 10)] * 2
    assert margins(crops, 1) == pytest.approx([10], abs=1)
    assert margins(crops, 1, photographed=True) == pytest.approx([4], abs=1)
    # Too few to go by.
    assert margins(crops[2:], 1, photographed=True) == pytest.approx([10], abs=1)


def test_annotators_margin_of_lines_is_the_median_slack_in_their_boxes() -> None:
    lines = [replace(marked(0, 20, 4, outlined=True), line_slack_px=slack) for slack in ((3, 30), (2, 4, 3), (-1,))]
    assert margins([*lines, *[marked(1, 20, 8)] * 6], 2) == pytest.approx([3, 8], abs=1)
    assert margins([replace(lines[0], line_slack_px=(-2, -1))], 1) == [0]


def bars(class_id: int, *changes: int) -> tuple[list[Crop], np.ndarray]:
    crops = [marked(class_id, 20, 4) for _ in changes]
    twins = [centre(crop.image, 64).copy() for crop in crops]
    for twin, crop, change in zip(twins, crops, changes, strict=True):
        twin[centre(crop.mask, 64) == 200] -= np.uint8(change)
    return crops, np.stack(twins)


def test_least_contrast_is_that_of_the_fainter_real_defects_of_the_class() -> None:
    crops_0, twins_0 = bars(0, *range(20, 31))
    crops_1, twins_1 = bars(1, 100)
    crops, twins = [*crops_0, *crops_1], np.concatenate([twins_0, twins_1])
    of_0, of_1 = least_contrasts(crops, twins, num_classes=2, min_change=14)
    assert of_0 == pytest.approx(21)  # the first decile of 20 to 30
    assert of_1 == pytest.approx(21.1, abs=0.1)  # too few of its own: of all twelve
    assert least_contrasts([], np.zeros((0, 64, 64, 3), np.uint8), num_classes=1, min_change=14) == [0]


def test_contrast_is_that_of_the_visible_change_alone() -> None:
    clean = np.full((40, 40, 3), 100, np.uint8)
    drawn = clean + np.uint8(5)
    drawn[10:20, 10:20, 1] = 160
    assert contrast(drawn, clean, min_change=14) == pytest.approx(60)
    assert contrast(clean, clean, min_change=14) == 0


def test_faint_end_of_a_visible_defect_belongs_to_it_and_a_faint_spot_elsewhere_does_not() -> None:
    clean = np.full((64, 64, 3), 60, np.uint8)
    drawn = clean.copy()
    drawn[20:30, 10:30] = 20  # a dark pit
    drawn[20:30, 30:44] = 51  # that runs on over dark product
    drawn[50:58, 50:58] = 51
    measured = measure(drawn, clean, Window(0, 0, 64), min_change=14, window_px=64, weak_change=7)
    assert measured is not None and measured.xyxy == (10, 20, 44, 30)
    faint = np.where(drawn == 20, np.uint8(60), drawn)
    assert measure(faint, clean, Window(0, 0, 64), min_change=14, window_px=64, weak_change=7) is None


def test_outlined_and_unseen_defects_leave_no_margin() -> None:
    assert margins([marked(0, 20, 4, outlined=True)] * 6, 1) == [0]
    assert margins([marked(0, 0, 8)] * 6, 1) == [0]
    assert margins([marked(0, 30, -4)] * 6, 1) == [0]  # annotated tighter than it looks
    assert margins([], 2) == [0, 0]


def test_label_box_has_the_margin_on_each_side_and_ends_at_the_image() -> None:
    assert label_box((40, 30, 60, 50), (1, 2, 3, 4), (100, 80)) == (39, 28, 63, 54)
    assert label_box((40, 30, 60, 50), (0, 0, 0, 0), (100, 80)) == (40, 30, 60, 50)
    assert label_box((2, 70, 22, 78), (5, 5, 5, 5), (100, 80)) == (0, 65, 27, 80)


def test_label_box_of_a_scratch_is_not_all_margin() -> None:
    assert even_margin((10, 30, 50, 32), 9) == (9, 2, 9, 2)


def test_own_margin_is_what_the_box_leaves_around_what_is_visible() -> None:
    crop = marked(0, 20, 6)
    x1, y1, x2, y2 = crop.xyxy
    crop = replace(crop, xyxy=(x1 - 3, y1, x2 + 1, y2 - 9))  # tighter below than it looks
    twin = np.full((64, 64, 3), 100, np.uint8)
    assert own_margin(crop, twin, min_change=14) == pytest.approx((9, 6, 7, 0), abs=0.5)
    assert own_margin(crop, twin, min_change=14, at_least=6.5) == pytest.approx((9, 6.5, 7, 6.5), abs=0.5)
    assert own_margin(marked(0, 60, 12, side=128), twin, min_change=14) == pytest.approx((12, 12, 12, 12), abs=1)
    assert own_margin(replace(crop, image=np.full_like(crop.image, 100)), twin, min_change=14) is None


def test_mirror_image_of_a_defect_beyond_the_edge_is_no_part_of_it() -> None:
    # 5 px within its box, near the left edge of an image of 100 px: the window shows it twice.
    photo = np.full((600, 100, 3), 100, np.uint8)
    photo[245:355, 10:20] = 200
    window = Window(-20, 232, 136)
    around = with_surroundings(window, 64)
    image = resize(crop_window(photo, around), crop_side(64))
    crop = Crop(image, image[..., 0], 0, "part.png", 0, window, (5, 240, 25, 360), size_wh=(100, 600))
    twin = np.full((64, 64, 3), 100, np.uint8)
    assert own_margin(crop, twin, min_change=14) == pytest.approx((5, 5, 5, 5), abs=2.2)
    assert own_margin(replace(crop, size_wh=None), twin, min_change=14)[0] == 0  # type: ignore[index]


def test_window_view_is_the_window_at_the_generators_size() -> None:
    image = changed((20, 20, 40, 40))
    view = window_view(image, Window(0, 0, 80), 40)
    assert view.shape == (40, 40, 3)
    assert (view[10:20, 10:20] == 160).all() and view.sum() == 3 * (100 * 1600 + 60 * 100)
