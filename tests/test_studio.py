from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import defectgen.diffusion.train as training
from defectgen.crops import centre
from defectgen.errors import RunError
from defectgen.images import read_rgb
from defectgen.records import Sources
from defectgen.studio import fit, fit_fingerprint, load_studio, real_crops

pytestmark = pytest.mark.usefixtures("short_fitting")


def silent(stage: str, done: int, total: int, note: str) -> None:
    pass


@pytest.fixture
def generator(fitted: Any, tmp_path: Path) -> Path:
    """A copy of a fitted generator."""
    return Path(shutil.copytree(fitted.out / "generator", tmp_path / "generator"))


def test_folder_holds_weights_twins_class_check_and_facts(fitted: Any) -> None:
    folder = fitted.out / "generator"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "fit.json",
        "model_index.json",
        *(f"samples/step-{step:06d}.jpg" for step in (1, 2, 3, 4)),
        "scheduler/scheduler_config.json",
        "screen.safetensors",
        "twins.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    facts = json.loads((folder / "fit.json").read_text())
    assert facts["fingerprint"] == fit_fingerprint(fitted.recipe, fitted.sources)
    assert facts["class_names"] == ["scratch", "pit", "stain", "dent"]
    assert facts["num_defects"] == 12 and len(facts["margins"]) == 4
    assert facts["log"]["steps"] == 4 and 0 <= facts["screen"]["real_accuracy"] <= 1
    assert 0 <= facts["twins_clean"] <= 1
    assert sorted(path.name for path in fitted.out.iterdir() if not path.name.startswith(".")) == [
        "demo",
        "generator",
        "recipe.yaml",
    ]


def test_fitted_generator_is_not_fitted_again(fitted: Any, generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train_generator", None)
    facts = fit(fitted.recipe, fitted.sources, generator, progress=silent)
    assert facts == json.loads((generator / "fit.json").read_text())


def test_same_data_and_settings_give_the_same_bytes(fitted: Any, tmp_path: Path, toys: Any) -> None:
    fit(fitted.recipe, fitted.sources, tmp_path / "generator", progress=silent)
    one, other = toys.read_tree(tmp_path / "generator"), toys.read_tree(fitted.out / "generator")
    assert one.keys() == other.keys()
    # fit.json tells how long it took.
    assert [name for name in one if one[name] != other[name]] in ([], ["fit.json"])


def test_killed_fit_goes_on_and_leaves_no_generator_before_it_is_whole(
    fitted: Any, tmp_path: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "generator"

    def kill(stage: str, done: int, total: int, note: str) -> None:
        if stage == "fit class check":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(fitted.recipe, fitted.sources, folder, progress=kill)
    assert not folder.exists()
    left = sorted((tmp_path / "generator.partial").iterdir())
    assert [path.suffix or path.name for path in left] == ["samples", ".pt"]

    # The training has ended: no step of it is made again.
    monkeypatch.setattr(training, "_loss", None)
    fit(fitted.recipe, fitted.sources, folder, progress=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["generator"]
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / weights).read_bytes() == (fitted.out / "generator" / weights).read_bytes()


def test_progress_names_stages_in_order_and_ends_each(fitted: Any, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int, str]] = []
    fit(fitted.recipe, fitted.sources, tmp_path / "generator", progress=lambda *report: reports.append(report))
    stages = list(dict.fromkeys(stage for stage, *_ in reports))
    # The tiny fit shows its first step.
    assert stages == [
        "sample sheet",
        "fit generator",
        "fit class check",
        "clean twins among clean images",
        "clean twins",
    ]
    for stage in stages:
        _, done, total, _ = [report for report in reports if report[0] == stage][-1]
        assert done == total > 0
    assert "loss" in next(note for stage, _, _, note in reports if stage == "fit generator")
    sheets = [Path(note) for stage, _, _, note in reports if stage == "sample sheet"]
    assert sheets == [tmp_path / f"generator.partial/samples/step-{step:06d}.jpg" for step in (1, 2, 3, 4)]


def test_sample_sheets_of_other_data_do_not_stay(fitted: Any, tmp_path: Path) -> None:
    stale = tmp_path / "generator.partial/samples/step-000003.jpg"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    (stale.parent / "step-000099.jpg").write_bytes(b"old")
    fit(fitted.recipe, fitted.sources, tmp_path / "generator", progress=silent)
    assert sorted(path.name for path in (tmp_path / "generator/samples").iterdir()) == [
        f"step-{step:06d}.jpg" for step in (1, 2, 3, 4)
    ]
    assert read_rgb(tmp_path / "generator/samples/step-000003.jpg").ndim == 3


def test_loaded_studio_holds_a_model_with_twin_per_real_defect(fitted: Any, generator: Path) -> None:
    studio = load_studio(fitted.recipe, fitted.sources, generator)
    crops = real_crops(fitted.recipe, fitted.sources)
    assert len(studio.models) == len(crops) == 12
    for model, crop in zip(studio.models, crops, strict=True):
        assert (model.crop.source, model.crop.annotation) == (crop.source, crop.annotation)
        assert model.twin.shape == (32, 32, 3) and model.twin.dtype == np.uint8
        assert (model.twin != centre(crop.image, 32)).any()
    assert not studio.pipeline.unet.training
    assert len(studio.margins) == 4 and studio.fingerprint == fit_fingerprint(fitted.recipe, fitted.sources)


CHANGES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "seed": lambda recipe: {"seed": 1},
    "generator": lambda recipe: {"generator": recipe.generator.model_copy(update={"steps": 5})},
    "quarter_turns": lambda recipe: {"place": recipe.place.model_copy(update={"quarter_turns": True})},
    "flip": lambda recipe: {"place": recipe.place.model_copy(update={"flip": False})},
}


def test_loaded_models_say_whether_their_twin_is_a_photograph(fitted: Any, generator: Path) -> None:
    facts = json.loads((generator / "fit.json").read_text())
    assert len(facts["photographed"]) == facts["num_defects"]
    facts["photographed"] = [number % 2 == 0 for number in range(facts["num_defects"])]
    (generator / "fit.json").write_text(json.dumps(facts))
    studio = load_studio(fitted.recipe, fitted.sources, generator)
    assert [model.photographed for model in studio.models] == facts["photographed"]


@pytest.mark.parametrize("change", CHANGES)
def test_generator_of_other_settings_is_refused(fitted: Any, generator: Path, change: str) -> None:
    recipe = fitted.recipe.model_copy(update=CHANGES[change](fitted.recipe))
    for use in (
        lambda: fit(recipe, fitted.sources, generator, progress=silent),
        lambda: load(recipe, fitted, generator),
    ):
        with pytest.raises(
            RunError,
            match=rf"{generator}: holds a generator fitted on other data or settings \(fingerprint \w{{12}}, "
            r"this recipe has \w{12}\); choose another --out, or --overwrite to fit again",
        ):
            use()


def load(recipe: Any, fitted: Any, folder: Path) -> Any:
    return load_studio(recipe, fitted.sources, folder)


def test_generator_of_other_data_is_refused(fitted: Any, generator: Path) -> None:
    fewer = replace(fitted.sources, train_clean=fitted.sources.train_clean[:-1])
    with pytest.raises(RunError, match="holds a generator fitted on other data or settings"):
        load_studio(fitted.recipe, fewer, generator)


def test_fingerprint_follows_pixels_and_labels_but_not_the_place_of_the_files(fitted: Any, tmp_path: Path) -> None:
    def moved(sources: Sources, folder: Path) -> Sources:
        folder.mkdir()
        images = tuple(
            replace(image, path=Path(shutil.copy(image.path, folder / image.name))) for image in sources.train
        )
        return replace(sources, train=images)

    recipe, sources = fitted.recipe, fitted.sources
    before = fit_fingerprint(recipe, sources)
    elsewhere = moved(sources, tmp_path / "elsewhere")
    assert fit_fingerprint(recipe, elsewhere) == before
    # What is held out, and the folds of the class check, follow the groups.
    regrouped = replace(elsewhere, train=tuple(replace(image, group="one") for image in elsewhere.train))
    assert fit_fingerprint(recipe, regrouped) != before
    first, *rest = elsewhere.train
    (annotation, *others) = first.annotations
    relabelled = replace(first, annotations=(replace(annotation, class_id=(annotation.class_id + 1) % 4), *others))
    assert fit_fingerprint(recipe, replace(elsewhere, train=(relabelled, *rest))) != before
    with first.path.open("ab") as file:
        file.write(b"\0")
    assert fit_fingerprint(recipe, elsewhere) != before


def test_fingerprint_ignores_what_the_generator_does_not_depend_on(fitted: Any) -> None:
    recipe = fitted.recipe
    other = recipe.model_copy(
        update={"name": "other", "synth": recipe.synth.model_copy(update={"num_images": 99}), "train_yolo": None}
    )
    assert fit_fingerprint(other, fitted.sources) == fit_fingerprint(recipe, fitted.sources)


def test_missing_generator_says_so(fitted: Any, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"nothing/fit\.json: is no record of a fitted generator \(.*; delete .*fit again"
    ):
        load(fitted.recipe, fitted, tmp_path / "nothing")


@pytest.mark.parametrize("text", ["{", "[]", "{}", ""])
def test_torn_record_says_what_to_delete(fitted: Any, generator: Path, text: str) -> None:
    (generator / "fit.json").write_text(text)
    with pytest.raises(
        RunError, match=rf"fit\.json: is no record of a fitted generator \(.*\); delete {generator} and"
    ):
        load(fitted.recipe, fitted, generator)


FILES = ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "twins.safetensors", "screen.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "torn", "empty"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_generator_says_what_to_delete(fitted: Any, generator: Path, name: str, damage: str) -> None:
    path = generator / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[: len(data) // 2] if damage == "torn" else b"")
    with pytest.raises(RunError) as caught:
        load(fitted.recipe, fitted, generator)
    message = str(caught.value)
    assert message.startswith(f"{generator}: the generator is damaged (")
    assert message.endswith("); delete the folder and run `defectgen fit`")


def test_generator_with_fewer_twins_than_defects_is_damaged(fitted: Any, generator: Path) -> None:
    from safetensors.numpy import load_file, save_file

    twins = load_file(generator / "twins.safetensors")["twins"]
    save_file({"twins": twins[:-1].copy()}, generator / "twins.safetensors")
    with pytest.raises(RunError, match="the generator is damaged"):
        load(fitted.recipe, fitted, generator)
