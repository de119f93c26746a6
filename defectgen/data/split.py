"""What is trained on and what is held out, by group; and the budget of real defects drawn from the former."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from defectgen.errors import UsageError
from defectgen.recipe import Data
from defectgen.records import LabelledImage, Problem
from defectgen.seeds import numpy_rng

_SHOWN_GROUPS = 20
# What may be a part's name in that of a file: all but its last word.
ALIKE_PATTERN = r"^(.+?)[_-][^_-]*$"
_FEWEST_PARTS = 3


@dataclass(frozen=True)
class Split:
    """`test` and `test_clean` share no group with `train` and `train_clean`."""

    train: list[LabelledImage]
    train_clean: list[LabelledImage]
    test: list[LabelledImage]
    test_clean: list[LabelledImage]
    problems: list[Problem]


def group_of(name: str, pattern: str | None) -> str | None:
    """What `pattern` finds in the last part of `name`; `name` itself without a pattern; None where it finds nothing."""
    if pattern is None:
        return name
    match = re.search(pattern, name.rsplit("/", 1)[-1])
    return match[1] if match else None


def split_groups(images: Sequence[LabelledImage], clean: Sequence[LabelledImage], config: Data, seed: int) -> Split:
    """Defective `images` and `clean` images, split by group with `config.test_groups`, else `config.test_fraction`.

    A group drawn by share is spared where all other groups with one of its classes are held out already. Clean images
    follow their group. Groups of clean images alone are held out by the same share, unless test_groups
    names what is held out or test_clean names a folder of its own.

    Raises:
        UsageError: data.test_groups names a group no image has.
    """
    groups = {image.group for image in images}
    clean_groups = {image.group for image in clean} - groups
    problems: list[Problem] = []
    if config.test_groups:
        held_out = set(config.test_groups)
        unknown = sorted(held_out - groups - clean_groups)
        if unknown:
            known = sorted(groups | clean_groups)
            more = f" and {len(known) - _SHOWN_GROUPS} more" if len(known) > _SHOWN_GROUPS else ""
            raise UsageError(
                f"data.test_groups: no image is of the group {', '.join(map(repr, unknown))}; "
                f"known are {', '.join(known[:_SHOWN_GROUPS])}{more}"
            )
    else:
        drawn = _draw_groups(groups, seed, "defective")
        held_out = set(_spared(drawn, images)[: _num_held_out(groups, config.test_fraction)])
        problems += _too_few(groups, held_out, config.test_fraction)
        if config.test_clean is None:
            drawn = _draw_groups(clean_groups, seed, "clean")
            held_out |= set(drawn[: _num_held_out(clean_groups, config.test_fraction)])
    return Split(
        train=[image for image in images if image.group not in held_out],
        train_clean=[image for image in clean if image.group not in held_out],
        test=[image for image in images if image.group in held_out],
        test_clean=[image for image in clean if image.group in held_out],
        problems=problems,
    )


def names_alike(names: Iterable[str]) -> Counter[str]:
    """How many of the file names share a beginning, by that (ALIKE_PATTERN); empty where most have one of their own, or
    a few beginnings are of all: that would be a number behind a word.
    """
    names = list(names)
    counts = Counter(match[1] for name in names if (match := re.match(ALIKE_PATTERN, name)))
    shared = sum(count for count in counts.values() if count > 1)
    many = len(counts) >= _FEWEST_PARTS and max(counts.values()) <= len(names) / 2
    return counts if many and shared > len(names) / 2 else Counter()


def find_alike(train: Iterable[LabelledImage], test: Iterable[LabelledImage]) -> list[Problem]:
    """A warning where file names of one beginning, maybe shots of one part, stand on both sides of the split."""
    sides = [[image.name.rsplit("/", 1)[-1] for image in images] for images in (train, test)]
    alike = names_alike([*sides[0], *sides[1]])
    begun = [{match[1] for name in side if (match := re.match(ALIKE_PATTERN, name))} for side in sides]
    both = sorted(begun[0] & begun[1] & alike.keys())
    if not both:
        return []
    reason = f"is not set, and {len(both)} of {len(alike)} beginnings of file names stand on both sides of the split"
    shown = ", ".join(both[:3])
    remedy = f"if {shown} are parts, set it to {ALIKE_PATTERN}: a detector is not tested on parts that it has seen"
    return [Problem("warning", "data.group_pattern", "", reason, remedy)]


def _num_held_out(groups: set[str], fraction: float) -> int:
    """That share of the groups; at least one on either side where there are two."""
    if fraction == 0 or len(groups) < 2:
        return 0
    return min(max(round(fraction * len(groups)), 1), len(groups) - 1)


def _draw_groups(groups: set[str], seed: int, purpose: str) -> list[str]:
    """All groups in an order by seed."""
    names = sorted(groups)
    return [names[index] for index in numpy_rng(seed, "split", purpose).permutation(len(names))]


def _spared(order: Sequence[str], images: Sequence[LabelledImage]) -> list[str]:
    """`order` without each group that, after those before it, would take the last defect of a class with it."""
    classes_of: dict[str, set[int]] = {}
    for image in images:
        classes_of.setdefault(image.group, set()).update(mark.class_id for mark in image.annotations)
    left = Counter(class_id for classes in classes_of.values() for class_id in classes)
    taken = []
    for group in order:
        if all(left[class_id] > 1 for class_id in classes_of[group]):
            left.subtract(classes_of[group])
            taken.append(group)
    return taken


def _too_few(groups: set[str], held_out: set[str], fraction: float) -> list[Problem]:
    """A warning where fewer groups are held out than were asked for."""
    remedy = "name held-out images in data.test_images, or correct data.group_pattern"
    if len(groups) == 1 and fraction > 0:
        reason = f"all images are of one group, {next(iter(groups))!r}: nothing is held out for evaluation"
    elif len(held_out) < (wanted := _num_held_out(groups, fraction)):
        reason = (
            f"{len(held_out)} of {len(groups)} groups are held out for evaluation, not {wanted}: "
            "each other one has the last defects of a class"
        )
        remedy = "mark more, or name held-out groups in data.test_groups"
    else:
        return []
    return [Problem("warning", "data.test_fraction", "", reason, remedy)]


def find_leaks(train: Iterable[LabelledImage], test: Iterable[LabelledImage], *, by_group: bool) -> list[Problem]:
    """An error for each group (or, not `by_group`, file) that is on both sides of the split."""

    def key(image: LabelledImage) -> str:
        return image.group if by_group else str(image.path.resolve())

    train_counts, test_counts = Counter(map(key, train)), Counter(map(key, test))
    remedy = "move them to one side: a detector is not tested on what it was trained on"
    kind = "group" if by_group else "file"
    return [
        Problem(
            "error",
            "data.test_images",
            f"{kind} {shared!r}",
            f"leaks: {train_counts[shared]} for training, {test_counts[shared]} held out",
            remedy,
        )
        for shared in sorted(train_counts.keys() & test_counts.keys())
    ]


def draw_budget(
    images: Sequence[LabelledImage],
    max_images: int | None,
    per_class: int | None,
    class_names: Sequence[str],
    seed: int,
) -> tuple[list[LabelledImage], list[Problem]]:
    """The images of the budget, drawn whole by seed and sorted by name, and a warning per class that falls short.

    per_class: rarest class first, images are drawn until each class has that many defects, so that a common class
    that shares images with a rare one may get more. max_images: each class is drawn once before the rest, where there
    is room. Both: per_class first, then cut to max_images.
    """
    problems: list[Problem] = []
    drawn = list(images)
    if per_class is not None:
        totals = _class_counts(drawn)
        for class_id, name in enumerate(class_names):
            if 0 < totals[class_id] < per_class:
                reason = f"has {totals[class_id]} real defects for training, not the {per_class} asked for"
                where = f"class {class_id} {name!r}"
                problems.append(Problem("warning", "data.per_class", where, reason, "mark more, or lower it"))
        drawn = _cover(_shuffled(drawn, seed, "per_class"), per_class)
    if max_images is not None and len(drawn) > max_images:
        order = _shuffled(drawn, seed, "max_images")
        covering = _cover(order, 1)[:max_images]
        rest = [image for image in order if image not in covering]
        drawn = covering + rest[: max_images - len(covering)]
    return sorted(drawn, key=lambda image: image.name), problems


def _shuffled(images: Sequence[LabelledImage], seed: int, purpose: str) -> list[LabelledImage]:
    by_name = sorted(images, key=lambda image: image.name)
    return [by_name[index] for index in numpy_rng(seed, "budget", purpose).permutation(len(by_name))]


def _cover(order: Sequence[LabelledImage], per_class: int) -> list[LabelledImage]:
    """Images in `order`, those of the rarest class first, until every class has `per_class` defects or no more."""
    totals = _class_counts(order)
    taken: dict[str, LabelledImage] = {}
    counts: Counter[int] = Counter()
    for class_id in sorted(totals, key=lambda class_id: (totals[class_id], class_id)):
        for image in order:
            if counts[class_id] >= per_class:
                break
            of_image = _class_counts([image])
            if of_image[class_id] and image.name not in taken:
                taken[image.name] = image
                counts += of_image
    return list(taken.values())


def _class_counts(images: Iterable[LabelledImage]) -> Counter[int]:
    return Counter(annotation.class_id for image in images for annotation in image.annotations)
