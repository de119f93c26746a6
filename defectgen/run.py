"""The run folder: its stages in order, each skipped where its result is there, continued where it is half there.

    recipe.yaml     the resolved recipe
    demo/           the embedded demo product, where the recipe uses it
    generator/      what was fitted
    preview/        a few of its images, made before
    dataset/        the YOLO data set
    yolo/           detectors and results.json
    logs/           curves of the trainings, with --tracker

A stage works in a folder beside its result, named *.partial, and moves it in place when it is complete. A reviewed set
replaces the one before so: that is *.replaced until the new one stands, then it goes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import yaml
from pydantic import ValidationError

from defectgen.compose import clean_indexes, compose
from defectgen.controls import compose_augmented, compose_copy_paste, compose_procedural
from defectgen.data.lines import with_lines
from defectgen.data.load import load_sources, require_usable
from defectgen.data.region import regions_sha256
from defectgen.dataset.card import embedded_recipe
from defectgen.dataset.manifest import MANIFEST_NAME, Manifest, ManifestError, Task, read_manifest, set_indexes
from defectgen.dataset.write import changed_files, finish, gather, missing_files, recipe_sha256, write_composite
from defectgen.errors import DataError, DefectgenError, RunError, UsageError
from defectgen.images import sha256_bytes, sha256_file, sweep, write_bytes_atomic
from defectgen.progress import Progress, silent
from defectgen.recipe import Recipe
from defectgen.records import Composite, LabelledImage, Sources
from defectgen.review import put_in_place, rejected_indexes, settle
from defectgen.studio import Studio, fit, fit_fingerprint, load_studio

# What each stage depends on, beside the stages before it, but for what `fit_fingerprint` says better: where the data
# lie, and a test set that is named later.
FIT_FIELDS = ("seed", "data", "generator", "place.flip", "place.quarter_turns", "labels.min_change")
SYNTH_FIELDS = ("place", "inpaint", "labels", "screen", "synth")
_FREE_FIELDS = ("data.root", "data.test_images", "data.test_labels", "data.test_clean")
# What file managers leave behind in any folder they show.
_LITTER = ("Thumbs.db", "desktop.ini")
# More than Python can wait for there.
_MAX_WORKERS_ON_WINDOWS = 61


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def task_of(recipe: Recipe) -> Task:
    """Boxes or polygons, as the recipe says or its detector needs."""
    if recipe.labels.task != "auto":
        return recipe.labels.task
    from defectgen.yolo.arms import needs_outlines

    return "segment" if needs_outlines(recipe.train_yolo.model) else "detect"


@contextmanager
def open_run(recipe: Recipe, out: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Holds the run folder for this process; writes `recipe.yaml`.

    Raises:
        RunError: another process holds the folder, or it holds a run of another recipe and `overwrite` is false.
    """
    with held(out):
        for name in ("recipe.yaml", "demo"):
            sweep(out, f".{name}.*.tmp")
        if (out / "recipe.yaml").exists():  # Else it may be anybody's folder.
            settle(out / "dataset", out / "dataset.partial")
        _check_recipe(recipe, out, overwrite=overwrite)
        write_bytes_atomic(out / "recipe.yaml", recipe.to_yaml().encode())
        yield


@contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder `out`, made where it is missing, for this process alone.

    Raises:
        RunError: another process holds it, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be made ({error.strerror}); choose another --out") from None
    lock_path, holder_path = out / ".lock", out / ".lock-holder"
    lock = filelock.FileLock(lock_path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        holder = holder_path.read_text(encoding="utf-8") if holder_path.exists() else "another process"
        raise RunError(f"{out}: is in use by {holder}; wait for it, or choose another --out") from None
    try:
        holder_path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder_path.unlink(missing_ok=True)
        lock.release()


def _check_recipe(recipe: Recipe, out: Path, *, overwrite: bool) -> None:
    path = out / "recipe.yaml"
    if not path.exists():
        # Hidden files are nobody's work, and the log of this run (--log-file) may lie here already.
        foreign = [
            child.name
            for child in out.iterdir()
            if not child.name.startswith(".") and child.name not in _LITTER and child.suffix not in (".log", ".txt")
        ]
        if foreign:
            raise RunError(
                f"{out}: is not empty and holds no run of defectgen (found {foreign[0]}); choose another --out"
            )
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: cannot be read ({reason}); delete {out} or choose another --out") from None
    with suppress(ValidationError):  # of a version with other fields: compared as it stands
        # A field that there was not yet has its default.
        before = Recipe.model_validate(before).model_dump(mode="json")
    now = recipe.model_dump(mode="json")
    fitted = _differences(before, now, FIT_FIELDS)
    made = _differences(before, now, SYNTH_FIELDS)
    stale: list[str] = []
    if fitted and any((out / name).exists() for name in ("demo", "generator", "generator.partial", "dataset.partial")):
        stale = ["demo", "generator", "generator.partial", "preview", "dataset", "dataset.partial", "yolo", "logs"]
    elif made and any((out / name).exists() for name in ("dataset", "dataset.partial")):
        stale = ["preview", "dataset", "dataset.partial", "yolo", "logs/yolo"]
    if not stale:
        return
    if not overwrite:
        there = [name for name in ("generator", "dataset", "yolo") if (out / name).exists()]
        replaced, kept = ([name for name in there if (name in stale) == goes] for goes in (True, False))
        what = f"{' and '.join(replaced) or 'what was begun'}{f'; {kept[0]} is kept' if kept else ''}"
        raise RunError(
            f"{out}: holds another run: {'; '.join((fitted + made)[:4])}; "
            f"choose another --out, or --overwrite to replace what was made ({what})"
        )
    _delete(out, stale)


def _delete(out: Path, names: Sequence[str]) -> None:
    """Raises: RunError where one cannot be deleted; what is left of it would be taken for what replaces it."""
    for name in names:
        path = out / name
        try:
            if path.is_symlink():
                path.unlink()
            elif path.exists():
                shutil.rmtree(path)
        except OSError as error:
            raise RunError(
                f"{error.filename or path}: cannot be deleted ({error.strerror}); close what has it open, and run it "
                "again, or choose another --out"
            ) from None


def _differences(before: dict[str, Any], now: dict[str, Any], fields: tuple[str, ...]) -> list[str]:
    """Leaves below `fields` that differ, as "synth.num_images is 20 there and 40 here"."""

    def leaves(node: Any, name: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {
                key: value for part, child in node.items() for key, value in leaves(child, f"{name}.{part}").items()
            }
        return {name: node}

    found = []
    for field in fields:
        old, new = before, now
        for part in field.split("."):
            old = old.get(part, {}) if isinstance(old, dict) else {}
            new = new[part]
        old_leaves, new_leaves = leaves(old, field), leaves(new, field)
        found += [
            f"{name} is {old_leaves.get(name)!r} there and {new_leaves.get(name)!r} here"
            for name in sorted(old_leaves.keys() | new_leaves.keys())
            if old_leaves.get(name) != new_leaves.get(name) and name not in _FREE_FIELDS
        ]
    return found


def read_sources(recipe: Recipe, out: Path, progress: Progress = silent) -> Sources:
    """The recipe's data, usable.

    Raises:
        DataError: naming every fault.
    """
    sources = load_sources(recipe, out / "demo", progress)
    require_usable(sources)
    return replace(sources, train=with_lines(sources.train, progress))


def _check_data(recipe: Recipe, sources: Sources, out: Path, *, overwrite: bool) -> None:
    """As `_check_recipe`, for what was made of images or labels that have changed since, under the same recipe."""
    record, manifest = out / "generator" / "fit.json", out / "dataset" / MANIFEST_NAME
    if overwrite and manifest.parent.exists():
        try:
            read_manifest(manifest)
        except ManifestError:
            _delete(out, ["dataset"])
    found = []
    with suppress(OSError, ValueError, KeyError, TypeError):  # Where it is damaged, its reader says so.
        found.append(json.loads(record.read_text(encoding="utf-8"))["fingerprint"])
    if manifest.exists():
        found.append(read_manifest(manifest).header["generator_fingerprint"])
    fingerprint = fit_fingerprint(recipe, sources)
    if set(found) <= {fingerprint}:
        _check_regions(recipe, sources, out, overwrite=overwrite)
        return
    if not overwrite:
        raise RunError(
            f"{out}: was made of other images or labels than are there now (or by another version of defectgen); "
            "choose another --out, or --overwrite to replace what was made"
        )
    _delete(out, ["generator", "generator.partial", "preview", "dataset", "dataset.partial", "yolo", "logs"])


def _check_regions(recipe: Recipe, sources: Sources, out: Path, *, overwrite: bool) -> None:
    """As `_check_data`, for a corrected place.region_mask, of which the generator does not depend."""
    manifest = out / "dataset" / MANIFEST_NAME
    regions = regions_sha256(recipe, _bases(recipe, sources))
    if not manifest.exists() or read_manifest(manifest).header.get("regions_sha256") == regions:
        return
    if not overwrite:
        raise RunError(
            f"{out / 'dataset'}: was made with another place.region_mask than is there now; choose another --out, or "
            "--overwrite to make it again"
        )
    _delete(out, ["preview", "dataset", "dataset.partial", "yolo", "logs/yolo"])


def _bases(recipe: Recipe, sources: Sources) -> tuple[LabelledImage, ...]:
    """The images that defects are put into."""
    return sources.train_clean if recipe.data.base == "clean" else sources.train


def _check_task(recipe: Recipe, out: Path) -> None:
    """Nothing, where a set with boxes does not meet a model that learns from outlines."""
    from defectgen.yolo.arms import needs_outlines

    model, manifest = recipe.train_yolo.model, out / "dataset" / MANIFEST_NAME
    if not needs_outlines(model):
        return
    if task_of(recipe) == "detect":
        raise UsageError(
            f"labels.task: detect gives boxes, and train_yolo.model {model} learns from outlines; set it to auto"
        )
    if manifest.exists() and read_manifest(manifest).header["task"] == "detect":
        raise RunError(
            f"{out / 'dataset'}: has boxes, and train_yolo.model {model} learns from outlines; choose another --out, "
            "or make the set again with --set labels.task=segment --overwrite"
        )


def run_fit(
    recipe: Recipe, out: Path, *, progress: Progress, overwrite: bool = False, trackers: Sequence[str] = ()
) -> dict[str, Any]:
    """Fits the generator into `out`/generator; the facts of its fit.json.

    `trackers`: what gets the curves of this and other trainings, in `out`/logs: see `trackers.tracked`.
    """
    with open_run(recipe, out, overwrite=overwrite):
        sources = read_sources(recipe, out, progress)
        _check_data(recipe, sources, out, overwrite=overwrite)
        return fit(recipe, sources, out / "generator", progress=progress, trackers=trackers)


def run_synth(
    recipe: Recipe,
    out: Path,
    *,
    workers: int,
    progress: Progress,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    reviews: Sequence[Path] = (),
) -> dict[str, Any]:
    """Makes `out`/dataset, fitting first where needed; the data set's summary.

    `reviews`: files of what a person said of its images, in the order they were made. Rejected images are replaced, and
    stay out when the set is asked for again.

    Raises:
        UsageError: a review is faulty, or of another set.
    """
    with open_run(recipe, out, overwrite=overwrite):
        sources = read_sources(recipe, out, progress)
        _check_data(recipe, sources, out, overwrite=overwrite)
        return _synth(
            recipe,
            sources,
            out,
            workers=workers,
            progress=progress,
            trackers=trackers,
            reviews=reviews,
            overwrite=overwrite,
        )


def run_preview(
    recipe: Recipe,
    out: Path,
    num_images: int,
    *,
    workers: int,
    progress: Progress,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Makes `out`/preview, a data set of `num_images` composites, fitting first where needed; its summary.

    Those of its images that the whole set has as composites, too, are the same there.
    """
    with open_run(recipe, out, overwrite=overwrite):
        sources = read_sources(recipe, out, progress)
        _check_data(recipe, sources, out, overwrite=overwrite)
        _delete(out, ["preview", "preview.partial"])
        few = recipe.synth.model_copy(update={"num_images": num_images, "clean_share": 0.0})
        few_of_it = recipe.model_copy(update={"synth": few})
        return _synth(few_of_it, sources, out, workers=workers, progress=progress, trackers=trackers, name="preview")


def _synth(
    recipe: Recipe,
    sources: Sources,
    out: Path,
    *,
    workers: int,
    progress: Progress,
    trackers: Sequence[str] = (),
    name: str = "dataset",
    reviews: Sequence[Path] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Images of the finished set of which files are missing, or with `overwrite` were changed, are made again."""
    from defectgen.dataset.sheet import write_contact_sheets
    from defectgen.dataset.write import summarise

    folder, partial = out / name, out / f"{name}.partial"
    num_images = recipe.synth.num_images
    made = read_manifest(folder / MANIFEST_NAME) if folder.exists() else None
    rejected = _rejected(recipe, sources, made, reviews)
    if made is not None:
        is_asked_for = rejected == made.header.get("rejected", [])
        is_whole = is_asked_for and not missing_files(folder, made)
        changed = [] if is_whole and not overwrite else changed_files(folder)
        if is_whole and not changed:
            progress("synth", num_images, num_images, "already made")
            return summarise(made.rows, sources.class_names)
        if changed and not overwrite:
            raise RunError(
                f"{changed[0]}: was changed since it was made (so were {len(changed) - 1} others), and "
                f"{'what is missing' if is_asked_for else 'a review'} would make it again; keep your changes with "
                "`defectgen export`, or restore the files from what was made (`defectgen synth RECIPE --overwrite`)"
            )
    fit(recipe, sources, out / "generator", progress=progress, trackers=trackers)
    regions = regions_sha256(recipe, _bases(recipe, sources))
    _begin(partial, out / "generator", [fit_fingerprint(recipe, sources), regions])
    indexes = set_indexes(num_images, rejected)
    # A detector of another kind may have been chosen since the set was made.
    task = task_of(recipe) if made is None else made.header["task"]
    done = gather(partial, indexes, task=task, finished=None if made is None else folder)
    todo = [index for index in indexes if index not in done]
    job = _Job(recipe, sources, out / "generator", fit_fingerprint(recipe, sources), partial, task)
    progress("synth", len(done), num_images, f"starting {min(workers, len(todo))} processes")
    refused: dict[str, int] = {}
    for count, (_, reasons) in enumerate(_in_workers(job, todo, workers), start=len(done) + 1):
        for reason in reasons:
            refused[reason] = refused.get(reason, 0) + 1
        worst = ", ".join(f"{n} {reason}" for reason, n in sorted(refused.items(), key=lambda pair: -pair[1])[:3])
        progress("synth", count, num_images, f"refused: {worst}" if worst else "")
    summary = finish(
        partial,
        recipe_yaml=recipe.to_yaml() if made is None else _recipe_of(folder, made, recipe),
        class_names=sources.class_names,
        task=task,
        num_images=num_images,
        fingerprint=job.fingerprint,
        rejected=rejected,
        regions_sha256=regions,
    )
    lookup = {image.name: image.path for image in _bases(recipe, sources)}
    write_contact_sheets(partial, lookup)
    put_in_place(partial, folder)
    _made_by(partial).unlink()
    return summary


def _begin(partial: Path, generator: Path, facts: list[str | None]) -> None:
    """`partial`, empty unless it was begun with the same weights and `facts`: a generator that was deleted and fitted
    again would go on with images of the one before.
    """
    weights = [sha256_file(path) for path in sorted(generator.rglob("*.safetensors"))]
    made_by = json.dumps([*facts, *weights]).encode()
    record = _made_by(partial)
    if not record.exists() or record.read_bytes() != made_by:
        _delete(partial.parent, [partial.name])
        write_bytes_atomic(record, made_by)
    partial.mkdir(exist_ok=True)


def _made_by(partial: Path) -> Path:
    """What the set in `partial` was begun with; beside it, so that it can stay until the set is in its place."""
    return partial.with_name(f".{partial.name}-made-by")


def _rejected(recipe: Recipe, sources: Sources, made: Manifest | None, reviews: Sequence[Path]) -> list[int]:
    """Indexes that stay out of the set, rising: those rejected before it was `made`, and those of `reviews`."""
    earlier = [] if made is None else made.header.get("rejected", [])
    if not reviews:
        return earlier
    return rejected_indexes(
        reviews,
        recipe_sha256=recipe_sha256(recipe.to_yaml()) if made is None else made.header["recipe_sha256"],
        fingerprint=fit_fingerprint(recipe, sources),
        num_images=recipe.synth.num_images,
        clean=clean_indexes(recipe),
        earlier=earlier,
    )


def _recipe_of(folder: Path, made: Manifest, recipe: Recipe) -> str:
    """The recipe by which the set in `folder` was made, whose hash its reviews name: training may have changed since.

    Where its card was edited, `recipe`, which makes the same images.
    """
    with suppress(OSError, UnicodeDecodeError):
        text = embedded_recipe((folder / "README.md").read_text(encoding="utf-8"))
        if sha256_bytes(text.encode()) == made.header["recipe_sha256"]:
            return text
    return recipe.to_yaml()


def run_train_yolo(
    recipe: Recipe,
    out: Path,
    *,
    workers: int,
    progress: Progress,
    overwrite: bool = False,
    trust_checkpoint: bool = False,
    trackers: Sequence[str] = (),
    reviews: Sequence[Path] = (),
) -> dict[str, Any]:
    """Trains and evaluates the recipe's arms, making the data sets they need first; what `results.json` holds.

    `reviews`: as for `run_synth`.

    Raises:
        UsageError: `train_yolo.model` is a .pt file, which can run code when it is loaded, and is not trusted.
    """
    from defectgen.yolo.arms import check_sources
    from defectgen.yolo.train import refuse_other_settings, resolve_model, train_arms

    model = resolve_model(recipe.train_yolo.model)
    if model.endswith(".pt") and not trust_checkpoint:
        raise UsageError(
            f"train_yolo.model: {model} is a pickle, which can run any code when it is loaded; where you know where it "
            "comes from, add --trust-checkpoint"
        )
    with open_run(recipe, out, overwrite=overwrite):
        sources = read_sources(recipe, out, progress)
        if not sources.test:
            raise DataError(
                "data.test_images: there is no held-out real image to judge a detector by; name test_images, or "
                "test_groups, or raise test_fraction"
            )
        # Before hours are spent on sets that could not be used.
        check_sources(sources, recipe.train_yolo)
        if not overwrite:
            refuse_other_settings(recipe.train_yolo, out / "yolo")
        arms = recipe.train_yolo.arms
        synthetic: dict[str, Path] = {}
        if set(arms) - {"real", "real+aug", "full-real"}:
            _check_data(recipe, sources, out, overwrite=overwrite)
            _check_task(recipe, out)
            # Not with `overwrite`, by which detectors are trained again: labels may have been corrected by hand.
            _synth(recipe, sources, out, workers=workers, progress=progress, trackers=trackers, reviews=reviews)
            synthetic["real+defectgen"] = out / "dataset"
        elif reviews:
            raise UsageError("--review: none of the arms is trained on the set or follows it; leave it out")
        for arm in ("real+aug", "real+copy-paste", "real+procedural"):
            if arm in arms:
                synthetic[arm] = _control_set(arm, recipe, sources, out, progress=progress)
        return train_arms(
            config=recipe.train_yolo,
            sources=sources,
            synthetic={arm: path for arm, path in synthetic.items() if arm in arms},
            out=out / "yolo",
            seed=recipe.seed,
            progress=progress,
            trackers=trackers,
        )


def _control_set(arm: str, recipe: Recipe, sources: Sources, out: Path, *, progress: Progress) -> Path:
    """A control arm's data set; but for augmented real images, at the placements of `out`/dataset."""
    name = f"{arm.removeprefix('real+')}-set"
    folder, partial = out / "yolo" / name, out / "yolo" / f"{name}.partial"
    make: Callable[[int], Composite]
    fingerprint = fit_fingerprint(recipe, sources)
    followed, task = fingerprint, task_of(recipe)
    rejected: list[int] = []
    if arm == "real+aug":
        # As many defective ones as the other sets have.
        num_images = recipe.synth.num_images - len(clean_indexes(recipe))
        followed = hashlib.sha256(f"{fingerprint} {recipe.train_yolo.scale_jitter}".encode()).hexdigest()

        def make(position: int) -> Composite:
            return compose_augmented(recipe, sources, position)
    else:
        studio = load_studio(recipe, sources, out / "generator", fingerprint=fingerprint)
        manifest = read_manifest(out / "dataset" / MANIFEST_NAME)
        rows, rejected = manifest.rows, manifest.header.get("rejected", [])
        # Boxes or outlines as in that set, whatever detector has been chosen since.
        task = manifest.header["task"]
        # The set stands and falls with the placements that it follows.
        followed = hashlib.sha256((out / "dataset" / MANIFEST_NAME).read_bytes()).hexdigest()
        num_images = len(rows)
        compose_again = compose_procedural if arm == "real+procedural" else compose_copy_paste

        def make(position: int) -> Composite:
            # Its index is the row's: a reviewed set has gaps.
            return compose_again(recipe, sources, studio, dict(rows[position]))

    with suppress(ManifestError):  # Damaged or not there: made again.
        made = read_manifest(folder / MANIFEST_NAME)
        is_of = (made.header["generator_fingerprint"], made.header["num_images"], made.header["task"])
        if is_of == (followed, num_images, task) and not missing_files(folder, made):
            return folder
    _delete(folder.parent, [folder.name, partial.name])
    partial.mkdir(parents=True)
    painted = 0
    for position in range(num_images):
        composite = make(position)
        painted += len(composite.placed)
        _write(composite, partial, recipe, sources, task)
        progress(arm.removeprefix("real+"), position + 1, num_images, "")
    if not painted and arm != "real+aug":
        raise RunError(
            f"train_yolo.arms: {arm}: every one of its defects was fainter than real ones; leave out the arm, or lower "
            "screen.min_contrast"
        )
    finish(
        partial,
        recipe_yaml=recipe.to_yaml(),
        class_names=sources.class_names,
        task=task,
        num_images=num_images,
        fingerprint=followed,
        rejected=rejected,
    )
    partial.rename(folder)
    return folder


def _write(composite: Composite, folder: Path, recipe: Recipe, sources: Sources, task: Task) -> None:
    write_composite(folder, composite, image_format=recipe.synth.format, task=task, class_names=sources.class_names)


class _Job:
    """What a worker needs to make any image of the set."""

    def __init__(
        self, recipe: Recipe, sources: Sources, generator: Path, fingerprint: str, folder: Path, task: Task
    ) -> None:
        self.recipe, self.sources, self.generator = recipe, sources, generator
        self.fingerprint, self.folder, self.task = fingerprint, folder, task
        self._studio: Studio | None = None

    def make(self, index: int) -> tuple[int, list[str]]:
        """Image `index`, on disk; and the reasons of its rejections."""
        if self._studio is None:
            self._studio = load_studio(self.recipe, self.sources, self.generator, fingerprint=self.fingerprint)
        composite = compose(self.recipe, self.sources, self._studio, index)
        _write(composite, self.folder, self.recipe, self.sources, self.task)
        return index, [one.reason for one in composite.rejected]


_worker_job: _Job | None = None


def _start_worker(job: _Job) -> None:
    import signal

    import cv2
    import torch

    global _worker_job
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends the pool.
    # One thread each: more would change last bits with the number of cores, and two workers would fight over them.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker_job = job


def _end_with(parent: Any) -> None:
    """Ends this process when the one that began it is gone: killed, it could not end it."""
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(index: int) -> tuple[int, list[str] | DefectgenError]:
    assert _worker_job is not None
    try:
        return _worker_job.make(index)
    except DefectgenError as error:
        return index, error


def _in_workers(job: _Job, indexes: list[int], workers: int) -> Iterator[tuple[int, list[str]]]:
    """Makes the images in `workers` processes, yielding each as it is done. Their number changes no byte."""
    if not indexes:
        return
    # Unlike multiprocessing.Pool, it ends where a worker is killed (for memory, say) instead of waiting for it.
    pool = ProcessPoolExecutor(
        min(workers, len(indexes), _MAX_WORKERS_ON_WINDOWS if sys.platform == "win32" else workers),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(job,),
    )
    started = False
    try:
        for future in as_completed([pool.submit(_work, index) for index in indexes]):
            index, result = future.result()
            if isinstance(result, DefectgenError):
                raise result
            started = True
            yield index, result
    except BrokenProcessPool:
        if not started:
            raise RunError(
                f"synth: one of {workers} worker processes ended before its first image; what it printed stands above. "
                "If it printed nothing, it was killed, perhaps for lack of memory: try fewer --workers. In a script of "
                "your own, call this below `if __name__ == '__main__':`, as each worker imports the script"
            ) from None
        raise RunError(
            f"synth: one of {workers} worker processes was killed, perhaps for lack of memory; run it again to go on, "
            "with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
