"""Boxes and outlines as plain numbers.

xyxy: pixels, x to the right, y down, edges at pixel borders: the box of pixel (3, 1) alone is (3, 1, 4, 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import cv2
import numpy as np

from defectgen.records import XYXY, Polygon


def xyxy_from_yolo(row: Sequence[float], size_wh: tuple[int, int]) -> XYXY:
    """The box in pixels of a YOLO row (centre x, centre y, width, height as fractions of the image). Not clipped."""
    x_centre, y_centre, width, height = (float(value) for value in row)
    image_width, image_height = size_wh
    return (
        (x_centre - width / 2) * image_width,
        (y_centre - height / 2) * image_height,
        (x_centre + width / 2) * image_width,
        (y_centre + height / 2) * image_height,
    )


def yolo_from_xyxy(xyxy: XYXY, size_wh: tuple[int, int]) -> tuple[float, float, float, float]:
    """Centre x, centre y, width and height as fractions of the image."""
    x1, y1, x2, y2 = xyxy
    width, height = size_wh
    return ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)


def clip_xyxy(xyxy: XYXY, size_wh: tuple[int, int]) -> XYXY:
    """The part of the box inside the image; of zero area where it lies outside."""
    x1, y1, x2, y2 = (float(value) for value in xyxy)
    width, height = size_wh
    return (min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height))


def union(a: XYXY, b: XYXY) -> XYXY:
    """The smallest box that holds both."""
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


def area(xyxy: XYXY) -> float:
    """Square pixels; 0 for a box that is empty or turned over."""
    x1, y1, x2, y2 = xyxy
    return float(max(x2 - x1, 0.0) * max(y2 - y1, 0.0))


@overload
def iou_xyxy(a: XYXY, b: XYXY) -> float: ...
@overload
def iou_xyxy(a: np.ndarray | Sequence[XYXY], b: np.ndarray | Sequence[XYXY] | XYXY) -> np.ndarray: ...
@overload
def iou_xyxy(a: XYXY, b: np.ndarray | Sequence[XYXY]) -> np.ndarray: ...
def iou_xyxy(a: np.ndarray | Sequence[XYXY] | XYXY, b: np.ndarray | Sequence[XYXY] | XYXY) -> float | np.ndarray:
    """Intersection over union: a float for two boxes, (N, M) for (N, 4) and (M, 4), (N,) for (N, 4) and one box.

    Two boxes without area have IoU 0. An empty list counts as (0, 4).
    """
    a_N4, b_M4 = _as_boxes(a), _as_boxes(b)
    one_a, one_b = a_N4.ndim == 1, b_M4.ndim == 1
    left, right = a_N4.reshape(-1, 1, 4), b_M4.reshape(1, -1, 4)
    overlap_wh = np.minimum(left[..., 2:], right[..., 2:]) - np.maximum(left[..., :2], right[..., :2])
    intersection = np.prod(np.clip(overlap_wh, 0, None), axis=-1)
    areas = [np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1) for boxes in (left, right)]
    union = areas[0] + areas[1] - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    if one_a and one_b:
        return float(iou[0, 0])
    return iou[0] if one_a else iou[:, 0] if one_b else iou


def polygon_xyxy(polygon: Polygon) -> XYXY:
    """The tight box around the outline's corners."""
    xs, ys = zip(*polygon, strict=True)
    return (float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys)))


def clip_polygon(polygon: Polygon, xyxy: XYXY) -> Polygon:
    """The outline's part inside the box; () where there is none.

    Sutherland and Hodgman 1974: a concave outline that falls apart keeps its parts joined along the box's edge.
    """
    points = list(polygon)
    for axis, sign, limit in ((0, 1, xyxy[0]), (0, -1, xyxy[2]), (1, 1, xyxy[1]), (1, -1, xyxy[3])):
        kept: list[tuple[float, float]] = []
        for index, end in enumerate(points):
            start = points[index - 1]
            start_over, end_over = sign * (start[axis] - limit), sign * (end[axis] - limit)
            if (start_over >= 0) != (end_over >= 0):
                t = start_over / (start_over - end_over)
                crossing = [start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])]
                # Exactly on the edge, whatever the rounding above.
                crossing[axis] = limit
                kept.append((crossing[0], crossing[1]))
            if end_over >= 0:
                kept.append(end)
        points = kept
    return tuple(points) if len(points) >= 3 else ()


def mask_xyxy(mask: np.ndarray) -> XYXY | None:
    """The tight box around the true pixels of a (H, W) mask; None where there is none."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def polygon_mask(polygon: Polygon, size_wh: tuple[int, int]) -> np.ndarray:
    """Bool (H, W): true on pixels whose centre lies inside the outline, by the even-odd rule.

    What lies outside the image is cut off. A sliver that passes between pixel centres gives an empty mask.
    """
    width, height = size_wh
    # One more column takes the crossings to the right of the image.
    flips = np.zeros((height, width + 1), dtype=np.uint8)
    corners = np.asarray(polygon, dtype=np.float64)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        first, stop = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((y1, y2)))
        rows = np.arange(first, stop)
        crossings = x1 + (rows + 0.5 - y1) * (x2 - x1) / (y2 - y1)
        flips[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)] ^= 1
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :width].astype(bool)


def mask_outlines(mask: np.ndarray, *, holes: bool = False) -> tuple[Polygon, ...]:
    """Outer outlines of the pieces of a bool mask along pixel borders, largest first; each has at least 3 corners.

    With `holes` the outlines of these, too: filled together by the even-odd rule, they give the mask.
    """
    # Doubled, so that a contour through pixel centres has one on either side of a line of single pixels.
    doubled = cv2.resize(np.pad(mask, 1).astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    mode = cv2.RETR_CCOMP if holes else cv2.RETR_EXTERNAL
    contours, _ = cv2.findContours(doubled, mode, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted(contours, key=cv2.contourArea, reverse=True)
    height, width = mask.shape
    polygons = []
    for contour in contours:
        borders = (contour + 1) // 2 - 1
        # Stairs become slopes, unless that leaves no surface (a pixel, a diagonal of pixels).
        smooth = cv2.approxPolyDP(borders, 0.75, True)
        points = (smooth if len(smooth) >= 3 else borders).reshape(-1, 2)
        polygons.append(tuple((float(min(x, width)), float(min(y, height))) for x, y in np.maximum(points, 0)))
    return tuple(polygons)


def joined_outline(outlines: Sequence[Polygon]) -> Polygon:
    """Outlines of the parts and holes of one object as a single one, joined by bridges without width.

    By the even-odd rule, as in `polygon_mask`, it encloses what all of them together do.
    """
    first, *others = outlines
    if not others:
        return first
    joined = [*first, first[0]]
    for outline in others:
        joined += [*outline, outline[0], first[0]]
    return tuple(joined)


def _as_boxes(boxes: np.ndarray | Sequence[XYXY] | XYXY) -> np.ndarray:
    array = np.asarray(boxes, dtype=np.float64)
    return array.reshape(0, 4) if array.size == 0 else array
