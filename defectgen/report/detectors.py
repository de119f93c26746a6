"""What the report shows of trained detectors: arms, classes, curves, misses; and of a bench of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from defectgen.bench.cells import curves_on_disk
from defectgen.bench.plots import drawings
from defectgen.errors import DefectgenError, RunError
from defectgen.report import charts
from defectgen.report.misses import alarm_pictures, judged, miss_pictures
from defectgen.yolo.arm_files import written_digest
from defectgen.yolo.results import FIGURE_NAMES, SCORES, alarms_caption
from defectgen.yolo.verdict import FEWEST_SEEDS, OWN_ARM, paired_interval


def detector_parts(results: dict[str, Any], yolo: Path) -> tuple[dict[str, Any], list[str]]:
    """What the page shows of the detectors in `yolo`, and warnings of what it cannot show."""
    score = SCORES[results["task"]]
    arms = results["arms"]
    colours = charts.colours_of(list(arms))
    of_class = "ap50" if "ap50" in next(iter(arms.values()))["mean"]["per_class"][0] else "accuracy"
    scores = {arm: [100 * run["metrics"][score] for run in entry["seeds"]] for arm, entry in arms.items()}
    per_class = {
        arm: [(row["class"], row[of_class]) for row in entry["mean"]["per_class"]] for arm, entry in arms.items()
    }
    curves = {
        name: {
            arm: [run["metrics"].get("curves", {}).get(name, []) for run in entry["seeds"]]
            for arm, entry in arms.items()
        }
        for name in ("precision_over_recall", "recall_over_false_alarms")
    }
    found = {
        "arms": charts.arms_chart(scores, FIGURE_NAMES[score], colours),
        "classes": charts.classes_chart(per_class, "accuracy" if of_class == "accuracy" else "AP50", colours),
        "precision": charts.curves_chart(curves["precision_over_recall"], "recall", "precision", colours),
        "alarms": charts.curves_chart(
            curves["recall_over_false_alarms"], "false alarms per clean image", "recall", colours, logarithmic=True
        ),
    }
    try:
        misses, warnings = _misses(results, yolo), []
    except DefectgenError as error:
        misses, warnings = None, [f"What the detector misses cannot be shown: {error}"]
    figures = [name for name in FIGURE_NAMES if any(entry["mean"].get(name) is not None for entry in arms.values())]
    parts = {
        "arms": {
            "headings": [FIGURE_NAMES[name] for name in figures],
            "rows": [
                (arm, [_over_seeds(entry["seeds"], name) for name in figures], len(entry["seeds"]))
                for arm, entry in arms.items()
            ],
            "best": results["best"]["arm"],
            "at_fp": alarms_caption(results["test_clean_images"]),
            "intervals": any(len(entry["seeds"]) >= FEWEST_SEEDS for entry in arms.values()),
            "test": f"{results['test_images']} real held-out images, {results['test_clean_images']} of them clean",
        },
        "charts": charts.marked(found),
        "misses": misses,
    }
    return parts, warnings


def _misses(results: dict[str, Any], yolo: Path) -> dict[str, Any] | None:
    arms, class_names = results["arms"], results["classes"]
    shown = OWN_ARM if OWN_ARM in arms else results["best"]["arm"]
    if written_digest(yolo / "test" / "samples.json") != results["test_sha256"]:
        raise RunError(f"{yolo / 'test'}: is not what these detectors were tested on; run `defectgen train-yolo` again")
    one = judged(yolo, arms[shown], class_names)
    other = judged(yolo, arms["real"], class_names) if "real" in arms and shown != "real" else None
    if one is None:
        return None
    why = "" if results["test_clean_images"] else ", for want of clean test images to set it by"
    count, num_real = len(arms[shown]["seeds"]), len(one.found) + len(one.missed)
    which = f" (the first of {count} trainings)" if count > 1 else ""
    on_clean = sum(clean for _, _, clean in one.alarms)
    lines = [
        f"{shown}{which}, at confidence {one.threshold:.2f}{why}: {len(one.found)} of {num_real} real defects found, "
        f"{len(one.alarms)} boxes where there is no defect, {on_clean} of them on clean product."
    ]
    if one.num_beside:
        lines.append(
            f"{one.num_beside} more boxes lie on a defect, but find none: a second or a loose box, or another class."
        )
    if other is not None:
        mine, theirs = set(one.found), set(other.found)
        lines.append(
            f"Against the detector of real images alone, at confidence {other.threshold:.2f}: "
            f"{len(mine - theirs)} more defects are found, {len(theirs - mine)} are lost."
        )
    return {
        "lines": lines,
        "missed": miss_pictures(yolo, one, class_names),
        "alarms": alarm_pictures(yolo, one, class_names),
    }


def bench_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for k, of_k in summary["k"].items():
        for arm, figures in of_k["arms"].items():
            cells = [_with_interval(figures[name]) for name in ("map50", "map5095", "recall_at_fp")]
            gain = _with_interval(of_k["difference"].get(arm), signed=True)
            rows.append({"k": k, "arm": arm, "seeds": figures["num_seeds"], "cells": [*cells, gain]})
    return rows


def bench_charts(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Markup]:
    titles = {
        "map_over_k": "mAP50-95 over the number of real defects",
        "gain_per_class": "Gain per class",
        "precision_recall": "Precision over recall",
        "false_alarms": "Recall over false alarms",
    }
    found = {
        name: charts.svg(draw, titles[name], size=(4.4, 4.4 * height))
        for name, (draw, height) in drawings(rows, curves_on_disk(rows, folder)).items()
    }
    if all(len(row["ap5095"]) == 1 for row in rows):
        found["gain_per_class"] = None  # The arms themselves say it.
    if len({row["k"] for row in rows}) == 1:
        # A curve of one point says less than the draws themselves.
        arms = dict.fromkeys(row["arm"] for row in rows)
        scores = {arm: [100 * row["map5095"] for row in rows if row["arm"] == arm] for arm in arms}
        del found["map_over_k"]
        found["arms"] = charts.arms_chart(scores, "mAP50-95", charts.colours_of(list(arms)))
    return charts.marked(found)


def _with_interval(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    mean = f"{value['mean']:+.1f}" if signed else f"{value['mean']:.1f}"
    return mean if value["low"] is None else f"{mean} ({value['low']:.1f} to {value['high']:.1f})"


def _over_seeds(runs: Sequence[dict[str, Any]], name: str) -> str:
    """Mean of a figure in percent, with its 95 % interval where there are trainings enough for one."""
    values = [100 * run["metrics"][name] for run in runs if run["metrics"].get(name) is not None]
    if not values:
        return "–"
    if len(values) < FEWEST_SEEDS:
        return f"{values[0]:.1f}"
    mean, low, high = paired_interval(values)
    return _with_interval({"mean": mean, "low": low, "high": high})
