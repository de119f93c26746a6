"""A synthetic YOLO data set as it lies on disk, read for its arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from defectgen.boxes import polygon_xyxy, xyxy_from_yolo
from defectgen.errors import DataError
from defectgen.images import list_images, size_wh
from defectgen.records import Annotation, LabelledImage


def read_yolo_folder(folder: Path, *, class_names: Sequence[str], outlines: bool) -> list[LabelledImage]:
    """The images of a YOLO data set with their labels; polygon rows keep their outline and give their box.

    Raises:
        DataError: no images, a label file missing, or a row that cannot be used; every fault, one per line.
    """
    paths = list_images(folder / "images")
    if not paths:
        raise DataError(f"{folder}: holds no images; make the data set again")
    images, faults = [], []
    for path in paths:
        name = path.relative_to(folder / "images")
        label_path = (folder / "labels" / name).with_suffix(".txt")
        wh = size_wh(path)
        annotations = []
        try:
            rows = label_path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{label_path}: cannot be read ({error}); make the data set again")
            continue
        for number, row in enumerate(rows, 1):
            try:
                annotations.append(_parse_row(row.split(), wh, num_classes=len(class_names), outlines=outlines))
            except ValueError as error:
                faults.append(f"{label_path}: line {number}: {error}, got {row[:60]!r}")
        images.append(LabelledImage(path, name.as_posix(), wh, "", tuple(annotations)))
    if faults:
        raise DataError("\n".join(faults))
    return images


def _parse_row(fields: list[str], wh: tuple[int, int], *, num_classes: int, outlines: bool) -> Annotation:
    """Raises: ValueError saying what is wrong with the row."""
    class_id, values = int(fields[0]) if fields else -1, [float(value) for value in fields[1:]]
    if not 0 <= class_id < num_classes:
        raise ValueError(f"the class must be within 0 to {num_classes - 1}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("every coordinate must be a finite number")
    if len(values) == 4:
        if outlines:
            raise ValueError("a -seg or -obb model needs an outline (labels.task: segment)")
        return Annotation(class_id, xyxy_from_yolo(values, wh))
    if len(values) < 6 or len(values) % 2:
        raise ValueError("a row must be a class and 4 box values, or a class and at least 3 points")
    polygon = tuple((x * wh[0], y * wh[1]) for x, y in zip(values[::2], values[1::2], strict=True))
    return Annotation(class_id, polygon_xyxy(polygon), polygon)
