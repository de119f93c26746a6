"""Which of the folders that have annotations is for what: the `data` section of a recipe, and what it leaves aside."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectgen.data.folders import Folder, split_lists
from defectgen.data.places import find_labels
from defectgen.records import Problem

# Beside it, folders with the same file names hold depth, masks and the like.
_PHOTOS = {"images", "jpegimages"}


@dataclass(frozen=True)
class Aside:
    """Images that a recipe has no field for: a second folder of a subset, or a validation set beside a test set.

    Attributes:
        images, labels: relative to the root; no labels: they are at the usual place.
        is_clean: of clean product, without labels.
        split: train, val or test.
    """

    images: str
    labels: str | None
    is_clean: bool
    split: str


@dataclass(frozen=True)
class Layout:
    """A reading of a folder.

    Attributes:
        data: fields of a recipe's `data` section, paths relative to the folder.
        notes: what was found, and what was left aside, a line each.
        aside: folders that `data` does not name.
        problems: what kept folders from being read.
    """

    data: dict[str, Any]
    notes: tuple[str, ...]
    aside: tuple[Aside, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Marked:
    """A folder of images, and the folder or file of its labels."""

    folder: Folder
    labels: Path


# Whether the labels hold all images of the folder under their names below a place.
Fits = Callable[[Path, Path, Folder], bool]


def arrange(
    root: Path, folders: Sequence[Folder], marked: Sequence[Marked], format: str, how: str, fits: Fits
) -> Layout | None:
    """What each of the `marked` folders, and each of the clean ones, is for; None where there is none."""
    marked, twins = _without_twins(marked)
    by_split: dict[str, list[Marked]] = {"train": [], "val": [], "test": []}
    for one in marked:
        by_split[one.folder.split or "train"].append(one)
    splits = [name for name, chosen in by_split.items() if chosen]
    if not splits:
        return None
    # Where nobody trains, a folder that is all `val` or `test` is what there is.
    training, held_out = splits[0], splits[-1] if len(splits) > 1 else None
    data: dict[str, Any] = {"format": format}
    aside: list[Aside] = []
    notes = [f"{format}: {how}"]

    def leave(chosen: Sequence[Marked], why: str, *, is_clean: bool = False) -> None:
        for one in chosen:
            labels = None if is_clean else _named(one.folder.path, one.labels, root, format)
            aside.append(Aside(one.folder.relative, labels, is_clean, one.folder.split or "train"))
        if chosen:
            notes.append(f"left aside: {', '.join(one.folder.relative for one in chosen)} ({why})")

    for split in splits[1:-1]:
        leave(by_split[split], "validation")
    clean: dict[str, list[Marked]] = {"train": [], "test": []}
    for folder in (folder for folder in folders if folder.is_clean):
        split = folder.split or "train"
        subset = "train" if split in ("train", training) else "test"
        one = Marked(folder, folder.path)
        if subset == "test" and held_out not in (None, split):
            leave([one], "validation", is_clean=True)
        else:
            clean[subset].append(one)
    # The inner ones first: what a field names is left out of the folder about it.
    places: dict[str, Path] = {}
    for subset, chosen in clean.items():
        if chosen:
            place, _, others = _place(root, folders, chosen, list(places.values()), fits)
            places[f"{subset}_clean"] = place
            leave(others, "one folder is read per subset", is_clean=True)
    labels_of: dict[str, str | None] = {}
    for subset, split in {**({"test": held_out} if held_out else {}), "train": training}.items():
        place, labels, others = _place(root, folders, by_split[split], list(places.values()), fits)
        places[f"{subset}_images"] = place
        labels_of[subset] = _named(place, labels, root, format)
        leave(others, "one folder is read per subset")
    purposes = {"train": "for training", "test": "held out"}
    for subset in (subset for subset in purposes if subset in labels_of):
        data[f"{subset}_images"] = places[f"{subset}_images"].relative_to(root).as_posix()
        if (named := labels_of[subset]) is not None:
            data[f"{subset}_labels"] = named
        notes.append(f"{purposes[subset]}: {data[f'{subset}_images']}")
    for subset in (subset for subset in purposes if f"{subset}_clean" in places):
        data[f"{subset}_clean"] = places[f"{subset}_clean"].relative_to(root).as_posix()
        notes.append(f"clean product{', held out' if subset == 'test' else ''}: {data[f'{subset}_clean']}")
    notes += _unmarked(folders, marked, twins, format)
    # A field's folder is read with all that lies below it.
    within = [one.images for one in aside if any((root / one.images).is_relative_to(p) for p in places.values())]
    if within:
        data["leave_out"] = [glob.escape(images) for images in within]
    lists = split_lists(root, folders) if held_out is None else []
    if lists:
        listed = ", ".join(lists)
        notes.append(f"lists a split in {listed}, which is not read; name held-out groups in data.test_groups")
    return Layout(data, tuple(notes), tuple(aside))


def _named(images: Path, labels: Path, root: Path, format: str) -> str | None:
    """The labels as a recipe names them; None where they are found without."""
    if labels == find_labels(images) and format != "masks":
        return None
    return labels.relative_to(root).as_posix()


def _place(
    root: Path, folders: Sequence[Folder], chosen: Sequence[Marked], named: Sequence[Path], fits: Fits
) -> tuple[Path, Path, Sequence[Marked]]:
    """Where to read the `chosen` folders, with which labels, and those that are left out.

    One place above them all, where it holds nothing else but what another field has `named` and their labels are found
    from there as well; else the first.
    """
    own = [one.folder.path for one in chosen]
    place = Path(os.path.commonpath(own))
    while place.is_relative_to(root):
        below = [folder.path for folder in folders if folder.path.is_relative_to(place) and folder.path not in own]
        if any(not any(path.is_relative_to(other) for other in named) for path in below):
            break
        labels = _labels_above(chosen, place)
        if labels is not None and all(fits(place, labels, one.folder) for one in chosen):
            return place, labels, []
        place = place.parent
    return chosen[0].folder.path, chosen[0].labels, chosen[1:]


def _labels_above(chosen: Sequence[Marked], place: Path) -> Path | None:
    """The labels of `place` from which those of all `chosen` follow."""
    found: set[Path] = set()
    for one in chosen:
        rest = one.folder.path.relative_to(place).parts
        if one.labels.is_dir() and rest:
            if one.labels.parts[-len(rest) :] != rest:
                return None
            found.add(Path(*one.labels.parts[: -len(rest)]))
        else:
            found.add(one.labels)
    return found.pop() if len(found) == 1 else None


def _without_twins(marked: Sequence[Marked]) -> tuple[list[Marked], dict[str, str]]:
    """Without the folders beside images/ or JPEGImages/ that have its file names and labels; they, and their twins."""
    twins: dict[str, str] = {}
    for one in marked:
        stems = {image.stem for image in one.folder.images}
        for other in marked:
            if one.labels != other.labels or not _is_beside(one.folder, other.folder):
                continue
            if any(image.stem in stems for image in other.folder.images):
                twins[one.folder.relative] = other.folder.relative
    return [one for one in marked if one.folder.relative not in twins], twins


def _is_beside(folder: Folder, photos: Folder) -> bool:
    """Whether the folders' paths differ in one part alone, which says of the second that it holds the photos."""
    if len(folder.path.parts) != len(photos.path.parts):
        return False
    pairs = zip(folder.path.parts, photos.path.parts, strict=True)
    differing = [(one.lower(), other.lower()) for one, other in pairs if one != other]
    return len(differing) == 1 and differing[0][1] in _PHOTOS and differing[0][0] not in _PHOTOS


def _unmarked(folders: Sequence[Folder], marked: Sequence[Marked], twins: dict[str, str], format: str) -> list[str]:
    """A note on the folders that have no annotations, and one on those that repeat the photos."""
    known = {one.folder.relative for one in marked} | twins.keys()
    masks = [one.labels for one in marked] if format == "masks" else []
    without = [
        f"{folder.relative} ({len(folder.images)} images)"
        for folder in folders
        if not (
            folder.is_clean or folder.relative in known or any(folder.path.is_relative_to(place) for place in masks)
        )
    ]
    notes = [f"no annotations, left aside: {', '.join(without)}"] if without else []
    pairs = [f"{twin} (as {photos})" for twin, photos in twins.items()]
    return notes + ([f"the same file names as other images, not read: {', '.join(pairs)}"] if pairs else [])
