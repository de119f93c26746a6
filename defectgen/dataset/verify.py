"""A finished data set against its manifest: every file, hash, label row, mask and data.yaml. Reads, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import yaml

from defectgen.boxes import mask_xyxy
from defectgen.dataset.manifest import (
    FOLDERS,
    MANIFEST_NAME,
    REGENERATE,
    HeaderRow,
    ImageRow,
    LabelRow,
    Manifest,
    ManifestError,
    PlacedRow,
    label_rows,
    read_manifest,
    set_indexes,
)
from defectgen.errors import DataError
from defectgen.images import read_rgb, sha256_bytes, sha256_file
from defectgen.progress import Progress, silent
from defectgen.records import Problem

# Labels have six decimals: half a unit of rounding each in the file and in what it is compared with.
_LABEL_TOLERANCE = 1.0000001e-6
# Boxes in the manifest have three decimals.
_BOX_TOLERANCE_PX = 0.01
_MASK_TOLERANCE_PX = 1.0


def verify_dataset(folder: Path, progress: Progress = silent) -> list[Problem]:
    """Everything in which the set differs from its manifest, or the manifest from itself; empty where it is sound.

    A file gives its most telling fault alone: for a label the rows that are wrong, else that its hash differs.
    """
    try:
        manifest = read_manifest(folder / MANIFEST_NAME)
    except ManifestError as error:
        return [error.problem]
    problems = list(_data_yaml_problems(folder / "data.yaml", manifest.header))
    if (folder / "rows").exists():
        reason = "is left over: the set is not finished"
        problems.append(Problem("error", str(folder / "rows"), "", reason, "run `defectgen synth` again"))
    problems += _index_problems(folder / MANIFEST_NAME, manifest)
    problems += _extra_files(folder, manifest.rows)
    for number, row in enumerate(manifest.rows, 1):
        problems += _row_problems(folder / MANIFEST_NAME, row, manifest.header)
        problems += _image_problems(folder / row["image"], row)
        problems += _label_problems(folder / row["label"], row, manifest.header)
        problems += _mask_problems(folder / row["mask"], row)
        progress("verify", number, len(manifest.rows), "")
    return problems


def _fault(path: Path, reason: str, where: str = "") -> Problem:
    return Problem("error", str(path), where, reason, REGENERATE)


def _data_yaml_problems(path: Path, header: HeaderRow) -> Iterator[Problem]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        yield _fault(path, reason)
        return
    if not isinstance(data, dict):
        yield _fault(path, f"must be a mapping, got {type(data).__name__}")
        return
    if "download" in data:
        yield Problem("error", str(path), "download", "Ultralytics executes this as code", "remove the line")
    if "path" in data:
        reason = f"ties the set to one folder, got {str(data['path'])!r}"
        yield Problem("error", str(path), "path", reason, "remove the line: the root is then the file's own folder")
    if data.get("train") != "images":
        yield Problem("error", str(path), "train", f"must be images, got {data.get('train')!r}", "correct the line")
    # `val` is free: the user is told to put real images there.
    if not data.get("val"):
        yield Problem("error", str(path), "val", "is required by Ultralytics", "name a folder of real images")
    expected = dict(enumerate(header["class_names"]))
    names = data.get("names")
    if (dict(enumerate(names)) if isinstance(names, list) else names) != expected:
        yield Problem("error", str(path), "names", f"must be {expected}, got {names}", "correct the names")


def _index_problems(path: Path, manifest: Manifest) -> Iterator[Problem]:
    """Images that are listed though the header leaves them out, or the other way round."""
    asked = set(set_indexes(manifest.header["num_images"], manifest.header.get("rejected", ())))
    listed = {row["index"] for row in manifest.rows}
    for index in sorted(listed - asked):
        why = "a person rejected it" if index in manifest.header.get("rejected", ()) else "its header asks for others"
        yield _fault(path, f"is listed, but {why}", f"image {index}")
    for index in sorted(asked - listed):
        yield _fault(path, "is not listed", f"image {index}")


def _extra_files(folder: Path, rows: tuple[ImageRow, ...]) -> Iterator[Problem]:
    named = {name for row in rows for name in (row["image"], row["label"], row["mask"])}
    for subfolder in FOLDERS:
        for path in sorted((folder / subfolder).rglob("*")):
            if path.is_file() and path.relative_to(folder).as_posix() not in named:
                yield Problem("error", str(path), "", "is not in the manifest", "remove it: training would read it")


def _row_problems(path: Path, row: ImageRow, header: HeaderRow) -> Iterator[Problem]:
    """Faults of the manifest's own record."""
    names = header["class_names"]
    for part, marks in (("kept", row["kept"]), ("placed", row["placed"])):
        for number, mark in enumerate(marks, start=1):
            class_id = mark["class_id"]
            where = f"image {row['index']}, {part} {number}"
            if not 0 <= class_id < len(names):
                yield _fault(path, f"class id must be within 0 to {len(names) - 1}, got {class_id}", where)
            elif mark["class_name"] != names[class_id]:
                yield _fault(path, f"class {class_id} is {names[class_id]!r}, got {mark['class_name']!r}", where)
    for number, defect in enumerate(row["placed"], start=1):
        label, changed = defect["label_xyxy"], defect["changed_xyxy"]
        inside = all(label[axis] <= changed[axis] + _BOX_TOLERANCE_PX for axis in (0, 1)) and all(
            changed[axis] <= label[axis] + _BOX_TOLERANCE_PX for axis in (2, 3)
        )
        if not inside:
            reason = f"the label box {label} does not hold the changed pixels' box {changed}"
            yield _fault(path, reason, f"image {row['index']}, placed {number}")


def _hash_problem(path: Path, expected: str) -> Problem | None:
    try:
        found = sha256_file(path)
    except DataError:
        return _fault(path, "cannot be read" if path.exists() else "is missing")
    if found == expected:
        return None
    return _fault(path, f"differs from the manifest: SHA-256 {found[:12]}, expected {expected[:12]}")


def _image_problems(path: Path, row: ImageRow) -> Iterator[Problem]:
    if problem := _hash_problem(path, row["image_sha256"]):
        yield problem
        return
    try:
        height, width = read_rgb(path).shape[:2]
    except DataError as error:
        yield _fault(path, f"does not decode ({str(error).removeprefix(f'{path}: ')})")
        return
    if [width, height] != row["size_wh"]:
        yield _fault(path, f"is {width}x{height}, the manifest says {row['size_wh'][0]}x{row['size_wh'][1]}")


def _label_problems(path: Path, row: ImageRow, header: HeaderRow) -> Iterator[Problem]:
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").splitlines()
        expected = label_rows(row, header["task"])
    except OSError as error:
        yield _fault(path, "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})")
        return
    except (UnicodeDecodeError, DataError) as error:
        yield _fault(path, f"cannot be checked ({error})")
        return
    num_problems = 0
    for number, line in enumerate(lines, start=1):
        want = expected[number - 1] if number <= len(expected) else None
        if reason := _label_row_fault(line, want, header):
            num_problems += 1
            yield _fault(path, reason, f"row {number}")
    if len(lines) < len(expected):
        num_problems += 1
        yield _fault(path, f"has {len(lines)} rows, the manifest has {len(expected)} defects")
    if not num_problems and sha256_bytes(data) != row["label_sha256"]:
        yield _fault(path, "differs from the manifest: its SHA-256 is another, though every row agrees")


def _label_row_fault(line: str, want: LabelRow | None, header: HeaderRow) -> str | None:
    """What is wrong with a label row; None where nothing is. `want`: what the manifest says, None for no such row."""
    names = header["class_names"]
    try:
        first, *rest = line.split() or [""]
        class_id, numbers = int(first), [float(field) for field in rest]
    except ValueError:
        return f"must be a class id and numbers, got {line[:60]!r}"
    if not 0 <= class_id < len(names):
        return f"class id must be within 0 to {len(names) - 1}, got {class_id}"
    if header["task"] == "detect" and len(numbers) != 4:
        return f"must have a class id and 4 numbers, got {len(numbers)} numbers"
    if header["task"] == "segment" and (len(numbers) < 6 or len(numbers) % 2):
        return f"must have a class id and 3 or more points, got {len(numbers)} numbers"
    if not all(math.isfinite(number) for number in numbers):
        return f"must have finite numbers, got {line[:60]!r}"
    low, high = _extent(numbers, header["task"] == "detect")
    if low < -_LABEL_TOLERANCE or high > 1 + _LABEL_TOLERANCE:
        return f"must lie within the image (0 to 1), got {low if low < 0 else high:.6f}"
    if want is None:
        return "is not in the manifest"
    if class_id != want[0]:
        return f"class id differs from the manifest: expected {want[0]}, got {class_id}"
    shifts = [abs(number - wanted) for number, wanted in zip(numbers, want[1], strict=False)]
    if len(numbers) != len(want[1]) or max(shifts) > _LABEL_TOLERANCE:
        shown = " ".join(f"{number:.6f}" for number in want[1][:4])
        return f"differs from the manifest: expected {shown}, got {' '.join(f'{n:.6f}' for n in numbers[:4])}"
    return None


def _extent(numbers: list[float], is_box: bool) -> tuple[float, float]:
    """Least and largest coordinate of a box's edges, or of an outline's corners."""
    if not is_box:
        return min(numbers), max(numbers)
    x, y, width, height = numbers
    return min(x - width / 2, y - height / 2), max(x + width / 2, y + height / 2)


def _mask_problems(path: Path, row: ImageRow) -> Iterator[Problem]:
    if problem := _hash_problem(path, row["mask_sha256"]):
        yield problem
        return
    mask = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        yield _fault(path, "must be a grey 8-bit PNG")
        return
    if [mask.shape[1], mask.shape[0]] != row["size_wh"]:
        yield _fault(path, f"is {mask.shape[1]}x{mask.shape[0]}, the manifest says {row['size_wh']}")
        return
    unclaimed = mask != 0
    for number, defect in enumerate(row["placed"], start=1):
        window = _window(defect, mask)
        unclaimed[window] &= mask[window] != defect["class_id"] + 1
        # Where defects of other classes overlap this one, a later one has drawn over its pixels.
        shared = np.zeros_like(mask, dtype=bool)
        for other in row["placed"]:
            if other["class_id"] != defect["class_id"]:
                shared[_window(other, mask)] |= mask[_window(other, mask)] != 0
        found = np.zeros_like(shared)
        found[window] = (mask[window] == defect["class_id"] + 1) | shared[window]
        box = mask_xyxy(found)
        changed = defect["changed_xyxy"]
        if box is None:
            reason = f"has no pixel of class {defect['class_id']} in the changed box {changed}"
            yield _fault(path, reason, f"placed {number}")
        elif max(abs(a - b) for a, b in zip(box, changed, strict=True)) > _MASK_TOLERANCE_PX + _BOX_TOLERANCE_PX:
            reason = f"the pixels of class {defect['class_id']} span {list(box)}, the manifest says {changed}"
            yield _fault(path, reason, f"placed {number}")
    if unclaimed.any():
        values = sorted({int(value) for value in mask[unclaimed]})
        yield _fault(path, f"has {int(unclaimed.sum())} pixels of value {values} outside every placed defect")


def _window(defect: PlacedRow, mask: np.ndarray) -> tuple[slice, slice]:
    """The defect's changed box, one pixel larger on each side, within the mask."""
    x1, y1, x2, y2 = defect["changed_xyxy"]
    height, width = mask.shape
    left, top = (max(math.floor(edge - _MASK_TOLERANCE_PX), 0) for edge in (x1, y1))
    right, bottom = (math.ceil(edge + _MASK_TOLERANCE_PX) for edge in (x2, y2))
    return slice(top, min(bottom, height)), slice(left, min(right, width))
