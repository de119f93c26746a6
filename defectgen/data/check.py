"""What the user's data amounts to, as plain values and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from defectgen.data.drawn_on import find_drawn_on
from defectgen.data.duplicates import find_near_duplicates
from defectgen.data.lines import with_lines
from defectgen.progress import Progress, silent
from defectgen.records import LabelledImage, Problem, Sources

_SUBSETS = ("train", "train_pool", "train_clean", "test", "test_clean")
_LISTED_GROUPS = 20
_SHOWN_PROBLEMS = 50
# Per class.
_FEWEST_TRAINED, _FEWEST_TESTED = 5, 5


def look_closely(sources: Sources, progress: Progress = silent) -> Sources:
    """`sources` with what only a comparison of its pictures shows, among the problems."""
    found = [*_few_marked(sources), *find_near_duplicates(sources, progress), *find_drawn_on(sources, progress)]
    return replace(sources, problems=(*sources.problems, *found))


def _few_marked(sources: Sources) -> list[Problem]:
    """A warning for each class with fewer defects than a generator or a comparison can do with."""

    def counted(images: Iterable[LabelledImage]) -> Counter[int]:
        return Counter(mark.class_id for image in images for mark in image.annotations)

    problems = []
    pool = counted(sources.train_pool)
    trained, tested = counted(sources.train), counted(sources.test)
    for class_id, there in sorted(pool.items()):
        found = []
        # None at all within the budget is told of by whoever cut it.
        if 0 < trained[class_id] < _FEWEST_TRAINED:
            remedy = "raise data.per_class or data.max_images" if there >= _FEWEST_TRAINED else "mark more"
            what = "to train on: what is made will hardly vary"
            found.append(("data.train_images", trained[class_id], what, remedy))
        if sources.test and tested[class_id] < _FEWEST_TESTED:
            what = "held out: detectors cannot be told apart by so few"
            found.append(("data.test_images", tested[class_id], what, "mark more"))
        for field, count, what, remedy in found:
            reason = f"has {count} marked defect{'' if count == 1 else 's'} {what}"
            where = f"class {class_id} {sources.class_names[class_id]!r}"
            problems.append(Problem("warning", field, where, reason, remedy))
    return problems


def summarise(sources: Sources, progress: Progress = silent) -> dict[str, Any]:
    """What `check` reports, JSON values alone.

    images: per subset. image_sizes: {"width x height": images}, commonest first. classes: defects per class in the
    budget (train), in train_pool and test; the quartiles of the longest side of a box in the budget, in pixels (None
    without one); in how many of these boxes a thin line was found (0 until errors are mended). groups: per subset their
    number and, up to 20, images per group. problems: as found.
    """
    subsets: dict[str, tuple[LabelledImage, ...]] = {name: getattr(sources, name) for name in _SUBSETS}
    # Files with errors may not be readable.
    good = all(problem.severity != "error" for problem in sources.problems)
    train = with_lines(sources.train, progress) if good else ()
    everything = {image.path: image for images in subsets.values() for image in images}
    sizes = Counter("{} x {}".format(*image.size_wh) for image in everything.values())
    return {
        "images": {name: len(images) for name, images in subsets.items()},
        "image_sizes": dict(sizes.most_common()),
        "classes": [
            {
                "class_id": class_id,
                "name": name,
                **{
                    subset: len(_longest_sides(subsets[subset], class_id)) for subset in ("train", "train_pool", "test")
                },
                "longest_side_px": _quartiles(_longest_sides(sources.train, class_id)),
                "lines": sum(
                    bool(mark.line) for image in train for mark in image.annotations if mark.class_id == class_id
                ),
            }
            for class_id, name in enumerate(sources.class_names)
        ],
        "groups": {name: _groups(images) for name, images in subsets.items()},
        "problems": [asdict(problem) for problem in sources.problems],
    }


def render(summary: dict[str, Any]) -> RenderableType:
    """A `summarise` result as tables for a terminal."""
    images = Table("subset", "images", "groups", title="Images")
    for subset, num_images in summary["images"].items():
        images.add_row(subset, str(num_images), _shown_groups(summary["groups"][subset]))
    heads = ["id", "class", "train", "train_pool", "test", "longest side, px"]
    with_line_counts = any(row["lines"] for row in summary["classes"])
    heads += ["thin lines"] if with_line_counts else []
    classes = Table(*heads, title="Marked defects (train: the budget)")
    for row in summary["classes"]:
        counts = [str(row[subset]) for subset in ("train", "train_pool", "test")]
        lines = [str(row["lines"])] if with_line_counts else []
        quartiles = _shown_quartiles(row["longest_side_px"])
        classes.add_row(str(row["class_id"]), Text(row["name"]), *counts, quartiles, *lines)
    sizes = ", ".join(f"{size} ({count})" for size, count in list(summary["image_sizes"].items())[:5])
    more = len(summary["image_sizes"]) - 5
    parts: list[RenderableType] = [images, classes, Text(f"Image sizes: {sizes}{f', {more} more' if more > 0 else ''}")]
    return Group(*parts, *_problem_lines(summary["problems"]))


def _longest_sides(images: Iterable[LabelledImage], class_id: int) -> list[float]:
    boxes = [mark.xyxy for image in images for mark in image.annotations if mark.class_id == class_id]
    return [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]


def _quartiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    names = ("min", "q25", "median", "q75", "max")
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return {name: round(float(value), 1) for name, value in zip(names, quantiles, strict=True)}


def _groups(images: Sequence[LabelledImage]) -> dict[str, Any]:
    counts = Counter(image.group for image in images)
    listed = dict(sorted(counts.items())) if len(counts) <= _LISTED_GROUPS else {}
    return {"num": len(counts), "images": listed}


def _shown_groups(groups: dict[str, Any]) -> Text:
    listed = ", ".join(f"{name} ({count})" for name, count in groups["images"].items())
    return Text(f"{groups['num']}: {listed}" if listed else str(groups["num"]))


def _shown_quartiles(quartiles: dict[str, float] | None) -> str:
    if quartiles is None:
        return "-"
    return "{min:g} to {max:g}, half {q25:g} to {q75:g}".format(**quartiles)


def _problem_lines(problems: Sequence[dict[str, Any]]) -> list[Text]:
    """Errors before warnings, and how many there are of each."""
    ordered = sorted(problems, key=lambda problem: problem["severity"])
    counts = Counter(problem["severity"] for problem in problems)
    lines = [Text(f"Errors: {counts['error']}, warnings: {counts['warning']}")]
    for problem in ordered[:_SHOWN_PROBLEMS]:
        place = ": ".join(part for part in (problem["path"], problem["where"]) if part)
        style = "red" if problem["severity"] == "error" else "yellow"
        lines.append(Text(f"{problem['severity']}: {place}: {problem['reason']}; {problem['remedy']}", style=style))
    if len(ordered) > _SHOWN_PROBLEMS:
        lines.append(Text(f"... and {len(ordered) - _SHOWN_PROBLEMS} more"))
    return lines
