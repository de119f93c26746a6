"""Folders of images and labels in; labelled images, and every fault found in them, out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from defectgen.boxes import clip_xyxy, polygon_xyxy, xyxy_from_yolo
from defectgen.data.split import group_of
from defectgen.errors import DataError
from defectgen.images import IMAGE_SUFFIXES, list_images, read_rgb
from defectgen.recipe import Data
from defectgen.records import XYXY, Annotation, LabelledImage, Polygon, Problem

Found = tuple[list[LabelledImage], list[Problem]]
Parsed = tuple[list[Annotation], list[Problem]]
Parser = Callable[[str, tuple[int, int], Sequence[str], str], Parsed]
Item = TypeVar("Item")

# Under a pixel by more than six decimals round off.
_MIN_SIDE_PX = 0.95
# labelImg leaves it among the labels.
_NO_LABEL_FILE = "classes.txt"


class _Fault(Exception):
    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def class_names(data: Data, root: Path) -> tuple[str, ...]:
    """The class names in label order: the recipe's `data.classes`, else `names` of `root`/data.yaml.

    Raises:
        DataError: a name occurs twice, or data.yaml is missing or has no usable `names`.
    """
    path = root / "data.yaml"
    names, origin = (data.classes, "data.classes") if data.classes else (_names_in(path), f"{path}: names")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{origin}: {repeated[0]!r} occurs more than once; give every class a name of its own")
    return tuple(names)


def _names_in(path: Path) -> list[str]:
    remedy = "list the class names in label order there, or in data.classes"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read for the class names ({reason}); {remedy}") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{path}: names: must be numbered from 0 without gaps, got {list(names)}; {remedy}")
        names = [names[class_id] for class_id in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names: must be a list or mapping of class names, got {names!r}; {remedy}")
    return [str(name) for name in names]


def read_yolo(
    images: Path, labels: Path | None, class_names: Sequence[str], *, group_pattern: str | None = None
) -> Found:
    """The images under `images` with their YOLO rows (boxes or polygons), and what is wrong with them.

    Every image is decoded. An image with an error is left out; an empty label file makes a clean image. `labels`
    None: see `find_labels`. `group_pattern`: as in the recipe.

    Raises:
        DataError: `images` is no folder.
    """
    return _read_labelled(images, labels, ".txt", parse_yolo, class_names, group_pattern)


def read_labelme(
    images: Path, labels: Path | None, class_names: Sequence[str], *, group_pattern: str | None = None
) -> Found:
    """As `read_yolo`, with a labelme JSON file (polygons and rectangles) per image.

    Raises:
        DataError: `images` is no folder.
    """
    return _read_labelled(images, labels, ".json", parse_labelme, class_names, group_pattern)


def read_clean(images: Path, *, group_pattern: str | None = None) -> Found:
    """The images under `images` without annotations, whatever label files lie about, and what is wrong with them.

    Raises:
        DataError: `images` is no folder.
    """
    return _read_all(images, partial(_read_image, folder=images, group_pattern=group_pattern))


def find_labels(images: Path) -> Path:
    """The folder of the labels of `images`: .../labels/... for .../images/..., else a sibling `labels`, else itself."""
    parts = list(images.parts)
    candidates = [images.parent / "labels"]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        candidates.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]))
    return next((folder for folder in candidates if folder.is_dir()), images)


def _read_all(images: Path, read_one: Callable[[Path], Found]) -> Found:
    paths = list_images(images)
    if not paths:
        remedy = f"put images ({', '.join(sorted(IMAGE_SUFFIXES))}) there, or name another folder"
        return [], [Problem("error", str(images), "", "holds no image", remedy)]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read_one, paths))
    return [image for found, _ in results for image in found], [problem for _, faults in results for problem in faults]


def _read_image(path: Path, folder: Path, group_pattern: str | None) -> Found:
    """The image without annotations, or what is wrong with it."""
    name = path.relative_to(folder).as_posix()
    try:
        height, width = read_rgb(path).shape[:2]
    except DataError as error:
        reason, _, remedy = str(error).removeprefix(f"{path}: ").rpartition("; ")
        return [], [Problem("error", str(path), "", reason, remedy)]
    group = group_of(name, group_pattern)
    if group is None:
        remedy = "rename the file or correct the pattern"
        return [], [
            Problem("error", str(path), "", f"data.group_pattern {group_pattern!r} finds no group in it", remedy)
        ]
    return [LabelledImage(path.absolute(), name, (width, height), group)], []


def _read_labelled(
    images: Path, labels: Path | None, suffix: str, parse: Parser, class_names: Sequence[str], group_pattern: str | None
) -> Found:
    folder = labels or find_labels(images)

    def label_path(path: Path) -> Path:
        return (folder / path.relative_to(images)).with_suffix(suffix)

    def read_one(path: Path) -> Found:
        found, problems = _read_image(path, images, group_pattern)
        if not found:
            return found, problems
        text, problems = _read_label_text(label_path(path))
        if text is None:
            return [], problems
        annotations, problems = parse(text, found[0].size_wh, class_names, str(label_path(path)))
        if any(problem.severity == "error" for problem in problems):
            return [], problems
        image = found[0]
        return [LabelledImage(image.path, image.name, image.size_wh, image.group, tuple(annotations))], problems

    found, problems = _read_all(images, read_one)
    users = Counter(label_path(path) for path in list_images(images))
    for path in sorted(folder.rglob(f"*{suffix}")):
        if path not in users and path.name != _NO_LABEL_FILE and not path.name.startswith("."):
            remedy = f"add its image under {images}, or remove it"
            problems.append(Problem("warning", str(path), "", "the label file has no image", remedy))
    for path, count in users.items():
        if count > 1:
            remedy = "rename the images so that their names differ before the suffix"
            problems.append(Problem("error", str(path), "", f"{count} images share the label file", remedy))
    return found, problems


def _read_label_text(path: Path) -> tuple[str | None, list[Problem]]:
    try:
        # -sig: Windows editors put a byte order mark first.
        return path.read_text(encoding="utf-8-sig"), []
    except FileNotFoundError:
        empty = "an empty .txt" if path.suffix == ".txt" else "a .json without shapes"
        remedy = f"mark its defects, or add {empty} if it is clean"
        return None, [Problem("error", str(path), "", "the label file is missing", remedy)]
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})"
        return None, [Problem("error", str(path), "", reason, "save it as UTF-8 text")]
    except OSError as error:
        return None, [Problem("error", str(path), "", f"cannot be read ({error.strerror})", "check the file")]


def parse_yolo(text: str, size_wh: tuple[int, int], class_names: Sequence[str], path: str) -> Parsed:
    """The annotations of a YOLO label file: `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...` per row, as fractions."""
    rows = ((f"row {number}", line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip())
    return _collect(rows, lambda row: _annotation_of_row(row, size_wh, len(class_names)), path)


def parse_labelme(text: str, size_wh: tuple[int, int], class_names: Sequence[str], path: str) -> Parsed:
    """The annotations of a labelme JSON file: polygons and rectangles in pixels."""
    try:
        content = json.loads(text)
        shapes = _checked_shapes(content, size_wh)
    except json.JSONDecodeError as error:
        reason = f"is no valid JSON ({error.msg} at line {error.lineno})"
        return [], [Problem("error", path, "", reason, "save it again from labelme")]
    except _Fault as fault:
        return [], [Problem("error", path, "", fault.reason, fault.remedy)]
    items = ((f"shape {number}", shape) for number, shape in enumerate(shapes, start=1))
    return _collect(items, lambda shape: _annotation_of_shape(shape, size_wh, class_names), path)


def _collect(items: Iterable[tuple[str, Item]], parse: Callable[[Item], Annotation], path: str) -> Parsed:
    places: dict[Annotation, str] = {}
    problems: list[Problem] = []
    for where, item in items:
        try:
            annotation = parse(item)
        except _Fault as fault:
            problems.append(Problem("error", path, where, fault.reason, fault.remedy))
            continue
        if annotation in places:
            reason = f"repeats {places[annotation]} (class {annotation.class_id})"
            problems.append(Problem("warning", path, where, reason, "it counts once; remove it"))
        places.setdefault(annotation, where)
    return list(places), problems


def _annotation_of_row(row: list[str], size_wh: tuple[int, int], num_classes: int) -> Annotation:
    remedy = "a row is `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...`"
    if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0):
        raise _Fault(f"has {len(row)} values, got {' '.join(row[:8])!r}", remedy)
    values = [_number(token, remedy) for token in row]
    if not values[0].is_integer() or not 0 <= values[0] < num_classes:
        known = f"0 to {num_classes - 1}" if num_classes > 1 else "0"
        raise _Fault(f"class {row[0]} is not one of {known}", "correct it, or add the class to the class names")
    class_id = int(values[0])
    if max(abs(value) for value in values[1:]) > 2:
        raise _Fault(
            f"{max(values[1:], key=abs):g} is no fraction of the image", "divide pixels by the image's width and height"
        )
    if len(values) == 5:
        return _annotation(class_id, xyxy_from_yolo(values[1:], size_wh), None, size_wh)
    polygon = tuple((x * size_wh[0], y * size_wh[1]) for x, y in zip(values[1::2], values[2::2], strict=True))
    return _annotation(class_id, polygon_xyxy(polygon), polygon, size_wh)


def _number(token: str, remedy: str) -> float:
    try:
        value = float(token)
    except ValueError:
        raise _Fault(f"{token!r} is no number", remedy) from None
    if not math.isfinite(value):
        raise _Fault(f"{token!r} is no finite number", remedy)
    return value


def _checked_shapes(content: Any, size_wh: tuple[int, int]) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise _Fault("has no list `shapes`", "save it from labelme")
    for field, size in zip(("imageWidth", "imageHeight"), size_wh, strict=True):
        stated = content.get(field)
        if stated is not None and stated != size:
            raise _Fault(
                f"{field} is {stated}, but the image has {size} px", "mark the defects on this very image, upright"
            )
    return content["shapes"]


def _annotation_of_shape(shape: Any, size_wh: tuple[int, int], class_names: Sequence[str]) -> Annotation:
    if not isinstance(shape, dict):
        raise _Fault(f"is no mapping, got {shape!r}", "save the file from labelme")
    label, kind = shape.get("label"), shape.get("shape_type", "polygon")
    if not isinstance(label, str) or label not in class_names:
        raise _Fault(f"label {label!r} is not one of {', '.join(class_names)}", "correct it, or add it to data.classes")
    if kind not in ("polygon", "rectangle"):
        raise _Fault(f"shape_type {kind!r} cannot be used", "draw a polygon or a rectangle")
    try:
        corners = np.array(shape.get("points"), dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise _Fault(
            f"points are no pairs of numbers, got {shape.get('points')!r:.60}", "draw the shape again"
        ) from None
    if not np.isfinite(corners).all():
        raise _Fault("has a point that is no finite number", "draw the shape again")
    fewest = 2 if kind == "rectangle" else 3
    if len(corners) < fewest:
        raise _Fault(f"the {kind} has {len(corners)} points, needs {fewest}", "draw the shape again")
    polygon = tuple((float(x), float(y)) for x, y in corners)
    class_id = list(class_names).index(label)
    return _annotation(class_id, polygon_xyxy(polygon), polygon if kind == "polygon" else None, size_wh)


def _annotation(class_id: int, xyxy: XYXY, polygon: Polygon | None, size_wh: tuple[int, int]) -> Annotation:
    """The annotation cut to the image where it is off by rounding alone: half a pixel, or a thousandth of the side."""
    x1, y1, x2, y2 = xyxy
    shape = "outline" if polygon else "box"
    collinear = polygon is not None and np.linalg.matrix_rank(np.subtract(polygon, polygon[0]), tol=0.1) < 2
    if x2 <= x1 or y2 <= y1 or collinear:
        line = ", its points on one line" if collinear else ""
        raise _Fault(f"the {shape} has no area, got {x2 - x1:g} x {y2 - y1:g} px{line}", "draw it again or remove it")
    width, height = size_wh
    outside_px = max(-x1, -y1, x2 - width, y2 - height)
    allowed = [max(0.5, 1e-3 * side) for side in size_wh]
    if max(-x1, x2 - width) > allowed[0] or max(-y1, y2 - height) > allowed[1]:
        raise _Fault(
            f"the {shape} reaches {outside_px:.1f} px outside the image of {width} x {height} px", "draw it inside"
        )
    clipped = clip_xyxy(xyxy, size_wh)
    sides = clipped[2] - clipped[0], clipped[3] - clipped[1]
    if min(sides) < _MIN_SIDE_PX:
        raise _Fault(
            f"the {shape} is {sides[0]:.2f} x {sides[1]:.2f} px, less than a pixel", "draw it again or remove it"
        )
    if polygon is not None:
        polygon = tuple((min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))) for x, y in polygon)
    return Annotation(class_id, clipped, polygon)
