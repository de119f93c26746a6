"""results.json: every arm's figures per seed and their mean, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectgen.errors import UsageError
from defectgen.recipe import TrainYolo
from defectgen.yolo.arms import Plan
from defectgen.yolo.tiles import Task
from defectgen.yolo.verdict import CEILING, OWN_ARM, judge

if TYPE_CHECKING:
    from rich.table import Table

# A class that the detector finds already is still made.
LEAST_WEIGHT = 0.1
# What arms are compared by.
SCORES: dict[Task, str] = {
    "detect": "map50_95",
    "segment": "map50_95",
    "obb": "map50_95",
    "classify": "mean_class_accuracy",
}
FIGURE_NAMES = {
    "map50": "mAP50",
    "map50_95": "mAP50-95",
    "recall_at_fp": "recall@FP",
    "mask_map50_95": "mask mAP50-95",
    "accuracy": "accuracy",
    "mean_class_accuracy": "mean accuracy per class",
}
_FIGURES = (
    "map50",
    "map50_95",
    "precision",
    "recall",
    "recall_at_fp",
    "confidence_at_fp",
    "mask_map50",
    "mask_map50_95",
    "accuracy",
    "mean_class_accuracy",
)


def collect_results(
    results: dict[str, list[dict[str, Any]]], *, config: TrainYolo, class_names: Sequence[str], plan: Plan
) -> dict[str, Any]:
    """The content of results.json from the result per arm and seed.

    `verdict` is None without two seeds, `real+defectgen` and another arm. `best` is the arm with the highest mean
    mAP50-95 (`full-real` aside), and its first seed's weights: not the seed that did best on the test set.
    """
    arms: dict[str, dict[str, Any]] = {
        name: {"seeds": runs, "mean": mean_metrics(runs)} for name, runs in results.items()
    }
    # The ceiling is for comparison: its real images are not of the budget.
    choice = [name for name in arms if name != CEILING] or list(arms)
    score = SCORES[plan.task]
    best = max(choice, key=lambda name: arms[name]["mean"][score])
    first = results[best][0]
    test_images = len({sample.image.path for sample in plan.test})
    test_groups = len({sample.image.group for sample in plan.test if sample.image.annotations})
    scores = {name: {run["seed"]: run["metrics"][score] for run in runs} for name, runs in results.items()}
    verdict = judge(scores, figure=FIGURE_NAMES[score], alone=config.real_share == 0)
    return {
        "task": plan.task,
        "profile": config.model_dump(mode="json"),
        "device": first["device"],
        "precision": first["precision"],
        "versions": first["versions"],
        "classes": list(class_names),
        "test_images": test_images,
        "test_groups": test_groups,
        "test_files": len(plan.test),
        "test_clean_images": plan.num_clean_images,
        "test_imgsz": plan.test_imgsz,
        "arms": arms,
        "verdict": None
        if verdict is None
        else verdict.to_json(verdict.sentence(test_images, num_test_groups=test_groups)),
        "best": {"arm": best, "seed": first["seed"], "weights": first["weights"]},
    }


def missed_weights(path: Path) -> dict[str, float]:
    """Class weights for what a detector misses: 1 - AP50 per class, from results.json of an earlier run.

    Of the arm `real+defectgen`, else of the best; of classifiers 1 - accuracy. A class without a test defect gets the
    mean of the others; none gets less than LEAST_WEIGHT. The results must come from a fold of the training groups:
    chosen by a test set, what is made would be fitted to it.

    Raises:
        UsageError: `path` holds no results.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        arms = results["arms"]
        per_class = arms[OWN_ARM if OWN_ARM in arms else results["best"]["arm"]]["mean"]["per_class"]
        scores: dict[str, float | None] = {
            str(row["class"]): row["ap50"] if "ap50" in row else row["accuracy"]
            for row in per_class
            if "ap50" in row or row["class"] != "clean"
        }
        known = [float(score) for score in scores.values() if score is not None]
    except OSError as error:
        raise UsageError(f"--focus: cannot read {path}: {error.strerror}; name a results.json of train-yolo") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"--focus: {path} holds no results of train-yolo; name its yolo/results.json") from None
    mean = sum(known) / len(known) if known else 0.0
    return {name: round(max(1 - (mean if score is None else score), LEAST_WEIGHT), 3) for name, score in scores.items()}


def mean_metrics(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, per figure and per class; None where no seed has the figure."""
    metrics = [run["metrics"] for run in runs]
    per_class: list[dict[str, Any]] = []
    tables: list[list[dict[str, Any]]] = [entry["per_class"] for entry in metrics]
    for rows in zip(*tables, strict=True):
        figures = [key for key in rows[0] if key not in ("class", "defects")]
        means = {key: _mean([row[key] for row in rows]) for key in figures}
        per_class.append({"class": rows[0]["class"], "defects": rows[0]["defects"], **means})
    return {**{key: _mean([entry.get(key) for entry in metrics]) for key in _FIGURES}, "per_class": per_class}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def verdict_line(results: dict[str, Any]) -> str:
    """The verdict as a sentence, or what it takes to get one."""
    if results["verdict"] is None:
        return "No verdict: it takes real+defectgen, another arm and two seeds, as in --set 'train_yolo.seeds=[0,1,2]'"
    return str(results["verdict"]["sentence"])


def alarms_caption(num_clean_images: int) -> str | None:
    """What recall@FP means with so many clean test images; None with none of them."""
    from defectgen.yolo.evaluate import allowed_alarms

    if not num_clean_images:
        return None
    alarms = "1 false alarm" if (allowed := allowed_alarms(num_clean_images)) == 1 else f"{allowed} false alarms"
    return f"recall@FP: share of defects found with {alarms} on the {num_clean_images} clean test images"


def results_tables(results: dict[str, Any]) -> list[Table]:
    """The arms, and with several classes each class's AP50 in every arm: means over the seeds, in percent; a dash where
    the test set cannot tell. Two, as one with a column per class is wider than a terminal.
    """
    from rich.markup import escape
    from rich.table import Table

    num_seeds = max(len(arm["seeds"]) for arm in results["arms"].values())
    seeds = f"{num_seeds} seeds" if num_seeds > 1 else "1 seed"
    by_arm = Table(
        "arm",
        title=f"YOLO on {results['test_images']} real held-out images, {seeds}, percent",
        caption=alarms_caption(results["test_clean_images"]),
    )
    means = {name: arm["mean"] for name, arm in results["arms"].items()}
    figures = [
        name for name in FIGURE_NAMES if name == "recall_at_fp" or any(m.get(name) is not None for m in means.values())
    ]
    for name in figures:
        by_arm.add_column(FIGURE_NAMES[name], justify="right")
    for name, mean in means.items():
        style = "bold" if name == results["best"]["arm"] else None
        by_arm.add_row(name, *(_percent(mean[figure]) for figure in figures), style=style)
    rows_of = [mean["per_class"] for mean in means.values()]
    if len(rows_of[0]) == 1:
        return [by_arm]
    of_class = "ap50" if "ap50" in rows_of[0][0] else "accuracy"
    by_class = Table("class", title=f"{of_class.replace('ap', 'AP')} per class")
    by_class.add_column("test defects", justify="right")
    for name in means:
        by_class.add_column(name.replace("+", "+\n"), justify="right")
    for rows in zip(*rows_of, strict=True):
        by_class.add_row(escape(rows[0]["class"]), str(rows[0]["defects"]), *(_percent(row[of_class]) for row in rows))
    return [by_arm, by_class]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
