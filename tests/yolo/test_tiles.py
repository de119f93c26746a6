import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectgen.boxes import area, clip_polygon
from defectgen.records import Annotation
from defectgen.yolo.tiles import Tile, cut_crop, cut_tiles, label_text, tile_starts


def test_tiles_cover_and_last_is_shifted_inward():
    assert tile_starts(640, 320) == [0, 320]
    assert tile_starts(700, 320) == [0, 320, 380]
    assert tile_starts(300, 320) == [0]
    assert tile_starts(300, None) == [0]


@given(st.integers(1, 2000), st.integers(1, 500))
def test_every_pixel_is_in_a_tile(length, side):
    starts = tile_starts(length, side)
    covered = {pixel for start in starts for pixel in range(start, min(start + side, length))}
    assert covered == set(range(length))


def test_oriented_box_is_the_smallest_around_the_outline():
    # A square standing on its corner, with a dent in one side: the square is around it.
    outline = ((50, 30), (70, 50), (50, 70), (45, 50), (30, 50))
    tile = Tile((0, 0, 100, 100), (Annotation(0, (30, 30, 70, 70), outline),))
    class_id, *values = (float(value) for value in label_text(tile, "obb").split())
    corners = sorted(zip(values[::2], values[1::2], strict=True))
    assert class_id == 0
    for corner, expected in zip(corners, [(0.3, 0.5), (0.5, 0.3), (0.5, 0.7), (0.7, 0.5)], strict=True):
        assert corner == pytest.approx(expected, abs=1e-4)
    box = Tile((0, 0, 100, 100), (Annotation(0, (10, 20, 30, 60)),))
    assert len(label_text(box, "obb").split()) == 9


def test_oriented_box_at_the_edge_has_its_corners_inside():
    crack = ((0, 60), (320, 176), (320, 190), (0, 74))
    box = (0, 60, 320, 190)
    row = label_text(Tile((0, 0, 320, 320), (Annotation(0, box, crack),)), "obb")
    values = [float(value) for value in row.split()[1:]]
    # Ultralytics drops an image whose corners span more than 1.01; these two would be at -0.014 and 1.014.
    assert len(values) == 8 and min(values) < 0 and max(values) > 1 and max(values) - min(values) < 1.01
    assert sum(not 0 <= value <= 1 for value in values) == 2


def test_no_tile_side_gives_the_whole_image():
    annotation = Annotation(1, (10, 20, 30, 40))
    assert cut_tiles([annotation], (100, 50), None) == [Tile((0, 0, 100, 50), (annotation,))]


def test_box_cut_in_half_is_labelled_in_both_tiles():
    # 40 px wide, 20 in each tile.
    left, right = cut_tiles([Annotation(0, (300, 10, 340, 30))], (640, 320), 320)
    assert left.labels == (Annotation(0, (300, 10, 320, 30)),)
    assert right.labels == (Annotation(0, (0, 10, 20, 30)),)
    assert not left.ambiguous and not right.ambiguous


def test_smaller_rest_is_unlabelled_and_makes_its_tile_ambiguous():
    # 30 of 40 px left of the border: 75 and 25 percent.
    left, right = cut_tiles([Annotation(0, (290, 10, 330, 30))], (640, 320), 320)
    assert left.labels == (Annotation(0, (290, 10, 320, 30)),)
    assert not left.ambiguous
    assert right.labels == () and right.ambiguous


def test_sliver_does_not_make_a_tile_ambiguous():
    # 1 of 40 px: 2.5 percent.
    _, right = cut_tiles([Annotation(0, (281, 10, 321, 30))], (640, 320), 320)
    assert right.labels == () and not right.ambiguous


def test_defect_across_four_tiles_is_labelled_where_most_of_it_lies():
    # 22 x 22 of 40 x 40 is 30 percent, below the share, but the most there is.
    tiles = cut_tiles([Annotation(0, (298, 298, 338, 338))], (640, 640), 320)
    assert [len(tile.labels) for tile in tiles] == [1, 0, 0, 0]
    assert tiles[0].labels[0].xyxy == (298, 298, 320, 320)
    assert [tile.ambiguous for tile in tiles] == [False, True, True, True]


@given(st.floats(0, 600), st.floats(0, 600), st.floats(1, 300), st.floats(1, 300))
def test_every_defect_is_labelled_inside_its_tile(x, y, width, height):
    box = (x, y, min(x + width, 640), min(y + height, 640))
    tiles = cut_tiles([Annotation(0, box)], (640, 640), 256)
    labels = [(tile, label) for tile in tiles for label in tile.labels]
    assert labels
    for tile, label in labels:
        assert 0 <= label.xyxy[0] < label.xyxy[2] <= tile.size_wh[0]
        assert 0 <= label.xyxy[1] < label.xyxy[3] <= tile.size_wh[1]
        assert area(label.xyxy) <= area(box) * (1 + 1e-9)


def test_crack_through_many_tiles_is_labelled_in_each():
    crack = Annotation(0, (0, 500, 1000, 512))
    shown = [tile for tile in cut_tiles([crack], (1000, 1000), 320) if tile.labels]
    assert len(shown) == 4 and not any(tile.ambiguous for tile in shown)
    assert {tile.labels[0].xyxy[2] - tile.labels[0].xyxy[0] for tile in shown} == {320}
    # A crack from corner to corner: its outline says in which tiles it is, its box does not.
    outline = ((0, 0), (20, 0), (960, 940), (960, 960), (940, 960), (0, 20))
    tiles = cut_tiles([Annotation(0, (0, 0, 960, 960), outline)], (960, 960), 320)
    assert [len(tile.labels) for tile in tiles] == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert sum(len(tile.labels) for tile in cut_tiles([Annotation(0, (0, 0, 960, 960))], (960, 960), 320)) == 1


def test_polygon_is_clipped_at_the_tile():
    # A diamond around (320, 50): its right half in the second tile.
    diamond = ((300.0, 50.0), (320.0, 30.0), (340.0, 50.0), (320.0, 70.0))
    _, right = cut_tiles([Annotation(0, (300, 30, 340, 70), diamond)], (640, 320), 320)
    assert set(right.labels[0].polygon) == {(0.0, 30.0), (20.0, 50.0), (0.0, 70.0)}


def test_polygon_outside_vanishes():
    assert clip_polygon(((0, 0), (5, 0), (5, 5)), (10, 10, 20, 20)) == ()


def test_label_rows_are_fractions_of_the_tile():
    tile = Tile((320, 0, 640, 160), (Annotation(3, (80, 40, 160, 120)),))
    assert label_text(tile, "detect") == "3 0.375000 0.500000 0.250000 0.500000\n"
    assert label_text(Tile((0, 0, 8, 8)), "detect") == ""


def test_polygon_rows_for_a_segmentation_model():
    tile = Tile((0, 0, 100, 50), (Annotation(1, (10, 10, 50, 25), ((10, 10), (50, 10), (50, 25))),))
    assert label_text(tile, "segment") == "1 0.100000 0.200000 0.500000 0.200000 0.500000 0.500000\n"
    assert label_text(tile, "detect").split() == ["1", *(f"{v:.6f}" for v in (0.3, 0.35, 0.4, 0.3))]


@pytest.mark.parametrize("side", [None, 64])
def test_image_smaller_than_a_tile_stays_whole(side):
    assert cut_tiles([], (64, 48), side) == [Tile((0, 0, 64, 48))]


def test_crop_of_a_narrow_image_is_padded_to_a_square():
    image = np.arange(5 * 20 * 3, dtype=np.uint8).reshape(5, 20, 3)
    crop = cut_crop(image, (4, 0, 16, 5))
    assert crop.shape == (12, 12, 3)
    assert (crop[3:8] == image[:, 4:16]).all() and (crop[:3] == 114).all() and (crop[8:] == 114).all()
    assert (cut_crop(image, (2, 1, 5, 4)) == image[1:4, 2:5]).all()
