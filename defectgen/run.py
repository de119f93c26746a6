"""The run folder: its stages in order, each skipped where its result is there, continued where it is half there.

    recipe.yaml     the resolved recipe
    demo/           the embedded demo product, where the recipe uses it
    generator/      what was fitted
    preview/        a few of its images, made before
    dataset/        the YOLO data set
    yolo/           detectors and results.json

A stage works in a folder beside its result, named *.partial, and moves it in place when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import yaml

from defectgen.compose import compose
from defectgen.controls import compose_augmented, compose_copy_paste, compose_procedural
from defectgen.data.lines import with_lines
from defectgen.data.load import load_sources, require_usable
from defectgen.dataset.manifest import MANIFEST_NAME, Task, read_manifest
from defectgen.dataset.write import completed, finish, write_composite
from defectgen.errors import DataError, DefectgenError, RunError, UsageError
from defectgen.images import write_bytes_atomic
from defectgen.recipe import Recipe
from defectgen.records import Composite, Sources
from defectgen.studio import Progress, Studio, fit, fit_fingerprint, load_studio

# What each stage depends on, beside the stages before it.
FIT_FIELDS = ("seed", "data", "generator", "place.flip", "place.quarter_turns", "labels.min_change")
SYNTH_FIELDS = ("place", "inpaint", "labels", "screen", "synth")


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def task_of(recipe: Recipe) -> Task:
    """Boxes or polygons, as the recipe says or its detector needs."""
    if recipe.labels.task != "auto":
        return recipe.labels.task
    from defectgen.yolo.arms import task_of_model

    return "segment" if task_of_model(recipe.train_yolo.model) in ("segment", "obb") else "detect"


@contextmanager
def open_run(recipe: Recipe, out: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Holds the run folder for this process; writes `recipe.yaml`.

    Raises:
        RunError: another process holds the folder, or it holds a run of another recipe and `overwrite` is false.
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
        _check_recipe(recipe, out, overwrite=overwrite)
        write_bytes_atomic(out / "recipe.yaml", recipe.to_yaml().encode())
        yield
    finally:
        holder_path.unlink(missing_ok=True)
        lock.release()


def _check_recipe(recipe: Recipe, out: Path, *, overwrite: bool) -> None:
    path = out / "recipe.yaml"
    if not path.exists():
        foreign = [child.name for child in out.iterdir() if not child.name.startswith(".lock")]
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
    now = recipe.model_dump(mode="json")
    fitted = _differences(before, now, FIT_FIELDS)
    made = _differences(before, now, SYNTH_FIELDS)
    stale: list[str] = []
    if fitted and any((out / name).exists() for name in ("demo", "generator", "generator.partial", "dataset.partial")):
        stale = ["demo", "generator", "generator.partial", "preview", "dataset", "dataset.partial", "yolo"]
    elif made and any((out / name).exists() for name in ("dataset", "dataset.partial")):
        stale = ["preview", "dataset", "dataset.partial", "yolo"]
    if not stale:
        return
    if not overwrite:
        raise RunError(
            f"{out}: holds another run: {'; '.join((fitted + made)[:4])}; "
            "choose another --out, or --overwrite to replace what was made"
        )
    for name in stale:
        shutil.rmtree(out / name, ignore_errors=True)


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
            if old_leaves.get(name) != new_leaves.get(name)
        ]
    return found


def read_sources(recipe: Recipe, out: Path) -> Sources:
    """The recipe's data, usable.

    Raises:
        DataError: naming every fault.
    """
    sources = load_sources(recipe, out / "demo")
    require_usable(sources)
    return replace(sources, train=with_lines(sources.train))


def _check_data(recipe: Recipe, sources: Sources, out: Path, *, overwrite: bool) -> None:
    """As `_check_recipe`, for what was made of images or labels that have changed since, under the same recipe."""
    record, manifest = out / "generator" / "fit.json", out / "dataset" / MANIFEST_NAME
    found = []
    with suppress(OSError, ValueError, KeyError, TypeError):  # Where it is damaged, its reader says so.
        found.append(json.loads(record.read_text(encoding="utf-8"))["fingerprint"])
    if manifest.exists():
        found.append(read_manifest(manifest).header["generator_fingerprint"])
    fingerprint = fit_fingerprint(recipe, sources)
    if set(found) <= {fingerprint}:
        return
    if not overwrite:
        raise RunError(
            f"{out}: was made of other images or labels than are there now (or by another version of defectgen); "
            "choose another --out, or --overwrite to replace what was made"
        )
    for name in ("generator", "generator.partial", "preview", "dataset", "dataset.partial", "yolo"):
        shutil.rmtree(out / name, ignore_errors=True)


def run_fit(recipe: Recipe, out: Path, *, progress: Progress, overwrite: bool = False) -> dict[str, Any]:
    """Fits the generator into `out`/generator; the facts of its fit.json."""
    with open_run(recipe, out, overwrite=overwrite):
        sources = read_sources(recipe, out)
        _check_data(recipe, sources, out, overwrite=overwrite)
        return fit(recipe, sources, out / "generator", progress=progress)


def run_synth(
    recipe: Recipe, out: Path, *, workers: int, progress: Progress, overwrite: bool = False
) -> dict[str, Any]:
    """Makes `out`/dataset, fitting first where needed; the data set's summary."""
    with open_run(recipe, out, overwrite=overwrite):
        sources = read_sources(recipe, out)
        _check_data(recipe, sources, out, overwrite=overwrite)
        return _synth(recipe, sources, out, workers=workers, progress=progress)


def run_preview(
    recipe: Recipe, out: Path, num_images: int, *, workers: int, progress: Progress, overwrite: bool = False
) -> dict[str, Any]:
    """Makes `out`/preview, a data set of `num_images` composites, fitting first where needed; its summary.

    Those of its images that the whole set has as composites, too, are the same there.
    """
    with open_run(recipe, out, overwrite=overwrite):
        sources = read_sources(recipe, out)
        _check_data(recipe, sources, out, overwrite=overwrite)
        for name in ("preview", "preview.partial"):
            shutil.rmtree(out / name, ignore_errors=True)
        few = recipe.synth.model_copy(update={"num_images": num_images, "clean_share": 0.0})
        few_of_it = recipe.model_copy(update={"synth": few})
        return _synth(few_of_it, sources, out, workers=workers, progress=progress, name="preview")


def _synth(
    recipe: Recipe, sources: Sources, out: Path, *, workers: int, progress: Progress, name: str = "dataset"
) -> dict[str, Any]:
    from defectgen.dataset.sheet import write_contact_sheets
    from defectgen.dataset.write import summarise

    folder, partial = out / name, out / f"{name}.partial"
    num_images = recipe.synth.num_images
    if folder.exists():
        progress("synth", num_images, num_images, "already made")
        return summarise(read_manifest(folder / MANIFEST_NAME).rows, sources.class_names)
    fit(recipe, sources, out / "generator", progress=progress)
    partial.mkdir(parents=True, exist_ok=True)
    done = completed(partial)
    todo = [index for index in range(num_images) if index not in done]
    job = _Job(recipe, sources, out / "generator", fit_fingerprint(recipe, sources), partial, task_of(recipe))
    refused: dict[str, int] = {}
    for count, (_, reasons) in enumerate(_in_workers(job, todo, workers), start=len(done) + 1):
        for reason in reasons:
            refused[reason] = refused.get(reason, 0) + 1
        worst = ", ".join(f"{n} {reason}" for reason, n in sorted(refused.items(), key=lambda pair: -pair[1])[:3])
        progress("synth", count, num_images, f"refused: {worst}" if worst else "")
    summary = finish(
        partial,
        recipe_yaml=recipe.to_yaml(),
        class_names=sources.class_names,
        task=task_of(recipe),
        num_images=num_images,
        fingerprint=job.fingerprint,
    )
    bases = sources.train_clean if recipe.data.base == "clean" else sources.train
    lookup = {image.name: image.path for image in bases}
    write_contact_sheets(partial, lookup)
    partial.rename(folder)
    return summary


def run_train_yolo(
    recipe: Recipe,
    out: Path,
    *,
    workers: int,
    progress: Progress,
    overwrite: bool = False,
    trust_checkpoint: bool = False,
) -> dict[str, Any]:
    """Trains and evaluates the recipe's arms, making the data sets they need first; what `results.json` holds.

    Raises:
        UsageError: `train_yolo.model` is a .pt file, which can run code when it is loaded, and is not trusted.
    """
    from defectgen.yolo.train import resolve_model, train_arms

    model = resolve_model(recipe.train_yolo.model)
    if model.endswith(".pt") and not trust_checkpoint:
        raise UsageError(
            f"train_yolo.model: {model} is a pickle, which can run any code when it is loaded; where you know where it "
            "comes from, add --trust-checkpoint"
        )
    with open_run(recipe, out, overwrite=overwrite):
        sources = read_sources(recipe, out)
        if not sources.test:
            raise DataError(
                "data.test_images: there is no held-out real image to judge a detector by; name test_images, or "
                "test_groups, or raise test_fraction"
            )
        arms = recipe.train_yolo.arms
        synthetic: dict[str, Path] = {}
        if set(arms) - {"real", "real+aug", "full-real"}:
            _check_data(recipe, sources, out, overwrite=overwrite)
            _synth(recipe, sources, out, workers=workers, progress=progress)
            synthetic["real+defectgen"] = out / "dataset"
        for arm in ("real+aug", "real+copy-paste", "real+procedural"):
            if arm in arms:
                synthetic[arm] = _control_set(arm, recipe, sources, out, progress=progress)
        return train_arms(
            config=recipe.train_yolo,
            sources=sources,
            synthetic={arm: path for arm, path in synthetic.items() if arm in arms},
            out=out / "yolo",
            seed=recipe.seed,
            progress=lambda line: progress("train-yolo", 0, 0, line),
        )


def _control_set(arm: str, recipe: Recipe, sources: Sources, out: Path, *, progress: Progress) -> Path:
    """A control arm's data set; but for augmented real images, at the placements of `out`/dataset."""
    name = f"{arm.removeprefix('real+')}-set"
    folder, partial = out / "yolo" / name, out / "yolo" / f"{name}.partial"
    make: Callable[[int], Composite]
    fingerprint = fit_fingerprint(recipe, sources)
    followed = fingerprint
    if arm == "real+aug":
        num_images = recipe.synth.num_images

        def make(index: int) -> Composite:
            return compose_augmented(recipe, sources, index)
    else:
        studio = load_studio(recipe, sources, out / "generator", fingerprint=fingerprint)
        rows = read_manifest(out / "dataset" / MANIFEST_NAME).rows
        # The set stands and falls with the placements that it follows.
        followed = hashlib.sha256((out / "dataset" / MANIFEST_NAME).read_bytes()).hexdigest()
        num_images = len(rows)
        compose_again = compose_procedural if arm == "real+procedural" else compose_copy_paste

        def make(index: int) -> Composite:
            return compose_again(recipe, sources, studio, dict(rows[index]))

    if folder.exists():
        made = read_manifest(folder / MANIFEST_NAME).header
        is_of = (made["generator_fingerprint"], made["num_images"], made["task"])
        if is_of == (followed, num_images, task_of(recipe)):
            return folder
    for stale in (folder, partial):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    for index in range(num_images):
        _write(make(index), partial, recipe, sources, task_of(recipe))
        progress(arm.removeprefix("real+"), index + 1, num_images, "")
    finish(
        partial,
        recipe_yaml=recipe.to_yaml(),
        class_names=sources.class_names,
        task=task_of(recipe),
        num_images=num_images,
        fingerprint=followed,
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends the pool.
    # One thread each: more would change last bits with the number of cores, and two workers would fight over them.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker_job = job


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
        min(workers, len(indexes)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(job,),
    )
    try:
        for future in as_completed([pool.submit(_work, index) for index in indexes]):
            index, result = future.result()
            if isinstance(result, DefectgenError):
                raise result
            yield index, result
    except BrokenProcessPool:
        raise RunError(
            f"synth: one of {workers} worker processes was killed, perhaps for lack of memory; run it again to go on, "
            "with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
