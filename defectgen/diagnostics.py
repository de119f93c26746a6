"""What a synthetic set is like beside the real defects: reported with a verdict, never instead of it.

Distances are between features of the class check, trained on the real windows: no foreign network is needed. Copies are
told by their pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from defectgen.boxes import mask_xyxy, union
from defectgen.copies import copied_in
from defectgen.crops import centre, region_of
from defectgen.dataset.labels import window_view
from defectgen.dataset.manifest import MANIFEST_NAME, PlacedRow, read_manifest
from defectgen.images import read_rgb
from defectgen.inpaint.placement import Turn
from defectgen.recipe import Recipe
from defectgen.records import XYXY, Sources
from defectgen.studio import Studio
from defectgen.windows import Window

# A synthetic defect that changes its place so much like a pasted real one is a copy of that.
COPY = 0.9
# Synthetic defects that are looked at; pasting a copy beside one takes a second on images of 20 megapixels.
MOST_WINDOWS, MOST_PASTED = 400, 100


@dataclass(frozen=True)
class Nearest:
    """The real defect that a synthetic one is most like.

    Attributes:
        index: of the image in the set.
        number: of the defect among those placed in it.
        model: of the real defect in `studio.models`.
        ratio: their distance over the median distance of a real defect to the nearest other; None with fewer than two.
    """

    index: int
    number: int
    model: int
    ratio: float | None


def diagnose(recipe: Recipe, sources: Sources, studio: Studio, dataset: Path) -> dict[str, Any]:
    """Figures of the set in `dataset` against the real defects it was made from, as JSON values: see `examine`."""
    return examine(recipe, sources, studio, dataset)[0]


def examine(recipe: Recipe, sources: Sources, studio: Studio, dataset: Path) -> tuple[dict[str, Any], list[Nearest]]:
    """Figures of the set in `dataset` against the real defects it was made from, as JSON values; and for the synthetic
    defects of its first images, MOST_WINDOWS or a few more, the nearest real one.

    kid: squared maximum mean discrepancy with a cubic kernel, synthetic against real windows (Binkowski et al. 2018,
    "Demystifying MMD GANs", on the class check's features: to be compared within one data set alone).
    nearest_real: median distance of a synthetic window to the nearest real one in every turn allowed, over the median
    distance of a real one to the nearest other; None with fewer than two real defects. The place counts, too: pasted
    real defects have about 1. likeness: median of `likeness`, which tells these, of the first MOST_PASTED; copies: the
    share of at least COPY.
    boxes: per class, quartiles of the longest side in pixels and of the aspect (longer over shorter side), real and
    synthetic. refused: placements refused, by reason, as a share of all that were tried.
    """
    window_px = recipe.generator.window_px
    rows = [row for row in read_manifest(dataset / MANIFEST_NAME).rows if row["placed"]]
    turns = _turns(recipe)
    windows = [centre(model.crop.image, window_px) for model in studio.models]
    # Boxes on both sides, whatever is known of the real ones: a region's shape is seen, too.
    boxes = [region_of(centre(model.crop.mask, window_px), outlined=False) for model in studio.models]
    real = studio.screen.features(*(_turned(arrays, turns) for arrays in (windows, boxes)))
    images, regions, of = [], [], []
    alike: list[float] = []
    bases = {one.name: one.path for one in (sources.train_clean if recipe.data.base == "clean" else sources.train)}
    for row in rows:
        image, base = read_rgb(dataset / row["image"]), read_rgb(bases[row["source"]])
        for number, placed in enumerate(row["placed"]):
            window = Window(*placed["placement"]["window"])
            # With the annotators' margin where the real box has it: the region is seen, too.
            outlined = studio.models[placed["placement"]["model"]].crop.outlined
            box = _box(placed["changed_xyxy" if outlined else "label_xyxy"])
            x1, y1, x2, y2 = window.to_window(box, window_px)
            mask = np.zeros((window_px, window_px), np.uint8)
            mask[max(int(y1), 0) : int(np.ceil(y2)), max(int(x1), 0) : int(np.ceil(x2))] = 255
            images.append(window_view(image, window, window_px))
            regions.append(region_of(mask, outlined=False) if mask.any() else mask.astype(bool))
            of.append((row["index"], number))
            if len(alike) < MOST_PASTED:
                alike.append(likeness(recipe, sources, studio, placed, image, base))
        if len(images) >= MOST_WINDOWS:
            break
    made = studio.screen.features(np.stack(images), np.stack(regions))
    distances = _distances(made, real)
    typical = _typical(real, len(turns))
    ratios = None if typical is None else distances.min(axis=1) / max(typical, 1e-9)
    figures = {
        "kid": _squared_mmd(made, real, len(turns)) if min(len(made), len(windows)) > 1 else None,
        "nearest_real": None if ratios is None else float(np.median(ratios)),
        "likeness": float(np.median(alike)),
        "copies": float(np.mean(np.array(alike) >= COPY)),
        "boxes": {
            name: {
                "real": _box_quartiles(
                    [mark.xyxy for image in sources.train for mark in image.annotations if mark.class_id == class_id]
                ),
                "synthetic": _box_quartiles(
                    [_box(one["label_xyxy"]) for row in rows for one in row["placed"] if one["class_id"] == class_id]
                ),
            }
            for class_id, name in enumerate(sources.class_names)
        },
        "refused": _refused(rows),
    }
    nearest = distances.argmin(axis=1) // len(turns)
    found = [
        Nearest(*owner, int(model), None if ratios is None else float(ratios[position]))
        for position, (owner, model) in enumerate(zip(of, nearest, strict=True))
    ]
    return figures, found


def likeness(
    recipe: Recipe, sources: Sources, studio: Studio, placed: PlacedRow, image: np.ndarray, base: np.ndarray
) -> float:
    """How much of what a synthetic defect changes is what a pasted copy of the real one that it follows would change.

    The cosine of the two changes of `base`, in the box of both: 1 for the same pixels but for their contrast, 0 for
    nothing in common, -1 for the opposite. Of the copy as it is bent before drawing; where that is not alike, unbent.

    Args:
        placed: the defect's record in the manifest.
        image, base: uint8 (H, W, 3), with and without the defects.
    """
    placement = placed["placement"]
    turn, window = Turn.of_json(placement), Window(*placement["window"])
    found = -1.0
    for one in dict.fromkeys((turn, replace(turn, warp=0.0))):
        copy, shape = copied_in(recipe, sources, studio, placement["model"], one, window, base)
        box = _box(placed["changed_xyxy"])
        if (of_copy := mask_xyxy(shape)) is not None:
            box = union(box, window.to_image(of_copy, window.side))
        x1, y1 = (max(int(edge), 0) for edge in box[:2])
        x2, y2 = (int(np.ceil(edge)) for edge in box[2:])
        before = base[y1:y2, x1:x2].astype(np.float32)
        changes = [one[y1:y2, x1:x2] - before for one in (image, copy)]
        norm = float(np.linalg.norm(changes[0]) * np.linalg.norm(changes[1]))
        found = max(found, float((changes[0] * changes[1]).sum()) / norm if norm else 0.0)
        if found >= COPY:
            break
    return found


def _turns(recipe: Recipe) -> list[tuple[int, bool]]:
    """Quarter turns, and whether mirrored first, of the real defects that the recipe allows; upright first."""
    quarters = (0, 1, 2, 3) if recipe.place.quarter_turns else (0, 2) if recipe.place.flip else (0,)
    return [
        (quarter, mirrored) for mirrored in ((False, True) if recipe.place.flip else (False,)) for quarter in quarters
    ]


def _turned(arrays: Sequence[np.ndarray], turns: Sequence[tuple[int, bool]]) -> np.ndarray:
    """(N * T, H, W, ...): each of the N arrays in all turns."""
    return np.stack(
        [np.rot90(array[:, ::-1] if mirrored else array, quarter) for array in arrays for quarter, mirrored in turns]
    )


def _typical(real: np.ndarray, num_turns: int) -> float | None:
    """The median distance of a real defect to the nearest other, in any turn; None with fewer than two."""
    if len(real) < 2 * num_turns:
        return None
    number = np.arange(len(real)) // num_turns
    between = np.where(number[::num_turns, None] == number[None], np.inf, _distances(real[::num_turns], real))
    return float(np.median(between.min(axis=1)))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M): Euclidean distances."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))


def _squared_mmd(made: np.ndarray, real: np.ndarray, num_turns: int) -> float:
    """Unbiased, so below 0 by chance where both are alike: turns of a real window are not compared with each other."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        cubed: np.ndarray = (x @ y.T / x.shape[1] + 1) ** 3
        return cubed

    def mean_of_others(matrix: np.ndarray, block: int) -> float:
        number = np.arange(len(matrix)) // block
        return float(matrix[number[:, None] != number[None]].mean())

    within = mean_of_others(kernel(made, made), 1) + mean_of_others(kernel(real, real), num_turns)
    return within - 2 * float(kernel(made, real).mean())


def _box(values: Sequence[float]) -> XYXY:
    x1, y1, x2, y2 = values
    return (x1, y1, x2, y2)


def _box_quartiles(boxes: Sequence[XYXY]) -> dict[str, Any] | None:
    if not boxes:
        return None
    sides = np.array([(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes])
    aspect = sides.max(axis=1) / np.maximum(sides.min(axis=1), 1)
    return {
        "count": len(boxes),
        "longest_side_px": np.round(np.quantile(sides.max(axis=1), (0.25, 0.5, 0.75)), 1).tolist(),
        "aspect": np.round(np.quantile(aspect, (0.25, 0.5, 0.75)), 2).tolist(),
    }


def _refused(rows: Sequence[Any]) -> dict[str, float]:
    reasons = Counter(refused["reason"] for row in rows for refused in row["rejected"])
    tried = sum(reasons.values()) + sum(len(row["placed"]) for row in rows)
    return {reason: round(count / tried, 4) for reason, count in reasons.most_common()}
