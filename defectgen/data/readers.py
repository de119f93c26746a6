"""Folders of images and labels in; labelled images, and every fault found in them, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from defectgen.data.annotations import MarkedSet, Parsed, Parser
from defectgen.data.folders import linked_folders, split_in_name
from defectgen.data.formats.coco import read_coco
from defectgen.data.formats.cvat import read_cvat
from defectgen.data.formats.labelme import parse_labelme
from defectgen.data.formats.masks import CLEAN_FOLDERS, folder_classes, mask_of, read_mask
from defectgen.data.formats.voc import parse_voc
from defectgen.data.formats.yolo import DATA_YAML, names_in, parse_yolo
from defectgen.data.places import (
    SET_SUFFIXES,
    find_labels,
    holds_mark,
    is_label_file,
    label_file,
    marked_sets_about,
)
from defectgen.data.split import group_of
from defectgen.errors import DataError
from defectgen.images import IMAGE_SUFFIXES, list_images, outside_runs, read_with_bits
from defectgen.progress import Progress, silent
from defectgen.recipe import Data
from defectgen.records import LabelledImage, Problem

Found = tuple[list[LabelledImage], list[Problem]]
# A label file per image, or one for them all.
FILE_FORMATS: dict[str, tuple[str, Parser]] = {
    "yolo": (".txt", parse_yolo),
    "labelme": (".json", parse_labelme),
    "voc": (".xml", parse_voc),
}
SET_FORMATS: dict[str, Callable[[Path], MarkedSet]] = {"coco": read_coco, "cvat": read_cvat}
# labelImg leaves it among the labels.
_NO_LABEL_FILE = "classes.txt"


@dataclass(frozen=True)
class Unused(Problem):
    """A label that no image of its folder has; one of another folder may have it, see `unused.truly_unused`.

    Attributes:
        image: what its image would be called, for a label file without suffix.
    """

    image: str = ""


@dataclass(frozen=True)
class _Folder:
    """Images to read, but for those in the folders `without`; how their names tell groups, and who is told of each."""

    images: Path
    group_pattern: str | None
    progress: Progress
    without: Collection[Path] = ()

    def paths(self) -> list[Path]:
        found = list_images(self.images)
        return [path for path in found if not any(path.is_relative_to(other) for other in self.without)]


def class_names(data: Data, root: Path) -> tuple[str, ...]:
    """The class names in label order: the recipe's `data.classes`, else what the labels say.

    yolo: `names` of `root`/data.yaml. coco, cvat: the file's, in its order. mvtec: the folders of `train_images`.

    Raises:
        DataError: a name occurs twice, or there are none.
    """
    names: Sequence[str]
    if data.classes:
        names, origin = data.classes, "data.classes"
    elif data.format in SET_FORMATS:
        path = find_marked_set(root / str(data.train_images), _under(root, data.train_labels), data.format)
        names, origin = SET_FORMATS[data.format](path).class_names, str(path)
    elif data.format == "mvtec":
        folder = root / str(data.train_images)
        names, origin = folder_classes(folder), str(folder)
    else:
        path = root / DATA_YAML
        names, origin = names_in(path), f"{path}: names"
    if not names:
        raise DataError(f"{origin}: names no class; list them in data.classes")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{origin}: {repeated[0]!r} occurs more than once; give every class a name of its own")
    return tuple(names)


def _under(root: Path, name: str | None) -> Path | None:
    return None if name is None else root / name


def read_labelled(
    images: Path,
    labels: Path | None,
    format: str,
    class_names: Sequence[str],
    *,
    group_pattern: str | None = None,
    without: Collection[Path] = (),
    progress: Progress = silent,
) -> Found:
    """The images under `images` with their annotations, and what is wrong with them.

    Every image is decoded. An image with an error is left out; one without annotations is clean. `labels` None: see
    `find_labels` and `find_marked_set`. `group_pattern`: as in the recipe. `without`: folders in it that are not read.

    Raises:
        DataError: `images` is no folder, or the file that holds all annotations is missing or is none.
    """
    folder = _Folder(images, group_pattern, progress, without)
    if format in SET_FORMATS:
        return _read_marked_set(folder, labels, format, class_names)
    if format in ("masks", "mvtec"):
        return _read_masks(folder, labels, class_names)
    return _read_files(folder, labels, format, class_names)


def read_clean(
    images: Path,
    *,
    group_pattern: str | None = None,
    without: Collection[Path] = (),
    progress: Progress = silent,
) -> Found:
    """The images under `images` without annotations, whatever label files lie about, and what is wrong with them.

    Raises:
        DataError: `images` is no folder.
    """
    folder = _Folder(images, group_pattern, progress, without)
    return _read_all(folder, lambda path: _read_image(path, folder))


def marked_as_clean(images: Path, format: str, others: Collection[Path]) -> list[Problem]:
    """A warning where label files mark defects on the images under `images`, which are to be clean.

    `others`: folders of labels that belong to other images, which may be called alike.
    """
    if format not in FILE_FORMATS or (labels := find_labels(images)) in others:
        return []
    suffix, _ = FILE_FORMATS[format]
    files = (label_file(labels, path.relative_to(images).as_posix(), suffix) for path in list_images(images))
    marked = [path for path in files if is_label_file(path, format) and holds_mark(path, format)]
    if not marked:
        return []
    reason = f"is named as clean, but {len(marked)} of its images are marked ({marked[0].name} in {labels})"
    remedy = "they are taken for clean; name a folder without them, or remove the label files"
    return [Problem("warning", str(images), "", reason, remedy)]


def _read_all(folder: _Folder, read_one: Callable[[Path], Found]) -> Found:
    paths = folder.paths()
    reason, remedy = "is a link to a folder, which is not followed", "name its target in the recipe, or copy it there"
    links = [link for link in linked_folders(folder.images) if link not in folder.without]
    unread = [Problem("warning", str(link), "", reason, remedy) for link in links]
    if not paths:
        remedy = f"put images ({', '.join(sorted(IMAGE_SUFFIXES))}) there, or name another folder"
        return [], [*unread, Problem("error", str(folder.images), "", "holds no image", remedy)]
    results: list[Found] = [([], unread)]
    with ThreadPoolExecutor() as pool:
        for result in pool.map(read_one, paths):
            results.append(result)
            folder.progress(f"read {folder.images.name}", len(results) - 1, len(paths), "")
    return [image for found, _ in results for image in found], [problem for _, faults in results for problem in faults]


def _name(path: Path, folder: _Folder) -> str:
    return path.relative_to(folder.images).as_posix()


def _read_image(path: Path, folder: _Folder) -> Found:
    """The image without annotations, or what is wrong with it."""
    name = _name(path, folder)
    try:
        pixels, bits = read_with_bits(path, strict=True)
    except DataError as error:
        return [], [Problem.of_error(error)]
    group = group_of(name, folder.group_pattern)
    if group is None:
        reason = f"data.group_pattern {folder.group_pattern!r} finds no group in it"
        return [], [Problem("error", str(path), "", reason, "rename the file or correct the pattern")]
    height, width = pixels.shape[:2]
    return [LabelledImage(path.absolute(), name, (width, height), group, bits=bits)], []


def _read_marked(folder: _Folder, marks_of: Callable[[LabelledImage], Parsed]) -> Found:
    def read_one(path: Path) -> Found:
        found, problems = _read_image(path, folder)
        if not found:
            return found, problems
        annotations, problems = marks_of(found[0])
        if any(problem.severity == "error" for problem in problems):
            return [], problems
        return [replace(found[0], annotations=tuple(annotations))], problems

    return _read_all(folder, read_one)


def _read_files(folder: _Folder, labels: Path | None, format: str, class_names: Sequence[str]) -> Found:
    images = folder.images
    suffix, parse = FILE_FORMATS[format]
    of_labels = labels or find_labels(images)

    def label_path(name: str) -> Path:
        return label_file(of_labels, name, suffix)

    def marks_of(image: LabelledImage) -> Parsed:
        path = label_path(image.name)
        text, problems = _read_label_text(path)
        return ([], problems) if text is None else parse(text, image.size_wh, class_names, str(path))

    found, problems = _read_marked(folder, marks_of)
    users = Counter(label_path(path.relative_to(images).as_posix()) for path in list_images(images))
    there = (path for path in of_labels.rglob("*") if path.suffix.lower() == suffix)
    for path in sorted(outside_runs(there, of_labels)):
        known = path in users or path.name == _NO_LABEL_FILE or path.name.startswith(".")
        # Notes and lists of files lie beside images, too.
        if not known and (of_labels != images or is_label_file(path, format)):
            remedy = f"add its image under {images}, or remove it"
            name = path.relative_to(of_labels).with_suffix("").as_posix()
            problems.append(Unused("warning", str(path), "", "the label file has no image", remedy, name))
    for path, count in users.items():
        if count > 1:
            remedy = "rename the images so that their names differ before the suffix"
            problems.append(Problem("error", str(path), "", f"{count} images share the label file", remedy))
    return found, problems


def _read_marked_set(folder: _Folder, labels: Path | None, format: str, class_names: Sequence[str]) -> Found:
    marked = SET_FORMATS[format](find_marked_set(folder.images, labels, format))

    @cache
    def beside() -> list[MarkedSet]:
        """Files that may list what the marked one does not; those of another split list other images, called alike."""
        found = []
        for path in marked_sets_about(folder.images, marked.path.parent, format):
            if path != marked.path and split_in_name(path.name) in (None, split_in_name(marked.path.name)):
                with suppress(DataError):
                    found.append(SET_FORMATS[format](path))
        return found

    def marks_of(image: LabelledImage) -> Parsed:
        entry = marked.entry_of(image.name, folder.images)
        if entry is None:
            reason, remedy = (
                f"does not list {image.name!r}",
                "mark its defects there, or list it without any if it is clean",
            )
            other = next((one for one in beside() if one.entry_of(image.name, folder.images)), None)
            if other is not None:
                reason, remedy = f"{reason}, but {other.path.name} does", "one file is read: join them"
            return [], [Problem("error", str(marked.path), "", reason, remedy)]
        return marked.read(entry, image.size_wh, class_names)

    found, problems = _read_marked(folder, marks_of)

    def entries(paths: Iterable[Path]) -> Counter[str]:
        found = (marked.entry_of(_name(path, folder), folder.images) for path in paths)
        return Counter(entry for entry in found if entry is not None)

    for entry, count in entries(folder.paths()).items():
        if count > 1:
            reason = f"is the entry of {count} images of that name"
            remedy = "list each by its path, or name the folder of those that it lists"
            problems.append(Problem("error", str(marked.path), repr(entry), reason, remedy))
    # Damaged images are there, too, and those that are not read.
    for name in sorted(marked.of_file.keys() - entries(list_images(folder.images)).keys()):
        remedy = f"add it under {folder.images}, or remove the entry"
        reason = "is listed, but there is no such image"
        problems.append(Unused("warning", str(marked.path), repr(name), reason, remedy, name))
    return found, problems


def _read_masks(folder: _Folder, labels: Path | None, class_names: Sequence[str]) -> Found:
    images = folder.images
    masks = labels or next(
        (path for path in (images.parent / "masks", images.parent / "ground_truth") if path.is_dir()), images
    )

    def marks_of(image: LabelledImage) -> Parsed:
        kind = image.path.parent.name if image.path.parent != images.absolute() else ""
        path = mask_of(images / image.name, images, masks)
        if path is not None and path.absolute() != image.path:
            return read_mask(path, image.size_wh, class_names, folder=kind)
        if kind in CLEAN_FOLDERS:
            return [], []
        remedy = "draw it, or add a black one if the image is clean"
        return [], [Problem("error", str(image.path), "", f"has no mask in {masks}", remedy)]

    return _read_marked(folder, marks_of)


def find_marked_set(images: Path, labels: Path | None, format: str) -> Path:
    """The one file with the annotations of `images`: `labels`, or the only one in that folder or about the images.

    Raises:
        DataError: there is none, or more than one.
    """
    if labels is not None and labels.is_file():
        return labels
    found = marked_sets_about(images, labels, format)
    if len(found) == 1:
        return found[0]
    suffix, remedy = SET_SUFFIXES[format], "in data.train_labels (test_labels)"
    if found:
        listed = ", ".join(path.name for path in found[:3])
        raise DataError(f"{found[0].parent}: holds {len(found)} {suffix} files ({listed}); name one {remedy}")
    raise DataError(f"{images}: found no {suffix} file with its annotations; name it {remedy}")


def _read_label_text(path: Path) -> tuple[str | None, list[Problem]]:
    try:
        # -sig: Windows editors put a byte order mark first.
        return path.read_text(encoding="utf-8-sig"), []
    except FileNotFoundError:
        empty = "an empty .txt" if path.suffix == ".txt" else "a .json without shapes"
        remedy = f"mark its defects, or add {empty} if it is clean"
        return None, [Problem("error", str(path), "", "the label file is missing", remedy)]
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})"
        return None, [Problem("error", str(path), "", reason, "save it as UTF-8 text")]
    except OSError as error:
        return None, [Problem("error", str(path), "", f"cannot be read ({error.strerror})", "check the file")]
