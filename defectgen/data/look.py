"""What a folder of somebody's data holds: the `data` section of a recipe for it, and how that was told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from defectgen.data.annotations import MarkedSet
from defectgen.data.formats.labelme import labels_in_labelme
from defectgen.data.formats.masks import CLEAN_FOLDERS, mask_of
from defectgen.data.formats.voc import labels_in_voc
from defectgen.data.formats.yolo import DATA_YAML, num_classes_in
from defectgen.data.readers import FILE_FORMATS, SET_FORMATS, find_labels, marked_sets_about
from defectgen.errors import DataError
from defectgen.images import list_images

_CLEAN = {*CLEAN_FOLDERS, "clean", "normal", "negative", "negatives", "background", "defect_free", "no_defect"}
_TEST, _VALIDATION = {"test", "testing"}, {"val", "valid", "validation"}
_MASKS = ("masks", "mask", "ground_truth")
_LOOKED_AT = 20
# Stands for the names of YOLO classes that nothing names.
_UNNAMED = "class"


@dataclass(frozen=True)
class Aside:
    """Images that a recipe has no field for: a second folder of a subset, or a validation set beside a test set.

    Attributes:
        images, labels: relative to the root; no labels: they are at the usual place.
        is_clean: of clean product, without labels.
        held_out: for validation or test.
    """

    images: str
    labels: str | None
    is_clean: bool
    held_out: bool


@dataclass(frozen=True)
class Layout:
    """A reading of a folder.

    Attributes:
        data: fields of a recipe's `data` section, paths relative to the folder.
        notes: what was found, and what was left aside, a line each.
        aside: folders that `data` does not name.
    """

    data: dict[str, Any]
    notes: tuple[str, ...]
    aside: tuple[Aside, ...] = ()


@dataclass(frozen=True)
class _Folder:
    """A folder that directly holds images: its path relative to the root, and some of its images."""

    path: Path
    relative: str
    images: Sequence[Path]

    @property
    def parts(self) -> set[str]:
        return {part.lower() for part in Path(self.relative).parts}


def look(root: Path, format: str | None = None) -> list[Layout]:
    """Every way in which `root` can be read, best first; with `format` that alone.

    Raises:
        DataError: there is no image, or no annotation in a known format.
    """
    paths = list_images(root)
    if not paths:
        raise DataError(f"{root}: holds no image; name the folder that holds the data")
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    folders = [
        _Folder(path, path.relative_to(root).as_posix(), images[:: max(1, len(images) // _LOOKED_AT)][:_LOOKED_AT])
        for path, images in sorted(by_folder.items())
    ]
    found = [
        layout
        for name, find in FORMATS.items()
        if format in (None, name) and (layout := find(root, folders, name)) is not None
    ]
    if not found:
        wanted = f"in the format {format}" if format else f"in a known format ({', '.join(FORMATS)})"
        raise DataError(
            f"{root}: found {len(paths)} images, but no annotations of them {wanted}; write a recipe by hand"
        )
    return found


def _mvtec(root: Path, folders: Sequence[_Folder], format: str) -> Layout | None:
    clean = next((name for name in CLEAN_FOLDERS if (root / "train" / name).is_dir()), None)
    kinds = [folder.path.name for folder in folders if folder.path.parent == root / "test"]
    if clean is None or not (root / "ground_truth").is_dir() or not set(kinds) - set(CLEAN_FOLDERS):
        return None
    data = {"train_images": "test", "train_labels": "ground_truth", "train_clean": f"train/{clean}"}
    note = f"the tree of MVTec AD: {', '.join(kind for kind in kinds if kind not in CLEAN_FOLDERS)}"
    return Layout({"format": format, **data}, (note,))


def _per_file(root: Path, folders: Sequence[_Folder], format: str) -> Layout | None:
    suffix, _ = FILE_FORMATS[format]
    marked: list[tuple[_Folder, Path | None]] = []
    for folder in folders:
        if folder.parts & _CLEAN:
            continue
        places = [folder.path]
        # Masks and the like beside images/ have the same file names; the labels are of the images.
        beside = folder.path.parent / "images"
        if folder.path == beside or find_labels(folder.path) != find_labels(beside) or not beside.is_dir():
            places.insert(0, find_labels(folder.path))
        if format == "voc":
            places += [folder.path.parent / "Annotations", folder.path.parent / "annotations"]
        for place in dict.fromkeys(places):
            labels = [place / f"{image.stem}{suffix}" for image in folder.images]
            if any(_is_label(path, format) for path in labels):
                marked.append((folder, None if place == find_labels(folder.path) else place))
                break
    return _layout(root, folders, marked, format, f"a {suffix} file per image")


def _is_label(path: Path, format: str) -> bool:
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


def _per_set(root: Path, folders: Sequence[_Folder], format: str) -> Layout | None:
    marked: list[tuple[_Folder, Path | None]] = []
    read: dict[Path, MarkedSet | None] = {}
    for folder in folders:
        if folder.parts & _CLEAN:
            continue
        # COCO has captions and keypoints of the same images beside their boxes.
        paths = sorted(marked_sets_about(folder.path, None, format), key=lambda path: "instances" not in path.name)
        for path in paths:
            if path not in read:
                read[path] = _marked_set(path, format)
            listed = read[path]
            if listed is not None and any(listed.entry_of(image.name) for image in folder.images):
                marked.append((folder, path))
                break
    return _layout(root, folders, marked, format, "one file for all images")


def _marked_set(path: Path, format: str) -> MarkedSet | None:
    try:
        return SET_FORMATS[format](path)
    except DataError:
        return None


def _masks(root: Path, folders: Sequence[_Folder], format: str) -> Layout | None:
    marked: list[tuple[_Folder, Path | None]] = []
    for folder in folders:
        if folder.parts & {*_MASKS, *_CLEAN}:
            continue
        for name in _MASKS:
            masks = folder.path.parent / name
            if masks.is_dir() and any(mask_of(image, folder.path, masks) for image in folder.images):
                marked.append((folder, masks))
                break
    others = [folder for folder in folders if not folder.parts & set(_MASKS)]
    layout = _layout(root, others, marked, format, "a mask per image")
    return None if layout is None else replace(layout, data={**layout.data, "classes": ["defect"]})


def _layout(
    root: Path,
    folders: Sequence[_Folder],
    marked: Sequence[tuple[_Folder, Path | None]],
    format: str,
    how: str,
) -> Layout | None:
    """Which of the `marked` folders (with their labels, where these are not at the usual place) is for what."""
    by_split: dict[str, list[tuple[_Folder, Path | None]]] = {"train": [], "val": [], "test": []}
    for folder, labels in marked:
        by_split[_split_of(folder)].append((folder, labels))
    splits = [name for name, chosen in by_split.items() if chosen]
    if not splits:
        return None
    notes = [f"{format}: {how}"]
    # Where nobody trains, a folder that is all `val` or `test` is what there is.
    training, held_out = splits[0], splits[-1] if len(splits) > 1 else None
    data: dict[str, Any] = {"format": format}
    aside: list[Aside] = []

    def leave(chosen: Sequence[tuple[_Folder, Path | None]], why: str, *, is_clean: bool = False) -> None:
        for folder, labels in chosen:
            relative = None if labels is None else labels.relative_to(root).as_posix()
            aside.append(Aside(folder.relative, relative, is_clean, _split_of(folder) != "train"))
        if chosen:
            notes.append(f"left aside: {', '.join(folder.relative for folder, _ in chosen)} ({why})")

    for split in splits[1:-1]:
        leave(by_split[split], "validation")
    for subset, split in {"train": training, **({"test": held_out} if held_out else {})}.items():
        (folder, labels), *others = by_split[split]
        data[f"{subset}_images"] = folder.relative
        if labels is not None:
            data[f"{subset}_labels"] = labels.relative_to(root).as_posix()
        leave(others, "one folder is read per subset")
        notes.append(f"{'for training' if subset == 'train' else 'held out'}: {folder.relative}")
    for folder in folders:
        if folder.parts & _CLEAN:
            split = _split_of(folder)
            subset = "train_clean" if split in ("train", training) else "test_clean"
            if subset == "test_clean" and held_out not in (None, split):
                leave([(folder, None)], "validation", is_clean=True)
            elif subset in data:
                leave([(folder, None)], "one folder is read per subset", is_clean=True)
            else:
                data[subset] = folder.relative
                notes.append(f"clean product{', held out' if subset == 'test_clean' else ''}: {folder.relative}")
    classes = _classes(root, data)
    if classes:
        data["classes"] = classes
        if classes[0] == f"{_UNNAMED}0":
            notes.append("class names: found none; write them into the recipe, in label order")
    return Layout(data, tuple(notes), tuple(aside))


def _split_of(folder: _Folder) -> str:
    # COCO's are train2017 and val2017.
    parts = {part.rstrip("0123456789_-") for part in folder.parts}
    return "test" if parts & _TEST else "val" if parts & _VALIDATION else "train"


def _classes(root: Path, data: dict[str, Any]) -> list[str]:
    """Class names where the reader does not find them by itself."""
    if data["format"] not in FILE_FORMATS or (data["format"] == "yolo" and (root / DATA_YAML).is_file()):
        return []
    if data["format"] == "yolo":
        # labelImg leaves the one, CVAT and darknet the other.
        found = sorted([*root.rglob("classes.txt"), *root.rglob("obj.names")])
        if found:
            lines = found[0].read_text(encoding="utf-8", errors="replace").splitlines()
            return [line.strip() for line in lines if line.strip()]
    suffix, _ = FILE_FORMATS[data["format"]]
    texts = []
    for subset in ("train", "test"):
        if f"{subset}_images" in data:
            images = root / data[f"{subset}_images"]
            folder = root / data[f"{subset}_labels"] if f"{subset}_labels" in data else find_labels(images)
            paths = [path for path in sorted(folder.rglob(f"*{suffix}")) if path.is_file()]
            texts += [path.read_text(encoding="utf-8-sig", errors="replace") for path in paths]
    if data["format"] == "yolo":
        return [f"{_UNNAMED}{number}" for number in range(max(map(num_classes_in, texts), default=0))]
    labels_in = {"labelme": labels_in_labelme, "voc": labels_in_voc}[data["format"]]
    return sorted(set().union(*map(labels_in, texts)))


# Best first: where the tree of MVTec AD is, its masks could be read alone, too.
FORMATS: dict[str, Callable[[Path, Sequence[_Folder], str], Layout | None]] = {
    "mvtec": _mvtec,
    **{name: _per_set for name in SET_FORMATS},
    **{name: _per_file for name in FILE_FORMATS},
    "masks": _masks,
}
