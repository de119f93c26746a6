"""A commented recipe for a folder of somebody's data, with values that suit what it holds."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from defectgen.data.layout import Layout
from defectgen.data.load import load_sources
from defectgen.data.split import ALIKE_PATTERN, names_alike
from defectgen.progress import Progress, silent
from defectgen.recipe import Recipe
from defectgen.records import LabelledImage, Sources

# PyYAML ends a lone scalar so.
_END = "\n...\n"
# Roboflow's name of a version of a picture: turned, cropped and lit copies of one have their beginning in common.
_COPY_OF = r"^(.+?)(?:\.rf\..*)?$"
# What a detector should see of a defect, in its own pixels; smaller ones are looked at in tiles.
_LEAST_SIDE_PX = 16


def read_layout(
    root: Path, layout: Layout, *, split: bool = True, progress: Progress = silent
) -> tuple[Recipe, Sources]:
    """A recipe for the data alone, and the data; where there is no clean image, it does without. Copies that a tool
    made of a picture are a group.

    `split`: hold groups out where the layout has no test set.

    Raises:
        DataError: a folder or the class names cannot be read.
    """
    name = re.sub(r"[^\w.-]+", "_", root.resolve().name).strip("_.-") or "data"
    data = layout.data | {"root": str(root.absolute())} | ({} if split else {"test_fraction": 0})
    recipe = Recipe.model_validate({"name": name, "data": data})
    sources = load_sources(recipe, progress=progress)
    more: dict[str, Any] = {} if sources.train_clean else {"base": "defective"}
    pictures = Counter(re.sub(_COPY_OF, r"\1", name) for name in _file_names(sources) if ".rf." in name)
    # Copies are made of a split: one name on both sides is of two pictures.
    if "test_images" not in layout.data and max(pictures.values(), default=0) > 1:
        more["group_pattern"] = _COPY_OF
    if more:
        recipe = Recipe.model_validate({"name": name, "data": data | more})
        sources = load_sources(recipe, progress=progress)
    return recipe, replace(sources, problems=(*layout.problems, *sources.problems))


def draft(
    root: Path, layout: Layout, progress: Progress = silent, *, recipe_path: Path | None = None
) -> tuple[str, Sources]:
    """The recipe as text, and the data it names, with its problems.

    `recipe_path`: where it will stand; the data below it are named relative to it.

    Raises:
        DataError: a folder or the class names cannot be read.
    """
    recipe, sources = read_layout(root, layout, progress=progress)
    name, data = recipe.name, recipe.data.model_dump(exclude_unset=True)
    classes = data.get("classes") or list(sources.class_names)
    lines = ["# Drafted by `defectgen init`, which found:", *(f"#   {note}" for note in layout.notes)]
    lines += [_line("name", name).strip(), "data:"]
    fields = {"root": _root_from(recipe_path, Path(data["root"])), "format": data["format"], "classes": classes}
    fields |= {field: value for field, value in layout.data.items() if field not in fields}
    if recipe.data.group_pattern is not None:
        fields["group_pattern"] = recipe.data.group_pattern
    comments = {
        "root": "relative to this file, or absolute",
        "classes": "in label order",
        "group_pattern": "Roboflow's copies of a picture stay together",
    }
    lines += [_line(field, value, comments.get(field)) for field, value in fields.items()]
    if recipe.data.group_pattern is None:
        lines.append(_group_line(_file_names(sources)))
    if not layout.data.get("test_images"):
        lines.append("  # test_groups: []  # groups to hold out; default: 30 % of them, by seed")
    if recipe.data.base == "defective":
        lines.append(_line("base", recipe.data.base, "there is no clean image: defects are added to the real ones"))
    fewest, most = _per_image(sources.train_pool)
    lines += [
        "place:",
        _line("per_image", [fewest, most], "as on the real images"),
        "  # flip: false            # where light or product have an up and down",
        "  # quarter_turns: true    # where they have no direction at all",
        "  # scale: [0.5, 1.5]      # where other parts have finer or coarser structures, and defects of their size",
        "synth:",
        _line("num_images", 200),
        "train_yolo:",
        _line("model", "yolo11n.yaml", "random weights; better a local yolo11n.pt, or see recipes/warm_start.yaml"),
    ]
    lines += [_line(field, value, comment) for field, value, comment in _detector(sources)]
    return "\n".join(lines) + "\n", sources


def _root_from(recipe_path: Path | None, root: Path) -> str:
    """`root` as the recipe names it: relative where it lies below the recipe's folder, so that both may move."""
    if recipe_path is None:
        return str(root)
    folder = Path(os.path.normpath(recipe_path.parent.absolute()))
    root = Path(os.path.normpath(root))
    if not root.is_relative_to(folder):
        return str(root)
    relative = root.relative_to(folder).as_posix()
    return f"./{relative}" if relative.startswith("~") else relative


def _line(field: str, value: Any, comment: str | None = None) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return f"  {field}: {text.removesuffix(_END).strip()}" + (f"  # {comment}" if comment else "")


def _per_image(images: Sequence[LabelledImage]) -> tuple[int, int]:
    counts = [len(image.annotations) for image in images if image.annotations] or [1]
    low, high = np.quantile(counts, (0.1, 0.9), method="nearest")
    return int(low), int(high)


def _file_names(sources: Sources) -> list[str]:
    return [
        Path(image.name).name
        for image in (*sources.train_pool, *sources.test, *sources.train_clean, *sources.test_clean)
    ]


def _group_line(names: Sequence[str]) -> str:
    """A group pattern to think about, where many names begin alike."""
    why = "what must stay on one side of the split: part, board, position"
    alike = names_alike(names)
    guess = ALIKE_PATTERN if alike else r"^(part\d+)_"
    would = f"; this one would make {len(alike)} groups of {len(names)} images" if alike else ""
    return f"  # group_pattern: '{guess}'  # {why}{would}"


def _detector(sources: Sources) -> list[tuple[str, Any, str | None]]:
    images = sources.train_pool
    if not images:
        return []
    longest = float(np.median([max(image.size_wh) for image in images]))
    sides = [max(x2 - x1, y2 - y1) for image in images for x1, y1, x2, y2 in (mark.xyxy for mark in image.annotations)]
    imgsz = int(min(640, max(64, 32 * round(longest / 32))))
    found: list[tuple[str, Any, str | None]] = [("imgsz", imgsz, None)]
    if float(np.median(sides)) * imgsz / longest < _LEAST_SIDE_PX and longest > 1.5 * imgsz:
        side = float(np.median(sides))
        found.append(("tile_px", imgsz, f"half of the defects are at most {side:.0f} px: whole images would hide them"))
    return found
