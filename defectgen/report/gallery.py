"""The gallery's data: every composite small, as many as fit large, with what lay beneath and the labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defectgen.dataset.manifest import ImageRow, Manifest
from defectgen.diagnostics import Nearest
from defectgen.images import read_rgb
from defectgen.report.pictures import data_uri, fitted

# Characters of base64: the page of 5,000 images stays below 25 MB.
SMALL_BUDGET, LARGE_BUDGET = 9_000_000, 12_000_000
# Longer side in pixels, and WebP quality.
_SMALL = ((240, 70), (192, 70), (160, 65), (128, 60), (96, 50), (80, 35), (64, 25))
_LARGE_PX = (960, 720, 540)
_PROBED = 12
# Of JSON.
_BOX_CHARACTERS = 110

Report = Callable[[int, int], None]


def gallery(
    dataset: Path,
    manifest: Manifest,
    lookup: Mapping[str, Path],
    nearest: Sequence[Nearest],
    *,
    first: Sequence[int] = (),
    report: Report = lambda done, total: None,
) -> dict[str, Any]:
    """JSON values for the page's script: the set's facts and `items`, one per composite.

    An item: index; file; size_wh; small, a data URI; large, another, or None where the budget is spent; before: [x, y,
    width, height, data URI] for each window that was drawn in, as it was; boxes: {class_id, xyxy, score, ratio, kept}.

    Args:
        lookup: file of each source image by the name the manifest gives it.
        nearest: of the placed defects that were compared.
        first: indexes that get a large picture before others.
    """
    rows = [row for row in manifest.rows if row["placed"]]
    sides = _Sides(dataset, rows, lookup)
    ratios = {(one.index, one.number): one.ratio for one in nearest}
    large = sides.large_ones(first)
    items = []
    for done, row in enumerate(rows, 1):
        image = read_rgb(dataset / row["image"])
        item: dict[str, Any] = {
            "index": row["index"],
            "file": Path(row["image"]).name,
            "size_wh": row["size_wh"],
            "small": data_uri(fitted(image, sides.small[0]), quality=sides.small[1]),
            "large": None,
            "before": [],
            "boxes": _boxes(row, ratios),
        }
        if row["index"] in large:
            item["large"], item["before"] = _large(image, read_rgb(lookup[row["source"]]), row, sides.large)
        items.append(item)
        report(done, len(rows))
    header = manifest.header
    return {
        "recipe_sha256": header["recipe_sha256"],
        "generator_fingerprint": header["generator_fingerprint"],
        "classes": header["class_names"],
        "items": items,
    }


class _Sides:
    """How large the pictures can be, from a probe of a few images spread over the set."""

    def __init__(self, dataset: Path, rows: Sequence[ImageRow], lookup: Mapping[str, Path]) -> None:
        self.rows = rows
        probed = [rows[i] for i in np.linspace(0, len(rows) - 1, min(_PROBED, len(rows)), dtype=int)]
        of_small, of_large = [], []
        for row in probed:
            # One at a time: a few large ones at once would not fit into memory.
            image, clean = read_rgb(dataset / row["image"]), read_rgb(lookup[row["source"]])
            of_small.append([len(data_uri(fitted(image, side), quality=quality)) for side, quality in _SMALL])
            of_large.append([sum(map(len, _texts(_large(image, clean, row, side)))) for side in _LARGE_PX])
        for self.small, cost in zip(_SMALL, np.mean(of_small, axis=0).tolist(), strict=True):
            if cost * len(rows) <= SMALL_BUDGET:
                break
        boxes = _BOX_CHARACTERS * sum(len(row["kept"]) + len(row["placed"]) for row in rows)
        left = max(SMALL_BUDGET + LARGE_BUDGET - cost * len(rows) - boxes, 0)
        for self.large, cost in zip(_LARGE_PX, np.mean(of_large, axis=0).tolist(), strict=True):
            self.num_large = int(min(left, LARGE_BUDGET) / cost)
            if self.num_large >= len(rows):
                break

    def large_ones(self, first: Sequence[int]) -> set[int]:
        """Indexes of the images with a large picture: `first`, then some spread over the set."""
        indexes = [row["index"] for row in self.rows]
        if self.num_large >= len(indexes):
            return set(indexes)
        chosen = dict.fromkeys(index for index in first if index in set(indexes))
        spread = np.linspace(0, len(indexes) - 1, max(self.num_large - len(chosen), 0), dtype=int)
        chosen |= dict.fromkeys(indexes[i] for i in spread)
        return set(list(chosen)[: self.num_large])


def _large(image: np.ndarray, clean: np.ndarray, row: ImageRow, side: int) -> tuple[str, list[list[Any]]]:
    """The composite, and the clean image's windows where defects were drawn: elsewhere both are the same."""
    scale = min(side / max(image.shape[:2]), 1)
    before = []
    for placed in row["placed"]:
        x, y, width = placed["placement"]["window"]
        left, top = max(math.floor(x), 0), max(math.floor(y), 0)
        right, bottom = min(math.ceil(x + width), image.shape[1]), min(math.ceil(y + width), image.shape[0])
        window = clean[top:bottom, left:right]
        longest = max(round(scale * max(window.shape[:2])), 1)
        before.append([left, top, right - left, bottom - top, data_uri(fitted(window, longest))])
    return data_uri(fitted(image, side)), before


def _texts(large: tuple[str, list[list[Any]]]) -> list[str]:
    return [large[0], *(window[4] for window in large[1])]


def _boxes(row: ImageRow, ratios: Mapping[tuple[int, int], float | None]) -> list[dict[str, Any]]:
    boxes: list[dict[str, Any]] = [
        {"class_id": kept["class_id"], "xyxy": kept["xyxy"], "score": None, "ratio": None, "kept": True}
        for kept in row["kept"]
    ]
    for number, placed in enumerate(row["placed"]):
        ratio = ratios.get((row["index"], number))
        boxes.append(
            {
                "class_id": placed["class_id"],
                "xyxy": placed["label_xyxy"],
                "score": placed["placement"].get("probability"),
                "ratio": None if ratio is None else round(ratio, 2),
                "kept": False,
            }
        )
    return boxes
