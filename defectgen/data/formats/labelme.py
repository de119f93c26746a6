"""labelme: a JSON file per image, polygons and rectangles in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from defectgen.boxes import polygon_xyxy
from defectgen.data.annotations import (
    Fault,
    Parsed,
    annotation,
    class_id_of,
    collect,
    is_other_size,
    spelling_doubts,
)
from defectgen.data.formats.text import json_content
from defectgen.records import Annotation, Problem

_REMEDY = "save it again from labelme"


def parse_labelme(text: str, size_wh: tuple[int, int], class_names: Sequence[str], path: str) -> Parsed:
    """The annotations of a labelme JSON file: polygons and rectangles in pixels."""
    try:
        shapes = _checked_shapes(json_content(text, _REMEDY), size_wh)
    except Fault as fault:
        return [], [Problem("error", path, "", fault.reason, fault.remedy)]
    items = ((f"shape {number}", shape) for number, shape in enumerate(shapes, start=1))
    annotations, problems = collect(items, lambda shape: _annotation_of_shape(shape, size_wh, class_names), path)
    return annotations, problems + spelling_doubts(filter(None, map(_label, shapes)), class_names, path)


def labels_in_labelme(text: str) -> set[str]:
    """The labels a file marks defects with; none where it cannot be read."""
    try:
        content = json_content(text, _REMEDY)
    except Fault:
        return set()
    shapes = content.get("shapes") if isinstance(content, dict) else None
    return set(filter(None, map(_label, shapes))) if isinstance(shapes, list) else set()


def _label(shape: Any) -> str | None:
    """The class that a shape names, where it names one; a number is a name, too."""
    label = shape.get("label") if isinstance(shape, dict) else None
    return str(label) if isinstance(label, str | int) and not isinstance(label, bool) else None


def _checked_shapes(content: Any, size_wh: tuple[int, int]) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise Fault("has no list `shapes`", "save it from labelme")
    for field, size in zip(("imageWidth", "imageHeight"), size_wh, strict=True):
        stated = content.get(field)
        if is_other_size(stated, size):
            reason = f"{field} is {stated!s:.60}, but the image has {size} px"
            raise Fault(reason, "mark the defects on this very image, upright")
    return content["shapes"]


def _annotation_of_shape(shape: Any, size_wh: tuple[int, int], class_names: Sequence[str]) -> Annotation:
    if not isinstance(shape, dict):
        raise Fault(f"is no mapping, got {shape!r:.60}", "save the file from labelme")
    class_id, kind = class_id_of(_label(shape), class_names), shape.get("shape_type", "polygon")
    if kind not in ("polygon", "rectangle"):
        raise Fault(f"shape_type {kind!r:.60} cannot be used", "draw a polygon or a rectangle")
    try:
        corners = np.array(shape.get("points"), dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise Fault(
            f"points are no pairs of numbers, got {shape.get('points')!r:.60}", "draw the shape again"
        ) from None
    if not np.isfinite(corners).all():
        raise Fault("has a point that is no finite number", "draw the shape again")
    fewest = 2 if kind == "rectangle" else 3
    if len(corners) < fewest:
        raise Fault(f"the {kind} has {len(corners)} points, needs {fewest}", "draw the shape again")
    polygon = tuple((float(x), float(y)) for x, y in corners)
    return annotation(class_id, polygon_xyxy(polygon), polygon if kind == "polygon" else None, size_wh)
