"""The folders of images below a root, and what their names and data.yaml say of the split; nothing is followed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from defectgen.data.formats.masks import CLEAN_FOLDERS
from defectgen.data.formats.yolo import DATA_YAML
from defectgen.data.places import is_label_file
from defectgen.images import IMAGE_SUFFIXES, list_images

_CLEAN = {*CLEAN_FOLDERS, "clean", "normal", "negative", "negatives", "background", "defect_free", "no_defect"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | {
    name: "val" for name in ("val", "valid", "validation")
}
# What stands before or after a split in the name of its folder.
_BESIDE_SPLIT = re.compile(r"^(obj|images?|imgs?|data|set)[_-]|[_-]?(images?|imgs?|data|set)$|[0-9_-]+$")
# Folders of a linked disk that are searched for an image.
_SEARCHED = 100


@dataclass(frozen=True)
class Folder:
    """A folder that directly holds images.

    Attributes:
        path: absolute.
        relative: to the root, with forward slashes.
        split: train, val or test; None where nothing says which.
        is_clean: of clean product, as far as its name tells.
    """

    path: Path
    relative: str
    images: Sequence[Path]
    split: str | None
    is_clean: bool

    @property
    def parts(self) -> set[str]:
        return _parts(self.relative)


def folders_in(root: Path) -> list[Folder]:
    """Every folder below `root` (absolute) that directly holds images, sorted.

    Raises:
        DataError: `root` is missing or is no folder.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in list_images(root):
        by_folder.setdefault(path.parent, []).append(path)
    named = _splits_in_yaml(root)
    found = []
    for path, images in sorted(by_folder.items()):
        relative = path.relative_to(root).as_posix()
        is_clean = bool(_parts(relative) & _CLEAN)
        found.append(Folder(path, relative, images, _split_of(path, root, named), is_clean))
    return found


def _parts(relative: str) -> set[str]:
    return {part.lower() for part in Path(relative).parts}


def split_in_name(name: str) -> str | None:
    """What a file's name says of its split: test of instances_test2017.json; None where it says nothing."""
    tokens = re.split("[^a-z]+", Path(name).stem.lower())
    return next((_SPLITS[token] for token in tokens if token in _SPLITS), None)


def split_lists(root: Path, folders: Sequence[Folder]) -> list[str]:
    """Where text files list images for training and for testing, as VOC's ImageSets and darknet's train.txt do."""
    above = {place for folder in folders for place in folder.path.parents if place.is_relative_to(root)} | {root}
    places = [place / rest for place in sorted(above) for rest in ("", "ImageSets", "ImageSets/Main")]
    found = []
    for place in places:
        names = [f"{name}.txt" for name in _SPLITS if (place / f"{name}.txt").is_file()]
        # An image may be called train, too.
        names = [name for name in names if not is_label_file(place / name, "yolo")]
        if len(names) > 1:
            found += [(place / name).relative_to(root).as_posix() for name in sorted(names)]
    return found


def linked_folders(root: Path) -> list[Path]:
    """Links to folders with images outside `root`: images are not looked for there."""
    found = []
    for place, names, _ in os.walk(root):
        for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
            if not path.is_symlink():
                continue
            target, whole = path.resolve(), root.resolve()
            if not (target.is_relative_to(whole) or whole.is_relative_to(target)) and _holds_image(target):
                found.append(path)
    return sorted(found)


def _holds_image(folder: Path) -> bool:
    searched = islice(os.walk(folder), _SEARCHED)
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, names in searched for name in names)


def _split_of(path: Path, root: Path, named: dict[Path, str]) -> str | None:
    """The split that data.yaml gives to the folder or one above, unless a name below that one says another."""
    above = next((place for place in (path, *path.parents) if place in named or place == root), root)
    return _split_in_parts(path.relative_to(above).parts) or named.get(above)


def _split_in_parts(parts: Iterable[str]) -> str | None:
    # COCO's are train2017 and val2017, CVAT's obj_train_data; others train_images, test-set, images_val.
    plain = [_BESIDE_SPLIT.sub("", part.lower()).rstrip("0123456789_-") for part in parts]
    return next((_SPLITS[part] for part in reversed(plain) if part in _SPLITS), None)


def _splits_in_yaml(root: Path) -> dict[Path, str]:
    """The split of each place within `root` that data.yaml gives one, whether there is such a folder or not."""
    try:
        content: Any = yaml.safe_load((root / DATA_YAML).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        # Reading the class names reports it.
        return {}
    if not isinstance(content, dict):
        return {}
    whole = Path(os.path.normpath(root))
    found: dict[Path, str] = {}
    path = content.get("path")
    above = path if isinstance(path, str) else ""
    for key in ("train", "val", "test"):
        entries = content.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str):
                continue
            # Roboflow's begin with ../ and mean the file's own folder.
            for name in (Path(above, entry), Path(entry), Path(entry.removeprefix("../"))):
                place = Path(os.path.normpath(whole / name))
                if place.is_relative_to(whole):
                    found.setdefault(root / place.relative_to(whole), key)
    return found
