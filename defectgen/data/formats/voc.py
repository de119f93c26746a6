"""Pascal VOC: an XML file per image, boxes in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from defectgen.data.annotations import (
    Fault,
    Parsed,
    annotation,
    check_size,
    class_id_of,
    collect,
    number,
    spelling_doubts,
)
from defectgen.data.formats.text import xml_root
from defectgen.records import Annotation, Problem

_REMEDY = "export it again as Pascal VOC"


def parse_voc(text: str, size_wh: tuple[int, int], class_names: Sequence[str], path: str) -> Parsed:
    """The annotations of a Pascal VOC file: `object` elements with a `bndbox`.

    Pixels count from 1 there, and `xmax` and `ymax` are the last ones inside (Everingham et al. 2010, development kit).
    """
    try:
        root = xml_root(text, _REMEDY)
        if root.tag != "annotation":
            raise Fault(f"its root is <{root.tag}>, not <annotation>", _REMEDY)
        size = root.find("size")
        if size is not None:
            check_size(size.findtext("width"), size.findtext("height"), size_wh)
    except Fault as fault:
        return [], [Problem("error", path, "", fault.reason, fault.remedy)]
    items = ((f"object {count}", element) for count, element in enumerate(root.iter("object"), start=1))
    annotations, problems = collect(items, lambda element: _annotation_of(element, size_wh, class_names), path)
    return annotations, problems + spelling_doubts(_labels(root), class_names, path)


def labels_in_voc(text: str) -> set[str]:
    """The names a file marks defects with; none where it cannot be read."""
    try:
        return set(_labels(xml_root(text, _REMEDY)))
    except Fault:
        return set()


def _labels(root: Any) -> list[str]:
    return [name for element in root.iter("object") if (name := element.findtext("name"))]


def _annotation_of(element: Any, size_wh: tuple[int, int], class_names: Sequence[str]) -> Annotation:
    class_id = class_id_of(element.findtext("name") or None, class_names)
    box = element.find("bndbox")
    if box is None:
        raise Fault("has no bndbox", _REMEDY)
    x1, y1, x2, y2 = (number(box.findtext(name) or "", _REMEDY) for name in ("xmin", "ymin", "xmax", "ymax"))
    # Tools that count from 0 write a 0 here.
    return annotation(class_id, (max(x1 - 1, 0.0), max(y1 - 1, 0.0), x2, y2), None, size_wh)
