"""Square windows around defects: the frame in which the generator sees the product.

A window scales with its defect, so that a 3 px pit and a 260 px crack fill a like share of what the generator draws.
It may reach past the image, where the image is mirrored; nothing is ever pasted there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from defectgen.records import XYXY

# A defect smaller than the generator's own grain is drawn enlarged, at most this much.
MAX_ENLARGEMENT = 2.0


@dataclass(frozen=True)
class Window:
    """A square of `side` image pixels whose upper left corner is (`x`, `y`), which may lie outside the image."""

    x: int
    y: int
    side: int

    @property
    def xyxy(self) -> XYXY:
        return (self.x, self.y, self.x + self.side, self.y + self.side)

    def to_window(self, xyxy: XYXY, window_px: int) -> XYXY:
        """A box of the image in the pixels of this window drawn at `window_px`."""
        scale = window_px / self.side
        x1, y1, x2, y2 = xyxy
        return ((x1 - self.x) * scale, (y1 - self.y) * scale, (x2 - self.x) * scale, (y2 - self.y) * scale)

    def to_image(self, xyxy: XYXY, window_px: int) -> XYXY:
        """The inverse of `to_window`."""
        scale = self.side / window_px
        x1, y1, x2, y2 = xyxy
        return (self.x + x1 * scale, self.y + y1 * scale, self.x + x2 * scale, self.y + y2 * scale)


def window_side(xyxy: XYXY, size_wh: tuple[int, int], *, window_px: int, context_factor: float) -> int:
    """Side, in image pixels, of the window for a defect: a multiple of 4, so that a crop's surroundings, half as much
    again, begin at a whole pixel, and its centre is the window.

    It is `context_factor` times the defect's longest side, at least `window_px` / MAX_ENLARGEMENT, and no larger than
    the image's shorter side, unless the defect itself (and an eighth around it) needs more: a defect larger than the
    window is drawn scaled down, never cut.
    """
    longest = max(xyxy[2] - xyxy[0], xyxy[3] - xyxy[1])
    side = 4 * math.ceil(max(context_factor * longest, window_px / MAX_ENLARGEMENT) / 4)
    return max(8, min(side, min(size_wh) // 4 * 4), 4 * math.ceil(1.125 * longest / 4))


def window_at(center_xy: tuple[float, float], side: int, size_wh: tuple[int, int]) -> Window:
    """The window of `side` around a point, moved into the image as far as it fits."""

    def start(center: float, length: int) -> int:
        first = round(center - side / 2)
        return min(max(first, 0), length - side) if side <= length else (length - side) // 2

    return Window(start(center_xy[0], size_wh[0]), start(center_xy[1], size_wh[1]), side)


def crop_window(image: np.ndarray, window: Window) -> np.ndarray:
    """Pixels of the window, (side, side, ...) like `image`, mirrored past the image's edges."""
    return crop_mirrored(image, (window.x, window.y, window.x + window.side, window.y + window.side))


def crop_mirrored(image: np.ndarray, xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels of the box (left, top, right, bottom), mirrored past the image's edges."""
    x1, y1, x2, y2 = xyxy
    rows, columns = _mirrored(np.arange(y1, y2), image.shape[0]), _mirrored(np.arange(x1, x2), image.shape[1])
    return image[np.ix_(rows, columns)]


def _mirrored(index: np.ndarray, length: int) -> np.ndarray:
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    index = np.abs(index) % period
    return np.where(index < length, index, period - index)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """`image` (H, W[, C]) at (side, side), averaged when it shrinks, cubic when it grows."""
    interpolation = cv2.INTER_AREA if side < image.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (side, side), interpolation=interpolation)


def view_around(image: np.ndarray, window: Window, reach: int, window_px: int) -> tuple[np.ndarray, int, float]:
    """What lies up to `reach` image pixels around a window, to search it for the window's exact place.

    Returns:
        The pixels, like `image`, at most twice as fine as the generator sees the window; the window's side in them, and
        the image pixels that one of them spans: 1, or half of the generator's pixel where that is more.
    """
    pixels = crop_window(image, Window(window.x - reach, window.y - reach, window.side + 2 * reach))
    side_px = min(window.side, 2 * window_px)
    near = resize(pixels, round(len(pixels) * side_px / window.side))
    return near, side_px, len(pixels) / len(near)


def inside_at(window: Window, size_wh: tuple[int, int], side: int) -> np.ndarray:
    """bool (side, side), True where the window, seen at that size, lies on the image."""
    inside = window_inside(window, size_wh).astype(np.uint8)
    seen: np.ndarray = cv2.resize(inside, (side, side), interpolation=cv2.INTER_NEAREST_EXACT) > 0
    return seen


def window_inside(window: Window, size_wh: tuple[int, int]) -> np.ndarray:
    """bool (side, side), True where the window lies on the image."""
    xs = np.arange(window.x, window.x + window.side)
    ys = np.arange(window.y, window.y + window.side)
    return ((ys >= 0) & (ys < size_wh[1]))[:, None] & ((xs >= 0) & (xs < size_wh[0]))[None, :]
