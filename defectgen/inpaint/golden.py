"""Golden windows: a real defect's place as clean images show it.

Where parts lie in a fixture, or a layout repeats, some clean image shows what a defect stands in without the defect
(the golden sample of optical inspection). It is found by template matching, and taken only where the surroundings of
the defect are the same; a texture that never repeats has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from defectgen.crops import Crop, centre, region_of
from defectgen.images import read_rgb
from defectgen.records import LabelledImage
from defectgen.windows import Window, crop_window, resize, window_inside

# Side of the windows that are compared first, and how many windows around the defect's own place are searched.
SMALL_PX, REACH = 24, 10
# Surroundings are the same up to this mean squared difference (of 255 squared) and this share of their variance, both
# blurred by so many of the generator's pixels: edges move by a pixel from shot to shot. On DeepPCB, whose true clean
# images are known, nine in ten of these pass.
SAME, SAME_SHARE, BLUR_PX = 100.0, 0.02, 1.5
# A window that differs by less than this many grey levels in the region shows the defect, unmarked.
SEEN = 28.0


def golden_windows(
    crops: Sequence[Crop],
    clean: Sequence[LabelledImage],
    *,
    window_px: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[np.ndarray | None]:
    """Per crop, uint8 (window_px, window_px, 3): its window with its region as a clean image shows it.

    None where no clean image has its surroundings. Of several the one that differs least from the real window: a defect
    changes only a part of its region. Outside the region the window stays as it is.
    """
    windows = [centre(crop.image, window_px) for crop in crops]
    regions = [region_of(centre(crop.mask, window_px), outlined=crop.outlined) for crop in crops]
    found: list[np.ndarray | None] = [None] * len(crops)
    least = [np.inf] * len(crops)
    for done, item in enumerate(clean, start=1):
        image = read_rgb(item.path)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        for number, crop in enumerate(crops):
            for window in _alike(grey, windows[number], crop.window, least[number]):
                view = resize(crop_window(image, window), window_px)
                change = cv2.absdiff(view, windows[number])
                around = ~regions[number] & _inside(window, image, window_px)
                if not around.any():
                    continue
                blurred = cv2.GaussianBlur(view.astype(np.float32) - windows[number], (0, 0), BLUR_PX)
                squared = np.square(blurred).mean(axis=2)
                whole, limit = float(squared.mean()), SAME + SAME_SHARE * float(windows[number][around].var())
                if whole >= least[number] or squared[around].mean() > limit:
                    continue
                if cv2.blur(change, (3, 3)).max(axis=2)[regions[number]].max() < SEEN:
                    continue
                found[number], least[number] = _filled(windows[number], regions[number], view), whole
        progress(done, len(clean))
    return found


def _filled(real: np.ndarray, region: np.ndarray, golden: np.ndarray) -> np.ndarray:
    """`real` with `golden` in its region, as bright as what surrounds it: light differs from shot to shot."""
    ring = cv2.dilate(region.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~region
    offset = (real[ring].astype(np.float32) - golden[ring]).mean(axis=0) if ring.any() else np.float32(0)
    return np.where(region[..., None], np.clip(np.round(golden + offset), 0, 255).astype(np.uint8), real)


def _alike(grey: np.ndarray, real: np.ndarray, own: Window, limit: float) -> list[Window]:
    """The defect's own place and the most similar one nearby, to the generator's pixel, where they can beat `limit`."""
    template = cv2.cvtColor(real, cv2.COLOR_RGB2GRAY)
    side, reach = own.side, REACH * own.side
    small_template = resize(template, SMALL_PX)
    # Reading past the image would only find its mirror images.
    left, top = max(own.x - reach, min(own.x, 0)), max(own.y - reach, min(own.y, 0))
    right = min(own.x + side + reach, max(grey.shape[1], own.x + side))
    bottom = min(own.y + side + reach, max(grey.shape[0], own.y + side))
    longest = max(right - left, bottom - top)
    area = crop_window(grey, Window(left, top, longest))[: bottom - top, : right - left]
    scale = SMALL_PX / side
    small_wh = (max(round((right - left) * scale), SMALL_PX), max(round((bottom - top) * scale), SMALL_PX))
    small = cv2.resize(area, small_wh, interpolation=cv2.INTER_AREA)
    differences = cv2.matchTemplate(small, small_template, cv2.TM_SQDIFF) / small_template.size
    row, column = np.unravel_index(int(np.argmin(differences)), differences.shape)
    best = Window(left + round(column / scale), top + round(row / scale), side)
    # Averaging makes differences smaller: what is too unlike at low resolution is so at any.
    near = [best] if differences[row, column] < limit else []
    if abs(best.x - own.x) + abs(best.y - own.y) > 2 / scale or not near:
        near.append(own)
    return [_refined(grey, template, window) for window in near]


def _refined(grey: np.ndarray, template: np.ndarray, window: Window) -> Window:
    window_px = len(template)
    reach = math.ceil(2 * window.side / SMALL_PX)
    around = crop_window(grey, Window(window.x - reach, window.y - reach, window.side + 2 * reach))
    scale = window.side / window_px
    near = resize(around, max(round(len(around) / scale), window_px))
    differences = cv2.matchTemplate(near, template, cv2.TM_SQDIFF) / template.size
    row, column = np.unravel_index(int(np.argmin(differences)), differences.shape)
    return Window(window.x - reach + round(column * scale), window.y - reach + round(row * scale), window.side)


def _inside(window: Window, image: np.ndarray, window_px: int) -> np.ndarray:
    inside = window_inside(window, (image.shape[1], image.shape[0])).astype(np.uint8)
    scaled: np.ndarray = cv2.resize(inside, (window_px, window_px), interpolation=cv2.INTER_NEAREST) > 0
    return scaled
