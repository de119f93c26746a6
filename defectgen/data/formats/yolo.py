"""YOLO label files: a row per defect, as fractions of the image; and data.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from defectgen.boxes import clip_polygon, polygon_xyxy, xyxy_from_yolo
from defectgen.data.annotations import Fault, Parsed, annotation, collect, number
from defectgen.errors import DataError
from defectgen.records import Annotation, Polygon, Problem

DATA_YAML = "data.yaml"
_NAMES_REMEDY = "list the class names in label order there, or in data.classes"


def parse_yolo(text: str, size_wh: tuple[int, int], class_names: Sequence[str], path: str) -> Parsed:
    """The annotations of a YOLO label file: `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...` per row, as fractions."""
    rows = [(f"row {number}", line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    annotations, problems = collect(rows, lambda row: _annotation_of_row(row, size_wh, len(class_names)), path)
    if len({annotation.polygon is None for annotation in annotations}) > 1:
        # ultralytics would read the boxes as outlines of five numbers.
        reason, remedy = "has boxes and outlines", "keep to one of them: trainers take all rows for one kind"
        problems.append(Problem("warning", path, "", reason, remedy))
    return annotations, problems


def _annotation_of_row(row: list[str], size_wh: tuple[int, int], num_classes: int) -> Annotation:
    remedy = "a row is `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...`"
    if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0):
        raise Fault(f"has {len(row)} values, got {' '.join(row[:8])!r:.90}", remedy)
    values = [number(token, remedy) for token in row]
    if not values[0].is_integer() or not 0 <= values[0] < num_classes:
        known = f"0 to {num_classes - 1}" if num_classes > 1 else "0"
        raise Fault(f"class {row[0]:.60} is not one of {known}", "correct it, or add the class to the class names")
    class_id = int(values[0])
    if max(abs(value) for value in values[1:]) > 2:
        raise Fault(
            f"{max(values[1:], key=abs):g} is no fraction of the image", "divide pixels by the image's width and height"
        )
    if len(values) == 5:
        return annotation(class_id, xyxy_from_yolo(values[1:], size_wh), None, size_wh)
    polygon = tuple((x * size_wh[0], y * size_wh[1]) for x, y in zip(values[1::2], values[2::2], strict=True))
    if _is_rectangle(polygon) and all(0 <= sum(value) < 4 for value in (values[1::2], values[2::2])):
        # A tilted box at an edge cannot be drawn inside the image.
        polygon = clip_polygon(polygon, (0.0, 0.0, float(size_wh[0]), float(size_wh[1])))
    return annotation(class_id, polygon_xyxy(polygon), polygon, size_wh)


def _is_rectangle(polygon: Polygon) -> bool:
    """Whether four corners are those of an oriented box, to the rounding of their six decimals and a pixel."""
    if len(polygon) != 4:
        return False
    corners = np.array(polygon)
    diagonals = corners[2] - corners[0], corners[3] - corners[1]
    lengths = [float(np.linalg.norm(diagonal)) for diagonal in diagonals]
    apart = float(np.linalg.norm(corners[0] + corners[2] - corners[1] - corners[3])) / 2
    return apart <= 1 and abs(lengths[0] - lengths[1]) <= 2


def names_in(path: Path) -> list[str]:
    """The class names of a data.yaml, in label order.

    Raises:
        DataError: it cannot be read, or names no classes.
    """
    return _names(_content(path), path)


def _content(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError:
        reason = "too many brackets in each other"
    # ValueError: no text, or a number or date that cannot be.
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    raise DataError(f"{path}: cannot be read for the class names ({reason}); {_NAMES_REMEDY}")


def _names(content: Any, path: Path) -> list[str]:
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        by_number = {str(key): name for key, name in names.items()}
        numbers = [str(class_id) for class_id in range(len(names))]
        if by_number.keys() != set(numbers):
            raise DataError(f"{path}: names: must be numbered from 0 without gaps, got {list(names)}; {_NAMES_REMEDY}")
        names = [by_number[number] for number in numbers]
    if not isinstance(names, list) or not names:
        raise DataError(
            f"{path}: names: must be a list or mapping of class names, got {_shown(names)}; {_NAMES_REMEDY}"
        )
    for class_id, name in enumerate(names):
        # YAML reads a bare no, off or null so: they would be classes False and None.
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(f"{path}: names: {class_id} must be a text, got {_shown(name)}; put it in quotes")
    return [str(name) for name in names]


def _shown(value: Any) -> str:
    """Of a list or mapping its kind alone: a few lines of YAML may make one that no memory holds."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict) and value else f"{value!r:.90}"


def faults_in_data_yaml(path: Path) -> list[Problem]:
    """What trainers stumble over in a data.yaml that names its classes; nothing it says is followed or run.

    Raises:
        DataError: as `names_in`.
    """
    content = _content(path)
    problems = []
    num_names, count = len(_names(content, path)), content.get("nc")
    if count is not None and count != num_names:
        remedy = "correct the one or the other: labels mean other classes otherwise"
        problems.append(Problem("error", str(path), "nc", f"is {_shown(count)}, but names has {num_names}", remedy))
    if "download" in content:
        reason = "Ultralytics would run this as code; defectgen does not"
        problems.append(Problem("warning", str(path), "download", reason, "remove the line"))
    stated, own_counts = content.get("path") or "", "remove the line: the file's own folder counts"
    if not isinstance(stated, str) or not _exists(path.parent / stated):
        return [*problems, Problem("warning", str(path), "path", f"there is no folder {_shown(stated)}", own_counts)]
    # A dot, as CVAT writes it, is no doubt.
    if Path(stated) != Path() and not Path(stated).is_absolute():
        reason = f"{_shown(stated)} is relative: Ultralytics looks in the working directory, not in the file's folder"
        problems.append(Problem("warning", str(path), "path", reason, own_counts))
    root = path.parent / stated
    for split in ("train", "val", "test"):
        entries = content.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            # Roboflow's begin with ../ and mean the file's own folder, as Ultralytics knows.
            name = entry if isinstance(entry, str) else None
            if name is None or not (_exists(root / name) or _exists(root / name.removeprefix("../"))):
                reason, remedy = f"there is no {_shown(entry)}", f"correct the path, relative to {root}"
                problems.append(Problem("warning", str(path), split, reason, remedy))
    return problems


def renumbered(names: Sequence[str], path: Path) -> list[Problem]:
    """An error for each of the recipe's class names that has another number in a data.yaml; others are new."""
    try:
        theirs = names_in(path)
    except DataError:
        return []
    remedy = "labels give numbers alone: correct the order of data.classes, or leave it out"
    return [
        Problem(
            "error", "data.classes", f"class {number} {name!r}", f"is number {theirs.index(name)} in {path}", remedy
        )
        for number, name in enumerate(names)
        if name in theirs and theirs.index(name) != number
    ]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # A name too long, or a folder that nobody may look into.
        return False
