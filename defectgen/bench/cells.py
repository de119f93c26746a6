"""The cells of a bench: a whole run, from the recipe to judged detectors, per budget of real defects and seed.

OUT/small/k10/seed0/    a run folder like any other, and diagnostics.json
OUT/small/bench.jsonl   a row per cell and arm
OUT/small/bench.json    means, intervals, verdicts, diagnostics
OUT/small/*.png         plots
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from defectgen import __version__
from defectgen.bench.plots import write_plots
from defectgen.bench.summary import summarise
from defectgen.data.load import load_sources, require_usable
from defectgen.data.region import mask_of, regions_sha256
from defectgen.dataset.manifest import MANIFEST_NAME, read_manifest
from defectgen.diagnostics import diagnose
from defectgen.errors import DataError, RunError, UsageError
from defectgen.images import sha256_bytes, sha256_file, write_bytes_atomic
from defectgen.progress import Progress
from defectgen.recipe import DEFAULT_ARMS, Arm, Recipe
from defectgen.records import Sources
from defectgen.run import held, read_sources, run_train_yolo
from defectgen.studio import FIT_VERSION, images_digest, load_studio
from defectgen.yolo.arm_files import read_json, to_json
from defectgen.yolo.arms import task_of_model
from defectgen.yolo.train import JOB_VERSION, JUDGING_VERSION, computed_by, label_agreement
from defectgen.yolo.verdict import CEILING, COPIES_ARM, OWN_ARM

ProfileName = Literal["small", "full"]


@dataclass(frozen=True)
class Profile:
    """How much is measured. `train_yolo`: the detector's settings that are not the recipe's."""

    ks: tuple[int, ...]
    num_seeds: int
    arms: tuple[Arm, ...]
    train_yolo: dict[str, Any] = field(default_factory=dict)


PROFILES: dict[ProfileName, Profile] = {
    # Two CPU cores and two hours.
    "small": Profile((10,), 3, DEFAULT_ARMS),
    # A GPU. Of recipes in tiles the size stays: enlarged, they would not be at the camera's scale.
    "full": Profile((5, 10, 20), 5, get_args(Arm), {"imgsz": 640, "iterations": 3000}),
}
# What a recipe says of a single run, and a bench takes from its options.
_OF_OPTIONS = {"data": {"per_class": "--k", "max_images": "--k"}, "train_yolo": {"arms": "--arms", "seeds": "--seeds"}}


def run_bench(
    recipe: Recipe,
    out: Path,
    *,
    profile: ProfileName,
    num_seeds: int | None = None,
    ks: Sequence[int] | None = None,
    arms: Sequence[Arm] | None = None,
    pinned: Collection[str] = (),
    workers: int,
    progress: Progress,
    overwrite: bool = False,
    trust_checkpoint: bool = False,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Every cell of the bench, and the summary of all that `out` holds of this profile.

    What is done is kept, so that a stopped bench goes on, and arms, budgets and seeds can be added: a cell keeps the
    arms that it has. All cells share one test set; each seed draws other real images, and with them everything else.

    Args:
        pinned: fields of train_yolo that the user set for this run, which the profile then leaves alone.

    Raises:
        RunError: another process works in `out`; a class has fewer real defects than K, or two seeds draw the same
            images; `out` holds a bench of another recipe, and `overwrite` is false; its rows have other settings or
            another test set; a run failed.
    """
    if task_of_model(recipe.train_yolo.model) == "classify":
        raise UsageError("bench: compares detectors by mAP; for a -cls model use train-yolo with train_yolo.seeds")
    plan = PROFILES[profile]
    ks, count = tuple(dict.fromkeys(ks or plan.ks)), num_seeds or plan.num_seeds
    kept = {*pinned, "imgsz"} if recipe.train_yolo.tile_px is not None else pinned
    pinned_by_profile = {name: value for name, value in plan.train_yolo.items() if name not in kept}
    for section, options in _OF_OPTIONS.items():
        of_recipe = getattr(recipe, section)
        for name in sorted(options):
            if getattr(of_recipe, name) == type(of_recipe).model_fields[name].get_default(call_default_factory=True):
                continue
            progress("bench", 0, 0, f"{section}.{name} of the recipe is for single runs; here {options[name]} decides")
    for name, value in pinned_by_profile.items():
        if value != (of_recipe := getattr(recipe.train_yolo, name)):
            progress(f"profile {profile}", 0, 0, f"train_yolo.{name} is {value}, not {of_recipe}; --set keeps another")
    recipe = _with_fixed_split(recipe)
    folder = out / profile
    with held(folder):
        table = folder / "bench.jsonl"
        rows = _rows_on_disk(table)
        cells = {
            (k, seed): cell_recipe(recipe, k, seed, pinned_by_profile | {"seeds": [0]})
            for k in ks
            for seed in range(recipe.seed, recipe.seed + count)
        }
        first, *_ = cells.values()
        # Cheap before dear: reading the data takes long where they are many.
        rows = _comparable(rows, "settings", settings := settings_digest(first), table, overwrite)
        budgets = _check_budgets(cells, out)
        common = {"settings": settings, **{name: next(iter(budgets.values()))[name] for name in ("data", "test")}}
        for name in ("data", "test"):
            rows = _comparable(rows, name, common[name], table, overwrite)
        for (k, seed), cell in cells.items():
            there = [row["arm"] for row in rows if (row["k"], row["seed"]) == (k, seed)]
            chosen = [arm for arm in get_args(Arm) if arm in there or arm in (arms or plan.arms)]
            cells[k, seed] = cell_recipe(cell, k, seed, {"arms": chosen})
        summary: dict[str, Any] = {}
        for number, ((k, seed), cell) in enumerate(cells.items(), 1):
            name = f"run {number} of {len(cells)}, K {k}, seed {seed}"

            def report(stage: str, done: int, total: int, note: str, name: str = name) -> None:
                progress(f"{name}: {stage}", done, total, note)

            run = folder / f"k{k}" / f"seed{seed}"
            results = run_train_yolo(
                cell,
                run,
                workers=workers,
                progress=report,
                overwrite=overwrite,
                trust_checkpoint=trust_checkpoint,
                trackers=trackers,
            )
            # Until a cell is done again, its rows stay: they say which arms it has.
            rows = [row for row in rows if (row["k"], row["seed"]) != (k, seed)]
            rejected = _rejected(run) if OWN_ARM in results["arms"] else 0
            of_cell = [
                row | {"settings": settings, **budgets[k, seed], "rejected": rejected}
                for row in cell_rows(results, recipe=recipe.name, profile=profile, k=k, seed=seed)
            ]
            rows = sorted([*rows, *of_cell], key=lambda row: (row["k"], row["seed"]))
            if OWN_ARM in results["arms"]:
                report("diagnose", 0, 0, "how near the synthetic defects are to the real ones")
                found = _diagnostics(cell, run)
                # The real defects in composites of defective images are what the judge was trained on.
                if CEILING in results["arms"] and cell.data.base == "clean":
                    found["label_agreement"] = label_agreement(run / "yolo", OWN_ARM, judge=CEILING, progress=report)
                write_bytes_atomic(run / "diagnostics.json", to_json(found))
            for row in of_cell:
                figures = f"mAP50 {100 * row['map50']:.1f}, mAP50-95 {100 * row['map5095']:.1f}"
                progress(f"{name}, {row['arm']}", 0, 0, figures)
            write_bytes_atomic(table, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            alone = recipe.train_yolo.real_share == 0
            summary = summarise(
                rows,
                num_test_images=results["test_images"],
                num_test_groups=results["test_groups"],
                num_test_clean=results["test_clean_images"],
                alone=alone,
            )
            summary["diagnostics"] = _diagnostics_on_disk(rows, folder)
            write_bytes_atomic(folder / "bench.json", to_json(summary))
        write_plots(rows, curves_on_disk(rows, folder), folder)
        return summary


def settings_digest(recipe: Recipe) -> str:
    """What rows must have in common to be compared: a hash of all settings but the budget, the seed and the arms, of
    the detector's first weights, of what computes, and the versions. Not of where the data lie.
    """
    content = recipe.model_dump(mode="json")
    model = Path(recipe.train_yolo.model).expanduser()
    for section, name in (("data", "root"), ("data", "per_class"), ("train_yolo", "arms"), ("train_yolo", "model")):
        del content[section][name]
    del content["seed"]
    weights = sha256_file(model) if model.is_file() else model.name
    versions = [__version__, FIT_VERSION, JOB_VERSION, JUDGING_VERSION]
    return hashlib.sha256(to_json([content, weights, computed_by(), versions])).hexdigest()


_UNLIKE = {
    "settings": "other settings, on another device or by another version",
    "data": "other training images, labels or masks",
    "test": "another test set",
}


def _comparable(
    rows: list[dict[str, Any]], name: str, value: str, table: Path, overwrite: bool
) -> list[dict[str, Any]]:
    """Those that may stand in one table with this run's: of the same `value` for `name`.

    Raises:
        RunError: a row has another, and `overwrite` is false.
    """
    alike = [row for row in rows if row.get(name) == value]
    if not overwrite and len(alike) < len(rows):
        row = next(row for row in rows if row not in alike)
        raise RunError(
            f"{table}: K {row['k']}, seed {row['seed']}, arm {row['arm']} was measured with {_UNLIKE[name]}; name "
            "another --out, or give --overwrite and every --k and all --seeds"
        )
    return alike


def _check_budgets(cells: dict[tuple[int, int], Recipe], out: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Of each cell the real defects per class (whole images are drawn, so that common ones may have more than K), and
    of how many groups: few groups show few kinds of defect, however many there are; the number of images drawn and
    of those to draw from; and two hashes that are the same for every cell: of what all are drawn from, and of the test
    set.

    Raises:
        RunError: a class has fewer than K, or two seeds draw the same images: their spread would not be that of draws.
    """
    budgets: dict[tuple[int, int], dict[str, Any]] = {}
    data = test = ""
    drawn: dict[tuple[int, tuple[str, ...]], int] = {}
    for (k, seed), cell in cells.items():
        sources = load_sources(cell, _demo_folder(cell, out))
        require_usable(sources)
        counts = Counter(mark.class_id for image in sources.train for mark in image.annotations)
        defects = {name: counts[class_id] for class_id, name in enumerate(sources.class_names)}
        data = data or _data_digest(cell, sources)
        test = test or images_digest((*sources.test, *sources.test_clean))
        budgets[k, seed] = {
            "defects": defects,
            "groups": len({image.group for image in sources.train}),
            "images": len(sources.train),
            "pool": len(sources.train_pool),
            "data": data,
            "test": test,
        }
        marked = {mark.class_id for image in sources.train_pool for mark in image.annotations}
        # A class that nothing is marked with was warned of.
        used = {name: count for name, count in defects.items() if sources.class_names.index(name) in marked}
        name, fewest = min(used.items(), key=lambda item: item[1])
        if fewest < k:
            raise RunError(f"bench: class {name!r} has {fewest} real defects for training, not K = {k}; lower --k")
        other = drawn.setdefault((k, tuple(image.name for image in sources.train)), seed)
        if other != seed:
            raise RunError(
                f"bench: seeds {other} and {seed} draw the same {len(sources.train)} real images at K = {k}; "
                "give fewer --seeds or another --k, or mark more defects"
            )
    return budgets


def _data_digest(cell: Recipe, sources: Sources) -> str:
    """Of what all cells are drawn from, and of the masks of where defects may be."""
    images = images_digest((*sources.train_pool, *sources.train_clean))
    bases = sources.train_clean if cell.data.base == "clean" else sources.train_pool
    if cell.place.region_mask is None:
        return images
    masked = []
    for image in bases:
        # What no cell draws needs none.
        with suppress(DataError):
            mask_of(cell, image)
            masked.append(image)
    return sha256_bytes(f"{images}{regions_sha256(cell, masked)}".encode())


def _demo_folder(recipe: Recipe, out: Path) -> Path:
    """Of its own for each demo product: with other settings, or by --overwrite, it is another."""
    settings = to_json(None if recipe.data.demo is None else recipe.data.demo.model_dump())
    return out / f"demo-{sha256_bytes(settings)[:8]}"


def _rows_on_disk(table: Path) -> list[dict[str, Any]]:
    if not table.exists():
        return []
    try:
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
        wrong = [row for row in rows if not isinstance(row["k"] + row["seed"], int) or row["arm"] not in get_args(Arm)]
        if wrong:
            raise ValueError(f"got {wrong[0]}")
        return rows
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{table}: is damaged ({error}); delete it, and name all --arms again: trainings that are done are kept"
        ) from None


def _diagnostics_on_disk(rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Of every cell whose run is still there."""
    found = []
    for k, seed in sorted({(row["k"], row["seed"]) for row in rows}):
        of_cell = read_json(folder / f"k{k}" / f"seed{seed}" / "diagnostics.json")
        if of_cell is not None:
            found.append({"k": k, "seed": seed, **of_cell})
    return found


def curves_on_disk(rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The curves of every row whose run is still there."""
    curves = []
    for row in rows:
        of_cell = read_json(folder / f"k{row['k']}" / f"seed{row['seed']}" / "yolo/results.json")
        if of_cell is not None and row["arm"] in of_cell["arms"]:
            (run,) = of_cell["arms"][row["arm"]]["seeds"]
            curves.append({"k": row["k"], "seed": row["seed"], "arm": row["arm"], **run["metrics"]["curves"]})
    return curves


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
    """Of the generated set and, to read its figures by, of the copies at the same places."""
    sources = read_sources(cell, folder)
    studio = load_studio(cell, sources, folder / "generator")
    found = {OWN_ARM: diagnose(cell, sources, studio, folder / "dataset")}
    if COPIES_ARM in cell.train_yolo.arms:
        found[COPIES_ARM] = diagnose(cell, sources, studio, folder / "yolo/copy-paste-set")
    return {"sets": found}


def _rejected(run: Path) -> int:
    """How many images of the synthetic set a person rejected."""
    manifest = run / "dataset" / MANIFEST_NAME
    return len(read_manifest(manifest).header.get("rejected", [])) if manifest.exists() else 0


def _with_fixed_split(recipe: Recipe) -> Recipe:
    """`recipe` with its test groups named: by `recipe.seed` alone, each cell would be judged on other parts."""
    data = recipe.data
    if data.demo is not None or data.test_images is not None or data.test_groups:
        return recipe
    # Without what has a folder of its own, and with it groups that are in no training folder.
    alone = recipe.model_copy(update={"data": data.model_copy(update={"test_clean": None})})
    sources = load_sources(alone)
    groups = {image.group for image in sources.test}
    if data.test_clean is None:
        groups |= {image.group for image in sources.test_clean}
    if not sources.test:
        raise RunError(
            "bench: no group of parts is held out to judge detectors by; name data.test_images or data.test_groups, or "
            "raise data.test_fraction"
        )
    return recipe.model_copy(update={"data": data.model_copy(update={"test_groups": sorted(groups)})})
