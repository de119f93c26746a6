"""Where a defect goes: the places of a clean image that look most like those of the class's real defects.

A placement follows a *model*, a real defect of the class. The window around a candidate place (its surroundings and
what lies under the region) is compared with the clean twin of the model's window: at low resolution at every place of
the image at once, then, around the one that is drawn, at the generator's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import cv2
import numpy as np

from defectgen.boxes import mask_xyxy
from defectgen.crops import Crop, centre, own_mask, region_of, shown
from defectgen.recipe import Place
from defectgen.records import XYXY
from defectgen.seeds import numpy_rng
from defectgen.windows import Window, crop_mirrored, resize, view_around

_S = TypeVar("_S")

# Weights of the comparison, see `_weights`.
UNDER_REGION, NEAR = 0.8, 0.08
# Side of the windows that are compared.
COMPARED_PX = 24
# A place whose mean squared difference is above this, and this share of the variance of the model's window, is none for
# it: on DeepPCB the gap of an *open* needs a track, and half of its real models find none like theirs in an image.
UNLIKE, UNLIKE_SHARE = 500.0, 0.25
# Mean squared difference (of 255 squared) below which places look alike to a person, and that of a camera's noise.
ALIKE, SAME = 100.0, 10.0
# What a place must be less different by, per image pixel that it lies off the one found at low resolution.
PER_PX_OFF = 0.1


@dataclass(frozen=True)
class Turn:
    """How a model is turned before it is placed: mirrored in x, then in y, then rotated about its window's centre.

    `warp` bends the defect itself: the largest shift of a point, as a share of the window's side, drawn by `warp_seed`.
    """

    flip_x: bool = False
    flip_y: bool = False
    angle_deg: float = 0.0
    warp: float = 0.0
    warp_seed: int = 0

    def apply(self, array: np.ndarray) -> np.ndarray:
        """`array` (S, S[, C]) turned, mirrored past its edges."""
        if self.flip_x:
            array = array[:, ::-1]
        if self.flip_y:
            array = array[::-1]
        array = np.ascontiguousarray(array)
        if self.angle_deg == 0:
            return array
        middle = (array.shape[1] - 1) / 2
        matrix = cv2.getRotationMatrix2D((middle, middle), self.angle_deg, 1.0)
        return cv2.warpAffine(array, matrix, array.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)

    def bend(self, array: np.ndarray) -> np.ndarray:
        """`array` (S, S[, C]), already turned, with the middle of the window bent; its border stays."""
        if self.warp == 0:
            return array
        side = array.shape[0]
        shifts = np.zeros((5, 5, 2), np.float32)
        shifts[1:-1, 1:-1] = numpy_rng(self.warp_seed, "warp").uniform(-self.warp, self.warp, (3, 3, 2))
        field = cv2.resize(shifts * side, (side, side), interpolation=cv2.INTER_CUBIC)
        ys, xs = np.indices((side, side), np.float32)
        return cv2.remap(array, xs + field[..., 0], ys + field[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)

    @classmethod
    def of_json(cls, placement: dict[str, Any]) -> Turn:
        """The turn of a placement described by `Placement.to_json`."""
        return cls(**{field.name: placement[field.name] for field in fields(cls)})

    def sides(self, of_model: tuple[_S, _S, _S, _S]) -> tuple[_S, _S, _S, _S]:
        """What is on a model's left, top, right and bottom, once it is turned."""
        left, top, right, bottom = of_model
        if self.flip_x:
            left, right = right, left
        if self.flip_y:
            top, bottom = bottom, top
        # Counter-clockwise, as OpenCV rotates: what was on the right comes to the top.
        for _ in range(round(self.angle_deg / 90) % 4):
            left, top, right, bottom = top, right, bottom, left
        return (left, top, right, bottom)


@dataclass(frozen=True)
class Model:
    """A real defect as placement uses it.

    Attributes:
        crop: its defect crop.
        twin: uint8 (H, W, 3), its window without the defect.
        photographed: whether the twin is a photograph, or drawn.
    """

    crop: Crop
    twin: np.ndarray
    photographed: bool = True


@dataclass(frozen=True)
class Placement:
    """A place for a defect in one image.

    Attributes:
        model: index of the real defect it follows.
        turn: how that is turned.
        window: in the image.
        asked_xyxy: box of the defect asked for, as the annotators would draw it, in image pixels.
        outline: uint8 (H, W), 255 on the defect asked for, in window pixels.
        region: bool (H, W), where may be drawn.
        difference: mean squared difference of the place, as found at low resolution, to the model's.
    """

    class_id: int
    model: int
    turn: Turn
    window: Window
    asked_xyxy: XYXY
    outline: np.ndarray
    region: np.ndarray
    difference: float

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.turn),
            "difference": round(self.difference, 1),
            "model": self.model,
            "window": [self.window.x, self.window.y, self.window.side],
        }


def draw_turn(rng: np.random.Generator, place: Place) -> Turn:
    flip_x, flip_y = (place.flip and bool(rng.random() < 0.5) for _ in range(2))
    quarters = int(rng.integers(4)) if place.quarter_turns else 0
    angle = float(np.round(rng.uniform(-place.rotate_deg, place.rotate_deg), 2))
    return Turn(flip_x, flip_y, 90.0 * quarters + angle, place.warp, int(rng.integers(2**31)))


def draw_scale(rng: np.random.Generator, place: Place) -> float:
    """Even in its logarithm: as often half as large as twice as large."""
    return float(np.exp(rng.uniform(*np.log(place.scale))))


def find_place(
    image: np.ndarray,
    models: Sequence[Model],
    model_index: int,
    *,
    turn: Turn,
    scale: float,
    taken: Sequence[XYXY],
    max_overlap: float,
    allowed: np.ndarray | None,
    top: int,
    rng: np.random.Generator,
) -> Placement | None:
    """A place drawn among the `top` best ones for the turned model, or None where no free one is like the model's.

    Args:
        image: uint8 (H, W, 3), the clean image.
        scale: size of the placement over its model's.
        taken: boxes that no placement may overlap by more than `max_overlap` (IoU; at 0 not at all).
        allowed: bool (H, W) or None: nothing changes outside it.
    """
    model = models[model_index]
    crop = model.crop
    window_px = model.twin.shape[0]
    height, width = image.shape[:2]
    outline = turn.bend(centre(turn.apply(own_mask(crop, window_px)), window_px))
    asked = _outline_box(outline)
    if asked is None:
        return None
    side = max(8, round(crop.window.side * scale))
    region = region_of(outline, outlined=crop.outlined)
    reach = _outline_box(region.astype(np.uint8) * 255) or asked
    to_image = side / window_px
    touches = turn.sides(crop.touches)

    def box_at(x: Any, y: Any) -> tuple[Any, Any, Any, Any]:
        return (x + asked[0] * to_image, y + asked[1] * to_image, x + asked[2] * to_image, y + asked[3] * to_image)

    def where_free(differences: np.ndarray, xs: np.ndarray, ys: np.ndarray, grain_px: float) -> np.ndarray:
        """`differences` (R, C) of windows at `xs` (C,) and `ys` (R, 1), `grain_px` apart; infinite where not free."""
        x1, y1, x2, y2 = box_at(xs, ys)
        free = _free(x1, y1, x2, y2, (width, height), touches, to_image, grain_px)
        if allowed is not None:
            # All that may change, which reaches beyond the defect.
            left, top, right, bottom = (edge * to_image for edge in reach)
            free &= _within(allowed, xs + left, ys + top, xs + right, ys + bottom)
        for other in taken:
            free &= _overlap(x1, y1, x2, y2, other) <= max_overlap
        return np.where(free, differences, np.inf)

    template = _template(model, turn)
    weights = _weights(region)
    differences, xs, ys = _differences(image, template, weights, side)
    unlike = UNLIKE + UNLIKE_SHARE * _variance(template, weights)
    free = where_free(differences, xs, ys, side / COMPARED_PX)
    best = _best_places(np.where(free <= unlike, free, np.inf), top, rng)
    if not best:
        return None
    row, column = best[int(rng.integers(len(best)))]
    x, y, difference = int(xs[column]), int(ys[row, 0]), float(differences[row, column])
    # To the pixel: a track must meet the track it goes on as.
    fine, xs, ys, grain = _differences_near(image, template, weights, Window(x, y, side))
    # Where all are the same, as on plain product, it stays.
    fine = where_free(fine + PER_PX_OFF * np.hypot(xs - x, ys - y), xs, ys, grain)
    nearest = np.unravel_index(int(np.argmin(fine)), fine.shape)
    if np.isfinite(fine[nearest]):
        x, y = int(xs[nearest[1]]), int(ys[nearest[0], 0])
    return Placement(
        class_id=crop.class_id if crop.class_id is not None else -1,
        model=model_index,
        turn=turn,
        window=Window(x, y, side),
        asked_xyxy=_clipped(box_at(x, y), (width, height)),
        outline=outline,
        region=region,
        difference=difference,
    )


def annotated_box(model: Model, turn: Turn, window: Window, size_wh: tuple[int, int]) -> XYXY:
    """The annotators' box of the model, once the model is turned and its window lies as `window` of an image.

    Exact, but for turns other than quarters: to a pixel of the generator.
    """
    x1, y1, x2, y2 = model.crop.window.to_window(model.crop.xyxy, 1)
    if turn.flip_x:
        x1, x2 = 1 - x2, 1 - x1
    if turn.flip_y:
        y1, y2 = 1 - y2, 1 - y1
    for _ in range(round(turn.angle_deg / 90) % 4):  # counter-clockwise
        x1, y1, x2, y2 = y1, 1 - x2, y2, 1 - x1
    if turn.angle_deg % 90:
        window_px = model.twin.shape[0]
        mask = own_mask(model.crop, window_px)
        if not model.crop.outlined:
            mask = _ellipse_in(mask)
        box = _outline_box(centre(turn.apply(mask), window_px))
        assert box is not None, "it was placed, so it has an outline"
        # Of a line the mask is the line: its box has the annotators' slack around it.
        slack = float(np.mean(model.crop.line_slack_px or (0.0,))) / model.crop.window.side
        x1, y1, x2, y2 = (value / window_px + sign * slack for value, sign in zip(box, (-1, -1, 1, 1), strict=True))
    side = window.side
    return _clipped((window.x + x1 * side, window.y + y1 * side, window.x + x2 * side, window.y + y2 * side), size_wh)


def _ellipse_in(mask: np.ndarray) -> np.ndarray:
    """uint8 like `mask`, a box: the ellipse in it. What fills it is not known, and turned, its corners stick out."""
    found = _outline_box(mask)
    if found is None:
        return mask
    x1, y1, x2, y2 = found
    # In sixteenths of a pixel, from pixel centres.
    middle = (round(8 * (x1 + x2 - 1)), round(8 * (y1 + y2 - 1)))
    axes = (round(8 * (x2 - x1 - 1)), round(8 * (y2 - y1 - 1)))
    return cv2.ellipse(np.zeros_like(mask), middle, axes, 0, 0, 360, 255, -1, cv2.LINE_8, 4)


def _clipped(box: Sequence[float], size_wh: tuple[int, int]) -> XYXY:
    clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], size_wh[0]), min(box[3], size_wh[1]))
    return tuple(round(float(value), 3) for value in clipped)  # type: ignore[return-value]


def _template(model: Model, turn: Turn) -> np.ndarray:
    """uint8 (window_px, window_px, 3): the model's turned window without its defect."""
    window_px = model.twin.shape[0]
    with_surroundings = model.crop.image.copy()
    centre(with_surroundings, window_px)[...] = model.twin
    return centre(turn.apply(with_surroundings), window_px)


def _weights(region: np.ndarray) -> np.ndarray:
    """float32 (window_px, window_px), of sum 1: what a pixel counts in the comparison.

    UNDER_REGION for what lies under the region, the rest for what surrounds it, less the farther away (by e in NEAR of
    the window). An *open* needs a track, of which little lies in the window; what lies far off matters to few defects,
    and asking for it left half of the real ones without a place.
    """
    away = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 5)
    around = np.where(region, 0, np.exp(-away / (NEAR * len(region))))
    if not region.any() or not around.any():
        return np.full(region.shape, 1 / region.size, np.float32)
    weights = UNDER_REGION * region / region.sum() + (1 - UNDER_REGION) * around / around.sum()
    return np.asarray(weights, np.float32)


def _variance(template: np.ndarray, weights: np.ndarray) -> float:
    pixels = template.reshape(-1, 3).astype(np.float64)
    mean = np.average(pixels, axis=0, weights=weights.ravel())
    return float(np.average((pixels - mean) ** 2, axis=0, weights=weights.ravel()).mean())


def _differences(
    image: np.ndarray, template: np.ndarray, weights: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean squared difference (R, C) of every window to `template`, and the windows' x (C,) and y (R, 1)."""
    height, width = image.shape[:2]
    grain = side / COMPARED_PX
    small_wh = (max(round(width / grain), 1), max(round(height / grain), 1))
    small = cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA)
    pad = COMPARED_PX // 2
    padded = crop_mirrored(small, (-pad, -pad, small_wh[0] + pad, small_wh[1] + pad))
    differences = _match(padded, template, weights, COMPARED_PX)
    rows, columns = differences.shape
    xs = np.round((np.arange(columns) - pad) * (width / small_wh[0])).astype(np.int64)
    ys = np.round((np.arange(rows) - pad) * (height / small_wh[1])).astype(np.int64)
    return differences, xs, ys[:, None]


def _differences_near(
    image: np.ndarray, template: np.ndarray, weights: np.ndarray, window: Window
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """As `_differences`, for the windows up to a compared pixel away, and the image pixels between two of them."""
    reach = math.ceil(window.side / COMPARED_PX)
    near, side_px, grain = view_around(image, window, reach, len(template))
    differences = _match(near, template, weights, side_px)
    offsets = np.round(np.arange(len(differences)) * grain).astype(np.int64) - reach
    return differences, window.x + offsets, (window.y + offsets)[:, None], grain


def _match(image: np.ndarray, template: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Mean squared difference of every (size, size) part of `image` to `template`, weighted."""
    template = resize(template, size).astype(np.float32)
    weights = cv2.resize(weights, (size, size), interpolation=cv2.INTER_AREA)
    # OpenCV squares the mask, too, and sums over the channels.
    mask = np.repeat(np.sqrt(weights / (3 * weights.sum()))[..., None], 3, axis=2)
    squared = cv2.matchTemplate(image.astype(np.float32), template, cv2.TM_SQDIFF, mask=mask)
    return np.maximum(squared, 0)


def _outline_box(outline: np.ndarray) -> XYXY | None:
    return mask_xyxy(shown(outline))


def _free(
    x1: np.ndarray,
    y1: np.ndarray,
    x2: np.ndarray,
    y2: np.ndarray,
    size_wh: tuple[int, int],
    touches: tuple[bool, bool, bool, bool],
    slack_px: float,
    grain_px: float,
) -> np.ndarray:
    """bool (R, C): boxes inside the image, that touch the edges they must and no other."""
    width, height = size_wh
    left, top, right, bottom = touches
    slack = max(slack_px, 1.0)
    # Of a sliver at the edge half stays in the image.
    over_x, over_y = np.minimum(slack, (x2 - x1) / 2), np.minimum(slack, (y2 - y1) / 2)
    fits_x = (x1 >= -over_x if left else x1 >= 0) & (x2 <= width + over_x if right else x2 <= width)
    fits_y = (y1 >= -over_y if top else y1 >= 0) & (y2 <= height + over_y if bottom else y2 <= height)
    reach = slack + max(grain_px, 1.0)
    # A defect that runs through from edge to edge may hang over both.
    if left and right:
        fits_x = np.ones_like(fits_x)
    if top and bottom:
        fits_y = np.ones_like(fits_y)
    if left:
        fits_x = fits_x & (x1 <= reach)
    if right:
        fits_x = fits_x & (x2 >= width - reach)
    if top:
        fits_y = fits_y & (y1 <= reach)
    if bottom:
        fits_y = fits_y & (y2 >= height - reach)
    return fits_y & fits_x


def _within(allowed: np.ndarray, x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> np.ndarray:
    """bool (R, C): boxes whose every pixel in the image is allowed (by the integral image of what is not)."""
    height, width = allowed.shape
    denied = cv2.integral((~allowed).astype(np.uint8))
    columns_1, columns_2 = (np.clip(edge, 0, width).astype(np.int64) for edge in (np.floor(x1), np.ceil(x2)))
    rows_1, rows_2 = (np.clip(edge, 0, height).astype(np.int64) for edge in (np.floor(y1), np.ceil(y2)))
    count = (
        denied[rows_2, columns_2] - denied[rows_1, columns_2] - denied[rows_2, columns_1] + denied[rows_1, columns_1]
    )
    return count == 0


def _overlap(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray, other: XYXY) -> np.ndarray:
    """(R, C): IoU of every box with `other`."""
    wide = np.maximum(np.minimum(x2, other[2]) - np.maximum(x1, other[0]), 0)
    high = np.maximum(np.minimum(y2, other[3]) - np.maximum(y1, other[1]), 0)
    shared = high * wide
    own = (y2 - y1) * (x2 - x1)
    return shared / (own + (other[2] - other[0]) * (other[3] - other[1]) - shared)


def _best_places(differences: np.ndarray, top: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Up to `top` least different places, none next to another, none much worse than the best.

    Which of those that are the same come first is drawn: the first in the image would all lie at its top.
    """
    alike = differences <= 2 * differences.min() + ALIKE
    remaining = np.where(alike, differences + rng.uniform(0, SAME, differences.shape), np.inf)
    best: list[tuple[int, int]] = []
    apart = COMPARED_PX // 6
    while len(best) < top:
        row, column = np.unravel_index(int(np.argmin(remaining)), remaining.shape)
        if not np.isfinite(remaining[row, column]):
            break
        best.append((int(row), int(column)))
        remaining[max(row - apart, 0) : row + apart + 1, max(column - apart, 0) : column + apart + 1] = np.inf
    return best
