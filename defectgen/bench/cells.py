"""The cells of a bench: a whole run, from the recipe to judged detectors, per budget of real defects and seed.

OUT/k10/seed0/    a run folder like any other
OUT/bench.jsonl   a row per cell and arm
OUT/bench.json    means, intervals, verdicts
OUT/*.png         plots
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from defectgen import __version__
from defectgen.bench.diagnostics import diagnose
from defectgen.bench.plots import write_plots
from defectgen.bench.summary import summarise
from defectgen.data.load import load_sources
from defectgen.errors import RunError
from defectgen.images import write_bytes_atomic
from defectgen.recipe import DEFAULT_ARMS, Arm, Recipe
from defectgen.run import read_sources, run_train_yolo
from defectgen.studio import Progress, load_studio
from defectgen.yolo.verdict import OWN_ARM

ProfileName = Literal["small", "full"]


@dataclass(frozen=True)
class Profile:
    """How much is measured. `train_yolo`: the detector's settings that are not the recipe's."""

    ks: tuple[int, ...]
    num_seeds: int
    arms: tuple[Arm, ...]
    train_yolo: dict[str, Any] = field(default_factory=dict)


PROFILES: dict[ProfileName, Profile] = {
    # Two CPU cores and an hour or two.
    "small": Profile((10,), 2, DEFAULT_ARMS),
    # A GPU.
    "full": Profile((5, 10, 20), 5, get_args(Arm), {"imgsz": 640, "tile_px": None, "iterations": 3000}),
}


def run_bench(
    recipe: Recipe,
    out: Path,
    *,
    profile: ProfileName,
    num_seeds: int | None = None,
    ks: Sequence[int] | None = None,
    arms: Sequence[Arm] | None = None,
    workers: int,
    progress: Progress,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Every cell of the bench, and their summary. What is done is kept, so that a stopped bench goes on.

    All cells share one test set; each seed draws other real images, and with them everything else.

    Raises:
        RunError: `out` holds a bench of another recipe, and `overwrite` is false; a run failed.
    """
    plan = PROFILES[profile]
    ks, count = tuple(dict.fromkeys(ks or plan.ks)), num_seeds or plan.num_seeds
    settings = plan.train_yolo | {"arms": list(dict.fromkeys(arms or plan.arms)), "seeds": [0]}
    recipe = _with_fixed_split(recipe, out)
    seeds = range(recipe.seed, recipe.seed + count)
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    diagnostics: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for k in ks:
        for seed in seeds:
            name = f"K {k}, seed {seed}"
            cell = cell_recipe(recipe, k, seed, settings)

            def report(stage: str, done: int, total: int, note: str, name: str = name) -> None:
                progress(f"{name}: {stage}", done, total, note)

            folder = out / f"k{k}" / f"seed{seed}"
            results = run_train_yolo(cell, folder, workers=workers, progress=report, overwrite=overwrite)
            of_cell = cell_rows(results, recipe=recipe.name, profile=profile, k=k, seed=seed)
            rows += of_cell
            if OWN_ARM in results["arms"]:
                diagnostics.append({"k": k, "seed": seed, **_diagnostics(cell, folder)})
            for row in of_cell:
                run = results["arms"][row["arm"]]["seeds"][0]
                curves.append({"k": k, "seed": seed, "arm": row["arm"], **run["metrics"]["curves"]})
                done = f"{row['arm']}: mAP50 {100 * row['map50']:.1f}, mAP50-95 {100 * row['map5095']:.1f}"
                progress(f"{name}", 0, 0, done)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_bytes_atomic(out / "bench.jsonl", lines.encode())
    summary = summarise(rows, num_test_images=results["test_images"]) | {"diagnostics": diagnostics}
    write_bytes_atomic(out / "bench.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    write_plots(rows, curves, out)
    return summary


def cell_recipe(recipe: Recipe, k: int, seed: int, train_yolo: dict[str, Any]) -> Recipe:
    """`recipe` with K real defects per class, drawn by `seed`."""
    return recipe.model_copy(
        update={
            "seed": seed,
            "data": recipe.data.model_copy(update={"per_class": k, "max_images": None}),
            "train_yolo": recipe.train_yolo.model_copy(update=train_yolo),
        }
    )


def cell_rows(results: dict[str, Any], *, recipe: str, profile: str, k: int, seed: int) -> list[dict[str, Any]]:
    """A row per arm of a cell's results.json, figures between 0 and 1."""
    rows = []
    for arm, of_arm in results["arms"].items():
        (run,) = of_arm["seeds"]
        metrics = run["metrics"]
        rows.append(
            {
                "recipe": recipe,
                "profile": profile,
                "k": k,
                "seed": seed,
                "arm": arm,
                "iterations": run["training"]["iterations"],
                "map50": metrics["map50"],
                "map5095": metrics["map50_95"],
                "recall_at_fp": metrics["recall_at_fp"],
                "ap5095": {entry["class"]: entry["ap50_95"] for entry in metrics["per_class"]},
                "device": run["device"],
                "date": run["date"],
                "version": __version__,
            }
        )
    return rows


def _diagnostics(cell: Recipe, folder: Path) -> dict[str, Any]:
    sources = read_sources(cell, folder)
    return diagnose(cell, sources, load_studio(cell, sources, folder / "generator"), folder / "dataset")


def _with_fixed_split(recipe: Recipe, out: Path) -> Recipe:
    """`recipe` with its test groups named: by `recipe.seed` alone, each cell would be judged on other parts."""
    data = recipe.data
    if data.demo is not None or data.test_images is not None or data.test_groups:
        return recipe
    sources = load_sources(recipe, out / "demo")
    groups = sorted({image.group for image in (*sources.test, *sources.test_clean)})
    if not groups:
        raise RunError(
            "bench: no group of parts is held out to judge detectors by; name data.test_images or data.test_groups, or "
            "raise data.test_fraction"
        )
    return recipe.model_copy(update={"data": data.model_copy(update={"test_groups": groups})})
