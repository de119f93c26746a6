from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectgen.records import XYXY
from defectgen.windows import Window, crop_window, resize, window_at, window_inside, window_side


def window_of(xyxy: XYXY, size_wh: tuple[int, int]) -> Window:
    side = window_side(xyxy, size_wh, window_px=64, context_factor=2.0)
    return window_at(((xyxy[0] + xyxy[2]) / 2, (xyxy[1] + xyxy[3]) / 2), side, size_wh)


def holds(window: Window, xyxy: XYXY) -> bool:
    x1, y1, x2, y2 = window.xyxy
    return x1 <= xyxy[0] and y1 <= xyxy[1] and xyxy[2] <= x2 and xyxy[3] <= y2


def test_window_of_a_pit_is_drawn_enlarged_twofold_at_most() -> None:
    assert window_side((100, 100, 103, 103), (640, 480), window_px=64, context_factor=2.0) == 32


def test_window_of_a_defect_of_middling_size_follows_its_longest_side() -> None:
    assert window_side((100, 100, 160, 140), (640, 480), window_px=64, context_factor=2.0) == 120
    assert window_side((100, 100, 140, 160), (640, 480), window_px=64, context_factor=3.0) == 180


def test_window_is_no_larger_than_the_image_while_the_defect_fits_it() -> None:
    # 2 x 150 would be 300; an eighth around the defect needs but 168.75.
    assert window_side((50, 20, 200, 60), (320, 256), window_px=64, context_factor=2.0) == 256


def test_window_of_a_crack_as_long_as_the_image_reaches_past_it() -> None:
    crack = (0, 100, 256, 130)
    window = window_of(crack, (256, 256))
    assert window.side == 288  # 9/8 of 256
    assert window == Window(-16, -16, 288)
    taller = (40, 10, 90, 270)  # 260 px in an image 256 px wide
    assert window_of(taller, (256, 300)).side == pytest.approx(292.5, abs=4)


def test_scratch_longer_than_the_shorter_side_of_the_image_is_scaled_down_and_not_cut() -> None:
    scratch = (180, 215, 1080, 240)
    window = window_of(scratch, (1130, 460))
    assert window.side == pytest.approx(1012.5, abs=4)
    assert holds(window, scratch)
    assert window.y == -278 and 0 <= window.x <= 1130 - window.side
    x1, y1, x2, y2 = window.to_window(scratch, 64)
    assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64
    assert x2 - x1 == pytest.approx(900 * 64 / 1012, abs=0.3)


@given(st.data())
def test_window_holds_its_defect_wholly(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(32, 2000)), data.draw(st.integers(32, 2000))
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    xyxy = (x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))
    assert holds(window_of(xyxy, (width, height)), xyxy)


@given(st.floats(-50, 250), st.floats(-50, 250), st.integers(8, 120), st.integers(8, 200), st.integers(8, 200))
def test_window_that_fits_stays_inside_the_image(x: float, y: float, side: int, width: int, height: int) -> None:
    window = window_at((x, y), side, (width, height))
    assert window.side == side
    if side <= width:
        assert window.x >= 0 and window.x + side <= width
    else:
        assert window.x <= 0 and window.x + side >= width
    if side <= height:
        assert window.y >= 0 and window.y + side <= height


def test_window_lies_about_its_point_and_is_moved_inside_at_an_edge() -> None:
    assert window_at((50, 40), 20, (100, 100)) == Window(40, 30, 20)
    assert window_at((3, 98), 20, (100, 100)) == Window(0, 80, 20)


def test_box_becomes_window_pixels() -> None:
    window = Window(-10, 20, 40)
    assert window.xyxy == (-10, 20, 30, 60)
    # At 20 px for 40, half size.
    assert window.to_window((0, 30, 10, 40), 20) == (5, 5, 10, 10)
    assert window.to_window(window.xyxy, 64) == (0, 0, 64, 64)
    assert window.to_image((5, 5, 10, 10), 20) == (0, 30, 10, 40)


def test_pixels_past_an_edge_are_mirrored_about_the_edge_pixel() -> None:
    row = np.array([[1, 2, 3, 4]], np.uint8)
    assert crop_window(row, Window(-2, 0, 8))[0].tolist() == [3, 2, 1, 2, 3, 4, 3, 2]
    assert crop_window(np.array([[7]], np.uint8), Window(-1, -1, 3)).tolist() == [[7] * 3] * 3


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(-60, 60),
    st.integers(-60, 60),
    st.integers(1, 60),
    st.booleans(),
)
def test_crop_equals_the_endlessly_mirrored_image(
    width: int, height: int, x: int, y: int, side: int, in_colour: bool
) -> None:
    image = np.arange(height * width * 3, dtype=np.int32).reshape(height, width, 3)
    image = image if in_colour else image[..., 0]
    around = 130
    margins = ((around, around), (around, around), (0, 0))[: image.ndim]
    mirrored = np.pad(image, margins, mode="reflect")
    expected = mirrored[y + around : y + around + side, x + around : x + around + side]
    np.testing.assert_array_equal(crop_window(image, Window(x, y, side)), expected)


def test_crop_inside_is_the_image_itself() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(6, 8)
    np.testing.assert_array_equal(crop_window(image, Window(2, 1, 4)), image[1:5, 2:6])


def test_shrinking_averages_and_growing_keeps_a_flat_surface() -> None:
    image = np.array([[0, 100, 8, 8], [100, 0, 8, 8], [20, 20, 0, 0], [20, 20, 0, 200]], np.uint8)
    assert resize(image, 2).tolist() == [[50, 8], [20, 50]]
    flat = np.full((5, 5, 3), 77, np.uint8)
    grown = resize(flat, 16)
    assert grown.shape == (16, 16, 3) and (grown == 77).all()


def test_inside_is_true_where_the_window_lies_on_the_image() -> None:
    inside = window_inside(Window(-1, 2, 4), (2, 4))
    expected = [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(inside, np.array(expected, bool))
    assert window_inside(Window(3, 3, 5), (8, 8)).all()
    assert not window_inside(Window(9, 0, 5), (8, 8)).any()
