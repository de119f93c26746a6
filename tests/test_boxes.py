from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectgen.boxes import (
    area,
    clip_xyxy,
    iou_xyxy,
    mask_outlines,
    mask_xyxy,
    polygon_mask,
    polygon_xyxy,
    union,
    xyxy_from_yolo,
    yolo_from_xyxy,
)
from defectgen.records import XYXY

SIDES = st.integers(2, 5000)


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[tuple[int, int], XYXY]:
    width, height = draw(SIDES), draw(SIDES)
    x1, x2 = sorted(draw(st.lists(st.floats(0, width), min_size=2, max_size=2)))
    y1, y2 = sorted(draw(st.lists(st.floats(0, height), min_size=2, max_size=2)))
    return (width, height), (x1, y1, x2, y2)


def test_yolo_row_becomes_pixels_of_either_side() -> None:
    assert xyxy_from_yolo((0.5, 0.25, 0.2, 0.5), (100, 40)) == pytest.approx((40, 0, 60, 20))
    assert yolo_from_xyxy((40, 0, 60, 20), (100, 40)) == pytest.approx((0.5, 0.25, 0.2, 0.5))


@given(boxes_in_images())
def test_box_survives_a_yolo_row_of_six_decimals(case: tuple[tuple[int, int], XYXY]) -> None:
    size_wh, xyxy = case
    row = [round(value, 6) for value in yolo_from_xyxy(xyxy, size_wh)]
    assert np.abs(np.subtract(xyxy_from_yolo(row, size_wh), xyxy)).max() < 0.5


def test_box_is_clipped_at_image_edge() -> None:
    assert clip_xyxy((-3, 5, 12, 30), (10, 20)) == (0, 5, 10, 20)
    assert area(clip_xyxy((11, 5, 15, 8), (10, 20))) == 0


def test_union_holds_both_boxes() -> None:
    assert union((2, 3, 5, 9), (4, 1, 8, 6)) == (2, 1, 8, 9)


def test_area_of_a_turned_over_box_is_zero() -> None:
    assert area((1, 2, 4, 6)) == 12
    assert area((4, 6, 1, 2)) == 0


def test_iou_of_two_boxes_by_hand() -> None:
    # 1 x 2 shared of 4 + 6 - 2
    assert iou_xyxy((0, 0, 2, 2), (1, 0, 4, 2)) == pytest.approx(2 / 8)
    assert iou_xyxy((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert iou_xyxy((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_iou_shape_follows_its_arguments() -> None:
    many = np.array([[0, 0, 2, 2], [1, 0, 4, 2], [9, 9, 10, 10]])
    np.testing.assert_allclose(iou_xyxy(many, many[:2]), [[1, 0.25], [0.25, 1], [0, 0]])
    np.testing.assert_allclose(iou_xyxy(many, (0, 0, 2, 2)), [1, 0.25, 0])
    np.testing.assert_allclose(iou_xyxy((0, 0, 2, 2), many), [1, 0.25, 0])
    assert iou_xyxy([], many).shape == (0, 3)
    assert iou_xyxy((0, 0, 2, 2), []).shape == (0,)


@given(boxes_in_images(), boxes_in_images())
def test_iou_is_symmetric_and_within_0_and_1(a: tuple[tuple[int, int], XYXY], b: tuple[tuple[int, int], XYXY]) -> None:
    assert 0 <= iou_xyxy(a[1], b[1]) == iou_xyxy(b[1], a[1]) <= 1 + 1e-9


def test_polygon_box_is_around_its_corners() -> None:
    assert polygon_xyxy(((3, 9), (7.5, 2), (5, 4))) == (3, 2, 7.5, 9)


def test_mask_box_has_its_edges_at_pixel_borders() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    assert mask_xyxy(mask) is None
    mask[1, 3] = True
    assert mask_xyxy(mask) == (3, 1, 4, 2)
    mask[4, 7] = True
    assert mask_xyxy(mask) == (3, 1, 8, 5)


def test_triangle_covers_the_pixels_whose_centre_is_inside() -> None:
    mask = polygon_mask(((0, 0), (4, 0), (0, 4)), (5, 5))
    expected = ["1110.", "110..", "10...", "0....", "....."]
    # Centres on the slanted edge itself, marked 0, belong to the outside.
    np.testing.assert_array_equal(mask, [[sign == "1" for sign in row] for row in expected])


def test_polygon_is_cut_at_image_edge_and_a_hole_stays_open() -> None:
    mask = polygon_mask(((-5, -5), (3, -5), (3, 2), (-5, 2)), (6, 4))
    assert mask.shape == (4, 6)
    assert mask_xyxy(mask) == (0, 0, 3, 2) and mask.sum() == 6
    ring = ((0, 0), (5, 0), (5, 5), (0, 5), (0, 0), (1, 1), (1, 4), (4, 4), (4, 1), (1, 1))
    assert polygon_mask(ring, (5, 5)).sum() == 25 - 9


@given(st.data())
def test_rectangle_round_trips_through_its_mask(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    mask = polygon_mask(((x1, y1), (x2, y1), (x2, y2), (x1, y2)), (width, height))
    assert mask_xyxy(mask) == (x1, y1, x2, y2)
    assert mask.sum() == area((x1, y1, x2, y2))


@given(st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_box_of_a_convex_polygons_mask_is_within_a_pixel_of_its_corners(num_corners: int, seed: int) -> None:
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, num_corners)) + np.linspace(0, 1e-3, num_corners)
    circle = tuple((32 + 25 * float(np.cos(angle)), 32 + 25 * float(np.sin(angle))) for angle in angles)
    mask = polygon_mask(circle, (64, 64))
    corners = np.array(circle)
    next_corners = np.roll(corners, -1, axis=0)
    shoelace = abs(np.sum(corners[:, 0] * next_corners[:, 1] - corners[:, 1] * next_corners[:, 0])) / 2
    perimeter = np.linalg.norm(corners - next_corners, axis=1).sum()
    # Pixels in doubt lie within half a diagonal of the outline.
    assert abs(mask.sum() - shoelace) <= perimeter * np.sqrt(2) + 4


def test_outlines_with_their_holes_give_the_mask_back() -> None:
    mask = np.zeros((30, 40), bool)
    mask[4:20, 5:30] = True
    mask[8:12, 10:20] = False
    mask[15, 25] = False
    mask[24:28, 33:38] = True
    filled = np.zeros_like(mask)
    for outline in mask_outlines(mask, holes=True):
        filled ^= polygon_mask(outline, (40, 30))
    assert (filled == mask).all()
    assert len(mask_outlines(mask)) == 2
