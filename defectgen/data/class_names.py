"""Class names for a recipe, where the reader of the data does not find them by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from defectgen.data.annotations import MarkedSet
from defectgen.data.formats.labelme import labels_in_labelme
from defectgen.data.formats.voc import labels_in_voc
from defectgen.data.formats.yolo import DATA_YAML, names_in
from defectgen.data.layout import Marked
from defectgen.data.places import label_file
from defectgen.errors import DataError
from defectgen.images import outside_runs

# Stands for the names of YOLO classes that nothing names.
UNNAMED = "class"
# labelImg's, CVAT's and darknet's, Roboflow's.
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", DATA_YAML)
# A class number that far above all others is a slip in its row, and no class.
_SLIP = 100


def classes_of(format: str, suffix: str, root: Path, marked: Sequence[Marked]) -> list[str]:
    """Those of labels in a file per image, over all `marked` folders; none for YOLO with a data.yaml.

    Raises:
        DataError: files with the names of YOLO classes contradict each other, or one cannot be read.
    """
    if format == "yolo":
        if (root / DATA_YAML).is_file():
            return []
        if names := _listed(root, marked):
            return names
        return numbered_classes(suffix, marked)
    labels_in = {"labelme": labels_in_labelme, "voc": labels_in_voc}[format]
    return sorted(set().union(*map(labels_in, _texts(suffix, marked))))


def numbered_classes(suffix: str, marked: Sequence[Marked]) -> list[str]:
    """Names for the numbers of YOLO labels, where nothing tells them."""
    return [f"{UNNAMED}{number}" for number in range(num_classes_in(_texts(suffix, marked)))]


def classes_of_sets(first: MarkedSet, all_sets: Sequence[MarkedSet]) -> list[str]:
    """Those of files for all images, where the first does not have them all."""
    names = list(dict.fromkeys([*first.class_names, *(name for one in all_sets for name in one.class_names)]))
    return [] if names == list(first.class_names) else names


def _listed(root: Path, marked: Sequence[Marked]) -> list[str]:
    """The names in the file of class names that lies above all labels, the nearest to the root; else in those that lie
    above some, the longest list.

    Raises:
        DataError: two of these contradict each other.
    """
    found = sorted(
        outside_runs((path for name in _NAME_FILES for path in root.rglob(name) if path.is_file()), root),
        key=lambda path: (len(path.parts), path),
    )
    if not found:
        return []
    if all(one.labels.is_relative_to(found[0].parent) for one in marked):
        return _names_of(found[0])
    places = [place for one in marked for place in (one.labels, one.folder.path)]
    of_labels = {path: _names_of(path) for path in found if any(place.is_relative_to(path.parent) for place in places)}
    if not of_labels:
        # A data.yaml beside other things is of these.
        plain = [path for path in found if path.name != DATA_YAML]
        return _names_of(plain[0]) if plain else []
    longest = max(of_labels, key=lambda path: len(of_labels[path]))
    for path, names in of_labels.items():
        if names != of_labels[longest][: len(names)]:
            raise DataError(
                f"{path}: lists the classes as {', '.join(names)}, but {longest} as {', '.join(of_labels[longest])}; "
                "a label file gives their numbers alone: give all folders one list"
            )
    return of_labels[longest]


def _names_of(path: Path) -> list[str]:
    if path.name == DATA_YAML:
        return list(names_in(path))
    # -sig: Windows editors put a byte order mark first.
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _texts(suffix: str, marked: Sequence[Marked]) -> Iterable[str]:
    """The label files that belong to an image; who cannot read one is told by the reader."""
    for one in marked:
        for image in one.folder.images:
            try:
                yield label_file(one.labels, image.name, suffix).read_text(encoding="utf-8-sig", errors="replace")
            except OSError:
                continue


def num_classes_in(texts: Iterable[str]) -> int:
    """One more than the highest class number of well-formed rows."""
    numbers = {number for text in texts for line in text.splitlines() if (number := _class_number(line)) is not None}
    highest = -1
    for number in sorted(numbers):
        if number - highest > _SLIP:
            break
        highest = number
    return highest + 1


def _class_number(line: str) -> int | None:
    try:
        values = [float(token) for token in line.split()]
    except ValueError:
        return None
    if len(values) < 5 or not all(map(math.isfinite, values)) or values[0] < 0 or not values[0].is_integer():
        return None
    return int(values[0])
