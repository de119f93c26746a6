"""`manifest.jsonl`: a header record, then one record per image, in order of its index; and what follows from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from defectgen.boxes import clip_xyxy, yolo_from_xyxy
from defectgen.errors import DataError
from defectgen.records import XYXY, Problem

MANIFEST_NAME = "manifest.jsonl"
FOLDERS = ("images", "labels", "defect_masks")
REGENERATE = "make the set again with `defectgen synth RECIPE --overwrite`"

Task = Literal["detect", "segment"]
LabelRow = tuple[int, tuple[float, ...]]
_Coordinate = Annotated[float, Field(allow_inf_nan=False)]
_Box = Annotated[list[_Coordinate], Field(min_length=4, max_length=4)]
_Point = Annotated[list[_Coordinate], Field(min_length=2, max_length=2)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_STRICT = ConfigDict(extra="forbid", strict=True)


@with_config(_STRICT)
class KeptRow(TypedDict):
    """A real annotation that remains in the image; boxes and outlines in pixels of the image."""

    class_id: int
    class_name: str
    xyxy: _Box
    polygon: list[_Point] | None


@with_config(_STRICT)
class PlacedRow(TypedDict):
    """A synthetic defect; `polygon` is the outline of its changed pixels, pieces joined."""

    class_id: int
    class_name: str
    label_xyxy: _Box
    changed_xyxy: _Box
    asked_xyxy: _Box
    polygon: list[_Point] | None
    placement: dict[str, Any]


@with_config(_STRICT)
class RejectedRow(TypedDict):
    """A placement that was tried and refused."""

    class_id: int
    class_name: str
    reason: str
    detail: str


@with_config(_STRICT)
class ImageRow(TypedDict):
    """One image of the set. File names are relative to the set's folder, the source's to the user's data."""

    kind: Literal["image"]
    index: Annotated[int, Field(ge=0)]
    size_wh: Annotated[list[int], Field(min_length=2, max_length=2)]
    image: Annotated[str, Field(pattern=r"^images/\d{6,}\.(png|jpg)$")]
    image_sha256: _Sha256
    label: Annotated[str, Field(pattern=r"^labels/\d{6,}\.txt$")]
    label_sha256: _Sha256
    mask: Annotated[str, Field(pattern=r"^defect_masks/\d{6,}\.png$")]
    mask_sha256: _Sha256
    source: str
    source_sha256: str
    kept: list[KeptRow]
    placed: list[PlacedRow]
    rejected: list[RejectedRow]


@with_config(_STRICT)
class HeaderRow(TypedDict):
    """What holds for the whole set; `rejected`: indexes that a person rejected, rising, where there are any;
    `regions_sha256`: of the masks of where defects may be, where the recipe names some.
    """

    kind: Literal["header"]
    version: str
    recipe_sha256: _Sha256
    generator_fingerprint: str
    class_names: Annotated[list[str], Field(min_length=1)]
    task: Task
    num_images: Annotated[int, Field(ge=1)]
    rejected: NotRequired[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]]
    regions_sha256: NotRequired[_Sha256]


_HEADER = TypeAdapter(HeaderRow)
_IMAGE = TypeAdapter(ImageRow)


@dataclass(frozen=True)
class Manifest:
    header: HeaderRow
    rows: tuple[ImageRow, ...]


class ManifestError(DataError):
    """The manifest cannot be used; `problem` says where and why."""

    def __init__(self, path: Path, where: str, reason: str) -> None:
        self.problem = Problem("error", str(path), where, reason, REGENERATE)
        super().__init__(str(self.problem))


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`: its header and as many image rows as the header says, in order of their index.

    Raises:
        ManifestError: it is missing, torn, short, out of order, or a record lacks a field; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ManifestError(path, "", "is missing: the set was never finished, or this is no data set") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(path, "", f"cannot be read ({error})") from None
    # Every record ends in a newline, so that a torn last record shows.
    if lines[-1]:
        raise ManifestError(path, f"line {len(lines)}", "is torn: no end of line")
    records = lines[:-1]
    if not records:
        raise ManifestError(path, "", "is empty")
    header = _parse_record(records[0], _HEADER, path, "line 1")
    rows: list[ImageRow] = []
    for number, record in enumerate(records[1:], start=2):
        row = _parse_record(record, _IMAGE, path, f"line {number}")
        if rows and row["index"] <= rows[-1]["index"]:
            reason = f"index {row['index']} follows {rows[-1]['index']}; indexes must rise"
            raise ManifestError(path, f"line {number}", reason)
        rows.append(row)
    if len(rows) != header["num_images"]:
        raise ManifestError(path, "", f"lists {len(rows)} images, its header says {header['num_images']}")
    return Manifest(header, tuple(rows))


def parse_image_row(text: str, path: Path) -> ImageRow:
    """The image row in `text`, a JSON object read from `path`.

    Raises:
        ManifestError: it is no valid JSON or lacks a field.
    """
    return _parse_record(text, _IMAGE, path, "")


def _parse_record(text: str, adapter: TypeAdapter[Any], path: Path, where: str) -> Any:
    try:
        return adapter.validate_python(json.loads(text))
    except ValueError as error:
        if not isinstance(error, ValidationError):
            raise ManifestError(path, where, f"is no valid JSON ({error})") from None
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"]) or "record"
        got = "" if fault["type"] == "missing" else f", got {str(fault['input'])[:60]!r}"
        raise ManifestError(path, where, f"{field}: {fault['msg'].lower()}{got}") from None


def set_indexes(num_images: int, rejected: Collection[int] = ()) -> list[int]:
    """Indexes of the images of a set, rising: the first `num_images` from 0 on that no person rejected."""
    left_out = frozenset(rejected)
    return list(islice((index for index in count() if index not in left_out), num_images))


def json_line(record: Any) -> str:
    """One line of JSON ending in a newline, the same for the same record: keys sorted, ASCII alone."""
    return json.dumps(record, sort_keys=True, allow_nan=False) + "\n"


def label_rows(row: ImageRow, task: Task) -> list[LabelRow]:
    """What the label file of an image must hold: kept real annotations, then placed defects, each once.

    Returns:
        (class_id, numbers) per row, numbers as shares of the image's size. detect: centre x, centre y, width, height;
        segment: x, y of every corner of the outline, or of the box where there is none.

    Raises:
        DataError: a box has no area within the image.
    """
    size_wh = (row["size_wh"][0], row["size_wh"][1])
    marks = [(kept["class_id"], kept["xyxy"], kept["polygon"]) for kept in row["kept"]]
    marks += [(placed["class_id"], placed["label_xyxy"], placed["polygon"]) for placed in row["placed"]]
    rows = []
    for class_id, box, polygon in marks:
        xyxy = clip_xyxy((box[0], box[1], box[2], box[3]), size_wh)
        if xyxy[2] - xyxy[0] <= 0 or xyxy[3] - xyxy[1] <= 0:
            raise DataError(
                f"{row['label']}: the box {box} of class {class_id} has no area within {size_wh[0]}x{size_wh[1]}; "
                "check the source's labels with `defectgen check`"
            )
        numbers = yolo_from_xyxy(xyxy, size_wh) if task == "detect" else _outline_numbers(xyxy, polygon, size_wh)
        rows.append((class_id, tuple(round(float(number), 6) for number in numbers)))
    # Ultralytics drops repeated rows with a log line per image: write them once.
    return list(dict.fromkeys(rows))


def _outline_numbers(xyxy: XYXY, polygon: list[list[float]] | None, size_wh: tuple[int, int]) -> tuple[float, ...]:
    x1, y1, x2, y2 = xyxy
    corners: Sequence[Sequence[float]] = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    if polygon is not None and len(polygon) >= 3:
        corners = polygon
    return tuple(min(max(corner[axis] / size_wh[axis], 0.0), 1.0) for corner in corners for axis in (0, 1))


def label_text(rows: Iterable[LabelRow]) -> str:
    """The label file's text: one row per line, six decimals; empty where nothing is labelled."""
    return "".join(f"{class_id} {' '.join(f'{number:.6f}' for number in numbers)}\n" for class_id, numbers in rows)


def summarise(rows: Iterable[ImageRow], class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Counts of a set; classes named in `class_names` appear even where nothing of them was placed.

    Returns:
        num_images, num_composites (with a synthetic defect), num_kept_only (real defects alone), num_clean,
        num_rejected, and per class name: `classes[name]` = {num_placed, num_kept, num_images, longest_px (of placed
        labels: [least, median, most], None without any)}; `rejections[reason][name]` = count.
    """
    rows = list(rows)
    placed: dict[str, list[float]] = {name: [] for name in class_names}
    kept: Counter[str] = Counter()
    images: Counter[str] = Counter()
    rejections: dict[str, Counter[str]] = {}
    for row in rows:
        for defect in row["placed"]:
            x1, y1, x2, y2 = defect["label_xyxy"]
            placed.setdefault(defect["class_name"], []).append(max(x2 - x1, y2 - y1))
        kept.update(annotation["class_name"] for annotation in row["kept"])
        images.update({defect["class_name"] for defect in row["placed"]})
        for refused in row["rejected"]:
            rejections.setdefault(refused["reason"], Counter())[refused["class_name"]] += 1
    names = [*placed, *sorted(set(kept) - set(placed))]
    return {
        "num_images": len(rows),
        "num_composites": sum(bool(row["placed"]) for row in rows),
        "num_kept_only": sum(bool(row["kept"]) and not row["placed"] for row in rows),
        "num_clean": sum(not row["placed"] and not row["kept"] for row in rows),
        "num_rejected": sum(sum(counts.values()) for counts in rejections.values()),
        "classes": {
            name: {
                "num_placed": len(placed.get(name, [])),
                "num_kept": kept[name],
                "num_images": images[name],
                "longest_px": _spread(placed.get(name, [])),
            }
            for name in names
        },
        "rejections": {reason: dict(sorted(rejections[reason].items())) for reason in sorted(rejections)},
    }


def _spread(values: list[float]) -> list[float] | None:
    if not values:
        return None
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return [round(number, 1) for number in (ordered[0], median, ordered[-1])]
