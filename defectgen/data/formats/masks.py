"""Masks: an image per image, as plain folders or as the tree of MVTec AD; every piece is a defect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from defectgen.boxes import joined_outline, mask_outlines, polygon_xyxy
from defectgen.data.annotations import Parsed, annotation, collect
from defectgen.errors import DataError
from defectgen.images import read_numbers
from defectgen.records import Annotation, Problem

# Folders whose images need no mask.
CLEAN_FOLDERS = ("good", "ok")
_ENDINGS = ("", "_mask", "_gt", "_label")
_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


def mask_of(image: Path, images: Path, masks: Path) -> Path | None:
    """The mask file of an image: its relative path in `masks`, its name perhaps followed by _mask, _gt or _label."""
    beside = masks / image.relative_to(images)
    found = (beside.with_name(f"{beside.stem}{end}{suffix}") for end in _ENDINGS for suffix in _SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def folder_classes(images: Path) -> list[str]:
    """The folders in `images`, as of MVTec AD's `test`, but for that of clean images."""
    found = sorted(path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [name for name in found if name not in CLEAN_FOLDERS]


def read_mask(path: Path, size_wh: tuple[int, int], class_names: Sequence[str], *, folder: str) -> Parsed:
    """Its pieces as annotations with outlines.

    Their class: that named like `folder`, where the image lies; else the only one; else by value, 1 for the first.
    """
    try:
        mask = read_numbers(path)
    except DataError as error:
        return [], [Problem.of_error(error)]
    coloured = mask.ndim == 3
    if coloured:
        mask = _colours_numbered(mask)
    if mask.shape != size_wh[::-1]:
        reason = f"has {mask.shape[1]} x {mask.shape[0]} px, but the image {size_wh[0]} x {size_wh[1]}"
        return [], [Problem("error", str(path), "", reason, "export it at the image's size")]
    values = [int(value) for value in np.unique(mask) if value]
    doubts: list[Problem] = []
    if folder in class_names:
        classes = dict.fromkeys(values, list(class_names).index(folder))
        if not values:
            reason = f"is all black, but of an image in {folder!r}"
            doubts.append(Problem("warning", str(path), "", reason, "draw it, or move the image to good"))
    elif len(class_names) == 1:
        classes = dict.fromkeys(values, 0)
        if len(values) > 1:
            listed = ", ".join([*map(str, values[:3]), *(["..."] if len(values) > 3 else [])])
            beside = "colours beside black" if coloured else f"values beside black ({listed})"
            reason = f"has {len(values)} {beside}, but there is one class"
            remedy = "name a class for each in data.classes, 1 for the first, or save it in black and white"
            doubts.append(Problem("warning", str(path), "", reason, remedy))
    elif coloured:
        reason = f"is coloured, and which of the {len(class_names)} classes a colour is, it does not say"
        remedy = "save it in grey, 1 for the first class, or with a palette"
        return [], [Problem("error", str(path), "", reason, remedy)]
    else:
        classes = {value: value - 1 for value in values}
        if values and max(values) > len(class_names):
            reason = f"has the value {max(values)}, but there are {len(class_names)} classes"
            return [], [Problem("error", str(path), "", reason, "give each class its number, 1 for the first")]
    items: list[tuple[str, tuple[int, np.ndarray, tuple[int, int]]]] = []
    for class_id in sorted(set(classes.values())):
        of_class = np.isin(mask, [value for value, other in classes.items() if other == class_id])
        num, pieces, stats, _ = cv2.connectedComponentsWithStats(of_class.astype(np.uint8), connectivity=8)
        for count in range(1, num):
            x, y, width, height = (int(value) for value in stats[count, :4])
            piece = pieces[y : y + height, x : x + width] == count
            items.append((f"piece {count} of {class_names[class_id]}", (class_id, piece, (x, y))))
    annotations, problems = collect(items, lambda item: _annotation_of(*item, size_wh), str(path))
    return annotations, doubts + problems


def _colours_numbered(mask: np.ndarray) -> np.ndarray:
    """int (H, W) from (H, W, 3): 0 for black, another number for each other colour."""
    bits = 8 * mask.itemsize
    packed = np.zeros(mask.shape[:2], np.int32 if bits == 8 else np.int64)
    for channel in range(3):
        packed <<= bits
        packed |= mask[..., channel]
    found = np.unique(packed)
    numbers: np.ndarray = np.searchsorted(found, packed)
    return numbers if found[0] == 0 else numbers + 1


def _annotation_of(class_id: int, piece: np.ndarray, at: tuple[int, int], size_wh: tuple[int, int]) -> Annotation:
    """`piece`: bool (h, w), with its upper left corner `at` (x, y)."""
    outlines = mask_outlines(piece, holes=True)
    outline = tuple((x + at[0], y + at[1]) for x, y in joined_outline(outlines))
    return annotation(class_id, polygon_xyxy(outline), outline, size_wh)
