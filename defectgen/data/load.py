"""Everything a recipe's `data` section names, read, checked, split and cut to the budget."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from defectgen.data.formats.yolo import DATA_YAML, faults_in_data_yaml, renumbered
from defectgen.data.places import find_labels
from defectgen.data.readers import SET_FORMATS, class_names, marked_as_clean, read_clean, read_labelled
from defectgen.data.region import region_faults
from defectgen.data.split import draw_budget, find_alike, find_leaks, split_groups
from defectgen.data.unused import not_among, truly_unused
from defectgen.errors import DataError
from defectgen.progress import Progress, silent
from defectgen.recipe import Data, Recipe
from defectgen.records import LabelledImage, Problem, Sources

_SHOWN_PROBLEMS = 20
_FOLDERS = ("train_images", "train_labels", "train_clean", "test_images", "test_labels", "test_clean")


def load_sources(
    recipe: Recipe,
    demo_folder: Path | None = None,
    progress: Progress = silent,
) -> Sources:
    """The recipe's real defects and clean images. Faults of single files are in `problems`: see `require_usable`.

    `demo_folder`: where the demo product is, or is written to; needed with `data.demo` alone.

    Raises:
        DataError: a folder is missing (all of them in one message), data.leave_out names what is not there, or the
            class names cannot be read.
        UsageError: data.test_groups names a group no image has.
    """
    data = _with_demo(recipe.data, demo_folder)
    assert data.root is not None
    root = Path(data.root).absolute()
    folders = _folders(data, root)
    left_out = _left_out(data, root)
    names = class_names(data, root)
    problems: list[Problem] = []
    if data.format == "yolo" and not data.classes:
        problems += faults_in_data_yaml(root / DATA_YAML)
    elif data.format == "yolo" and (root / DATA_YAML).is_file():
        problems += renumbered(names, root / DATA_YAML)

    def labelled(images: str, labels: str) -> tuple[list[LabelledImage], list[LabelledImage]]:
        """Defective and clean images of the field `images`."""
        folder = folders.get(images)
        if folder is None:
            return [], []
        found, faults = read_labelled(
            folder,
            folders.get(labels),
            data.format,
            names,
            group_pattern=data.group_pattern,
            without=[*inside(folder, folders.values()), *left_out],
            progress=progress,
        )
        # Both subsets may warn of the same label.
        problems.extend(not_among(truly_unused(faults, folder, data.format, root), problems))
        return [image for image in found if image.annotations], [image for image in found if not image.annotations]

    def clean(field: str) -> list[LabelledImage]:
        folder = folders.get(field)
        if folder is None:
            return []
        without = [*inside(folder, folders.values()), *left_out]
        found, faults = read_clean(folder, group_pattern=data.group_pattern, without=without, progress=progress)
        problems.extend(faults + marked_as_clean(folder, data.format, of_marked))
        return found

    of_marked = [
        folders.get(f"{subset}_labels", find_labels(folders[f"{subset}_images"]))
        for subset in ("train", "test")
        if f"{subset}_images" in folders
    ]
    pool, unmarked = labelled("train_images", "train_labels")
    test, test_unmarked = labelled("test_images", "test_labels")
    train_clean, test_clean = clean("train_clean") + unmarked, clean("test_clean") + test_unmarked
    problems.extend(_marked_clean(pool + test, train_clean + test_clean))
    problems.extend(_scaled_unlike(pool + test + train_clean + test_clean))
    if data.test_images is None:
        split = split_groups(pool, train_clean, data, recipe.seed)
        pool, train_clean, test, test_clean = split.train, split.train_clean, split.test, split.test_clean + test_clean
        problems.extend(split.problems)
        if data.group_pattern is None and not data.test_groups:
            problems.extend(find_alike(pool + train_clean, test + split.test_clean))
    by_group = data.group_pattern is not None
    problems.extend(find_leaks(pool + train_clean, test + test_clean, by_group=by_group))
    train, faults = draw_budget(pool, data.max_images, data.per_class, names, recipe.seed)
    problems.extend(faults + _lacking(train, pool, test, train_clean, names, data))
    drawn = {mark.class_id for image in train for mark in image.annotations}
    problems.extend(_misweighted(recipe.place.class_weights, names, drawn))
    problems.extend(region_faults(recipe, train_clean if data.base == "clean" else train))
    return Sources(
        names,
        tuple(train),
        tuple(sorted(pool, key=lambda image: image.name)),
        _uniquely_named(train_clean),
        tuple(sorted(test, key=lambda image: image.name)),
        _uniquely_named(test_clean),
        tuple(problems),
    )


def inside(folder: Path, others: Collection[Path]) -> list[Path]:
    """Those of `others` that lie within `folder`, and are not it."""
    return [other for other in others if other != folder and other.is_relative_to(folder)]


def require_usable(sources: Sources) -> None:
    """Nothing, where `load_sources` found no error.

    Raises:
        DataError: with the first errors, one per line, and how many there are.
    """
    errors = [str(problem) for problem in sources.problems if problem.severity == "error"]
    if not errors:
        return
    lines = errors[:_SHOWN_PROBLEMS]
    if len(errors) > _SHOWN_PROBLEMS:
        lines.append(f"... and {len(errors) - _SHOWN_PROBLEMS} more errors, {len(errors)} in all")
    raise DataError("\n".join(lines))


def _with_demo(data: Data, demo_folder: Path | None) -> Data:
    """`data`, its folders those of the demo product where it asks for that."""
    if data.demo is None:
        return data
    assert demo_folder is not None, "data.demo needs a demo_folder"
    if not demo_folder.exists():
        from defectgen.data.demo import write_demo

        write_demo(data.demo, demo_folder)
    layout = {
        "root": str(demo_folder),
        "format": "yolo",
        "classes": None,
        "train_images": "train/images",
        "train_labels": "train/labels",
        "train_clean": "train/clean",
        "test_images": "test/images",
        "test_labels": "test/labels",
        "test_clean": "test/clean",
        "group_pattern": r"^(part\d+)_",
    }
    return data.model_copy(update=layout)


def _folders(data: Data, root: Path) -> dict[str, Path]:
    """The absolute folder of each field that names one; of labels it may be a file."""
    files = ("train_labels", "test_labels") if data.format in SET_FORMATS else ()
    if not root.is_dir():
        raise DataError(f"data.root: no such folder {root}; correct it, or put the data there")
    folders = {field: root / getattr(data, field) for field in _FOLDERS if getattr(data, field) is not None}
    for field in folders:
        # A recipe of somebody else's reads what its root holds, and nothing that a user did not name.
        if not Path(os.path.normpath(folders[field])).is_relative_to(os.path.normpath(root)):
            raise DataError(
                f"data.{field}: leads out of data.root ({root}), got {getattr(data, field)!r}; name a root that holds "
                "all folders"
            )
    missing = [
        f"data.{field}: no such folder {folder}; correct the name, or put the data there"
        for field, folder in folders.items()
        if not (folder.is_dir() or (folder.is_file() and field in files))
    ]
    if missing:
        raise DataError("\n".join(missing))
    return folders


def _left_out(data: Data, root: Path) -> list[Path]:
    """What data.leave_out names."""
    found: list[Path] = []
    for pattern in data.leave_out:
        matches = sorted(root.glob(pattern))
        if not matches:
            raise DataError(f"data.leave_out: nothing below {root} is called {pattern!r}; correct it, or remove it")
        found += matches
    return found


def _marked_clean(defective: Sequence[LabelledImage], clean: Sequence[LabelledImage]) -> list[Problem]:
    marked = {image.path.resolve(): len(image.annotations) for image in defective}
    return [
        Problem(
            "error",
            str(image.path),
            "",
            f"is named as clean, but has {marked[image.path.resolve()]} marked defects",
            "keep clean images in a folder of their own",
        )
        for image in clean
        if image.path.resolve() in marked
    ]


def _scaled_unlike(images: Sequence[LabelledImage]) -> list[Problem]:
    """An error where some of a camera's images were scaled from 12 bits and others, with brighter spots, from 16."""
    twelve, sixteen = (sorted(str(image.path) for image in images if image.bits == bits) for bits in (12, 16))
    if not twelve or not sixteen:
        return []
    few, many = sorted((twelve, sixteen), key=len)
    shown, bits, others = ("up to 4095", 12, 16) if few is twelve else ("above 4095", 16, 12)
    share = f"{len(few)} of {len(few) + len(many)} such images"
    reason = f"has 16-bit values {shown} ({share}) and would be scaled from {bits} bits, the others from {others}"
    remedy = "the same grey would be 16 times as bright in one as in the other: convert all to 8 bits by one scale"
    return [Problem("error", few[0], "", reason, remedy)]


def _lacking(
    train: Sequence[LabelledImage],
    pool: Sequence[LabelledImage],
    test: Sequence[LabelledImage],
    train_clean: Sequence[LabelledImage],
    names: Sequence[str],
    data: Data,
) -> list[Problem]:
    """What a run cannot do without."""
    problems: list[Problem] = []
    if not train:
        problems.append(
            Problem(
                "error",
                "data.train_images",
                "",
                "no image with a marked defect is left for training, got 0",
                "mark some, or hold out fewer groups",
            )
        )
    in_train, in_pool, in_test = (
        Counter(annotation.class_id for image in images for annotation in image.annotations)
        for images in (train, pool, test)
    )
    for class_id, name in enumerate(names):
        if not train or in_train[class_id]:
            continue
        severity: Literal["error", "warning"] = "error"
        if in_pool[class_id]:
            reason = f"has no marked defect in the budget of images ({len(train)}), but {in_pool[class_id]} outside it"
            remedy = "raise data.max_images"
        elif in_test[class_id] and data.test_images is None:
            reason = f"has no marked defect for training: all {in_test[class_id]} are held out"
            remedy = "mark more, or hold out other groups in data.test_groups"
        elif in_test[class_id]:
            reason = f"has no marked defect in the {len(pool)} training images, but {in_test[class_id]} in the "
            reason, remedy = f"{reason}held-out ones", "mark some, or remove it from the class names"
        else:
            # A list of classes may serve many products, and its order gives their numbers.
            severity, reason = "warning", "has no marked defect"
            remedy = "none will be made and no detector will know it; mark some if that is not meant"
        problems.append(Problem(severity, "data.train_images", f"class {class_id} {name!r}", reason, remedy))
    if data.base == "clean" and not train_clean:
        reason, remedy = "no clean image is left for training, got 0", "add some, or set data.base: defective"
        problems.append(Problem("error", "data.train_clean", "", reason, remedy))
    return problems


def _misweighted(weights: dict[str, float], names: Sequence[str], drawn: Collection[int]) -> list[Problem]:
    """Faults of place.class_weights, which only the data show. `drawn`: classes with a defect to train on."""
    field = "place.class_weights"
    known = ", ".join(names)
    problems = [
        Problem("error", field, f"class {name!r}", "is not in the data", f"its classes are {known}")
        for name in weights
        if name not in names
    ]
    marked = [name for number, name in enumerate(names) if number in drawn]
    if marked and all(weights.get(name, 1.0) == 0 for name in marked):
        listed = ", ".join(marked)
        problems.append(Problem("error", field, "", f"every class with a defect ({listed}) has weight 0", "raise one"))
    return problems


def _uniquely_named(images: Sequence[LabelledImage]) -> tuple[LabelledImage, ...]:
    """Sorted by name; where images of several folders share a name, with as much of their path as tells them apart."""
    distinct = list({image.path: image for image in images}.values())
    counts = Counter(image.name for image in distinct)
    named: list[LabelledImage] = []
    for image in distinct:
        name, depth = image.name, 1
        while counts[name] > 1:
            depth += 1
            tails = ["/".join(other.path.parts[-depth:]) for other in distinct if other.name == image.name]
            name = "/".join(image.path.parts[-depth:])
            counts[name] = tails.count(name)
        named.append(replace(image, name=name))
    return tuple(sorted(named, key=lambda image: image.name))
