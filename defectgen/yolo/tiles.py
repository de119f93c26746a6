"""Images cut into square tiles, with their labels: the same rule for real and synthetic images.

A label is kept in every tile that holds at least MIN_INSIDE of its box, in the tile that holds most of it (so every
defect is labelled somewhere), and where a defect larger than tiles runs through one. A smaller rest in a neighbouring
tile goes unlabelled; the tile is then `ambiguous` (unless the rest is a sliver below SLIVER) and cannot serve as clean
background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from defectgen.boxes import area, clip_polygon, clip_xyxy, polygon_xyxy, yolo_from_xyxy
from defectgen.records import XYXY, Annotation, Polygon

Task = Literal["detect", "segment", "obb", "classify"]
MIN_INSIDE = 0.4
SLIVER = 0.05
# A crop to classify shows this much more than the defect's longest side, and no less than so many pixels.
CROP_FACTOR, CROP_PX = 1.5, 32
# The corners of an oriented box may lie so far outside (of the image's sides). Where all together span more than 1.01,
# ultralytics leaves the image out, and says so in its log alone.
_MOST_OUTSIDE = 0.0049
# What ultralytics pads with.
PADDING_GREY = 114


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        xyxy: its place in the image, whole pixels; what lies beyond the image is grey.
        labels: in the tile's own pixels, clipped to it.
        ambiguous: it shows an unlabelled part of a defect.
    """

    xyxy: tuple[int, int, int, int]
    labels: tuple[Annotation, ...] = ()
    ambiguous: bool = False

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.xyxy[2] - self.xyxy[0], self.xyxy[3] - self.xyxy[1]


def tile_starts(length: int, side: int | None) -> list[int]:
    """First pixels of the fewest tiles that cover `length`; the last tile is shifted inward. [0] for `side` None."""
    if side is None or length <= side:
        return [0]
    return [*range(0, length - side, side), length - side]


def cut_tiles(annotations: Sequence[Annotation], size_wh: tuple[int, int], side: int | None) -> list[Tile]:
    """The tiles of an image row by row; one tile, the whole image, for `side` None or a small image."""
    width, height = size_wh
    places = [
        (x, y, min(x + (side or width), width), min(y + (side or height), height))
        for y in tile_starts(height, side)
        for x in tile_starts(width, side)
    ]
    labels: list[list[Annotation]] = [[] for _ in places]
    ambiguous = [False] * len(places)
    for annotation in annotations:
        whole = area(annotation.xyxy)
        parts = [_inside(annotation, place) for place in places]
        shares = [area(part.xyxy) / whole if whole > 0 else 0.0 for part in parts]
        largest = max(range(len(places)), key=shares.__getitem__)
        for index, (part, share) in enumerate(zip(parts, shares, strict=True)):
            if (
                share >= MIN_INSIDE
                or (index == largest and share > 0)
                or _runs_through(part, annotation, places[index])
            ):
                labels[index].append(part)
            elif share > SLIVER:
                ambiguous[index] = True
    return [Tile(place, tuple(kept), flag) for place, kept, flag in zip(places, labels, ambiguous, strict=True)]


def _runs_through(part: Annotation, whole: Annotation, place: tuple[int, int, int, int]) -> bool:
    """Whether the tile shows a large defect in at least half of its length: its outline, or its box at full width; of
    a box that goes on to all sides nobody knows where in it the defect lies.
    """
    half = min(place[2] - place[0], place[3] - place[1]) / 2
    if part.polygon is not None:
        return bool(part.polygon) and max(box_sides(polygon_xyxy(part.polygon))) >= half
    return max(box_sides(part.xyxy)) >= half and min(box_sides(part.xyxy)) == min(box_sides(whole.xyxy)) < half


def box_sides(xyxy: XYXY) -> tuple[float, float]:
    return xyxy[2] - xyxy[0], xyxy[3] - xyxy[1]


def crop_tiles(annotations: Sequence[Annotation], size_wh: tuple[int, int]) -> list[Tile]:
    """A square around each defect, with that label alone, moved into the image (or cut to it, where it is larger)."""
    tiles = []
    for annotation in annotations:
        x1, y1, x2, y2 = annotation.xyxy
        place = square((x1 + x2) / 2, (y1 + y2) / 2, crop_side(annotation), size_wh)
        tiles.append(Tile(place, (_inside(annotation, place),)))
    return tiles


def crop_side(annotation: Annotation) -> int:
    x1, y1, x2, y2 = annotation.xyxy
    return max(CROP_PX, round(CROP_FACTOR * max(x2 - x1, y2 - y1)))


def square(x: float, y: float, side: int, size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """As xyxy, about (x, y) where the image leaves room."""
    left, top = (
        int(min(max(round(at - side / 2), 0), max(size - side, 0))) for at, size in zip((x, y), size_wh, strict=True)
    )
    return (left, top, min(left + side, size_wh[0]), min(top + side, size_wh[1]))


def cut_tile(pixels: np.ndarray, xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """uint8 (H, W, 3): the part of an image, with grey where it reaches beyond the right and lower edges."""
    x1, y1, x2, y2 = xyxy
    tile = pixels[y1:y2, x1:x2]
    beyond = ((0, y2 - y1 - tile.shape[0]), (0, x2 - x1 - tile.shape[1]), (0, 0))
    return np.pad(tile, beyond, constant_values=PADDING_GREY)


def cut_crop(pixels: np.ndarray, xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """uint8 (S, S, 3): the part of an image (H, W, 3), with grey around it where the image was too narrow for a square.

    Of an oblong picture ultralytics' classifiers see the middle alone.
    """
    x1, y1, x2, y2 = xyxy
    crop = pixels[y1:y2, x1:x2]
    around = [((missing := max(crop.shape[:2]) - side) // 2, missing - missing // 2) for side in crop.shape[:2]]
    return np.pad(crop, (*around, (0, 0)), constant_values=PADDING_GREY)


def _inside(annotation: Annotation, place: tuple[int, int, int, int]) -> Annotation:
    """The part of the annotation inside `place`, in its pixels."""
    x, y, x2, y2 = place
    size_wh = (x2 - x, y2 - y)
    box = annotation.xyxy
    clipped = clip_xyxy((box[0] - x, box[1] - y, box[2] - x, box[3] - y), size_wh)
    polygon = annotation.polygon
    if polygon is not None:
        polygon = clip_polygon(tuple((px - x, py - y) for px, py in polygon), (0.0, 0.0, *size_wh))
    return Annotation(annotation.class_id, clipped, polygon)


def label_text(tile: Tile, task: Task) -> str:
    """The tile's label file, "" for a clean tile: YOLO rows of boxes for `detect`, of outlines for `segment`, of the
    corners of the smallest rectangle around each outline for `obb`, of the class alone for `classify`.
    """
    rows = []
    for label in tile.labels:
        values: list[float] = []
        if task == "detect":
            values = list(yolo_from_xyxy(label.xyxy, tile.size_wh))
        elif task != "classify":
            outline = label.polygon or _corners(label.xyxy)
            if task == "obb":
                outline = cv2.boxPoints(cv2.minAreaRect(np.array(outline, np.float32))).tolist()
            fractions = [value for x, y in outline for value in (x / tile.size_wh[0], y / tile.size_wh[1])]
            values = [min(max(value, -_MOST_OUTSIDE), 1 + _MOST_OUTSIDE) for value in fractions]
        rows.append(" ".join([str(label.class_id), *(f"{value:.6f}" for value in values)]))
    return "".join(f"{row}\n" for row in rows)


def _corners(xyxy: XYXY) -> Polygon:
    # Where a tile cuts off all of an outline but not all of its box.
    x1, y1, x2, y2 = xyxy
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
