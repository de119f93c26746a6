"""Masks: an image per image, as plain folders or as the tree of MVTec AD; every piece is a defect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from defectgen.boxes import joined_outline, mask_outlines, polygon_xyxy
from defectgen.data.annotations import Parsed, annotation, collect
from defectgen.errors import DataError
from defectgen.images import read_rgb
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
        mask = read_rgb(path).max(axis=2)
    except DataError as error:
        reason, _, remedy = str(error).removeprefix(f"{path}: ").rpartition("; ")
        return [], [Problem("error", str(path), "", reason, remedy)]
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
            reason = f"has {len(values)} values beside black ({listed}), but there is one class"
            remedy = "name a class for each in data.classes, 1 for the first, or save it in black and white"
            doubts.append(Problem("warning", str(path), "", reason, remedy))
    else:
        classes = {value: value - 1 for value in values}
        if values and max(values) > len(class_names):
            reason = f"has the value {max(values)}, but there are {len(class_names)} classes"
            return [], [Problem("error", str(path), "", reason, "give each class its number, 1 for the first")]
    items: list[tuple[str, tuple[int, np.ndarray]]] = []
    for class_id in sorted(set(classes.values())):
        of_class = np.isin(mask, [value for value, other in classes.items() if other == class_id])
        num, pieces = cv2.connectedComponents(of_class.astype(np.uint8), connectivity=8)
        items += [(f"piece {count} of {class_names[class_id]}", (class_id, pieces == count)) for count in range(1, num)]
    annotations, problems = collect(items, lambda item: _annotation_of(*item, size_wh), str(path))
    return annotations, doubts + problems


def _annotation_of(class_id: int, piece: np.ndarray, size_wh: tuple[int, int]) -> Annotation:
    outline = joined_outline(mask_outlines(piece, holes=True))
    return annotation(class_id, polygon_xyxy(outline), outline, size_wh)
