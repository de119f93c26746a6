"""Where a thin defect (a crack, a scratch, a hair) runs inside its box.

A box around one is nearly all product, whose grain must neither be learned as the defect nor be carried to another
place with it. Lines are found as oriented second-derivative filters respond to them (Freeman and Adelson 1991, "The
design and use of steerable filters"), linked by hysteresis (Canny 1986), at thresholds that the product around the
boxes hardly ever reaches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from defectgen.boxes import mask_outlines, mask_xyxy
from defectgen.images import read_rgb
from defectgen.progress import Progress, silent
from defectgen.records import Annotation, LabelledImage

# A box shorter than this is drawn whole; a longer one than LARGEST is looked at scaled down to it.
SMALLEST_PX, LARGEST_PX = 32, 256
# Of the filter: standard deviations across and along the line, in pixels.
ACROSS_PX, ALONG_PX, ORIENTATIONS = 2.0, 8.0, 16
# Responses are in units of this quantile of the product around: concrete is coarser in one place than in another.
UNIT = 0.9
# A line starts where a pixel responds more than this share of the product does, and goes on down to the second.
STARTS, GOES_ON = 0.995, 0.95
# A branch fainter than this share of the line is the product's grain.
FAINT_BRANCH = 0.4
# Pieces of less than this share of the longest one's pixels are grain, too.
SMALL_PIECE = 0.2
# The line runs through this share of its box's longest side, and is at most so wide for its length.
SPANS, THIN = 0.7, 0.12
# A class is one of lines where they are found in this share of its boxes, and in so many.
CLASS_SHARE, CLASS_COUNT = 0.5, 4


@dataclass(frozen=True)
class _Box:
    """A box to look into.

    Attributes:
        key: image and annotation.
        scale: working pixels per image pixel; `corner_xy` of the working area is in image pixels.
        responses: float32 (2, H, W), to dark and to bright lines, in the product's UNIT.
        inside: bool (H, W), the box.
        outside: bool (H, W), no box.
    """

    key: tuple[int, int]
    scale: float
    corner_xy: tuple[int, int]
    responses: np.ndarray
    inside: np.ndarray
    outside: np.ndarray


def with_lines(images: Sequence[LabelledImage], progress: Progress = silent) -> tuple[LabelledImage, ...]:
    """`images`, with `Annotation.line` where the boxes of a class are found to hold thin lines."""
    boxes: list[_Box] = []
    for number, image in enumerate(images):
        progress("look for thin lines", number, len(images), "")
        boxes += _boxes(number, image)
    progress("look for thin lines", len(images), len(images), "")
    found = {}
    if boxes:
        product = np.concatenate([box.responses[:, box.outside].ravel() for box in boxes])
        if len(product) == 0:
            product = np.concatenate([box.responses.ravel() for box in boxes])
        starts, goes_on = (float(value) for value in np.quantile(product, (STARTS, GOES_ON)))
        for box in boxes:
            line = _line(box, starts, goes_on)
            if line is not None:
                found[box.key] = line
    marks = {(i, j): mark for i, image in enumerate(images) for j, mark in enumerate(image.annotations)}
    asked = Counter(mark.class_id for mark in marks.values())
    of_lines = Counter(marks[key].class_id for key in found)
    lined = {c for c, count in of_lines.items() if count >= max(CLASS_COUNT, CLASS_SHARE * asked[c])}

    def annotation(key: tuple[int, int]) -> Annotation:
        mark = marks[key]
        return replace(mark, line=found[key]) if key in found and mark.class_id in lined else mark

    return tuple(
        replace(image, annotations=tuple(annotation((i, j)) for j in range(len(image.annotations))))
        for i, image in enumerate(images)
    )


def _boxes(number: int, image: LabelledImage) -> Iterator[_Box]:
    sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in (mark.xyxy for mark in image.annotations)]
    wanted = [
        index for index, mark in enumerate(image.annotations) if mark.polygon is None and sides[index] >= SMALLEST_PX
    ]
    if not wanted:
        return
    grey = cv2.cvtColor(read_rgb(image.path), cv2.COLOR_RGB2GRAY)
    marked = np.zeros(grey.shape, np.uint8)
    for mark in image.annotations:
        _fill(marked, mark)
    for index in wanted:
        mark = image.annotations[index]
        x1, y1, x2, y2 = mark.xyxy
        around = sides[index] / 2
        top, left = max(round(y1 - around), 0), max(round(x1 - around), 0)
        area = np.s_[top : round(y2 + around), left : round(x2 + around)]
        scale = min(1.0, LARGEST_PX / sides[index])
        own = np.zeros(grey.shape, np.uint8)
        _fill(own, mark)
        high, wide = grey[area].shape
        size_wh = (max(round(wide * scale), 1), max(round(high * scale), 1))
        shown, others, inside = (
            cv2.resize(array[area], size_wh, interpolation=cv2.INTER_AREA) for array in (grey, marked, own)
        )
        if not (inside >= 128).any():
            continue
        responses = _responses(shown)
        outside = others == 0
        product = responses[:, outside] if outside.any() else responses.reshape(2, -1)
        unit = np.maximum(np.quantile(product, UNIT, axis=1), 0.5)
        yield _Box((number, index), scale, (left, top), responses / unit[:, None, None], inside >= 128, outside)


def _fill(mask: np.ndarray, mark: Annotation) -> None:
    x1, y1, x2, y2 = mark.xyxy
    mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 255


def _responses(grey: np.ndarray) -> np.ndarray:
    """float32 (2, H, W): the strongest response over all orientations to a dark, and to a bright line."""
    reach = round(2 * ALONG_PX)
    ys, xs = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    dark = bright = np.full(grey.shape, -np.inf, np.float32)
    for angle in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
        along, across = xs * np.cos(angle) + ys * np.sin(angle), ys * np.cos(angle) - xs * np.sin(angle)
        line = np.exp(-0.5 * ((along / ALONG_PX) ** 2 + (across / ACROSS_PX) ** 2))
        flanks = np.exp(-0.5 * ((along / ALONG_PX) ** 2 + (across / (3 * ACROSS_PX)) ** 2))
        kernel = flanks / flanks.sum() - line / line.sum()
        response = cv2.filter2D(grey.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        dark, bright = np.maximum(dark, response), np.maximum(bright, -response)
    return np.stack([dark, bright])


def _line(box: _Box, starts: float, goes_on: float) -> tuple[tuple[tuple[float, float], ...], ...] | None:
    """Outlines of the line in the box, in image pixels; None where none runs through it."""
    lines = [_linked(response, box.inside, starts, goes_on) for response in box.responses]
    strengths = [float(response[line].sum()) for response, line in zip(box.responses, lines, strict=True)]
    best = int(np.argmax(strengths))
    if strengths[best] == 0:
        return None
    typical = float(np.quantile(box.responses[best][lines[best]], 0.9))
    mask = _linked(box.responses[best], box.inside, starts, max(goes_on, FAINT_BRANCH * typical))
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    mask = np.isin(pieces, np.flatnonzero(areas >= SMALL_PIECE * areas.max()) + 1)
    extent, asked = mask_xyxy(mask), mask_xyxy(box.inside)
    assert extent is not None and asked is not None
    longest = max(asked[2] - asked[0], asked[3] - asked[1])
    vertical = int(asked[3] - asked[1] >= asked[2] - asked[0])
    width = 2 * cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5).max()
    if extent[2 + vertical] - extent[vertical] < SPANS * longest or width > max(THIN * longest, 3 * ACROSS_PX):
        return None
    left, top = box.corner_xy
    return tuple(
        tuple((left + x / box.scale, top + y / box.scale) for x, y in polygon)
        for polygon in mask_outlines(mask, holes=True)
    )


def _linked(response: np.ndarray, inside: np.ndarray, starts: float, goes_on: float) -> np.ndarray:
    """bool (H, W): what is at least `goes_on` within `inside` and joined to what is at least `starts`."""
    _, pieces = cv2.connectedComponents(((response >= goes_on) & inside).astype(np.uint8), connectivity=8)
    kept = np.unique(pieces[(response >= max(starts, goes_on)) & inside])
    return np.isin(pieces, kept[kept > 0])
