"""Golden windows: a real defect's place as clean images show it.

Where parts lie in a fixture, or a layout repeats, some clean image shows what a defect stands in without the defect
(the golden sample of optical inspection). It is found by template matching, and taken only where the surroundings of
the defect are the same; a texture that never repeats has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from defectgen.crops import Crop, centre, region_of
from defectgen.images import read_rgb
from defectgen.records import LabelledImage
from defectgen.windows import Window, crop_window, inside_at, resize, view_around

# Side of the windows that are compared first, and how many windows around the defect's own place are searched. Images
# are scaled down for it in steps, once for all windows of about the same side.
SMALL_PX, REACH, SCALE_STEP = 24, 10, 1.15
# Surroundings are the same where they differ by at most this share of their variance and this mean square (of 255
# squared), all blurred by so many of the generator's pixels: edges move by a pixel from shot to shot. On DeepPCB, whose
# true clean images are known, nine in ten of these pass; grain that is not the same grain does not.
SAME_SHARE, NOISE, BLUR_PX = 0.03, 4.0, 1.5
# It is the very same place where a view so many windows wide is the same, too, but for a share of its variance: other
# defects, other lots. Seen at so many pixels.
WIDE, WIDE_PX, SAME_WIDE = 3, 72, 0.1
# Elsewhere so many of the most alike surroundings have a say in what lies between them.
MOST_VOTES = 15
# The defect is missing where the region differs by this many grey levels, and this many times what surrounds it does.
SEEN, SEEN_RATIO = 14.0, 2.2


# float32 (WIDE_PX, WIDE_PX), grey, and bool, where the image shows it
_Wide = tuple[np.ndarray, np.ndarray]


def golden_windows(
    crops: Sequence[Crop],
    real: Sequence[LabelledImage],
    clean: Sequence[LabelledImage],
    *,
    window_px: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[np.ndarray | None]:
    """Per crop, uint8 (window_px, window_px, 3): its window with its region as a clean image shows it.

    None where no clean image has its surroundings. Outside the region the window stays as it is.

    Args:
        real: the images that the crops are of.
    """
    if not clean:
        return [None] * len(crops)
    wide: dict[int, _Wide] = {}
    for item in real:
        pixels = read_rgb(item.path)
        wide |= {
            number: _wide_view(pixels, crop.window) for number, crop in enumerate(crops) if crop.source == item.name
        }
    windows = [centre(crop.image, window_px) for crop in crops]
    regions = [region_of(centre(crop.mask, window_px), outlined=crop.outlined) for crop in crops]
    found: list[list[_Shot]] = [[] for _ in crops]
    for done, item in enumerate(clean, start=1):
        image = read_rgb(item.path)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        smaller: dict[int, np.ndarray] = {}
        for number, crop in enumerate(crops):
            template = cv2.cvtColor(windows[number], cv2.COLOR_RGB2GRAY)
            around = (~regions[number]).astype(np.float32)
            near = (crop.window, _alike(grey, smaller, template, around, crop.window))
            shots = []
            for window in {_refined(grey, template, place) for place in near if place is not None}:
                view = resize(crop_window(image, window), window_px)
                inside = inside_at(window, image.shape[1::-1], window_px)
                shot = _shot(windows[number], view, regions[number], inside)
                if shot is not None:
                    shots.append(replace(shot, is_same=_is_same(wide[number], _wide_view(image, window))))
            # An image has one vote.
            found[number] = sorted([*found[number], *sorted(shots, key=_Shot.rank)[:1]], key=_Shot.rank)[:MOST_VOTES]
        progress(done, len(clean))
    return [_agreed(shots, region) for shots, region in zip(found, regions, strict=True)]


@dataclass(frozen=True)
class _Shot:
    """A place with the surroundings of a defect.

    Attributes:
        window: uint8 (window_px, window_px, 3).
        around: mean squared difference of the surroundings to those of the real window.
        whole: that of the whole window.
        is_same: whether what lies farther off is the same, too.
    """

    window: np.ndarray
    around: float
    whole: float
    is_same: bool = False

    def rank(self) -> tuple[bool, float]:
        return (not self.is_same, self.whole if self.is_same else self.around)


def _agreed(shots: Sequence[_Shot], region: np.ndarray) -> np.ndarray | None:
    """What `shots`, in the order of their ranks, show of the place; None without any.

    Of the very same place the one that differs least from the real window: a defect changes only a part of its region.
    Of other places with the same surroundings, which may hold anything where these are plain, the one next to their
    median.
    """
    if not shots:
        return None
    if shots[0].is_same or len(shots) < 3:
        return min(shots, key=lambda shot: (not shot.is_same, shot.whole)).window
    middle = np.median([shot.window[region] for shot in shots], axis=0)
    return min(shots, key=lambda shot: float(np.abs(shot.window[region] - middle).mean())).window


def _wide_view(image: np.ndarray, window: Window) -> _Wide:
    """The window and what lies around it."""
    pad = (WIDE - 1) * window.side // 2
    around = Window(window.x - pad, window.y - pad, window.side + 2 * pad)
    grey = cv2.cvtColor(resize(crop_window(image, around), WIDE_PX), cv2.COLOR_RGB2GRAY)
    return grey.astype(np.float32), inside_at(around, image.shape[1::-1], WIDE_PX)


def _is_same(real: _Wide, other: _Wide) -> bool:
    """Whether two wide views show the same place: not told by plain ones, nor by the defect's own window."""
    seen = real[1] & other[1]
    own = WIDE_PX // WIDE
    seen[own:-own, own:-own] = False
    if seen.mean() < 0.2:
        return False
    change = (other[0] - real[0])[seen]
    variance = float(real[0][seen].var())
    return variance > NOISE / SAME_SHARE and float((change - change.mean()).var()) <= SAME_WIDE * variance


def _shot(real: np.ndarray, view: np.ndarray, region: np.ndarray, inside: np.ndarray) -> _Shot | None:
    """The windows compared; None where `view` has other surroundings, or the same defect."""
    around = ~region & inside
    # Beyond its edges an image is mirrored, which is no photograph of anything.
    if not around.any() or (region & ~inside).any():
        return None
    change = view.astype(np.float32) - real
    # Light differs from shot to shot.
    change = cv2.GaussianBlur(change - change[around].mean(axis=0), (0, 0), BLUR_PX)
    squared = np.square(change).mean(axis=2)
    blurred = cv2.GaussianBlur(real.astype(np.float32), (0, 0), BLUR_PX)
    variance = float(blurred[around].var(axis=0).mean())
    of_surroundings = float(squared[around].mean())
    if of_surroundings > SAME_SHARE * variance + NOISE:
        return None
    strongest = np.abs(change).max(axis=2)
    seen = float(np.quantile(strongest[region], 0.98))
    if seen < max(SEEN, SEEN_RATIO * float(np.quantile(strongest[around], 0.95))):
        return None
    return _Shot(_filled(real, region, view), of_surroundings, float(squared[inside].mean()))


def _filled(real: np.ndarray, region: np.ndarray, golden: np.ndarray) -> np.ndarray:
    """`real` with `golden` in its region, as bright as what surrounds it."""
    ring = cv2.dilate(region.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~region
    offset = (real[ring].astype(np.float32) - golden[ring]).mean(axis=0) if ring.any() else np.float32(0)
    return np.where(region[..., None], np.clip(np.round(golden + offset), 0, 255).astype(np.uint8), real)


def _alike(
    grey: np.ndarray, smaller: dict[int, np.ndarray], template: np.ndarray, around: np.ndarray, own: Window
) -> Window | None:
    """The place near the defect's own whose surroundings are most similar, at low resolution; None where the image is
    too small for any.

    What lies within the region is not compared: most like a blot is another blot. `around`: float32, 1 outside it.
    `smaller` keeps `grey` scaled down, by the power of SCALE_STEP.
    """
    power = round(math.log(own.side / SMALL_PX, SCALE_STEP))
    scale = SCALE_STEP**-power
    if power not in smaller:
        size_wh = (max(round(grey.shape[1] * scale), 1), max(round(grey.shape[0] * scale), 1))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        smaller[power] = cv2.resize(grey, size_wh, interpolation=interpolation)
    small = smaller[power]
    side = max(round(own.side * scale), 4)
    reach = REACH * side
    left, top = max(round(own.x * scale) - reach, 0), max(round(own.y * scale) - reach, 0)
    area = small[top : top + 2 * reach + side, left : left + 2 * reach + side]
    if min(area.shape) < side:
        return None
    mask = np.clip(resize(around, side), 0, 1)
    differences = cv2.matchTemplate(
        area.astype(np.float32), resize(template, side).astype(np.float32), cv2.TM_SQDIFF, mask=mask
    )
    row, column = np.unravel_index(int(np.argmin(differences)), differences.shape)
    return Window(round((left + int(column)) / scale), round((top + int(row)) / scale), own.side)


def _refined(grey: np.ndarray, template: np.ndarray, window: Window) -> Window:
    """`window` moved to where it is most similar, by two of the first search's pixels at most.

    To the image's pixel, or half of the generator's where that is more: edges that lie farther off than that differ
    from their own continuation as a defect does. So near, the region may be compared, too: surroundings that are plain
    fit wherever they are.
    """
    reach = math.ceil(2 * window.side / SMALL_PX)
    near, side_px, grain = view_around(grey, window, reach, len(template))
    differences = cv2.matchTemplate(near, resize(template, side_px), cv2.TM_SQDIFF)
    row, column = np.unravel_index(int(np.argmin(differences)), differences.shape)
    return Window(window.x - reach + round(column * grain), window.y - reach + round(row * grain), window.side)
