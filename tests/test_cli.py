"""The commands as a user types them: exit codes, what stands on stdout and stderr, and never a traceback."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from defectgen import __version__
from defectgen.cli import app
from defectgen.images import encode_image, read_rgb

Run = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("short_fitting")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*args: object) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return invoke


def failed(result: Result, code: int = 1) -> list[str]:
    """The error lines of a command that failed with `code` and gave no result."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines == result.stderr.splitlines()
    return [line.removeprefix("error: ") for line in lines]


@pytest.fixture
def recipe(toys: Any, tmp_path: Path) -> Path:
    """The tiny recipe of the demo product as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(toys.recipe().to_yaml())
    return path


class Factory:
    """A user's folder: images with a box each, clean ones, and a recipe."""

    def __init__(self, folder: Path, num_images: int = 6) -> None:
        self.root, self.recipe = folder, folder / "factory.yaml"
        self.images, self.labels, self.clean = (folder / name for name in ("images", "labels", "clean"))
        rng = np.random.default_rng(0)
        for part in (self.images, self.labels, self.clean):
            part.mkdir()
        for number in range(num_images):
            pixels = rng.integers(90, 110, (64, 64, 3)).astype(np.uint8)
            (self.clean / f"clean{number}.png").write_bytes(encode_image(pixels, "png"))
            pixels[20:30, 20:32] = 230
            (self.images / f"part{number}.png").write_bytes(encode_image(pixels, "png"))
            (self.labels / f"part{number}.txt").write_text(f"{number % 2} 0.40625 0.390625 0.1875 0.15625\n")
        (folder / "data.yaml").write_text("names: [scratch, pit]\n")
        self.write(data={})

    def write(self, **sections: Any) -> None:
        data = {"root": ".", "train_images": "images", "train_clean": "clean"} | sections.pop("data", {})
        self.recipe.write_text(yaml.safe_dump({"name": "factory", "data": data} | sections))


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    (tmp_path / "factory").mkdir()
    return Factory(tmp_path / "factory")


@pytest.fixture(autouse=True)
def few_defects_will_do(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "warns" not in request.node.name:
        monkeypatch.setattr("defectgen.data.check._FEWEST_TRAINED", 1)
        monkeypatch.setattr("defectgen.data.check._FEWEST_TESTED", 1)


def test_help_names_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("check", "fit", "synth", "verify", "train-yolo", "doctor", "recipe"):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["check", "fit", "synth", "verify", "train-yolo", "doctor"])
def test_help_of_a_command_is_on_stdout(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and "--json" in result.stdout and result.stderr == ""


def test_version(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"defectgen {__version__}\n")


def test_schema_is_json_alone(run: Run) -> None:
    result = run("recipe", "schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["properties"].keys() >= {"data", "generator", "synth", "train_yolo"}


@pytest.mark.parametrize(
    "args", [("check",), ("paint", "x"), ("check", "x", "--sort"), ("synth", "x", "--workers", "0")]
)
def test_wrong_usage_exits_with_two(run: Run, args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 2 and result.stdout == "" and "Error" in result.stderr


def test_unknown_field_exits_with_two_and_names_the_nearest(run: Run, factory: Factory) -> None:
    factory.write(generator={"step": 5})
    (line,) = failed(run("fit", factory.recipe), code=2)
    assert line == f"{factory.recipe}: generator.step: unknown field; did you mean steps?"


def test_all_faults_of_a_recipe_are_told_at_once(run: Run, factory: Factory) -> None:
    factory.write(place={"max_overlap": 1.5}, synth={"num_images": 0})
    lines = failed(run("synth", factory.recipe), code=2)
    assert len(lines) == 2
    assert lines[0].startswith(f"{factory.recipe}: place.max_overlap: ") and lines[0].endswith("got 1.5")
    assert lines[1].startswith(f"{factory.recipe}: synth.num_images: ") and lines[1].endswith("got 0")


def test_missing_recipe_exits_with_two(run: Run, tmp_path: Path) -> None:
    (line,) = failed(run("check", tmp_path / "no.yaml"), code=2)
    assert line.startswith(f"{tmp_path / 'no.yaml'}: cannot be read as a recipe (")
    assert line.endswith("; name a YAML file, as in recipes/")


def test_faulty_override_is_quoted(run: Run, factory: Factory) -> None:
    (line,) = failed(run("check", factory.recipe, "--set", "synth.num_images"), code=2)
    assert line == "--set synth.num_images: must be field=value, as in synth.num_images=20"


def test_unset_variable_of_the_data_folder_says_what_to_set(
    run: Run, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEFECTGEN_DATA", raising=False)
    factory.write(data={"root": "${DEFECTGEN_DATA}/parts"})
    (line,) = failed(run("check", factory.recipe), code=2)
    assert line == (
        f"{factory.recipe}: data.root: the environment variable DEFECTGEN_DATA is not set, got "
        "'${DEFECTGEN_DATA}/parts'; set it to the folder that holds the data, as in export DEFECTGEN_DATA=/path/to/data"
    )


def test_missing_folders_are_all_named_with_what_to_do(run: Run, factory: Factory) -> None:
    factory.write(data={"train_images": "imgs", "train_clean": "klean"})
    assert failed(run("check", factory.recipe)) == [
        f"data.{field}: no such folder {factory.root / name}; correct the name, or put the data there"
        for field, name in (("train_images", "imgs"), ("train_clean", "klean"))
    ]


def fault_of_class(factory: Factory) -> str:
    (factory.labels / "part2.txt").write_text("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n")
    return f"{factory.labels / 'part2.txt'}: row 2: class 7 is not one of 0 to 1; correct it, or add the class"


def fault_of_box(factory: Factory) -> str:
    (factory.labels / "part2.txt").write_text("0 0.5 0.5 0 0.2\n")
    return f"{factory.labels / 'part2.txt'}: row 1: the box has no area, got 0 x 12.8 px; draw it again or remove it"


def fault_of_image(factory: Factory) -> str:
    (factory.images / "part3.png").write_bytes(b"no picture")
    return f"{factory.images / 'part3.png'}: "


def fault_of_lost_class(factory: Factory) -> str:
    for number in range(6):
        (factory.labels / f"part{number}.txt").write_text(f"{int(number > 0)} 0.40625 0.390625 0.1875 0.15625\n")
    factory.write(data={"max_images": 1})
    return "data.train_images: class "


def fault_of_missing_label(factory: Factory) -> str:
    (factory.labels / "part1.txt").unlink()
    return f"{factory.labels / 'part1.txt'}: the label file is missing; mark its defects, or add an empty .txt if it is"


FAULTS = [fault_of_class, fault_of_box, fault_of_image, fault_of_lost_class, fault_of_missing_label]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_the_data_stops_fit_with_file_place_value_and_remedy(
    run: Run, factory: Factory, fault: Callable[[Factory], str], tmp_path: Path
) -> None:
    expected = fault(factory)
    lines = failed(run("fit", factory.recipe, "--out", tmp_path / "out"))
    assert any(line.startswith(expected) and "; " in line for line in lines), lines
    assert not (tmp_path / "out/generator").exists() and not (tmp_path / "out/generator.partial").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_check_shows_the_fault_and_exits_with_one(run: Run, factory: Factory, fault: Callable[[Factory], str]) -> None:
    expected = fault(factory)
    shown = run("check", factory.recipe)
    assert shown.exit_code == 1
    assert "".join(f"error: {expected}".split()) in "".join(shown.stdout.split())
    as_json = run("check", factory.recipe, "--json")
    problems = json.loads(as_json.stdout)["problems"]
    assert as_json.exit_code == 1 and as_json.stderr == ""
    assert any(problem["severity"] == "error" and problem["remedy"] for problem in problems)


def test_label_without_an_image_is_a_warning(run: Run, factory: Factory) -> None:
    (factory.labels / "lost.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    result = run("check", factory.recipe, "--json")
    (problem,) = json.loads(result.stdout)["problems"]
    assert result.exit_code == 0 and problem["severity"] == "warning"
    assert problem["path"] == str(factory.labels / "lost.txt")
    assert problem["reason"] == "the label file has no image"


def test_check_of_good_data_counts_it_and_writes_nothing(run: Run, factory: Factory) -> None:
    before = sorted(factory.root.rglob("*"))
    result = run("check", factory.recipe, "--out", factory.root / "out", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert [row["name"] for row in summary["classes"]] == ["scratch", "pit"]
    assert summary["images"]["train"] + summary["images"]["test"] == 6
    assert sorted(factory.root.rglob("*")) == before


def test_check_warns_of_classes_with_too_few_defects(run: Run, factory: Factory) -> None:
    problems = json.loads(run("check", factory.recipe, "--set", "data.test_fraction=0.4", "--json").stdout)["problems"]
    assert {(one["severity"], one["path"], one["where"]) for one in problems} == {
        ("warning", field, f"class {number} {name!r}")
        for field in ("data.train_images", "data.test_images")
        for number, name in enumerate(("scratch", "pit"))
    }
    assert any("has 1 marked defect held out" in one["reason"] for one in problems)
    assert {one["remedy"] for one in problems} == {"mark more"}


def test_check_warns_of_a_small_budget_of_many_defects_and_of_none_held_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "factory").mkdir()
    factory = Factory(tmp_path / "factory", num_images=16)
    factory.write(data={"test_groups": [f"part{number}.png" for number in range(0, 10, 2)], "per_class": 2})
    problems = json.loads(run("check", factory.recipe, "--json").stdout)["problems"]
    # Of 8 each, 5 and none are held out.
    assert [(one["path"], one["where"], one["reason"].split(" marked")[0], one["remedy"]) for one in problems] == [
        ("data.train_images", "class 0 'scratch'", "has 2", "mark more"),
        ("data.train_images", "class 1 'pit'", "has 2", "raise data.per_class or data.max_images"),
        ("data.test_images", "class 1 'pit'", "has 0", "mark more"),
    ]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("yolo11z.yaml", "is no YOLO11, got 'yolo11z.yaml'"),
        ("gone.pt", "no file"),
        ("empty.pt", "(0 bytes) holds no weights"),
        ("yolo11n-seg.yaml", "has boxes without an outline"),
    ],
)
def test_check_names_what_train_yolo_would_refuse(
    run: Run, factory: Factory, monkeypatch: pytest.MonkeyPatch, model: str, reason: str
) -> None:
    monkeypatch.chdir(factory.root)
    (factory.root / "empty.pt").touch()
    result = run("check", factory.recipe, "--set", f"train_yolo.model={model}", "--json")
    (problem,) = json.loads(result.stdout)["problems"]
    assert result.exit_code == 1 and reason in problem["reason"] and problem["remedy"]


def test_what_a_run_made_within_the_data_is_no_data(run: Run, factory: Factory, fitted: Any) -> None:
    for path in (*factory.images.iterdir(), *factory.labels.iterdir()):
        path.rename(factory.root / path.name)
    (factory.root / "clean").rename(factory.root.parent / "clean")
    factory.write(data={"train_images": ".", "train_clean": None, "base": "defective"})
    before = json.loads(run("check", factory.recipe, "--json").stdout)
    assert before["images"]["train_pool"] + before["images"]["test"] == 6 and not before["problems"]
    shutil.copytree(fitted.out, factory.root / "runs/factory")
    assert list((factory.root / "runs").rglob("*.png"))
    assert json.loads(run("check", factory.recipe, "--json").stdout) == before


def test_check_takes_a_folder_without_a_recipe(run: Run, factory: Factory) -> None:
    (factory.labels / "lost.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    before = sorted(factory.root.rglob("*"))
    result = run("check", factory.root, "--json")
    summary = json.loads(result.stdout)
    assert result.exit_code == 0 and [row["name"] for row in summary["classes"]] == ["scratch", "pit"]
    assert summary["notes"][0] == "yolo: a .txt file per image"
    assert [problem["reason"] for problem in summary["problems"]] == ["the label file has no image"]
    assert sorted(factory.root.rglob("*")) == before
    assert run("check", factory.root, "--strict").exit_code == 1
    (factory.labels / "lost.txt").unlink()
    assert run("check", factory.root, "--strict").exit_code == 0
    assert run("check", factory.root, "--format", "voc").exit_code == 1
    wrong = run("check", factory.root, "--set", "seed=1")
    assert wrong.exit_code == 2 and "is a folder; --set and --out go with a recipe" in wrong.stderr
    assert run("check", factory.recipe, "--format", "yolo").exit_code == 2


def test_check_of_the_demo_leaves_the_run_folder_to_fit(run: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("check", recipe, "--out", out)
    assert result.exit_code == 0 and "scratch" in result.stdout and "Errors: 0, warnings: 0" in result.stdout
    assert not out.exists()
    result = run("fit", recipe, "--out", out, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["generator"] == str(out / "generator") and facts["num_defects"] == 12
    assert "fit generator" in result.stderr


def test_run_folder_is_named_by_the_recipe(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("fit", recipe, "--set", "generator.steps=1")
    assert result.exit_code == 0 and "generator of 12 real defects: 1 steps" in result.stdout
    assert (tmp_path / "runs/tiny/generator/fit.json").is_file()


@pytest.fixture(scope="module")
def made(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run folder made by `synth --json`, and what that printed: not to be written to."""
    folder = tmp_path_factory.mktemp("cli")
    out = Path(shutil.copytree(fitted.out, folder / "run"))
    (folder / "tiny.yaml").write_text(fitted.recipe.to_yaml())
    args = ["synth", str(folder / "tiny.yaml"), "--out", str(out), "--workers", "1", "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_synth_prints_the_summary_as_json_alone(made: tuple[Path, dict[str, Any]]) -> None:
    out, summary = made
    assert summary["dataset"] == str(out / "dataset") and summary["num_images"] == 4
    assert set(summary["classes"]) == {"scratch", "pit", "stain", "dent"}


def test_focus_makes_more_of_what_a_detector_misses(run: Run, recipe: Path, fitted: Any, tmp_path: Path) -> None:
    rows = [{"class": name, "ap50": float(name != "pit")} for name in ("scratch", "pit", "stain", "dent")]
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"arms": {"real": {"mean": {"per_class": rows}}}, "best": {"arm": "real"}}))
    out = Path(shutil.copytree(fitted.out, tmp_path / "run"))
    result = run("synth", recipe, "--out", out, "--workers", "1", "--focus", results)
    assert result.exit_code == 0, result.output
    weights = yaml.safe_load((out / "recipe.yaml").read_text())["place"]["class_weights"]
    assert weights == {"scratch": 0.1, "pit": 1.0, "stain": 0.1, "dent": 0.1}
    # On top of the recipe's own.
    args = ["--set", "place={class_weights: {dent: 0, stain: 3}}", "--preview", "1", "--overwrite"]
    result = run("synth", recipe, "--out", out, "--workers", "1", "--focus", results, *args)
    assert result.exit_code == 0, result.output
    weights = yaml.safe_load((out / "recipe.yaml").read_text())["place"]["class_weights"]
    assert weights == {"scratch": 0.1, "pit": 1.0, "stain": pytest.approx(0.3), "dent": 0}


def test_focus_on_the_results_of_the_very_run_is_refused(run: Run, recipe: Path, tmp_path: Path) -> None:
    rows = [{"class": "pit", "ap50": 0.5}]
    results = tmp_path / "run/yolo/results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps({"arms": {"real": {"mean": {"per_class": rows}}}, "best": {"arm": "real"}}))
    result = run("synth", recipe, "--out", tmp_path / "run", "--focus", results)
    assert result.exit_code == 2 and "choose another --out" in result.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["yolo"]


def test_synth_shows_a_table_and_where_to_look(run: Run, recipe: Path, made: tuple[Path, dict[str, Any]]) -> None:
    out, _ = made
    result = run("synth", recipe, "--out", out)
    assert result.exit_code == 0
    assert "4 images, 3 with synthetic defects" in result.stdout and "scratch" in result.stdout
    assert result.stdout.splitlines()[-1] == str(out / "dataset")
    assert result.stderr.splitlines()[-1] == f"look at {out / 'report.html'}"
    assert (out / "dataset/sheets").is_dir() and "Not measured yet" in (out / "report.html").read_text("utf-8")
    assert "already made" in result.stderr


def test_report_that_cannot_be_made_costs_nothing_else(
    run: Run, recipe: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "run"))
    (out / "report.html").unlink(missing_ok=True)
    (out / "report.html").mkdir()
    result = run("synth", recipe, "--out", out, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["num_images"] == 4
    assert "warning: no report.html: " in result.stderr


def test_report_is_written_again_on_demand(run: Run, made: tuple[Path, dict[str, Any]]) -> None:
    out, _ = made
    (out / "report.html").write_text("old")
    result = run("report", out)
    assert (result.exit_code, result.stdout.strip()) == (0, str(out / "report.html"))
    assert "Not measured yet" in (out / "report.html").read_text("utf-8")


def test_set_that_synth_made_is_exported_by_its_composites(
    run: Run, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, summary = made
    result = run("export", out / "dataset", "--to", "coco", "--out", tmp_path / "coco", "--json")
    assert result.exit_code == 0, result.output
    placed = sum(row["num_placed"] for row in summary["classes"].values())
    assert json.loads(result.stdout)["defects"] == {"train": placed}
    for image in sorted((out / "dataset/images").iterdir()):
        (copy,) = (tmp_path / "coco").rglob(image.name)
        assert np.array_equal(read_rgb(copy), read_rgb(image))


def test_preview_names_the_sheet_to_look_at(run: Run, recipe: Path, fitted: Any, tmp_path: Path) -> None:
    out = Path(shutil.copytree(fitted.out, tmp_path / "run"))
    result = run("synth", recipe, "--out", out, "--workers", "1", "--preview", "1")
    assert result.exit_code == 0, result.output
    sheet = out / "preview/sheets/composites.jpg"
    assert result.stdout.splitlines()[-2:] == [f"look at {sheet}", str(out / "preview")] and sheet.is_file()


def test_review_replaces_what_it_rejects(
    run: Run, recipe: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "run"))
    header, *rows = map(json.loads, (out / "dataset/manifest.jsonl").read_text().splitlines())
    rejected = next(row["index"] for row in rows if row["placed"])
    review = tmp_path / "review.json"
    hashes = {name: header[name] for name in ("recipe_sha256", "generator_fingerprint")}
    review.write_text(json.dumps({"kind": "defectgen review", **hashes, "accepted": [], "rejected": [rejected]}))
    result = run("synth", recipe, "--out", out, "--workers", "1", "--review", review, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["num_images"] == 4
    assert not (out / f"dataset/images/{rejected:06d}.png").exists() and (out / "dataset/images/000004.png").exists()
    assert run("verify", out).exit_code == 0


def test_faulty_review_exits_with_two(
    run: Run, recipe: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    review = tmp_path / "review.json"
    review.write_text("{}")
    for command in ("synth", "train-yolo"):
        result = run(command, recipe, "--out", made[0], "--review", review)
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.exit_code == 2 and len(lines) == 5
        assert all(
            line.startswith(f"error: {review}: ") and "field required; export it again" in line for line in lines
        )
    result = run("synth", recipe, "--out", made[0], "--preview", "1", "--review", review)
    assert result.exit_code == 2 and "--review: is of the whole set; leave out --preview" in result.stderr


def test_verify_accepts_a_made_set_by_its_run_folder_too(run: Run, made: tuple[Path, dict[str, Any]]) -> None:
    out, _ = made
    for folder in (out, out / "dataset"):
        result = run("verify", folder, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["good"] is True and report["problems"] == [] and report["ultralytics"]["num_images"] == 4


def test_verify_names_what_is_wrong(run: Run, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0] / "dataset", tmp_path / "set"))
    label = folder / "labels/000001.txt"
    label.write_text(label.read_text() + "9 0.5 0.5 0.1 0.1\n")
    result = run("verify", folder)
    assert result.exit_code == 1 and result.stdout == f"{folder}: does not verify\n"
    assert "labels/000001.txt" in result.stderr and result.stderr.startswith("problem: ")
    report = json.loads(run("verify", folder, "--json").stdout)
    assert report["good"] is False and any("000001.txt" in problem for problem in report["problems"])


def test_verify_of_no_data_set_says_what_to_name(run: Run, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        (line,) = failed(run("verify", folder), code=2)
        assert line == f"{folder}: holds no data set of `synth`; name one, or its run folder, as in runs/housing"
    (tmp_path / "images").mkdir()
    result = run("verify", tmp_path)
    assert result.exit_code == 1 and "manifest.jsonl" in result.stderr + result.stdout


def test_folder_of_another_run_is_refused_and_replaced_with_overwrite(
    run: Run, recipe: Path, fitted: Any, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(fitted.out, tmp_path / "run"))
    changed = ("fit", recipe, "--out", out, "--set", "generator.steps=2")
    (line,) = failed(run(*changed))
    assert line == (
        f"{out}: holds another run: generator.steps is 4 there and 2 here; "
        "choose another --out, or --overwrite to replace what was made (generator)"
    )
    result = run(*changed, "--overwrite", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["log"]["steps"] == 2


def test_generator_of_another_recipe_is_refused(run: Run, recipe: Path, fitted: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("fit", recipe, "--out", out, "--set", "generator.steps=1").exit_code == 0
    shutil.rmtree(out / "generator")
    shutil.copytree(fitted.out / "generator", out / "generator")
    (line,) = failed(run("fit", recipe, "--out", out, "--set", "generator.steps=1"))
    assert line.startswith(f"{out}: was made of other images or labels") and "--overwrite" in line


def test_damaged_generator_is_refused(run: Run, recipe: Path, fitted: Any, tmp_path: Path) -> None:
    out = Path(shutil.copytree(fitted.out, tmp_path / "run"))
    (out / "generator/fit.json").write_text("{")
    (line,) = failed(run("fit", recipe, "--out", out))
    assert line.startswith(f"{out / 'generator/fit.json'}: is no record of a fitted generator (")
    assert line.endswith(f"; delete {out / 'generator'} and fit again")


def test_output_folder_of_something_else_is_refused(run: Run, recipe: Path, tmp_path: Path) -> None:
    (line,) = failed(run("synth", recipe, "--out", tmp_path))
    assert line == f"{tmp_path}: is not empty and holds no run of defectgen (found tiny.yaml); choose another --out"


def test_full_disk_is_one_message(run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import defectgen.run as running

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(running, "write_bytes_atomic", full)
    (line,) = failed(run("fit", recipe, "--out", tmp_path / "out"))
    assert line.startswith(f"{tmp_path / 'out' / 'recipe.yaml'}: No space left on device; check the disk")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_terminated_command_ends_as_an_interrupted_one_does(factory: Any) -> None:
    # Its processes are ended by what stands in `finally`.
    code = (
        "import os, signal, sys, defectgen.cli as cli, defectgen.data.check as check\n"
        "def stop(*args):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        print('ended', flush=True)\n"
        "check.look_closely = stop\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "check", str(factory.recipe)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "ended\n"), done.stderr
    assert done.stderr.endswith("ended by SIGTERM; what is done is kept: the same command goes on\n")


def test_interrupted_command_says_how_to_go_on(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import defectgen.run as running

    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "fit", interrupt)
    monkeypatch.setattr(sys, "argv", ["defectgen", "fit", "my tiny.yaml", "--set", "place.scale=[1, 2]"])
    result = run("fit", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 130 and result.stdout == ""
    resume = result.stderr.removeprefix("\nstopped; what was finished stays. To go on: ")
    assert shlex.split(resume) == sys.argv


def test_unknown_arm_exits_with_two(run: Run, recipe: Path) -> None:
    (line,) = failed(run("train-yolo", recipe, "--arms", "real,fake"), code=2)
    assert line.startswith("--arms: must be of real, ") and line.endswith("got 'fake'")


def test_doctor_prints_facts_as_json_alone(run: Run) -> None:
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (1 if report["problems"] else 0)
    assert report["facts"]["python"].startswith("3.") and "device" in report["facts"]


def test_doctor_shows_facts_in_lines(run: Run) -> None:
    lines = run("doctor").stdout.splitlines()
    assert any(line.startswith("torch ") for line in lines) and any(line.startswith("device ") for line in lines)


def test_program_exits_with_the_codes_of_its_commands(factory: Factory, tmp_path: Path) -> None:
    def program(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "defectgen", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    good, usage = program("check", factory.recipe, "--json"), program("check", "no.yaml")
    assert (good.returncode, good.stderr) == (0, "") and json.loads(good.stdout)
    assert usage.returncode == 2 and usage.stdout == "" and usage.stderr.startswith("error: no.yaml: ")
    (factory.images / "part0.png").write_bytes(b"")
    bad = program("fit", factory.recipe)
    assert bad.returncode == 1 and bad.stdout == "" and "part0.png" in bad.stderr and "Traceback" not in bad.stderr


def test_init_writes_a_recipe_once_and_says_what_it_found(run: Run, tmp_path: Path, fitted: Any) -> None:
    folder, recipe = fitted.out / "demo", tmp_path / "mine.yaml"
    result = run("init", folder, "--recipe", recipe)
    assert result.exit_code == 0, result.output
    assert "for training: train/images" in result.stdout and result.stdout.splitlines()[-1] == str(recipe)
    assert "0 errors" in result.stdout and f"next: defectgen check {recipe}" in result.stderr
    assert f"root: {folder.relative_to(tmp_path) if folder.is_relative_to(tmp_path) else folder} " in recipe.read_text()
    assert run("check", recipe).exit_code == 0
    # A name that is no markup of the terminal's.
    for name in ("mine[old].yaml", "mine[b].yaml"):
        assert run("init", folder, "--recipe", tmp_path / name).stdout.splitlines()[-1] == str(tmp_path / name)
    again = run("init", folder, "--recipe", recipe)
    assert again.exit_code == 2 and "is there already" in again.stderr
    facts = json.loads(run("init", folder, "--recipe", recipe, "--overwrite", "--json").stdout)
    assert facts["data"]["train_clean"] == "train/clean" and facts["errors"] == [] and facts["also"] == []
    other = run("init", folder, "--recipe", tmp_path / "other.yaml", "--format", "bmp")
    assert other.exit_code == 2 and "--format: must be of mvtec, coco" in other.stderr
    wrong = run("init", folder, "--recipe", tmp_path / "other.yaml", "--format", "coco")
    assert wrong.exit_code == 1 and "no annotations of them in the format coco" in wrong.stderr
    assert not (tmp_path / "other.yaml").exists()


def test_recipe_of_a_folder_beside_it_is_moved_with_it(run: Run, tmp_path: Path, fitted: Any) -> None:
    # A number, and what a shell or Path.expanduser would take for another user's home.
    (tmp_path / "here").mkdir()
    for name in ("2024", "~mine"):
        shutil.copytree(fitted.out / "demo", tmp_path / "here" / name)
        drafted = run("init", tmp_path / "here" / name, "--recipe", tmp_path / f"here/{name}.yaml")
        assert drafted.exit_code == 0, drafted.output
    assert "\nname: '2024'\n" in (tmp_path / "here/2024.yaml").read_text()
    assert "root: ./~mine " in (tmp_path / "here/~mine.yaml").read_text()
    moved = (tmp_path / "here").rename(tmp_path / "my parts")
    for name in ("2024", "~mine"):
        assert run("check", moved / f"{name}.yaml").exit_code == 0


def test_log_file_has_the_command_its_progress_and_its_errors(
    run: Run, recipe: Path, factory: Factory, tmp_path: Path
) -> None:
    log = tmp_path / "logs/run.txt"
    quiet = run("fit", recipe, "--out", tmp_path / "quiet", "--log-file", log)
    assert quiet.exit_code == 0
    lines = log.read_text().splitlines()
    assert all(line[4] == "-" and line[19:21] == "  " for line in lines)
    assert any("fit generator 4/4" in line for line in lines)
    verbose = run("fit", recipe, "--out", tmp_path / "verbose", "--verbose")
    assert len(verbose.stderr.splitlines()) > len(quiet.stderr.splitlines())
    assert run("synth", "missing.yaml", "--log-file", log).exit_code == 2
    added = log.read_text().splitlines()[len(lines) :]
    assert "error: missing.yaml: cannot be read as a recipe" in added[-1]


@pytest.mark.parametrize(
    "arguments", [["init"], ["check"], ["verify"], ["report"], ["export", "--to", "coco", "--out", "unused"]]
)
def test_every_command_that_reads_has_a_log_file(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    log, empty = tmp_path / "log.txt", tmp_path / "empty"
    empty.mkdir()
    command, *options = arguments
    assert run(command, empty, *options, "--log-file", log, "-v").exit_code != 0
    lines = [line[21:] for line in log.read_text().splitlines()]
    assert len(lines) >= 2 and "empty" in lines[1]
