"""labelme: a JSON file per image, polygons and rectangles in pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from defectgen.boxes import polygon_xyxy
from defectgen.data.annotations import Fault, Parsed, annotation, class_id_of, collect
from defectgen.records import Annotation, Problem


def parse_labelme(text: str, size_wh: tuple[int, int], class_names: Sequence[str], path: str) -> Parsed:
    """The annotations of a labelme JSON file: polygons and rectangles in pixels."""
    try:
        content = json.loads(text)
        shapes = _checked_shapes(content, size_wh)
    except json.JSONDecodeError as error:
        reason = f"is no valid JSON ({error.msg} at line {error.lineno})"
        return [], [Problem("error", path, "", reason, "save it again from labelme")]
    except Fault as fault:
        return [], [Problem("error", path, "", fault.reason, fault.remedy)]
    items = ((f"shape {number}", shape) for number, shape in enumerate(shapes, start=1))
    return collect(items, lambda shape: _annotation_of_shape(shape, size_wh, class_names), path)


def labels_in_labelme(text: str) -> set[str]:
    """The labels a file marks defects with; none where it cannot be read."""
    try:
        return {str(shape["label"]) for shape in json.loads(text)["shapes"]}
    except (ValueError, KeyError, TypeError):
        return set()


def _checked_shapes(content: Any, size_wh: tuple[int, int]) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise Fault("has no list `shapes`", "save it from labelme")
    for field, size in zip(("imageWidth", "imageHeight"), size_wh, strict=True):
        stated = content.get(field)
        if stated is not None and stated != size:
            raise Fault(
                f"{field} is {stated}, but the image has {size} px", "mark the defects on this very image, upright"
            )
    return content["shapes"]


def _annotation_of_shape(shape: Any, size_wh: tuple[int, int], class_names: Sequence[str]) -> Annotation:
    if not isinstance(shape, dict):
        raise Fault(f"is no mapping, got {shape!r}", "save the file from labelme")
    class_id, kind = class_id_of(shape.get("label"), class_names), shape.get("shape_type", "polygon")
    if kind not in ("polygon", "rectangle"):
        raise Fault(f"shape_type {kind!r} cannot be used", "draw a polygon or a rectangle")
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
