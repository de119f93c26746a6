"""One annotation from the numbers of a label file, checked; whatever the format, a fault reads the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from defectgen.boxes import clip_xyxy, iou_xyxy
from defectgen.records import XYXY, Annotation, Polygon, Problem

Parsed = tuple[list[Annotation], list[Problem]]
# Text of a label file, (width, height) of its image, class names, path -> annotations and what is wrong.
Parser = Callable[[str, tuple[int, int], Sequence[str], str], Parsed]
Item = TypeVar("Item")

# Under a pixel by more than six decimals round off.
MIN_SIDE_PX = 0.95
# Doubtful: smaller than this, or as alike as two boxes of one defect are.
SMALL_PX, SAME_IOU = 1.95, 0.9


@dataclass(frozen=True)
class Marks:
    """What a file says of one image: its annotations, each with where it stands, and the size it states, if any."""

    items: Sequence[tuple[str, Any]]
    stated_wh: tuple[Any, Any] = (None, None)


@dataclass(frozen=True)
class MarkedSet:
    """A file with the annotations of many images.

    Attributes:
        class_names: as it lists them.
        of_file: by the image's name in it, which may be a path.
        parse: an item, (width, height) of its image and the class names -> its annotation; raises `Fault`.
    """

    path: Path
    class_names: tuple[str, ...]
    of_file: dict[str, Marks]
    parse: Callable[[Any, tuple[int, int], Sequence[str]], Annotation]

    @cached_property
    def _of_last_part(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in self.of_file:
            names.setdefault(name.rsplit("/", 1)[-1], []).append(name)
        return names

    def entry_of(self, name: str, images: Path | None = None) -> str | None:
        """The name by which the file lists the image `name`; by its last part, where only one ends so.

        No entry that is the path of another image, from the file's folder or from `images`, to which `name` is
        relative: two cameras may count alike.
        """
        name = slashed(name)
        if name in self.of_file:
            return name
        ending = self._of_last_part.get(name.rsplit("/", 1)[-1], [])
        return ending[0] if len(ending) == 1 and not self._is_of_another(ending[0], name, images) else None

    def _is_of_another(self, entry: str, name: str, images: Path | None) -> bool:
        places = [self.path.parent] if images is None else [self.path.parent, images]
        there = [place / entry for place in places if _is_file(place / entry)]
        if images is not None and _is_file(images / name):
            return bool(there) and not any(path.samefile(images / name) for path in there)
        return any(not path.as_posix().endswith(f"/{name}") for path in there)

    def read(self, entry: str, size_wh: tuple[int, int], class_names: Sequence[str]) -> Parsed:
        """The annotations of the image that the file lists as `entry`."""
        marks = self.of_file[entry]
        try:
            check_size(*marks.stated_wh, size_wh)
        except Fault as fault:
            return [], [Problem("error", str(self.path), repr(entry), fault.reason, fault.remedy)]
        return collect(marks.items, lambda item: self.parse(item, size_wh, class_names), str(self.path))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name too long, or in a folder that nobody may look into.
        return False


class Fault(Exception):
    """What is wrong with one annotation, and what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def collect(items: Iterable[tuple[str, Item]], parse: Callable[[Item], Annotation], path: str) -> Parsed:
    """The annotations of `items`, each with where it stands, and what is wrong or doubtful about them."""
    places: dict[Annotation, str] = {}
    problems: list[Problem] = []
    for where, item in items:
        try:
            annotation = parse(item)
        except Fault as fault:
            problems.append(Problem("error", path, where, fault.reason, fault.remedy))
            continue
        if annotation in places:
            reason = f"repeats {places[annotation]} (class {annotation.class_id})"
            problems.append(Problem("warning", path, where, reason, "it counts once; remove it"))
        elif doubt := _doubt(annotation, places):
            problems.append(Problem("warning", path, where, doubt, "check it"))
        places.setdefault(annotation, where)
    return list(places), problems


def _doubt(annotation: Annotation, before: dict[Annotation, str]) -> str:
    """What about an annotation is most likely a slip; empty where nothing is."""
    x1, y1, x2, y2 = annotation.xyxy
    if min(x2 - x1, y2 - y1) < SMALL_PX:
        return f"is {x2 - x1:.1f} x {y2 - y1:.1f} px, too small for a detector to see"
    for other, where in before.items():
        if iou_xyxy(annotation.xyxy, other.xyxy) > SAME_IOU:
            if other.class_id == annotation.class_id:
                return f"is nearly the box of {where} (class {other.class_id})"
            return f"is the box of {where}, as class {annotation.class_id} instead of {other.class_id}"
    return ""


def class_id_of(label: str | None, class_names: Sequence[str]) -> int:
    if label is None or label not in class_names:
        raise Fault(f"label {label!r} is not one of {', '.join(class_names)}", "correct it, or add it to data.classes")
    return list(class_names).index(label)


def spelling_doubts(labels: Iterable[str], class_names: Sequence[str], path: str) -> list[Problem]:
    """A warning for each of a file's labels that is most likely a slip for a class with a plainer spelling."""
    problems = []
    for label in dict.fromkeys(labels):
        alike = [name for name in class_names if _spoken(name) == _spoken(label)]
        plainest = min(alike, key=lambda name: (name != name.strip(), name != name.casefold()), default=label)
        if plainest != label and label in class_names:
            reason = f"label {label!r} differs from class {plainest!r} by case or blanks alone"
            problems.append(Problem("warning", path, "", reason, "they count as two classes; spell one way"))
    return problems


def _spoken(name: str) -> str:
    return " ".join(name.split()).casefold()


def slashed(name: str) -> str:
    """A path as tools on Windows write it, too, with forward slashes."""
    return name.replace("\\", "/")


def is_other_size(stated: Any, size: int) -> bool:
    """Whether a side that a file states is not that of the image; unknown sides (none, or 0) are no other."""
    text = "" if stated is None else str(stated).strip()
    try:
        return bool(text) and float(text) not in (0, size)
    except ValueError:
        return True


def check_size(width: Any, height: Any, size_wh: tuple[int, int]) -> None:
    """Nothing, where the size that a file states is that of the image, or it states none (or 0)."""
    for side, stated, size in (("width", width, size_wh[0]), ("height", height, size_wh[1])):
        if is_other_size(stated, size):
            raise Fault(
                f"the file states a {side} of {stated!s:.60}, but the image has {size} px",
                "mark the defects on this very image, upright",
            )


def number(token: str, remedy: str) -> float:
    try:
        value = float(token)
    except ValueError:
        raise Fault(f"{token!r:.60} is no number", remedy) from None
    if not math.isfinite(value):
        raise Fault(f"{token!r:.60} is no finite number", remedy)
    return value


def annotation(class_id: int, xyxy: XYXY, polygon: Polygon | None, size_wh: tuple[int, int]) -> Annotation:
    """The annotation cut to the image where it is off by rounding alone: half a pixel, or a thousandth of the side."""
    x1, y1, x2, y2 = xyxy
    shape = "outline" if polygon else "box"
    collinear = polygon is not None and np.linalg.matrix_rank(np.subtract(polygon, polygon[0]), tol=0.1) < 2
    if x2 <= x1 or y2 <= y1 or collinear:
        line = ", its points on one line" if collinear else ""
        raise Fault(f"the {shape} has no area, got {x2 - x1:g} x {y2 - y1:g} px{line}", "draw it again or remove it")
    width, height = size_wh
    outside_px = max(-x1, -y1, x2 - width, y2 - height)
    allowed = [max(0.5, 1e-3 * side) for side in size_wh]
    if max(-x1, x2 - width) > allowed[0] or max(-y1, y2 - height) > allowed[1]:
        raise Fault(
            f"the {shape} reaches {outside_px:.1f} px outside the image of {width} x {height} px", "draw it inside"
        )
    clipped = clip_xyxy(xyxy, size_wh)
    sides = clipped[2] - clipped[0], clipped[3] - clipped[1]
    if min(sides) < MIN_SIDE_PX:
        raise Fault(
            f"the {shape} is {sides[0]:.2f} x {sides[1]:.2f} px, less than a pixel", "draw it again or remove it"
        )
    if polygon is not None:
        polygon = tuple((min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))) for x, y in polygon)
    return Annotation(class_id, clipped, polygon)
