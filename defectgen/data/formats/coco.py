"""COCO: one JSON file for a folder of images; boxes, polygons and run lengths in pixels."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from defectgen.boxes import joined_outline, mask_outlines, polygon_xyxy
from defectgen.data.annotations import Fault, MarkedSet, Marks, annotation, class_id_of
from defectgen.errors import DataError
from defectgen.records import Annotation, Polygon

_REMEDY = "export it again as COCO instances"


def read_coco(path: Path) -> MarkedSet:
    """The annotations of every image that a COCO file lists.

    Raises:
        DataError: it is no COCO file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        images = {int(one["id"]): one for one in content["images"]}
        files = {number: str(one["file_name"]) for number, one in images.items()}
        by_image: dict[int, list[tuple[int, Any]]] = defaultdict(list)
        for position, one in enumerate(content["annotations"]):
            by_image[int(one["image_id"])].append((position, one))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a COCO file ({error}); {_REMEDY}") from None
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: is no COCO file, its {error} is missing or of a wrong kind; {_REMEDY}") from None
    unlisted = sorted(by_image.keys() - files.keys())
    if unlisted:
        raise DataError(f"{path}: an annotation is of image_id {unlisted[0]}, which `images` does not list; {_REMEDY}")
    of_file: dict[str, Marks] = {}
    for number, file in files.items():
        if file in of_file:
            raise DataError(f"{path}: lists {file!r} more than once; {_REMEDY}")
        items = [(f"annotations[{position}] ({file})", one) for position, one in by_image[number]]
        of_file[file] = Marks(items, (images[number].get("width"), images[number].get("height")))
    # Roboflow lists a parent of all classes, which nothing is marked with.
    used = {int(one["category_id"]) for marks in by_image.values() for _, one in marks if "category_id" in one}
    kept = [name for number, name in sorted(names.items()) if number in used] if used else list(names.values())
    return MarkedSet(path, tuple(kept), of_file, partial(_annotation_of, categories=names))


def _annotation_of(
    one: Any, size_wh: tuple[int, int], class_names: Sequence[str], *, categories: dict[int, str]
) -> Annotation:
    if not isinstance(one, dict):
        raise Fault(f"is no mapping, got {one!r:.60}", _REMEDY)
    class_id = class_id_of(categories.get(one.get("category_id", -1)), class_names)
    outline = _outline(one.get("segmentation"), size_wh)
    if outline is not None:
        return annotation(class_id, polygon_xyxy(outline), outline, size_wh)
    try:
        x, y, width, height = (float(value) for value in one["bbox"])
    except (KeyError, TypeError, ValueError):
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
        parts = [np.array(part, np.float64).reshape(-1, 2) for part in segmentation]
    except (TypeError, ValueError, OverflowError):
        raise Fault(f"segmentation is no list of x, y pairs, got {segmentation!r:.60}", _REMEDY) from None
    if any(len(part) < 3 for part in parts):
        raise Fault("a part of the segmentation has fewer than 3 points", "draw it again or remove it")
    if not all(np.isfinite(part).all() for part in parts):
        raise Fault("segmentation has a number that is not finite", "draw it again")
    return joined_outline([tuple((float(x), float(y)) for x, y in part) for part in parts])


def _mask(run_lengths: dict[str, Any], size_wh: tuple[int, int]) -> np.ndarray:
    from pycocotools import mask as coco_mask

    width, height = size_wh
    try:
        if list(run_lengths["size"]) != [height, width]:
            raise Fault(
                f"run lengths are of {run_lengths['size']}, the image has {[height, width]} (height, width)", _REMEDY
            )
        counts = run_lengths["counts"]
        if isinstance(counts, list):
            if min(counts, default=0) < 0 or sum(counts) != width * height:
                raise Fault(f"run lengths sum to {sum(counts)}, not {width * height} pixels", _REMEDY)
            run_lengths = coco_mask.frPyObjects(run_lengths, height, width)
        elif isinstance(counts, str):
            run_lengths = {"size": [height, width], "counts": counts.encode()}
        decoded: np.ndarray = coco_mask.decode(run_lengths)
    except (KeyError, TypeError, ValueError) as error:
        raise Fault(f"run lengths cannot be read ({error})", _REMEDY) from None
    return decoded.astype(bool)
