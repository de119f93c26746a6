"""CVAT for images 1.1: one XML file for a folder of images; boxes, polygons and masks in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defectgen.boxes import joined_outline, mask_outlines, polygon_xyxy
from defectgen.data.annotations import Fault, MarkedSet, Marks, annotation, class_id_of, number, slashed
from defectgen.data.formats.text import xml_root
from defectgen.errors import DataError
from defectgen.records import Annotation, Polygon

_REMEDY = "export it again as CVAT for images 1.1"
_SHAPES = ("box", "polygon", "mask", "polyline", "points", "ellipse", "cuboid", "skeleton")


def read_cvat(path: Path) -> MarkedSet:
    """The annotations of every image that a CVAT file lists.

    Raises:
        DataError: it is no such file.
    """
    try:
        root = xml_root(path.read_bytes(), _REMEDY)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except Fault as fault:
        raise DataError(f"{path}: {fault.reason}; {fault.remedy}") from None
    if root.tag != "annotations":
        raise DataError(f"{path}: its root is <{root.tag}>, not <annotations>; {_REMEDY}")
    if root.find("track") is not None:
        raise DataError(f"{path}: holds the tracks of a video, not images; {_REMEDY}")
    of_file: dict[str, Marks] = {}
    used = []
    for image in root.findall("image"):
        name = slashed(image.get("name", ""))
        if not name or name in of_file:
            raise DataError(f"{path}: an image has {f'the name {name!r} of another' if name else 'no name'}; {_REMEDY}")
        shapes = [element for element in image if element.tag in _SHAPES]
        used += [shape.get("label") for shape in shapes]
        items = [(f"image {name!r}, {shape.tag} {count}", shape) for count, shape in enumerate(shapes, start=1)]
        of_file[name] = Marks(items, (image.get("width"), image.get("height")))
    names = [element.text for element in root.iterfind("./meta//labels/label/name")]
    return MarkedSet(path, tuple(dict.fromkeys(name for name in names or used if name)), of_file, _annotation_of)


def _annotation_of(shape: Any, size_wh: tuple[int, int], class_names: Sequence[str]) -> Annotation:
    class_id = class_id_of(shape.get("label"), class_names)
    if shape.tag == "box":
        x1, y1, x2, y2 = (_value(shape, name) for name in ("xtl", "ytl", "xbr", "ybr"))
        angle = number(shape.get("rotation", "0"), _REMEDY)
        if angle % 360 == 0:
            return annotation(class_id, (x1, y1, x2, y2), None, size_wh)
        outline = _turned(x1, y1, x2, y2, math.radians(angle))
    elif shape.tag == "polygon":
        outline = _points(shape.get("points", ""))
    elif shape.tag == "mask":
        outlines = mask_outlines(_mask(shape, size_wh), holes=True)
        if not outlines:
            raise Fault("the mask covers no pixel", "draw it again or remove it")
        outline = joined_outline(outlines)
    else:
        raise Fault(f"a {shape.tag} cannot be used", "draw a box, a polygon or a mask")
    return annotation(class_id, polygon_xyxy(outline), outline, size_wh)


def _value(shape: Any, name: str) -> float:
    return number(shape.get(name, ""), _REMEDY)


def _points(text: str) -> Polygon:
    pairs = [pair.split(",") for pair in text.split(";")]
    if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
        raise Fault(f"points are no three or more x,y pairs, got {text!r:.60}", "draw it again")
    return tuple((number(x, _REMEDY), number(y, _REMEDY)) for x, y in pairs)


def _turned(x1: float, y1: float, x2: float, y2: float, angle: float) -> Polygon:
    """The corners of a box turned clockwise, as one sees it, about its middle."""
    middle_x, middle_y, cos, sin = (x1 + x2) / 2, (y1 + y2) / 2, math.cos(angle), math.sin(angle)
    corners = [(x - middle_x, y - middle_y) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
    return tuple((middle_x + x * cos - y * sin, middle_y + x * sin + y * cos) for x, y in corners)


def _mask(shape: Any, size_wh: tuple[int, int]) -> np.ndarray:
    """Run lengths, row by row, background first, within the mask's own box."""
    left, top, width, height = (int(_value(shape, name)) for name in ("left", "top", "width", "height"))
    try:
        counts = [int(count) for count in shape.get("rle", "").split(",")]
    except ValueError:
        raise Fault(f"rle is no list of whole numbers, got {shape.get('rle', '')!r:.60}", _REMEDY) from None
    inside = min(left, top) >= 0 < min(width, height) and left + width <= size_wh[0] and top + height <= size_wh[1]
    if min(counts) < 0 or sum(counts) != width * height or not inside:
        raise Fault(f"its run lengths are not those of {width} x {height} px within the image", _REMEDY)
    mask = np.zeros(size_wh[::-1], bool)
    values = np.arange(len(counts)) % 2 == 1
    mask[top : top + height, left : left + width] = np.repeat(values, counts).reshape(height, width)
    return mask
