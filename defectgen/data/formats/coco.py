"""COCO: one JSON file for a folder of images; boxes, polygons and run lengths in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from defectgen.boxes import joined_outline, mask_outlines, polygon_xyxy
from defectgen.data.annotations import Fault, MarkedSet, Marks, annotation, class_id_of, slashed
from defectgen.data.formats.text import json_content
from defectgen.errors import DataError
from defectgen.records import Annotation, Polygon

_REMEDY = "export it again as COCO instances"


def read_coco(path: Path) -> MarkedSet:
    """The annotations of every image that a COCO file lists.

    Raises:
        DataError: it is no COCO file.
    """
    try:
        content = json_content(path.read_text(encoding="utf-8-sig"), _REMEDY)
        images, categories, annotations = (_listed(content, name) for name in ("images", "categories", "annotations"))
        names = _names(categories)
        class_names = _class_names(names, categories, annotations)
        of_file = _of_file(images, annotations)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a COCO file ({error}); {_REMEDY}") from None
    except Fault as fault:
        raise DataError(f"{path}: {fault.reason}; {fault.remedy}") from None
    return MarkedSet(path, class_names, of_file, partial(_annotation_of, categories=names))


def _listed(content: Any, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The mappings of one of the three lists, each with where it stands."""
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise Fault(f"is no COCO file, it has no list `{name}`", _REMEDY)
    for position, one in enumerate(found):
        if not isinstance(one, dict):
            raise Fault(f"{name}[{position}]: is no mapping, got {one!r:.60}", _REMEDY)
    return [(f"{name}[{position}]", one) for position, one in enumerate(found)]


def _number(value: Any) -> int | None:
    """An identifier, which some tools write as text; None for what is none."""
    if isinstance(value, bool):
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if isinstance(value, str) or number == value else None


def _id(one: dict[str, Any], field: str, where: str) -> int:
    found = _number(one.get(field))
    if found is None:
        raise Fault(f"{where}: {field} must be a whole number, got {one.get(field)!r:.60}", _REMEDY)
    return found


def _text(one: dict[str, Any], field: str, where: str) -> str:
    value = one.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Fault(f"{where}: {field} must be a text, got {value!r:.60}", _REMEDY)
    return str(value)


def _names(categories: Sequence[tuple[str, dict[str, Any]]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for where, one in categories:
        number, name = _id(one, "id", where), _text(one, "name", where)
        if names.setdefault(number, name) != name:
            raise Fault(f"{where}: {name!r} has the id {number} of {names[number]!r}", _REMEDY)
    return names


def _class_names(
    names: dict[int, str],
    categories: Sequence[tuple[str, dict[str, Any]]],
    annotations: Sequence[tuple[str, dict[str, Any]]],
) -> tuple[str, ...]:
    """By number; without a parent of the others that nothing is marked with, as Roboflow lists one."""
    used = {_number(one.get("category_id")) for _, one in annotations}
    parent_of = {_number(one["id"]): one.get("supercategory") for _, one in categories}
    # A child may be called as its parent is.
    children = {number for number, parent in parent_of.items() if parent in names.values()}
    parents = {parent_of[number] for number in children}
    return tuple(
        name for number, name in sorted(names.items()) if number in used or number in children or name not in parents
    )


def _of_file(
    images: Sequence[tuple[str, dict[str, Any]]], annotations: Sequence[tuple[str, dict[str, Any]]]
) -> dict[str, Marks]:
    by_image: dict[int, tuple[str, dict[str, Any], list[tuple[str, Any]]]] = {}
    files: set[str] = set()
    for where, one in images:
        number, file = _id(one, "id", where), slashed(_text(one, "file_name", where))
        if number in by_image:
            raise Fault(f"{where}: has the id {number} of another image", _REMEDY)
        if file in files:
            raise Fault(f"{where}: lists {file!r} more than once", _REMEDY)
        files.add(file)
        by_image[number] = (file, one, [])
    for where, one in annotations:
        number = _id(one, "image_id", where)
        if number not in by_image:
            raise Fault(f"{where}: is of image_id {number}, which `images` does not list", _REMEDY)
        file, _, items = by_image[number]
        items.append((f"{where} ({file})", one))
    return {file: Marks(items, (one.get("width"), one.get("height"))) for file, one, items in by_image.values()}


def _annotation_of(
    one: Any, size_wh: tuple[int, int], class_names: Sequence[str], *, categories: dict[int, str]
) -> Annotation:
    stated = one.get("category_id")
    number = _number(stated)
    if number is None or number not in categories:
        raise Fault(f"category_id {stated!r:.60} is not in categories", _REMEDY)
    class_id = class_id_of(categories[number], class_names)
    outline = _outline(one.get("segmentation"), size_wh)
    if outline is not None:
        return annotation(class_id, polygon_xyxy(outline), outline, size_wh)
    try:
        x, y, width, height = (float(value) for value in one["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Fault(
            f"has neither a segmentation nor a bbox of four numbers, got {one.get('bbox')!r:.60}", _REMEDY
        ) from None
    if not np.isfinite([x, y, width, height]).all():
        raise Fault(f"bbox has a number that is not finite, got {one['bbox']!r:.60}", _REMEDY)
    return annotation(class_id, (x, y, x + width, y + height), None, size_wh)


def _outline(segmentation: Any, size_wh: tuple[int, int]) -> Polygon | None:
    """Parts of one object are joined into one outline; None without any."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        outlines = mask_outlines(_mask(segmentation, size_wh), holes=True)
        if not outlines:
            raise Fault("its run lengths cover no pixel", "draw it again or remove it")
        return joined_outline(outlines)
    try:
        parts = [np.array(part, np.float64).reshape(-1, 2) for part in segmentation if part != []]
    except (TypeError, ValueError, OverflowError):
        raise Fault(f"segmentation is no list of x, y pairs, got {segmentation!r:.60}", _REMEDY) from None
    if not parts:
        return None
    if any(len(part) < 3 for part in parts):
        raise Fault("a part of the segmentation has fewer than 3 points", "draw it again or remove it")
    if not all(np.isfinite(part).all() for part in parts):
        raise Fault("segmentation has a number that is not finite", "draw it again")
    # All one way round, or the areas of two parts would cancel.
    wound = [part[::-1] if cv2.contourArea(part.astype(np.float32), oriented=True) < 0 else part for part in parts]
    return joined_outline([tuple((float(x), float(y)) for x, y in part) for part in wound])


def _mask(run_lengths: dict[str, Any], size_wh: tuple[int, int]) -> np.ndarray:
    """Column by column, background first."""
    from pycocotools import mask as coco_mask

    width, height = size_wh
    size, counts = run_lengths.get("size"), run_lengths.get("counts")
    if size != [height, width]:
        raise Fault(f"run lengths are of {size!r:.60}, the image has {[height, width]} (height, width)", _REMEDY)
    if isinstance(counts, str):
        counts = _counts(counts)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise Fault(f"counts are no list of whole numbers, got {counts!r:.60}", _REMEDY)
    # Where they do not fill the image, pycocotools shows what was in memory before.
    odd = next((count for count in counts if not 0 <= count <= width * height), None)
    if odd is not None:
        raise Fault(f"a run length must be within 0 and {width * height} pixels, got {odd!r:.60}", _REMEDY)
    if sum(counts) != width * height:
        raise Fault(f"run lengths sum to {sum(counts)}, not {width * height} pixels", _REMEDY)
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    decoded: np.ndarray = coco_mask.decode(encoded)
    return decoded.astype(bool)


def _counts(text: str) -> list[int]:
    """The run lengths of COCO's compressed text: five bits a character, each count as its change against that of the
    last but one (cocoapi, maskApi.c, rleFrString).
    """
    counts: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise Fault(f"counts are no compressed run lengths, got {text!r:.60}", _REMEDY)
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise Fault(f"counts are compressed run lengths cut short, got {text!r:.60}", _REMEDY)
    return counts
