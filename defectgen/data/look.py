"""What a folder of somebody's data holds: the `data` section of a recipe for it, and how that was told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from defectgen.data.annotations import MarkedSet
from defectgen.data.class_names import UNNAMED, classes_of, classes_of_sets, numbered_classes
from defectgen.data.folders import Folder, folders_in, linked_folders, split_in_name
from defectgen.data.formats.masks import CLEAN_FOLDERS, mask_of
from defectgen.data.layout import Layout, Marked, arrange
from defectgen.data.places import (
    SET_SUFFIXES,
    child_folder,
    find_labels,
    holds_mark,
    is_label_file,
    label_file,
    marked_sets_up_to,
)
from defectgen.data.readers import FILE_FORMATS, SET_FORMATS
from defectgen.errors import DataError
from defectgen.records import Problem

_MASKS = ("masks", "mask")
_GROUND_TRUTH = "ground_truth"
_LOOKED_AT = 20


@dataclass
class _Search:
    """What is looked through, and what was met on the way that nothing could be made of.

    Attributes:
        damaged: why a file that seems to hold annotations cannot be read.
        outside: where labels of these images lie outside the root.
    """

    root: Path
    folders: Sequence[Folder]
    damaged: dict[Path, DataError] = field(default_factory=dict)
    outside: list[Path] = field(default_factory=list)


def look(root: Path, format: str | None = None) -> list[Layout]:
    """Every way in which `root` can be read, best first; with `format` that alone.

    Raises:
        DataError: there is no image, or no annotation in a known format.
    """
    root = root.absolute()
    search = _Search(root, folders_in(root))
    links = linked_folders(root)
    if not search.folders:
        lines = [f"{root}: holds no image; name the folder that holds the data", *map(_of_link, links)]
        raise DataError("\n".join(lines))
    found = [
        layout
        for name, find in FORMATS.items()
        if format in (None, name) and (layout := find(search, name)) is not None
    ]
    if not found:
        raise DataError("\n".join([*_nothing_found(search, format), *map(_of_link, links)]))
    return [_with_what_was_met(layout, search, links) for layout in found]


def _of_link(link: Path) -> str:
    return f"{link}: is a link to a folder, which is not followed; name its target, {link.resolve()}"


def _nothing_found(search: _Search, format: str | None) -> list[str]:
    root, num_images = search.root, sum(len(folder.images) for folder in search.folders)
    wanted = f"in the format {format}" if format else f"in a known format ({', '.join(FORMATS)})"
    products = [path for path in sorted(root.iterdir()) if _clean_of_mvtec(path) is not None]
    if products and format in (None, "mvtec"):
        listed = ", ".join(path.name for path in products)
        return [f"{root}: holds several products, each a tree of MVTec AD ({listed}); name one, as in {products[0]}"]
    outside = search.outside or [
        path for name in SET_FORMATS if format in (None, name) for path in _beyond(search, name)
    ]
    if outside:
        labels = outside[0]
        return [f"{root}: the annotations of its images lie outside it, in {labels}; name {root.parent} instead"]
    line = f"{root}: found {num_images} images, but no annotations of them {wanted}; write a recipe by hand"
    return [line, *map(str, search.damaged.values())]


def _with_what_was_met(layout: Layout, search: _Search, links: Sequence[Path]) -> Layout:
    """`layout`, with the damaged files and the links that it passes over."""
    notes, problems = list(layout.notes), list(layout.problems)
    for path, error in search.damaged.items():
        if path.suffix.lower() == SET_SUFFIXES.get(layout.data["format"]):
            problems.append(Problem.of_error(error))
        else:
            notes.append(f"not read: {error}")
    labels = [search.root / name for key, name in layout.data.items() if key.endswith("_labels")]
    notes += [_of_link(link) for link in links if not any(place.is_relative_to(link) for place in labels)]
    return replace(layout, notes=tuple(notes), problems=tuple(problems))


def _with_classes(layout: Layout | None, classes: list[str]) -> Layout | None:
    if layout is None or not classes:
        return layout
    notes = layout.notes
    if classes[0] == f"{UNNAMED}0":
        notes = (*notes, "class names: found none; write them into the recipe, in label order")
    return replace(layout, data={**layout.data, "classes": classes}, notes=notes)


def _mvtec(search: _Search, format: str) -> Layout | None:
    clean = _clean_of_mvtec(search.root)
    if clean is None:
        return None
    kinds = [folder.path.name for folder in search.folders if folder.path.parent == search.root / "test"]
    data = {"train_images": "test", "train_labels": _GROUND_TRUTH, "train_clean": f"train/{clean}"}
    notes = [f"the tree of MVTec AD: {', '.join(kind for kind in kinds if kind not in CLEAN_FOLDERS)}"]
    places = [search.root / name for name in data.values()]
    others = [
        f"{folder.relative} ({len(folder.images)} images)"
        for folder in search.folders
        if not any(folder.path.is_relative_to(place) for place in places)
    ]
    if others:
        notes.append(f"no annotations, left aside: {', '.join(others)}")
    return Layout({"format": format, **data}, tuple(notes))


def _clean_of_mvtec(root: Path) -> str | None:
    """The name of the clean folder in train/, where `root` is a product's tree; else None."""
    test = root / "test"
    if not (root / _GROUND_TRUTH).is_dir() or not test.is_dir():
        return None
    if all(path.name in CLEAN_FOLDERS for path in test.iterdir() if path.is_dir()):
        return None
    return next((name for name in CLEAN_FOLDERS if (root / "train" / name).is_dir()), None)


def _per_file(search: _Search, format: str) -> Layout | None:
    suffix, _ = FILE_FORMATS[format]
    marked: list[Marked] = []
    folders: list[Folder] = []
    # Of labels that two folders share, those of a folder called clean are the other one's.
    for folder in sorted(search.folders, key=lambda folder: folder.is_clean):
        places = [find_labels(folder.path), folder.path]
        if format == "voc" and (annotations := child_folder(folder.path.parent, "annotations")):
            places.append(annotations)
        place = next((place for place in places if _has_labels(folder, place, format)), None)
        if folder.is_clean and place is not None and all(place != one.labels for one in marked):
            some = _some(folder.images)
            num_marked = sum(holds_mark(label_file(place, image.name, suffix), format) for image in some)
            folder = replace(folder, is_clean=2 * num_marked < len(some))
        folders.append(folder)
        if folder.is_clean or place is None:
            continue
        if place != find_labels(folder.path) and not place.is_relative_to(search.root):
            search.outside.append(place)
        else:
            marked.append(Marked(folder, place))
    marked, folders = (sorted(marked, key=_place_of), sorted(folders, key=lambda folder: folder.path))
    layout = arrange(search.root, folders, marked, format, f"a {suffix} file per image", _fits_by_place)
    if layout is None:
        return None
    try:
        classes = classes_of(format, suffix, search.root, marked)
    except DataError as error:
        classes = numbered_classes(suffix, marked)
        layout = replace(layout, problems=(Problem.of_error(error),))
    return _with_classes(layout, classes)


def _place_of(one: Marked) -> Path:
    return one.folder.path


def _fits_by_place(place: Path, labels: Path, folder: Folder) -> bool:
    return True


def _has_labels(folder: Folder, place: Path, format: str) -> bool:
    suffix, _ = FILE_FORMATS[format]
    stems = {path.stem for path in place.iterdir() if path.suffix.lower() == suffix} if place.is_dir() else set()
    labelled = _some([image for image in folder.images if image.stem in stems])
    return any(is_label_file(label_file(place, image.name, suffix), format) for image in labelled)


def _some(images: Sequence[Path]) -> Sequence[Path]:
    return images[:: max(1, len(images) // _LOOKED_AT)][:_LOOKED_AT]


def _per_set(search: _Search, format: str) -> Layout | None:
    marked, folders, notes = [], [], []
    read: dict[Path, MarkedSet] = {}
    damaged: dict[Path, DataError] = {}
    claimed: set[tuple[Path, str]] = set()
    # An entry that fits images of two folders is not of the one that is called clean.
    for folder in sorted(search.folders, key=lambda folder: folder.is_clean):
        paths = marked_sets_up_to(search.root, folder.path, format)
        _read_sets(paths, format, read, damaged)
        best = _best_set(paths, folder, search, read)
        if best is not None:
            found = [_entry_of(image, read[best], search) for image in folder.images]
            own = {(best, entry) for entry in found if entry is not None} - claimed
            claimed |= own
            num_marked = sum(bool(read[best].of_file[entry].items) for _, entry in own)
            folder = replace(folder, is_clean=folder.is_clean and 2 * num_marked < len(folder.images))
        folders.append(folder)
        if folder.is_clean:
            continue
        if best is not None:
            marked.append(Marked(folder, best))
            notes += _others_of(folder, best, paths, search, read)
            continue
        torn = (path for path in paths if path in damaged and _is_of_split(path, folder) and _is_meant(path))
        if (path := next(torn, None)) is not None:
            search.damaged[path] = damaged[path]

    def fits(place: Path, labels: Path, folder: Folder) -> bool:
        if folder.is_clean:
            return True
        names = [image.relative_to(place).as_posix() for image in folder.images]
        wanted = [_entry_of(image, read[labels], search) for image in folder.images]
        return all(
            want is None or read[labels].entry_of(name) == want for name, want in zip(names, wanted, strict=True)
        )

    marked, folders = (sorted(marked, key=_place_of), sorted(folders, key=lambda folder: folder.path))
    layout = arrange(search.root, folders, marked, format, "one file for all images", fits)
    if layout is None:
        return None
    layout = replace(layout, notes=(*layout.notes, *notes))
    first = read[search.root / layout.data["train_labels"]]
    return _with_classes(layout, classes_of_sets(first, [read[one.labels] for one in marked]))


def _others_of(
    folder: Folder, best: Path, paths: Sequence[Path], search: _Search, read: dict[Path, MarkedSet]
) -> list[str]:
    """A note on files that list images of the folder which the `best` one does not."""
    unlisted = [image for image in folder.images if _entry_of(image, read[best], search) is None]
    others = [
        path.relative_to(search.root).as_posix()
        for path in paths
        if path in read and path != best and any(_entry_of(image, read[path], search) for image in unlisted)
    ]
    if not others:
        return []
    own, listed = best.relative_to(search.root).as_posix(), ", ".join(others)
    return [f"more images of {folder.relative} are listed in {listed}; only {own} is read: join them in one file"]


def _beyond(search: _Search, format: str) -> list[Path]:
    """Files beside the root that list its images."""
    paths, read = marked_sets_up_to(search.root.parent, search.root.parent, format), dict[Path, MarkedSet]()
    _read_sets(paths, format, read, {})
    found = (_best_set(paths, folder, search, read) for folder in search.folders)
    return [path for path in found if path is not None]


def _is_meant(path: Path) -> bool:
    """Whether a file that cannot be read seems to mark defects; COCO's captions are sound, but not for us."""
    try:
        data = path.read_bytes()
    except OSError:
        return True
    return (b'"annotations"' in data and b'"caption"' not in data) or b"<annotations" in data


def _read_sets(paths: Sequence[Path], format: str, read: dict[Path, MarkedSet], damaged: dict[Path, DataError]) -> None:
    for path in paths:
        if path in read or path in damaged:
            continue
        try:
            read[path] = SET_FORMATS[format](path)
        except DataError as error:
            damaged[path] = error


def _best_set(paths: Sequence[Path], folder: Folder, search: _Search, read: dict[Path, MarkedSet]) -> Path | None:
    """The file with the folder's annotations: of its split, then by its name, then by how many images it lists."""
    num_listed = {
        path: sum(_entry_of(image, read[path], search) is not None for image in folder.images)
        for path in paths
        if path in read and _is_of_split(path, folder)
    }
    return min(
        (path for path, num in num_listed.items() if num),
        key=lambda path: (
            split_in_name(path.name) != folder.split,
            # COCO has captions and keypoints of the same images beside their boxes.
            "instances" not in path.name,
            -num_listed[path],
        ),
        default=None,
    )


def _is_of_split(path: Path, folder: Folder) -> bool:
    return folder.split is None or split_in_name(path.name) in (None, folder.split)


def _entry_of(image: Path, listed: MarkedSet, search: _Search) -> str | None:
    """The name by which the file lists the image, unless that is the path of another one."""
    parts = image.relative_to(search.root).parts
    paths = ["/".join(parts[start:]) for start in range(len(parts))]
    entry = next((path for path in paths if path in listed.of_file), None) or listed.entry_of(image.name)
    if entry is None or "/" not in entry or f"/{paths[0]}".endswith(f"/{entry}"):
        return entry
    above = PurePosixPath(entry).parent.parts
    # A set that was moved keeps old paths; a path to where other images lie is theirs.
    return None if any(folder.path.parts[-len(above) :] == above for folder in search.folders) else entry


def _masks(search: _Search, format: str) -> Layout | None:
    marked = []
    for folder in search.folders:
        if folder.parts & {*_MASKS, _GROUND_TRUTH} or folder.is_clean:
            continue
        places = [place for place in _mask_folders(folder.path, search.root) if place != folder.path]
        masks = (place for place in places if any(mask_of(image, folder.path, place) for image in folder.images))
        if (place := next(masks, None)) is not None:
            marked.append(Marked(folder, place))
    inside = [one for one in marked if one.labels.is_relative_to(search.root)]
    search.outside += [one.labels for one in marked if one not in inside]
    layout = arrange(search.root, search.folders, inside, format, "a mask per image", _fits_by_place)
    return _with_classes(layout, ["defect"])


def _mask_folders(images: Path, root: Path) -> list[Path]:
    """masks/... for each folder above, as for labels; ground_truth beside it alone: further up it is MVTec AD's."""
    found = [images.parent / _GROUND_TRUTH]
    for above in (images, *images.parents):
        if not above.is_relative_to(root):
            break
        masks = (child_folder(above.parent, name) for name in _MASKS)
        found += [place / images.relative_to(above) for place in masks if place is not None]
    return [place for place in found if place.is_dir()]


# Best first: where the tree of MVTec AD is, its masks could be read alone, too.
FORMATS: dict[str, Callable[[_Search, str], Layout | None]] = {
    "mvtec": _mvtec,
    **{name: _per_set for name in SET_FORMATS},
    **{name: _per_file for name in FILE_FORMATS},
    "masks": _masks,
}
