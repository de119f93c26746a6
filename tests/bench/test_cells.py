"""Which cells a bench runs, and with what; the runs themselves are tested elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import defectgen.bench.cells as cells
from defectgen.bench.cells import run_bench
from defectgen.data.load import load_sources
from defectgen.errors import RunError
from defectgen.images import encode_image
from defectgen.recipe import DEFAULT_ARMS, Recipe
from defectgen.run import held


def of_set(copies: float) -> dict[str, Any]:
    return {"kid": None, "nearest_real": 0.7, "likeness": 0.9, "copies": copies, "boxes": {}, "refused": {}}


class Runs:
    """Stands for whole runs: notes their recipes, and gives figures that depend on K, seed and arm alone."""

    def __init__(self) -> None:
        self.recipes: dict[str, Recipe] = {}
        self.fails_at: str | None = None

    def __call__(self, recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
        name = "/".join(out.parts[-2:])
        if name == self.fails_at:
            raise RunError("stopped")
        self.recipes[name] = recipe
        arms = {}
        for number, arm in enumerate(recipe.train_yolo.arms):
            score = (recipe.data.per_class or 0) / 100 + recipe.seed / 1000 + number / 10
            metrics = {
                "map50": score,
                "map50_95": score / 2,
                "recall_at_fp": None,
                "per_class": [{"class": "pit", "ap50_95": score}],
            }
            metrics["curves"] = {"precision_over_recall": [[0, 1], [1, 0]], "recall_over_false_alarms": []}
            run = {"metrics": metrics, "training": {"iterations": 7}, "device": "cpu", "date": "2026-01-01"}
            arms[arm] = {"seeds": [run]}
        results = {"arms": arms, "test_images": 12, "test_groups": 3, "test_clean_images": 4}
        (out / "yolo").mkdir(parents=True, exist_ok=True)
        (out / "yolo/results.json").write_text(json.dumps(results))
        return results


@pytest.fixture
def recipe(toys: Any) -> Recipe:
    """Of a product with twelve defects per class, enough to draw from."""
    made: Recipe = toys.recipe(
        data={"demo": {"defects_per_class": 12, "clean_parts": 4, "test_parts": 4, "size_px": 128}}
    )
    return made


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = Runs()
    monkeypatch.setattr(cells, "run_train_yolo", stand_in)
    monkeypatch.setattr(
        cells, "label_agreement", lambda out, arm, *, judge, progress: {"map50": 0.4, "arms": [arm, judge]}
    )
    monkeypatch.setattr(
        cells, "_diagnostics", lambda cell, folder: {"sets": {"real+defectgen": of_set(cell.seed / 10)}}
    )
    return stand_in


def bench(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    lines: list[str] = []
    settings = {"profile": "small", "workers": 1, "progress": lambda *event: lines.append(str(event))} | options
    return run_bench(recipe, out, **settings)


def test_every_budget_and_seed_is_a_run_of_its_own(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    recipe = recipe.model_copy(update={"seed": 3})
    bench(recipe, tmp_path, ks=[2, 5, 2], num_seeds=2)
    assert list(runs.recipes) == ["k2/seed3", "k2/seed4", "k5/seed3", "k5/seed4"]
    for name, cell in runs.recipes.items():
        k, seed = (int(part.lstrip("kse d")) for part in name.split("/"))
        assert (cell.data.per_class, cell.data.max_images, cell.seed) == (k, None, seed)
        assert cell.train_yolo.seeds == [0]
        assert cell.train_yolo.arms == ["real", "real+copy-paste", "real+defectgen"]
        assert cell.generator == recipe.generator and cell.synth == recipe.synth


def test_rows_have_the_published_fields_and_the_summary_follows_from_them(
    recipe: Recipe, tmp_path: Path, runs: Runs
) -> None:
    summary = bench(recipe, tmp_path, ks=[5], num_seeds=2, arms=["real", "real+defectgen"])
    rows = [json.loads(line) for line in (tmp_path / "small/bench.jsonl").read_text().splitlines()]
    assert [(row["k"], row["seed"], row["arm"]) for row in rows] == [
        (5, 0, "real"),
        (5, 0, "real+defectgen"),
        (5, 1, "real"),
        (5, 1, "real+defectgen"),
    ]
    published = {"recipe", "profile", "k", "seed", "arm", "iterations", "map50", "map5095", "recall_at_fp", "device"}
    published |= {"date", "version"}
    assert published <= set(rows[0]) and rows[0]["map5095"] == pytest.approx(0.025)
    assert summary["k"]["5"]["difference"]["real"]["mean"] == pytest.approx(5)
    # In both draws by the same.
    assert summary["k"]["5"]["verdict"]["finding"] == "no difference shown"
    assert json.loads((tmp_path / "small/bench.json").read_text()) == summary
    assert [(one["k"], one["seed"], one["sets"]["real+defectgen"]["copies"]) for one in summary["diagnostics"]] == [
        (5, 0, 0),
        (5, 1, 0.1),
    ]
    assert (tmp_path / "small/map_over_k.png").exists()


def test_rows_of_finished_cells_are_on_disk_when_a_later_one_fails(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    runs.fails_at = "k5/seed1"
    with pytest.raises(RunError, match="stopped"):
        bench(recipe, tmp_path, ks=[5])
    assert [json.loads(line)["seed"] for line in (tmp_path / "small/bench.jsonl").read_text().splitlines()] == [0, 0, 0]
    assert json.loads((tmp_path / "small/bench.json").read_text())["k"]["5"]["arms"]["real"]["num_seeds"] == 1
    runs.fails_at = None
    bench(recipe, tmp_path, ks=[5])
    assert len((tmp_path / "small/bench.jsonl").read_text().splitlines()) == 9


def test_full_profile_has_every_arm_and_its_own_detector(toys: Any, tmp_path: Path, runs: Runs) -> None:
    recipe = toys.recipe(
        data={"demo": {"defects_per_class": 12, "clean_parts": 4, "test_parts": 4, "size_px": 128}},
        train_yolo={"tile_px": 96},
    )
    bench(recipe, tmp_path, profile="full", num_seeds=1, ks=[5, 10], pinned={"iterations"})
    assert list(runs.recipes) == ["k5/seed0", "k10/seed0"]
    config = runs.recipes["k5/seed0"].train_yolo
    # What the user set stays, and so do tiles: shrunk whole, large images would lose their small defects, and enlarged
    # they would not be at the camera's scale.
    assert (config.imgsz, config.tile_px) == (recipe.train_yolo.imgsz, recipe.train_yolo.tile_px) == (64, 96)
    assert config.iterations == recipe.train_yolo.iterations == 4 and len(config.arms) == 6
    diagnostics = json.loads((tmp_path / "full/bench.json").read_text())["diagnostics"]
    assert diagnostics[0]["label_agreement"] == {"map50": 0.4, "arms": ["real+defectgen", "full-real"]}
    assert [(row["k"], row["profile"]) for row in read(tmp_path / "full")][::6] == [(5, "full"), (10, "full")]


def test_full_profile_shows_whole_images_larger_and_says_what_it_does_not_take_from_the_recipe(
    toys: Any, tmp_path: Path, runs: Runs
) -> None:
    data = {"demo": {"defects_per_class": 12, "clean_parts": 4, "test_parts": 4, "size_px": 128}, "max_images": 7}
    recipe = toys.recipe(data=data, train_yolo={"seeds": [0, 1]})
    lines: list[str] = []
    bench(recipe, tmp_path, profile="full", num_seeds=1, ks=[5], progress=lambda *event: lines.append(event[-1]))
    config = runs.recipes["k5/seed0"].train_yolo
    assert (config.imgsz, config.iterations, config.seeds) == (640, 3000, [0])
    assert "data.max_images of the recipe is for single runs; here --k decides" in lines
    assert "train_yolo.seeds of the recipe is for single runs; here --seeds decides" in lines
    # Not of what the recipe leaves as it is.
    assert not any(line.startswith(("data.per_class", "train_yolo.arms")) for line in lines)


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines()]


def test_rows_of_other_cells_stay_and_enter_the_summary(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    bench(recipe, tmp_path, ks=[5], num_seeds=2)
    summary = bench(recipe, tmp_path, ks=[2], num_seeds=2)
    assert [(row["k"], row["seed"]) for row in read(tmp_path / "small")][::3] == [(2, 0), (2, 1), (5, 0), (5, 1)]
    assert list(summary["k"]) == ["2", "5"]
    assert [(one["k"], one["seed"]) for one in summary["diagnostics"]] == [(2, 0), (2, 1), (5, 0), (5, 1)]
    curves = cells.curves_on_disk(read(tmp_path / "small"), tmp_path / "small")
    assert [(one["k"], one["arm"]) for one in curves][:4] == [*((2, arm) for arm in DEFAULT_ARMS), (2, "real")]
    assert len(curves) == 12 and curves[0]["precision_over_recall"] == [[0, 1], [1, 0]]
    assert {name: count >= 5 for name, count in read(tmp_path / "small")[-1]["defects"].items()} == {
        "scratch": True,
        "pit": True,
        "stain": True,
        "dent": True,
    }
    assert read(tmp_path / "small")[-1]["groups"] > 1
    for damaged in ("{", '{"k": 5, "seed": 0, "arm": "reall"}', '{"k": "5", "seed": 0, "arm": "real"}'):
        (tmp_path / "small/bench.jsonl").write_text(damaged)
        with pytest.raises(RunError, match=r"bench\.jsonl: is damaged"):
            bench(recipe, tmp_path, ks=[2])


def test_rows_of_labels_that_were_corrected_since_are_no_rows_of_the_same_table(
    recipe: Recipe, tmp_path: Path, runs: Runs
) -> None:
    bench(recipe, tmp_path, ks=[5], num_seeds=2)
    label = next(path for path in sorted(tmp_path.glob("demo-*/train/labels/*")) if path.stat().st_size)
    first, *others = label.read_text().splitlines()
    label.write_text("\n".join([first.replace("0.", "0.0", 1), *others]))
    with pytest.raises(
        RunError, match=r"K 5, seed 0, arm real was measured with other training images, labels or masks"
    ):
        bench(recipe, tmp_path, ks=[2], num_seeds=1, arms=["real"])
    assert len(read(tmp_path / "small")) == 6
    bench(recipe, tmp_path, ks=[2], num_seeds=1, arms=["real"], overwrite=True)
    assert [(row["k"], row["seed"], row["arm"]) for row in read(tmp_path / "small")] == [(2, 0, "real")]


def test_an_arm_more_leaves_a_cell_the_arms_that_it_has(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    bench(recipe, tmp_path, ks=[5], num_seeds=1)
    bench(recipe, tmp_path, ks=[5], num_seeds=2, arms=["full-real"])
    arms = [(row["seed"], row["arm"]) for row in read(tmp_path / "small")]
    assert arms == [*((0, arm) for arm in [*DEFAULT_ARMS, "full-real"]), (1, "full-real")]


def test_rows_that_are_replaced_leave_no_arm_to_be_trained_again(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    bench(recipe, tmp_path, ks=[5], num_seeds=1, arms=["real", "real+aug", "full-real"])
    other = recipe.model_copy(update={"train_yolo": recipe.train_yolo.model_copy(update={"iterations": 5})})
    bench(other, tmp_path, ks=[5], num_seeds=1, arms=["real"], overwrite=True)
    assert runs.recipes["k5/seed0"].train_yolo.arms == ["real"]
    assert [row["arm"] for row in read(tmp_path / "small")] == ["real"]


def test_another_demo_product_is_made_anew(toys: Any, tmp_path: Path, runs: Runs) -> None:
    def product(defects: int) -> Recipe:
        demo = {"defects_per_class": defects, "clean_parts": 4, "test_parts": 4, "size_px": 128}
        made: Recipe = toys.recipe(data={"demo": demo})
        return made

    with pytest.raises(RunError, match=r"has \d real defects for training, not K = 9"):
        bench(product(8), tmp_path, ks=[9], num_seeds=1)
    bench(product(12), tmp_path, ks=[9], num_seeds=1)
    assert min(read(tmp_path / "small")[0]["defects"].values()) >= 9


def test_stopped_bench_forgets_no_arm_of_cells_it_did_not_reach(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    arms = [*DEFAULT_ARMS, "full-real"]
    bench(recipe, tmp_path, ks=[5], num_seeds=2, arms=arms)
    runs.fails_at = "k5/seed1"
    with pytest.raises(RunError, match="stopped"):
        bench(recipe, tmp_path, ks=[5], num_seeds=2)
    runs.fails_at = None
    bench(recipe, tmp_path, ks=[5], num_seeds=2)
    assert [(row["seed"], row["arm"]) for row in read(tmp_path / "small")] == [
        (seed, arm) for seed in (0, 1) for arm in arms
    ]


def test_rows_of_other_settings_or_another_test_set_are_not_mixed(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    bench(recipe, tmp_path, ks=[5], num_seeds=1)
    before = read(tmp_path / "small")
    other = recipe.model_copy(update={"train_yolo": recipe.train_yolo.model_copy(update={"iterations": 5})})
    with pytest.raises(RunError, match=r"bench\.jsonl: K 5, seed 0, arm real was measured with other settings"):
        bench(other, tmp_path, ks=[2], num_seeds=1)
    label = next(path for path in sorted(tmp_path.glob("demo-*/test/labels/*")) if path.stat().st_size)
    text = label.read_text()
    label.write_text(text.replace("0.", "0.0", 1))
    runs.recipes = {}
    with pytest.raises(RunError, match=r"seed 0, arm real was measured with another test set; name another --out"):
        bench(recipe, tmp_path, ks=[5], num_seeds=1)
    assert runs.recipes == {}, "refused after hours of training"
    assert read(tmp_path / "small") == before
    # Other settings and another test set: what is there is replaced, cell by cell.
    bench(other, tmp_path, ks=[2, 5], num_seeds=1, overwrite=True)
    after = read(tmp_path / "small")
    assert [row["k"] for row in after][::3] == [2, 5]
    assert len({row["test"] for row in after} - {row["test"] for row in before}) == 1


def test_two_processes_do_not_write_one_table(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    with held(tmp_path / "small"), pytest.raises(RunError, match=r"small: is in use by process \d+"):
        bench(recipe, tmp_path, ks=[5], num_seeds=1)
    assert runs.recipes == {}


@pytest.mark.skipif(os.name != "posix", reason="~ is told otherwise")
def test_settings_are_the_same_wherever_the_data_lie(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(**update: Any) -> Recipe:
        return recipe.model_copy(update={"train_yolo": recipe.train_yolo.model_copy(update=update)})

    weights = [tmp_path / name for name in ("here.pt", "there.pt", "other.pt")]
    for path, content in zip(weights, (b"a", b"a", b"b"), strict=True):
        path.write_bytes(content)
    digests = [cells.settings_digest(moved(model=str(path), arms=["real"])) for path in weights]
    assert digests[0] == digests[1] != digests[2]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cells.settings_digest(moved(model="~/here.pt", arms=["real"])) == digests[0]
    elsewhere = recipe.data.model_copy(update={"root": str(tmp_path), "per_class": 7})
    again = recipe.model_copy(update={"data": elsewhere, "seed": 9})
    before = cells.settings_digest(recipe)
    assert cells.settings_digest(again) == before != cells.settings_digest(moved(batch=3))
    # What another version fitted or judged, or another device trained, does not stand in one table with it.
    versions = [(name, 0) for name in ("FIT_VERSION", "JOB_VERSION", "JUDGING_VERSION")]
    for name, value in [*versions, ("computed_by", lambda: ["cuda"])]:
        with monkeypatch.context() as patched:
            patched.setattr(cells, name, value)
            assert cells.settings_digest(recipe) != before


def test_arm_of_a_seed_more_than_the_others_is_drawn(recipe: Recipe, tmp_path: Path, runs: Runs) -> None:
    bench(recipe, tmp_path, ks=[5], num_seeds=1)
    bench(recipe, tmp_path, ks=[2, 5], num_seeds=2, arms=["real"])
    assert (tmp_path / "small/gain_per_class.png").exists() and (tmp_path / "small/map_over_k.png").exists()


def test_budget_that_cannot_be_met_or_not_varied_is_refused(toys: Any, tmp_path: Path, runs: Runs) -> None:
    with pytest.raises(RunError, match=r"class '\w+' has 3 real defects for training, not K = 5; lower --k"):
        bench(toys.recipe(), tmp_path, ks=[5])
    with pytest.raises(RunError, match="seeds 0 and 1 draw the same"):
        bench(toys.recipe(), tmp_path, ks=[3])
    assert runs.recipes == {}


def parts(folder: Path, *, own_clean_folder: bool) -> dict[str, Any]:
    """The section `data` of a set of 12 parts with one defect each, written into `folder`."""
    for part in range(12):
        for name, rows in (("images", "0 0.5 0.5 0.2 0.2\n"), ("clean", None), ("test_clean", None)):
            path = folder / name / f"p{part if name != 'test_clean' else part + 20}_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_image(np.full((64, 64, 3), 90 + part, np.uint8), "png"))
            if rows:
                label = folder / "labels" / f"{path.stem}.txt"
                label.parent.mkdir(exist_ok=True)
                label.write_text(rows)
    return {
        "root": str(folder),
        "classes": ["pit"],
        "train_images": "images",
        "train_clean": "clean",
        "group_pattern": r"^(p\d+)_",
    } | ({"test_clean": "test_clean"} if own_clean_folder else {})


@pytest.mark.parametrize("own_clean_folder", [False, True])
def test_all_seeds_are_judged_on_the_same_parts(tmp_path: Path, runs: Runs, own_clean_folder: bool) -> None:
    data = parts(tmp_path / "data", own_clean_folder=own_clean_folder)
    recipe = Recipe.model_validate({"name": "parts", "data": data})
    bench(recipe, tmp_path / "bench", ks=[2], num_seeds=3)
    groups = [cell.data.test_groups for cell in runs.recipes.values()]
    assert len(groups) == 3 and groups[0] == groups[1] == groups[2] and groups[0]
    nothing = Recipe.model_validate({"name": "parts", "data": data | {"test_fraction": 0}})
    with pytest.raises(RunError, match="no group of parts is held out"):
        bench(nothing, tmp_path / "other", ks=[2])


def test_budgets_with_other_masks_of_where_defects_may_be_are_not_compared(tmp_path: Path, runs: Runs) -> None:
    data = parts(tmp_path / "data", own_clean_folder=False)
    recipe = Recipe.model_validate({"name": "parts", "data": data, "place": {"region_mask": "mask.png"}})
    mask = np.full((64, 64, 3), 255, np.uint8)
    (tmp_path / "data/mask.png").write_bytes(encode_image(mask, "png"))
    bench(recipe, tmp_path / "bench", ks=[2], num_seeds=1)
    bench(recipe, tmp_path / "bench", ks=[3], num_seeds=1)
    mask[:32] = 0
    (tmp_path / "data/mask.png").write_bytes(encode_image(mask, "png"))
    with pytest.raises(
        RunError, match=r"K 2, seed 0, arm real was measured with other training images, labels or masks"
    ):
        bench(recipe, tmp_path / "bench", ks=[4], num_seeds=1)


def test_real_images_that_no_draw_takes_need_no_mask(tmp_path: Path, runs: Runs) -> None:
    data = parts(tmp_path / "data", own_clean_folder=False) | {"base": "defective"}
    bench(Recipe.model_validate({"name": "parts", "data": data}), tmp_path / "anywhere", ks=[2], num_seeds=1)
    drawn = load_sources(runs.recipes["k2/seed0"], tmp_path).train
    assert len(drawn) == 2
    masks = tmp_path / "data/masks"
    masks.mkdir()
    for image in drawn:
        (masks / image.name).write_bytes(encode_image(np.full((64, 64, 3), 255, np.uint8), "png"))
    recipe = Recipe.model_validate({"name": "parts", "data": data, "place": {"region_mask": "masks"}})
    assert list(bench(recipe, tmp_path / "bench", ks=[2], num_seeds=1)["k"]) == ["2"]
