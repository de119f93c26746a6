"""Where the labels of a folder of images lie, and which files are labels; upper and lower case alike."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

SET_SUFFIXES = {"coco": ".json", "cvat": ".xml"}


def find_labels(images: Path) -> Path:
    """The folder of the labels of `images`: .../labels/... for .../images/..., else a sibling `labels`, else itself."""
    parts = [part.lower() for part in images.parts]
    candidates: list[tuple[Path, tuple[str, ...]]] = [(images.parent, ())]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        candidates.insert(0, (Path(*images.parts[:last]), images.parts[last + 1 :]))
    for base, rest in candidates:
        labels = child_folder(base, "labels")
        if labels is not None and labels.joinpath(*rest).is_dir():
            return labels.joinpath(*rest)
    return images


def child_folder(base: Path, name: str) -> Path | None:
    """The folder `name` (lower case) in `base`, else one that differs in case alone."""
    if (base / name).is_dir():
        return base / name
    # A folder that nobody may look into holds nothing for us.
    with contextlib.suppress(OSError):
        alike = [entry.name for entry in os.scandir(base) if entry.name.lower() == name and entry.is_dir()]
        return base / min(alike) if alike else None
    return None


def label_file(labels: Path, name: str, suffix: str) -> Path:
    """The label file of the image `name` in the folder `labels`; it may not exist."""
    path = (labels / name).with_suffix(suffix)
    upper = path.with_suffix(suffix.upper())
    return upper if not path.is_file() and upper.is_file() else path


def is_label_file(path: Path, format: str) -> bool:
    """Whether the file begins as a label file of the format does; an empty one is a YOLO file of a clean image."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(1 << 16).decode("utf-8", errors="replace").strip()
    if format == "labelme":
        return '"shapes"' in start
    if format == "voc":
        return "<annotation>" in start or "<annotation " in start
    rows = [row.split() for row in start.splitlines() if row.strip()]
    try:
        return all(len(row) >= 5 and len([float(value) for value in row]) for row in rows[:50])
    except ValueError:
        return False


def holds_mark(path: Path, format: str) -> bool:
    """Whether a label file marks a defect, as far as a glance at it tells."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return False
    if format == "labelme":
        return re.search(r'"shapes"\s*:\s*\[\s*\{', text) is not None
    if format == "voc":
        return "<object>" in text or "<object " in text
    return bool(text.strip())


def marked_sets_about(images: Path, labels: Path | None, format: str) -> list[Path]:
    """Files that may hold the annotations of `images`: those in folder `labels`, else in the nearest with any."""
    places = [labels] if labels is not None else [images, images.parent, images.parent / "annotations"]
    return next((found for place in places if (found := _sets_in(place, format))), [])


def marked_sets_up_to(root: Path, images: Path, format: str) -> list[Path]:
    """Files that may hold the annotations of `images`, nearest first: beside them, in each parent up to `root`, and in
    the `annotations` of each."""
    places: list[Path] = []
    for place in (images, *images.parents):
        if not place.is_relative_to(root):
            break
        annotations = child_folder(place, "annotations")
        places += [place] if annotations is None else [place, annotations]
    return [path for place in dict.fromkeys(places) for path in _sets_in(place, format)]


def _sets_in(place: Path, format: str) -> list[Path]:
    paths = place.iterdir() if place.is_dir() else ()
    found = [path for path in paths if path.suffix.lower() == SET_SUFFIXES[format] and not path.name.startswith(".")]
    return sorted(path for path in found if path.is_file())
