"""What a recipe has no field for: folders of a data set that are read to find their faults alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from defectgen.data.layout import Layout
from defectgen.data.load import inside
from defectgen.data.readers import read_clean, read_labelled
from defectgen.data.split import find_leaks
from defectgen.data.unused import not_among, truly_unused
from defectgen.progress import Progress, silent
from defectgen.records import LabelledImage, Sources

_FIELDS = ("train_images", "train_clean", "test_images", "test_clean")


def with_aside(sources: Sources, root: Path, layout: Layout, progress: Progress = silent) -> Sources:
    """`sources` (of `layout`) and, outside the budget, what the layout leaves aside, with the problems of both.

    Validation and test images count as held out: no trainer learns from either.

    Raises:
        DataError: a file that holds the annotations of a folder cannot be read.
    """
    fields = ("train_pool", "train_clean", "test", "test_clean")
    found: dict[str, list[LabelledImage]] = {field: list(getattr(sources, field)) for field in fields}
    known = {image.path for images in found.values() for image in images}
    problems = list(sources.problems)
    root = root.absolute()
    named = [root / layout.data[field] for field in _FIELDS if field in layout.data]
    for one in layout.aside:
        folder = root / one.images
        without = inside(folder, [*named, *(root / other.images for other in layout.aside)])
        if one.is_clean:
            images, faults = read_clean(folder, without=without, progress=progress)
        else:
            labels = None if one.labels is None else root / one.labels
            form = layout.data["format"]
            images, faults = read_labelled(
                folder, labels, form, sources.class_names, without=without, progress=progress
            )
            faults = truly_unused(faults, folder, form, root)
        problems += not_among(faults, problems)
        # A folder may lie within one that was read.
        new = [image for image in images if image.path not in known]
        known |= {image.path for image in new}
        for image in new:
            subset = "train_pool" if one.split == "train" else "test"
            if one.is_clean or not image.annotations:
                subset = "train_clean" if one.split == "train" else "test_clean"
            found[subset].append(image)
    leaks = find_leaks(found["train_pool"] + found["train_clean"], found["test"] + found["test_clean"], by_group=False)
    problems += [leak for leak in leaks if leak not in problems]
    return replace(
        sources,
        train_pool=tuple(found["train_pool"]),
        train_clean=tuple(found["train_clean"]),
        test=tuple(found["test"]),
        test_clean=tuple(found["test_clean"]),
        problems=tuple(problems),
    )
