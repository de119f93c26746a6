"""What the report shows of a synthetic data set: gallery, comparisons with real defects, refusals, statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from defectgen.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest, summarise
from defectgen.diagnostics import COPY, MOST_PASTED, Nearest, examine
from defectgen.images import read_rgb
from defectgen.progress import Progress
from defectgen.recipe import Recipe
from defectgen.records import Sources
from defectgen.report import charts
from defectgen.report.explain import explain, refused
from defectgen.report.gallery import gallery
from defectgen.report.pictures import window_uri
from defectgen.studio import Studio, load_studio
from defectgen.windows import Window

_SHOWN_BESIDE = 8


def set_parts(recipe: Recipe, sources: Sources, out: Path, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page shows of the data set in `out`, and its figures."""
    dataset = out / "dataset"
    manifest = read_manifest(dataset / MANIFEST_NAME)
    studio = load_studio(recipe, sources, out / "generator")
    progress("report", 0, 0, "comparing with the real defects")
    figures, nearest = examine(recipe, sources, studio, dataset)
    beside = _beside(sources, studio, dataset, manifest, nearest)
    bases = sources.train_clean if recipe.data.base == "clean" else sources.train
    items = gallery(
        dataset,
        manifest,
        {image.name: image.path for image in bases},
        nearest,
        first=[one["index"] for group in beside for one in group["pairs"]],
        report=lambda done, total: progress("report: pictures", done, total, ""),
    )
    summary = summarise(manifest.rows, sources.class_names)
    progress("report", 0, 0, "drawing what was refused again")
    strips = refused(recipe, sources, studio, [row for row in manifest.rows if row["rejected"]])
    progress("report", 0, 0, "how the generator works")
    parts = {
        "beside": beside,
        "gallery": items,
        "summary": summary,
        "charts": _set_charts(sources, manifest),
        "rejections": [
            {"reason": reason, "counts": counts, "strip": strips.get(reason)}
            for reason, counts in sorted(summary["rejections"].items(), key=lambda pair: -sum(pair[1].values()))
        ],
        "strips": explain(recipe, sources, studio),
        "notes": _notes(figures, len(nearest)),
        "compared": len(nearest),
    }
    return parts, figures


def _notes(figures: dict[str, Any], compared: int) -> list[str]:
    pasted = min(compared, MOST_PASTED)
    notes = [
        f"What the first {pasted} synthetic defects change is to {figures['likeness']:.2f} (median; 1: all of it) what "
        "a pasted copy of the real defect that each follows would change there; "
        f"{figures['copies']:.0%} are such copies to {COPY:g} or more."
    ]
    if figures["nearest_real"] is not None:
        notes.append(
            f"The first {compared} are {figures['nearest_real']:.2f} times as far from their nearest real one as real "
            "defects are from each other (median, in the class check's features, where the place counts, too)."
        )
    if figures["kid"] is not None:
        notes.append(
            f"KID of synthetic windows against the real ones that they follow: {figures['kid']:.3f} (0: alike)."
        )
    return notes


def _beside(
    sources: Sources, studio: Studio, dataset: Path, manifest: Manifest, nearest: Sequence[Nearest]
) -> list[dict[str, Any]]:
    """The surest and the least sure of the set next to the real defects they were made from; those nearest to a real
    one and furthest from any, next to it.
    """
    rows = {row["index"]: row for row in manifest.rows}
    of_real = {image.name: image.path for image in sources.train}
    # The distance is to the nearest real one, which need not be the one that was followed.
    ratios = {(one.index, one.number, one.model): one.ratio for one in nearest}
    followed = [
        Nearest(
            row["index"],
            number,
            placed["placement"]["model"],
            ratios.get((row["index"], number, placed["placement"]["model"])),
        )
        for row in manifest.rows
        for number, placed in enumerate(row["placed"])
    ]

    def score(one: Nearest) -> float:
        return float(rows[one.index]["placed"][one.number]["placement"].get("probability", 0.0))

    orders = []
    if any("probability" in placed["placement"] for row in manifest.rows for placed in row["placed"]):
        by_score = sorted(followed, key=score)
        made_from = "Beside the real defect each was made from."
        orders = [
            ("Surest of its class", f"The class check is surest of these. {made_from}", by_score[::-1]),
            ("Least sure", f"The class check hardly let these pass: look for what is wrong. {made_from}", by_score),
        ]
    if any(one.ratio is not None for one in nearest):
        by_ratio = sorted(nearest, key=lambda one: one.ratio if one.ratio is not None else math.inf)
        of_these = f"Of the first {len(nearest)} defects, beside the nearest real one."
        orders += [
            (
                "Nearest to a real one",
                f"By the class check's features, where the place counts, too. {of_these}",
                by_ratio,
            ),
            ("Furthest from any real one", f"New kinds of defect, or nonsense. {of_these}", by_ratio[::-1]),
        ]
    groups = []
    for title, text, order in orders:
        pairs = []
        for one in order[:_SHOWN_BESIDE]:
            row, model = rows[one.index], studio.models[one.model]
            placed = row["placed"][one.number]
            caption = f"{placed['class_name']}, image {one.index}"
            if "probability" in placed["placement"]:
                caption += f", {score(one):.2f} sure"
            if one.ratio is not None:
                caption += f", distance {one.ratio:.2f}"
            pairs.append(
                {
                    "index": one.index,
                    "made": window_uri(read_rgb(dataset / row["image"]), Window(*placed["placement"]["window"])),
                    "real": window_uri(read_rgb(of_real[model.crop.source]), model.crop.window),
                    "caption": caption,
                }
            )
        groups.append({"title": title, "text": text, "pairs": pairs})
    return groups


def _set_charts(sources: Sources, manifest: Manifest) -> dict[str, Markup]:
    names = sources.class_names
    real = [(names[mark.class_id], mark.xyxy, image.size_wh) for image in sources.train for mark in image.annotations]
    made = [
        (placed["class_name"], tuple(placed["label_xyxy"]), tuple(row["size_wh"]))
        for row in manifest.rows
        for placed in row["placed"]
    ]

    def spread(marks: Sequence[tuple[str, Any, Any]], aspect: bool) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {name: [] for name in names}
        for name, (x1, y1, x2, y2), _ in marks:
            longest, shortest = max(x2 - x1, y2 - y1), max(min(x2 - x1, y2 - y1), 1.0)
            values[name].append(longest / shortest if aspect else longest)
        return values

    counts = [Counter(name for name, _, _ in marks) for marks in (real, made)]
    found = {
        "balance": charts.balance_chart({name: counts[0][name] for name in names}, counts[1]),
        "size": charts.spread_chart(spread(real, False), spread(made, False), "longest side, px", title="Box size"),
        "aspect": charts.spread_chart(
            spread(real, True), spread(made, True), "longer over shorter side", title="Box aspect"
        ),
        "where_real": charts.position_chart([mark[1:] for mark in real], "real", charts.REAL_COLOUR),
        "where_made": charts.position_chart([mark[1:] for mark in made], "synthetic", charts.SYNTHETIC_COLOUR),  # type: ignore[misc]
    }
    return charts.marked(found)
