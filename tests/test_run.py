from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

import defectgen.run as running
import defectgen.yolo.train as training
from defectgen.data.demo import write_demo
from defectgen.dataset.manifest import read_manifest
from defectgen.dataset.verify import verify_dataset
from defectgen.errors import DataError, DefectgenError, RunError
from defectgen.images import encode_image, read_rgb
from defectgen.recipe import Arm, DemoData
from defectgen.run import (
    available_cores,
    open_run,
    read_sources,
    run_fit,
    run_preview,
    run_synth,
    run_train_yolo,
    task_of,
)

pytestmark = pytest.mark.usefixtures("short_fitting")


class DeadlyJob:
    """Its process is killed at the second image, as by a system out of memory."""

    def make(self, index: int) -> tuple[int, list[str]]:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return index, []


def silent(stage: str, done: int, total: int, note: str) -> None:
    pass


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def out(fitted: Any, tmp_path: Path) -> Path:
    """A run folder in which `fit` has ended."""
    return Path(shutil.copytree(fitted.out, tmp_path / "run"))


def synth(recipe: Any, out: Path, **options: Any) -> dict[str, Any]:
    return run_synth(recipe, out, **{"workers": 1, "progress": silent} | options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture(scope="module")
def made(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which `synth` has ended, in a process of its own: not to be written to."""
    out = tmp_path_factory.mktemp("made") / "run"
    shutil.copytree(fitted.out, out)
    synth(fitted.recipe, out)
    return out


def test_held_out_parts_can_be_gone_before_anything_is_fitted_made_or_trained_on(
    toys: Any, tmp_path: Path, one_process: None
) -> None:
    recipe = toys.recipe(synth={"num_images": 3, "clean_share": 0.34})
    arms = recipe.train_yolo.model_copy(update={"arms": ["real", "real+aug", "real+copy-paste", "real+procedural"]})
    recipe = recipe.model_copy(update={"train_yolo": arms})
    sources = running.read_sources(recipe, tmp_path)
    held_out = {image.path for image in (*sources.test, *sources.test_clean)}
    assert held_out and all(tmp_path / "demo/test" in path.parents for path in held_out)
    shutil.rmtree(tmp_path / "demo/test")
    running._synth(recipe, sources, tmp_path, workers=1, progress=silent)
    assert len(read_manifest(tmp_path / "dataset/manifest.jsonl").rows) == 3
    for arm in ("real+aug", "real+copy-paste", "real+procedural"):
        folder = running._control_set(arm, recipe, sources, tmp_path, progress=silent)
        # As many with a defect in every arm; the other sets have a clean one, too.
        assert sum(path.stat().st_size > 0 for path in (folder / "labels").iterdir()) == 2
    # Augmented images are scaled as far as the recipe lets the detector's training.
    steady = recipe.train_yolo.model_copy(update={"scale_jitter": 0.1})
    kept = []
    for settings in (recipe.train_yolo, steady, steady):
        other = recipe.model_copy(update={"train_yolo": settings})
        folder = running._control_set("real+aug", other, sources, tmp_path, progress=silent)
        kept.append((folder / "seen.txt").exists())
        (folder / "seen.txt").touch()
    assert kept == [False, False, True]
    # A control set is made again with the placements that it follows, and only then.
    kept = []
    for version in ("0", "1"):
        manifest = tmp_path / "dataset/manifest.jsonl"
        header, rows = manifest.read_text().split("\n", 1)
        manifest.write_text(json.dumps(json.loads(header) | {"version": version}) + "\n" + rows)
        for _ in range(2):
            folder = running._control_set("real+copy-paste", recipe, sources, tmp_path, progress=silent)
            kept.append((folder / "seen.txt").exists())
            (folder / "seen.txt").touch()
    assert kept == [False, True, False, True]


def test_control_set_without_a_defect_to_be_seen_is_none(
    fitted: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    screen = fitted.recipe.screen.model_copy(update={"min_contrast": 1.0})
    recipe = fitted.recipe.model_copy(update={"screen": screen})
    sources, load = running.read_sources(recipe, out), running.load_studio

    def demanding(*args: Any, **options: Any) -> Any:
        studio = load(*args, **options)
        return replace(studio, least_contrasts=[1e9 for _ in studio.least_contrasts])

    monkeypatch.setattr(running, "load_studio", demanding)
    for arm in ("real+copy-paste", "real+procedural"):
        with pytest.raises(
            RunError, match=rf"train_yolo\.arms: {re.escape(arm)}: every one of its defects was fainter"
        ):
            running._control_set(arm, recipe, sources, out, progress=silent)


def test_synth_makes_a_data_set_that_verifies_and_leaves_nothing_else(fitted: Any, made: Path, toys: Any) -> None:
    assert names(made) == ["dataset", "demo", "generator", "recipe.yaml"]
    assert yaml.safe_load((made / "recipe.yaml").read_text()) == fitted.recipe.model_dump(mode="json")
    assert verify_dataset(made / "dataset") == []
    manifest = read_manifest(made / "dataset/manifest.jsonl")
    assert [row["index"] for row in manifest.rows] == [0, 1, 2, 3]
    assert sum(bool(row["placed"]) for row in manifest.rows) == 3
    for row in manifest.rows:
        label = (made / "dataset" / row["label"]).read_text().splitlines()
        assert len(label) == len(row["placed"])
    assert toys.read_tree(made / "generator") == toys.read_tree(fitted.out / "generator")


def test_one_process_gives_the_bytes_of_a_worker(
    fitted: Any, out: Path, made: Path, toys: Any, one_process: None
) -> None:
    synth(fitted.recipe, out)
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")


def test_preview_shows_images_of_the_set_before_there_is_one(
    fitted: Any, out: Path, made: Path, toys: Any, one_process: None
) -> None:
    summary = run_preview(fitted.recipe, out, 2, workers=1, progress=silent)
    assert summary["num_images"] == summary["num_composites"] == 2
    assert "sheets/composites.jpg" in toys.read_tree(out / "preview") and not (out / "dataset").exists()
    of_set = {row["index"]: row for row in read_manifest(made / "dataset/manifest.jsonl").rows}
    seen = [row for row in read_manifest(out / "preview/manifest.jsonl").rows if of_set[row["index"]]["placed"]]
    assert seen and all(row["image_sha256"] == of_set[row["index"]]["image_sha256"] for row in seen)
    # Another one replaces it, and the set is made beside it.
    assert run_preview(fitted.recipe, out, 1, workers=1, progress=silent)["num_images"] == 1
    synth(fitted.recipe, out)
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")
    assert (out / "preview").exists()


@pytest.mark.long
@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_give_the_bytes_of_one(fitted: Any, out: Path, made: Path, toys: Any, workers: int) -> None:
    synth(fitted.recipe, out, workers=workers)
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")


def test_made_data_set_is_kept_and_its_summary_given_again(fitted: Any, made: Path, toys: Any) -> None:
    before = toys.read_tree(made)
    reports: list[tuple[Any, ...]] = []
    summary = synth(fitted.recipe, made, progress=lambda *report: reports.append(report))
    # What is silent but where reading takes long, and why nothing follows.
    assert [report for report in reports if report[3]] == [("synth", 4, 4, "already made")]
    assert summary["num_images"] == 4 and summary["num_composites"] == 3
    assert toys.read_tree(made) == before


@pytest.mark.parametrize("killed_at", [1, 3])
def test_killed_synth_goes_on_to_the_same_bytes(
    fitted: Any, out: Path, made: Path, toys: Any, one_process: None, killed_at: int
) -> None:
    def kill(stage: str, done: int, total: int, note: str) -> None:
        if stage == "synth" and done == killed_at:
            raise Killed

    with pytest.raises(Killed):
        synth(fitted.recipe, out, progress=kill)
    assert not (out / "dataset").exists()
    partial = out / "dataset.partial"
    assert len(list((partial / "rows").iterdir())) == killed_at
    # What is whole stays, what is torn is made again.
    written = {path.name: path.stat().st_mtime_ns for path in (partial / "images").iterdir()}
    torn = sorted(written)[0]
    (partial / "images" / torn).write_bytes(b"torn")

    counts: list[int] = []
    synth(
        fitted.recipe, out, progress=lambda stage, done, total, note: counts.append(done) if stage == "synth" else None
    )
    # First what is there.
    assert counts == list(range(killed_at - 1, 5))
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")
    for name, time_ns in written.items():
        assert ((out / "dataset/images" / name).stat().st_mtime_ns == time_ns) == (name != torn)
    assert names(out) == ["dataset", "demo", "generator", "recipe.yaml"]


def test_kill_before_the_last_move_goes_on_to_the_same_bytes(
    fitted: Any, out: Path, made: Path, toys: Any, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from defectgen.dataset import sheet

    def kill(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(sheet, "write_contact_sheets", kill)
        with pytest.raises(Killed):
            synth(fitted.recipe, out)
    assert not (out / "dataset").exists()
    synth(fitted.recipe, out)
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")


def test_set_whose_last_move_fails_is_not_made_again(
    fitted: Any, out: Path, made: Path, toys: Any, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "dataset.partial":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(PermissionError):
            synth(fitted.recipe, out)
    counts: list[int] = []
    synth(
        fitted.recipe, out, progress=lambda stage, done, total, note: counts.append(done) if stage == "synth" else None
    )
    assert counts == [4]
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")
    assert not list(out.glob(".dataset*"))


@pytest.mark.parametrize("lost", ["images/000001.png", "labels/000002.txt", "defect_masks/000000.png", "data.yaml"])
def test_file_missing_from_a_finished_set_is_made_again(
    fitted: Any, made: Path, tmp_path: Path, toys: Any, one_process: None, lost: str
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    (out / "dataset" / lost).unlink()
    synth(fitted.recipe, out)
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")
    # What a person changed is not lost with it.
    (out / "dataset" / lost).unlink()
    (out / "dataset/labels/000003.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    with pytest.raises(RunError, match=r"000003\.txt: was changed since .* what is missing would make it again; keep"):
        synth(fitted.recipe, out)
    assert (out / "dataset/labels/000003.txt").read_text() == "0 0.5 0.5 0.25 0.25\n"
    synth(fitted.recipe, out, overwrite=True)
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")


@pytest.mark.parametrize("text", [None, "{"])
def test_set_without_its_manifest_is_made_again_with_overwrite(
    fitted: Any, made: Path, tmp_path: Path, toys: Any, one_process: None, text: str | None
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    (out / "dataset/manifest.jsonl").unlink()
    if text is not None:
        (out / "dataset/manifest.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.jsonl: .*make the set again with `defectgen synth RECIPE --overwr"):
        synth(fitted.recipe, out)
    synth(fitted.recipe, out, overwrite=True)
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")


def test_damaged_control_set_is_made_again(
    made: Path, tmp_path: Path, fitted: Any, toys: Any, one_process: None
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    sources = read_sources(fitted.recipe, out)
    folder = running._control_set("real+copy-paste", fitted.recipe, sources, out, progress=silent)
    whole = toys.read_tree(folder)
    assert "manifest.jsonl" in whole and "images/000001.png" in whole
    for damage in ("manifest.jsonl", "images/000001.png"):
        (folder / damage).unlink()
        assert running._control_set("real+copy-paste", fitted.recipe, sources, out, progress=silent) == folder
        assert toys.read_tree(folder) == whole


def test_worker_ends_with_the_process_that_began_it(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "import defectgen.run as running\n"
        "def wait():\n"
        "    running._start_worker(None)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=wait)\n"
        "    worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    os._exit(9)\n"
    )
    # Its end of the pipe is open for as long as the worker lives.
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == 9 and int(done.stdout) > 0


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_worker_ends_the_run_with_what_to_do() -> None:
    job: Any = DeadlyJob()
    with pytest.raises(
        RunError, match=r"synth: one of 1 worker processes was killed, .*; run it again to go on, with fewer --workers"
    ):
        list(running._in_workers(job, [0, 1, 2], 1))
    with pytest.raises(RunError, match=r"ended before its first image; .*call this below `if __name__ == '__main__':`"):
        list(running._in_workers(job, [1, 2], 1))


def test_image_that_cannot_be_made_ends_the_run_without_a_data_set(out: Path, toys: Any, one_process: None) -> None:
    recipe = toys.recipe(labels={"min_change": 255}, synth={"clean_share": 0, "max_tries": 1, "num_images": 2})
    with pytest.raises(
        RunError, match=r"image \d: no defect was accepted on 1 clean images \(\d+ x no visible change\)"
    ):
        # min_change decides what the annotators' margin is, so the generator is fitted again.
        synth(recipe, out, overwrite=True)
    assert not (out / "dataset").exists() and (out / "generator").exists()


def test_refusals_are_shown_while_images_are_made(out: Path, toys: Any, one_process: None) -> None:
    recipe = toys.recipe(labels={"min_area_fraction": 0.9}, synth={"clean_share": 0, "max_tries": 8})
    notes: list[str] = []
    try:
        synth(recipe, out, progress=lambda stage, done, total, note: notes.append(note))
    except RunError as error:
        notes.append(str(error))
    assert any("smaller than asked" in note for note in notes)


def test_settings_of_another_data_set_are_named_with_both_values(fitted: Any, made: Path, toys: Any) -> None:
    before = toys.read_tree(made)
    other = toys.recipe(synth={"num_images": 40}, place={"top": 3})
    with pytest.raises(RunError) as caught:
        synth(other, made)
    assert str(caught.value) == (
        f"{made}: holds another run: place.top is 8 there and 3 here; synth.num_images is 4 there and 40 here; "
        "choose another --out, or --overwrite to replace what was made (dataset; generator is kept)"
    )
    assert toys.read_tree(made) == before


def test_run_from_before_a_field_was_there_goes_on(made: Path, toys: Any) -> None:
    record = made / "recipe.yaml"
    recipe = yaml.safe_load(record.read_text())
    del recipe["data"]["leave_out"], recipe["place"]["top"]
    record.write_text(yaml.safe_dump(recipe))
    before = (made / "dataset/manifest.jsonl").stat().st_mtime_ns
    synth(toys.recipe(), made)
    assert (made / "dataset/manifest.jsonl").stat().st_mtime_ns == before
    with pytest.raises(RunError, match=r"holds another run: place\.top is 8 there and 3 here;"):
        synth(toys.recipe(place={"top": 3}), made)


@pytest.mark.parametrize(
    ("sections", "difference"),
    [
        ({"generator": {"steps": 5}}, r"generator\.steps is 4 there and 5 here"),
        ({"seed": 7}, r"seed is 0 there and 7 here"),
        ({"data": {"demo": {"seed": 1}}}, r"data\.demo\.seed is 0 there and 1 here"),
        ({"place": {"flip": False}}, r"place\.flip is True there and False here"),
    ],
)
def test_generator_of_another_recipe_is_named_with_both_values(
    out: Path, toys: Any, sections: dict[str, Any], difference: str
) -> None:
    with pytest.raises(RunError, match=rf"{out}: holds another run: .*{difference}"):
        run_fit(toys.recipe(**sections), out, progress=silent)


def test_recipe_that_changes_nothing_made_so_far_is_taken_over(fitted: Any, out: Path, toys: Any) -> None:
    weights = (out / "generator/fit.json").stat().st_mtime_ns
    other = toys.recipe(synth={"num_images": 40}, train_yolo={"iterations": 9})
    run_fit(other, out, progress=silent)
    assert (out / "generator/fit.json").stat().st_mtime_ns == weights
    assert yaml.safe_load((out / "recipe.yaml").read_text())["synth"]["num_images"] == 40


def test_overwrite_replaces_the_data_set_and_keeps_the_generator(
    made: Path, tmp_path: Path, toys: Any, one_process: None
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    (out / "yolo").mkdir()
    fit_time = (out / "generator/fit.json").stat().st_mtime_ns
    summary = synth(toys.recipe(synth={"num_images": 2}), out, overwrite=True)
    assert summary["num_images"] == 2 and len(list((out / "dataset/images").iterdir())) == 2
    assert (out / "generator/fit.json").stat().st_mtime_ns == fit_time
    assert names(out) == ["dataset", "demo", "generator", "recipe.yaml"]


def test_overwrite_deletes_what_it_replaces_or_says_that_it_cannot(
    made: Path, tmp_path: Path, toys: Any, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    # Moved to a larger disk.
    (out / "dataset").rename(tmp_path / "large")
    (out / "dataset").symlink_to(tmp_path / "large")
    synth(toys.recipe(synth={"num_images": 2}), out, overwrite=True)
    assert len(list((out / "dataset/images").iterdir())) == 2 and len(list((tmp_path / "large/images").iterdir())) == 4

    def refuse(path: Path, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path / "images"))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        with pytest.raises(RunError, match=rf"{out}/dataset/images: cannot be deleted \(Permission denied\); close"):
            synth(toys.recipe(synth={"num_images": 3}), out, overwrite=True)
    assert synth(toys.recipe(synth={"num_images": 3}), out, overwrite=True)["num_images"] == 3


def test_data_that_moved_and_a_test_set_named_later_keep_the_generator(
    fitted: Any, toys: Any, tmp_path: Path, one_process: None
) -> None:
    shutil.copytree(fitted.out / "demo", tmp_path / "parts")
    own = {"demo": None, "root": str(tmp_path / "parts"), "format": "yolo", "train_images": "train/images"}
    own |= {"train_clean": "train/clean", "test_images": "test/images"}
    synth(toys.recipe(data=own), tmp_path / "run")
    fit_time = (tmp_path / "run/generator/fit.json").stat().st_mtime_ns
    (tmp_path / "parts").rename(tmp_path / "moved")
    moved = toys.recipe(
        data=own | {"root": str(tmp_path / "moved"), "test_clean": "test/clean", "test_labels": "test/labels"}
    )
    synth(moved, tmp_path / "run")
    assert (tmp_path / "run/generator/fit.json").stat().st_mtime_ns == fit_time
    (tmp_path / "moved/train/clean").rename(tmp_path / "moved/train/good")
    other = toys.recipe(data=own | {"root": str(tmp_path / "moved"), "train_clean": "train/good"})
    with pytest.raises(RunError, match=r"data\.train_clean is 'train/clean' there and 'train/good' here"):
        synth(other, tmp_path / "run")


def test_overwrite_with_the_same_recipe_keeps_everything(fitted: Any, made: Path, toys: Any) -> None:
    before = toys.read_tree(made)
    synth(fitted.recipe, made, overwrite=True)
    assert toys.read_tree(made) == before


def test_overwrite_fits_again_for_another_generator(made: Path, tmp_path: Path, toys: Any) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    facts = run_fit(toys.recipe(generator={"steps": 2}), out, progress=silent, overwrite=True)
    assert facts["log"]["steps"] == 2
    assert names(out) == ["demo", "generator", "recipe.yaml"]


def spoil_an_image(out: Path) -> None:
    path = sorted((out / "demo/train/clean").iterdir())[0]
    path.write_bytes(encode_image(255 - read_rgb(path), "png"))


def test_data_changed_since_is_refused_and_replaced_with_overwrite(
    fitted: Any, made: Path, tmp_path: Path, one_process: None
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    fingerprint = read_manifest(out / "dataset/manifest.jsonl").header["generator_fingerprint"]
    spoil_an_image(out)
    for command in (synth, lambda recipe, out: run_fit(recipe, out, progress=silent)):
        with pytest.raises(
            RunError, match=rf"{out}: was made of other images or labels than are there now .*--overwrite to replace"
        ):
            command(fitted.recipe, out)
    synth(fitted.recipe, out, overwrite=True)
    assert read_manifest(out / "dataset/manifest.jsonl").header["generator_fingerprint"] != fingerprint
    assert verify_dataset(out / "dataset") == []


def test_corrected_region_mask_makes_the_set_again_and_keeps_the_generator(
    fitted: Any, out: Path, tmp_path: Path, toys: Any, one_process: None
) -> None:
    mask = np.full((128, 128, 3), 255, np.uint8)
    (tmp_path / "mask.png").write_bytes(encode_image(mask, "png"))
    place = fitted.recipe.place.model_copy(update={"region_mask": str(tmp_path / "mask.png")})
    recipe = fitted.recipe.model_copy(update={"place": place})
    fit_record = (out / "generator/fit.json").read_bytes()
    synth(recipe, out)
    mask[:, :64] = 0
    (tmp_path / "mask.png").write_bytes(encode_image(mask, "png"))
    with pytest.raises(RunError, match=r"dataset: was made with another place\.region_mask than is there now"):
        synth(recipe, out)
    synth(recipe, out, overwrite=True)
    assert (out / "generator/fit.json").read_bytes() == fit_record
    placed = [one for row in read_manifest(out / "dataset/manifest.jsonl").rows for one in row["placed"]]
    assert placed and all(one["changed_xyxy"][0] >= 64 for one in placed)


def test_images_of_a_generator_that_was_fitted_again_are_not_gone_on_with(
    fitted: Any, out: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file, save_file

    def killed(*arguments: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(running, "finish", killed)
        with pytest.raises(Killed):
            synth(fitted.recipe, out)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "dataset.partial/images").iterdir()}
    weights = out / "generator/twins.safetensors"
    tensors = load_file(weights)
    tensors["twins"] = tensors["twins"][..., ::-1].copy()
    save_file(tensors, weights)
    synth(fitted.recipe, out)
    after = {path.name: path.stat().st_mtime_ns for path in (out / "dataset/images").iterdir()}
    assert before.keys() == after.keys() and not set(before.values()) & set(after.values())


def test_folder_of_something_else_is_left_alone(fitted: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    for overwrite in (False, True):
        with pytest.raises(
            RunError, match=rf"{tmp_path}: is not empty and holds no run of defectgen \(found thesis\.tex\); choose"
        ):
            run_fit(fitted.recipe, tmp_path, progress=silent, overwrite=overwrite)
    assert names(tmp_path) == ["thesis.tex"]


def test_folder_may_hold_what_file_managers_leave_and_the_log(fitted: Any, tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "run.log"):
        (tmp_path / name).write_text("")
    with open_run(fitted.recipe, tmp_path):
        assert (tmp_path / "recipe.yaml").exists()


def test_torn_recipe_of_a_killed_run_goes(fitted: Any, tmp_path: Path) -> None:
    (tmp_path / ".recipe.yaml.4711.tmp").write_text("na")
    with open_run(fitted.recipe, tmp_path):
        assert names(tmp_path) == ["recipe.yaml"] and not list(tmp_path.glob(".recipe*"))


def test_file_in_the_place_of_the_folder_says_so(fitted: Any, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("a file")
    with pytest.raises(RunError, match=rf"{path}: cannot be made \(File exists\); choose another --out"):
        run_fit(fitted.recipe, path, progress=silent)


@pytest.mark.parametrize("text", ["- a list", "a: [", ""])
def test_damaged_recipe_in_the_folder_says_so(fitted: Any, out: Path, text: str) -> None:
    (out / "recipe.yaml").write_text(text)
    with pytest.raises(RunError, match=rf"{out}/recipe\.yaml: cannot be read \(.*\); delete {out} or choose another"):
        run_fit(fitted.recipe, out, progress=silent)


HOLD = """
import sys
from pathlib import Path
from defectgen.recipe import load_recipe
from defectgen.run import open_run
with open_run(load_recipe(Path(sys.argv[1])), Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_folder_held_by_another_process_is_refused_and_the_holder_named(fitted: Any, out: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(fitted.recipe.to_yaml())
    command = [sys.executable, "-c", HOLD, str(recipe), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(
            RunError, match=rf"{out}: is in use by process {holder.pid} on .+; wait for it, or choose another --out"
        ):
            run_fit(fitted.recipe, out, progress=silent)
        # A killed holder leaves its note, but no lock.
        holder.kill()
        holder.wait()
    run_fit(fitted.recipe, out, progress=silent)
    assert not (out / ".lock-holder").exists()


def test_lock_is_given_back_after_an_error(fitted: Any, out: Path) -> None:
    with pytest.raises(RunError, match="boom"), open_run(fitted.recipe, out):
        raise RunError("boom")
    with open_run(fitted.recipe, out):
        assert (out / ".lock-holder").exists()


def test_unusable_data_stops_the_run_before_anything_is_made(fitted: Any, out: Path) -> None:
    shutil.rmtree(out / "generator")
    image = sorted((out / "demo/train/images").iterdir())[0]
    image.write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"{image.name}: "):
        run_fit(fitted.recipe, out, progress=silent)
    assert names(out) == ["demo", "recipe.yaml"]


def test_weight_of_an_unknown_class_is_refused(out: Path, toys: Any) -> None:
    recipe = toys.recipe(place={"class_weights": {"scratch": 2, "dnet": 2}})
    with pytest.raises(DataError, match=r"place\.class_weights: class 'dnet': is not in the data; its classes are scr"):
        read_sources(recipe, out)
    none = toys.recipe(place={"class_weights": dict.fromkeys(("scratch", "pit", "stain", "dent"), 0)})
    with pytest.raises(DataError, match=r"every class with a defect \(scratch, .*\) has weight 0; raise one"):
        read_sources(none, out)


def test_detector_needs_held_out_real_images(out: Path, fitted: Any) -> None:
    shutil.rmtree(out / "demo/test/images")
    shutil.rmtree(out / "demo/test/labels")
    (out / "demo/test/images").mkdir()
    (out / "demo/test/labels").mkdir()
    with pytest.raises(DefectgenError, match=r"test/images: holds no image"):
        run_train_yolo(fitted.recipe, out, workers=1, progress=silent)


def test_detector_of_other_settings_is_refused_before_a_set_is_made(fitted: Any, out: Path) -> None:
    trained = out / "yolo/real/seed0"
    trained.mkdir(parents=True)
    config = fitted.recipe.train_yolo
    settings = {"model": "/elsewhere/yolo11n.yaml", "batch": config.batch + 1, "real_share": 0.9}
    (trained / "job.json").write_text(json.dumps(settings))
    (trained / "result.json").write_text("{}")
    unlike = f"batch is {config.batch + 1} there and {config.batch} here; real_share is 0.9 there and 0.5 here"
    with pytest.raises(RunError, match=rf"of other settings: {re.escape(unlike)}; choose another --out"):
        run_train_yolo(fitted.recipe, out, workers=1, progress=silent)
    assert not (out / "dataset").exists() and not (out / "dataset.partial").exists()


@pytest.mark.parametrize("fault", ["leak", "boxes"])
def test_data_no_detector_can_be_judged_by_is_refused_before_a_set_is_made(fitted: Any, out: Path, fault: str) -> None:
    model = "yolo11n.yaml"
    if fault == "leak":
        train, test = (
            next(path for path in sorted((out / f"demo/{name}/labels").iterdir()) if path.stat().st_size)
            for name in ("train", "test")
        )
        images = (out / "demo/train/images" / train.stem, out / "demo/test/images" / test.stem)
        source, target = (next(image.parent.glob(f"{image.name}.*")) for image in images)
        target.write_bytes(source.read_bytes())
    else:
        model = "yolo11n-seg.yaml"
        label = next(path for path in sorted((out / "demo/test/labels").iterdir()) if path.stat().st_size)
        label.write_text(label.read_text().split()[0] + " 0.5 0.5 0.2 0.2\n")
    recipe = fitted.recipe.model_copy(
        update={"train_yolo": fitted.recipe.train_yolo.model_copy(update={"model": model})}
    )
    message = "is a test image and the same as the training" if fault == "leak" else "has boxes without an outline"
    with pytest.raises(DefectgenError, match=message):
        run_train_yolo(recipe, out, workers=1, progress=silent)
    assert not (out / "dataset").exists() and not (out / "dataset.partial").exists()


def test_set_with_boxes_is_not_for_a_model_that_learns_from_outlines(fitted: Any, made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "run"))
    recipe = fitted.recipe.model_copy(
        update={"train_yolo": fitted.recipe.train_yolo.model_copy(update={"model": "yolo11n-seg.yaml"})}
    )
    with pytest.raises(RunError, match=r"dataset: has boxes, and train_yolo\.model yolo11n-seg\.yaml learns"):
        run_train_yolo(recipe, out, workers=1, progress=silent)


@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        ("auto", "yolo11n.yaml", "detect"),
        ("auto", "yolo11n-seg.yaml", "segment"),
        ("auto", "/weights-seg/yolo11s.pt", "detect"),
        ("detect", "yolo11n-seg.yaml", "detect"),
        ("segment", "yolo11n.yaml", "segment"),
    ],
)
def test_labels_suit_the_detector_unless_the_recipe_says_otherwise(
    toys: Any, task: str, model: str, expected: str
) -> None:
    assert task_of(toys.recipe(labels={"task": task}, train_yolo={"model": model})) == expected


def test_at_least_one_core_is_available() -> None:
    assert available_cores() >= 1


def test_manifest_names_what_made_it(fitted: Any, made: Path) -> None:
    header = json.loads((made / "dataset/manifest.jsonl").read_text().splitlines()[0])
    facts = json.loads((made / "generator/fit.json").read_text())
    assert header["generator_fingerprint"] == facts["fingerprint"]
    assert header["class_names"] == facts["class_names"]


def test_held_out_parts_reach_neither_generator_nor_set_nor_training(
    tmp_path: Path, toys: Any, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other pixels and labels on the held-out parts change no byte of what is fitted, made or trained on."""
    root = tmp_path / "data"
    write_demo(DemoData(defects_per_class=4, clean_parts=8, test_parts=2, size_px=128), root)
    parts = sorted({path.name.partition("_")[0] for path in (root / "train/images").iterdir()})
    held_out = [*parts[::5], *sorted(path.name.partition("_")[0] for path in (root / "train/clean").iterdir())[:2]]
    recipe = toys.recipe(
        data={
            "demo": None,
            "root": str(root),
            "train_images": "train/images",
            "train_clean": "train/clean",
            "group_pattern": r"^(part\d+)_",
            "test_groups": held_out,
        },
        train_yolo={"arms": list(get_args(Arm))},
    )
    metrics = dict.fromkeys(("map50", "map50_95", "recall_at_fp", "precision", "recall"), 0.5) | {"per_class": []}
    figures = {"metrics": metrics | {"confidence_at_fp": 0.5, "mask_map50": None, "mask_map50_95": None}}
    figures |= {"training": None, "device": "cpu", "precision": "fp32", "versions": {}}
    # What it would be told is on disk by then.
    monkeypatch.setattr(training, "_run_worker", lambda *_: figures)
    trees = []
    for name in ("before", "after"):
        out = tmp_path / name
        run_train_yolo(recipe, out, workers=1, progress=silent)
        trees.append(
            {
                path: re.sub(rb'"seconds": .*', b"", content.replace(bytes(out), b"OUT"))
                for path, content in toys.read_tree(out).items()
                if not path.endswith(("result.json", "results.json"))
            }
        )
        for path in sorted(root.rglob("*.png")):
            if path.name.partition("_")[0] in held_out:
                shape = read_rgb(path).shape
                noise = np.random.default_rng(len(path.name)).integers(0, 256, shape).astype(np.uint8)
                path.write_bytes(encode_image(noise, "png"))
                label = path.parent.parent / "labels" / f"{path.stem}.txt"
                if label.exists():
                    label.write_text("2 0.5 0.5 0.2 0.2\n")
    before, after = trees
    assert {path.split("/")[0] for path in before} >= {"generator", "dataset", "yolo"}
    assert {path.split("/")[1] for path in before if path.endswith("samples.json")} >= {
        arm.replace("+", "-") for arm in get_args(Arm)
    }
    other = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert other and all(path.startswith("yolo/test/") for path in other)
