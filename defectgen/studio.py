"""Everything fitted on the real defects, as one folder: `generator/`.

model_index.json, unet/, scheduler/   the diffusion pipelines, as diffusers saves them
twins.safetensors                     clean twins of the real defects
screen.safetensors                    the screening classifier
fit.json                              fingerprint, class names, margins and least contrasts, training log, versions
samples/                              what it drew from noise on the way, beside real defects
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defectgen import __version__
from defectgen.crops import Crop, clean_crops, defect_crops
from defectgen.device import best_device
from defectgen.errors import DataError, RunError
from defectgen.images import sha256_file, write_bytes_atomic
from defectgen.inpaint.golden import golden_windows
from defectgen.inpaint.placement import Model
from defectgen.progress import WARNING, Progress
from defectgen.recipe import Recipe
from defectgen.records import LabelledImage, Sources
from defectgen.samples import write_sample_sheet
from defectgen.trackers import tracked

if TYPE_CHECKING:
    from defectgen.dataset.screen import Screen
    from defectgen.diffusion.pipelines import DefectInpaintPipeline, DefectPatchPipeline
    from defectgen.diffusion.train import FitLog

NUM_CLEAN_CROPS = 2400
# Raised when a change of the code makes an earlier generator another.
FIT_VERSION = 3
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True)
class Studio:
    """What composites are made with.

    Attributes:
        models: every real defect of the budget.
        margins: per class, the annotators' margin in image pixels (see `annotators_margin`).
        least_contrasts: per class, that of its fainter real defects (see `least_contrasts`).
        fingerprint: of the data and settings the generator was fitted on.
    """

    pipeline: DefectInpaintPipeline
    models: list[Model]
    screen: Screen
    margins: list[float]
    least_contrasts: list[float]
    fingerprint: str

    @cached_property
    def followed(self) -> list[int]:
        """Indexes of the models that placements follow: all but boxes of lines in which no line was found.

        What is copied of such a box is nearly all product, and shows by its grain.
        """
        lined = {model.crop.class_id for model in self.models if model.crop.line_slack_px is not None}
        return [
            number
            for number, model in enumerate(self.models)
            if model.crop.outlined or model.crop.class_id not in lined
        ]


def fit_fingerprint(recipe: Recipe, sources: Sources) -> str:
    """SHA-256 of all that the generator depends on: settings, and names, bytes, labels and groups of the training
    images.
    """
    from defectgen.diffusion.unet import CONTEXT_CHANNELS, SAMPLE_CHANNELS

    files = _images_facts((*sources.train, *sources.train_clean))
    facts = {
        "classes": sources.class_names,
        "files": files,
        "groups": [image.group for image in sources.train],
        "generator": recipe.generator.model_dump(mode="json"),
        "channels": [SAMPLE_CHANNELS, CONTEXT_CHANNELS],
        "flip": recipe.place.flip,
        "quarter_turns": recipe.place.quarter_turns,
        "min_change": recipe.labels.min_change,
        "base": recipe.data.base,
        "seed": recipe.seed,
        "version": [__version__, FIT_VERSION],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def images_digest(images: Iterable[LabelledImage]) -> str:
    """SHA-256 of the images' names, bytes and labels."""
    return hashlib.sha256(json.dumps(_images_facts(images)).encode()).hexdigest()


def _images_facts(images: Iterable[LabelledImage]) -> list[Any]:
    return [
        [image.name, sha256_file(image.path), [[a.class_id, a.xyxy, a.polygon] for a in image.annotations]]
        for image in images
    ]


def real_crops(recipe: Recipe, sources: Sources) -> list[Crop]:
    return defect_crops(
        sources.train,
        window_px=recipe.generator.window_px,
        context_factor=recipe.generator.context_factor,
        hold_out=recipe.generator.hold_out,
        seed=recipe.seed,
    )


def training_clean_crops(recipe: Recipe, sources: Sources, crops: Sequence[Crop]) -> list[Crop]:
    """Windows of clean product for training, beside those of the real defects.

    Raises:
        DataError: none can be cut.
    """
    backgrounds = sources.train_clean if recipe.data.base == "clean" else (*sources.train, *sources.train_clean)
    clean = clean_crops(
        backgrounds, crops, window_px=recipe.generator.window_px, num_crops=NUM_CLEAN_CROPS, seed=recipe.seed
    )
    if not clean:
        raise DataError(
            f"data.train_clean: the {len(backgrounds)} images have no room for a window without a defect, so clean "
            "product cannot be learnt; name clean images, or images that show more of the product"
        )
    return clean


def train(
    recipe: Recipe, sources: Sources, crops: Sequence[Crop], clean: Sequence[Crop], *, state_path: Path, **hooks: Any
) -> tuple[DefectInpaintPipeline, FitLog]:
    """The recipe's generator, trained on these crops, and its log; `hooks`: `train_generator`'s progress and show."""
    from defectgen.diffusion.train import train_generator

    return train_generator(
        crops,
        clean,
        class_names=sources.class_names,
        config=recipe.generator,
        flip=recipe.place.flip,
        quarter_turns=recipe.place.quarter_turns,
        seed=recipe.seed,
        state_path=state_path,
        **hooks,
    )


def fit(
    recipe: Recipe, sources: Sources, folder: Path, *, progress: Progress, trackers: Sequence[str] = ()
) -> dict[str, Any]:
    """The facts of `fit.json`, after `folder` is complete. Continues a training that was killed.

    `trackers`: see `trackers.tracked`; they log to logs/ beside `folder`.

    Raises:
        DataError: no window of clean product can be cut.
        RunError: `folder` holds a generator of other data or settings.
    """
    fingerprint = fit_fingerprint(recipe, sources)
    if folder.exists():
        return _facts(folder, fingerprint)

    from safetensors.numpy import save_file

    from defectgen.dataset.labels import annotators_margin, least_contrasts
    from defectgen.dataset.screen import train_screen
    from defectgen.diffusion.train import FitProgress
    from defectgen.diffusion.twins import clean_twins

    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    num_classes, window_px = len(sources.class_names), recipe.generator.window_px
    crops = real_crops(recipe, sources)
    clean = training_clean_crops(recipe, sources, crops)

    def report(state: FitProgress) -> None:
        figures = {"loss": state.loss, "seconds_per_step": state.seconds_per_step}
        held_out = ""
        if state.held_out_loss is not None:
            figures["held_out_loss"] = state.held_out_loss
            held_out = f", held out {state.held_out_loss:.3f}"
        progress("fit generator", state.step, state.num_steps, f"loss {state.loss:.3f}{held_out}")
        track(figures, state.step)

    def warn(message: str) -> None:
        progress(f"fit generator{WARNING}", 0, 0, message)

    state_path, samples = partial / f"state-{fingerprint[:16]}.pt", partial / SAMPLES_FOLDER
    if not state_path.exists():
        # They may be of other data.
        shutil.rmtree(samples, ignore_errors=True)

    def show(pipeline: DefectPatchPipeline, step: int) -> None:
        path = write_sample_sheet(samples, pipeline, step, crops=crops, config=recipe.generator, seed=recipe.seed)
        progress("sample sheet", 1, 1, str(path))

    with tracked(trackers, folder.parent / "logs", "fit", warn=warn) as track:
        pipeline, log = train(recipe, sources, crops, clean, state_path=state_path, progress=report, show=show)
    if log.stopped_early:
        note = f"stopped: the held-out loss was lowest at step {log.best_step}"
        progress("fit generator", log.steps, log.steps, note)
    screen = train_screen(
        crops,
        clean,
        num_classes=num_classes,
        window_px=window_px,
        flip=recipe.place.flip,
        quarter_turns=recipe.place.quarter_turns,
        seed=recipe.seed,
        progress=lambda done, total: progress("fit class check", done, total, ""),
    )
    photographed = golden_windows(
        crops,
        sources.train,
        sources.train_clean,
        window_px=window_px,
        progress=lambda done, total: progress("clean twins among clean images", done, total, ""),
    )
    num_photographed = sum(twin is not None for twin in photographed)
    progress("clean twins", 0, 1, f"of {len(crops)} real defects {num_photographed} are found on clean images")
    twins, twins_clean = clean_twins(
        pipeline,
        crops,
        photographed=photographed,
        seed=recipe.seed,
        clean_probability=screen.clean_probability,
    )
    progress("clean twins", 1, 1, "")
    done = folder.with_name(folder.name + ".done")
    shutil.rmtree(done, ignore_errors=True)
    pipeline.save_pretrained(done)
    save_file({"twins": twins}, done / "twins.safetensors")
    for sheet in sorted(samples.glob("*.jpg")):
        write_bytes_atomic(done / SAMPLES_FOLDER / sheet.name, sheet.read_bytes())
    min_change = recipe.labels.min_change
    facts = {
        "fingerprint": fingerprint,
        "class_names": list(sources.class_names),
        "num_defects": len(crops),
        "margins": annotators_margin(
            crops,
            twins,
            photographed=[twin is not None for twin in photographed],
            num_classes=num_classes,
            min_change=min_change,
        ),
        "least_contrasts": least_contrasts(crops, twins, num_classes=num_classes, min_change=min_change),
        "screen": screen.save(done),
        "twins_clean": twins_clean,
        "photographed": [twin is not None for twin in photographed],
        "num_lines": sum(crop.line_slack_px is not None for crop in crops),
        "log": asdict(log),
        "version": __version__,
    }
    write_bytes_atomic(done / "fit.json", json.dumps(facts, indent=1).encode())
    done.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
    return facts


def load_studio(recipe: Recipe, sources: Sources, folder: Path, *, fingerprint: str | None = None) -> Studio:
    """The fitted studio. `fingerprint`: what `fit_fingerprint` gives, where the caller has it already.

    Raises:
        RunError: `folder` holds no generator, a damaged one, or one of other data or settings.
    """
    from diffusers.utils import logging
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from defectgen.dataset.screen import Screen
    from defectgen.diffusion.pipelines import DefectInpaintPipeline

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    facts = _facts(folder, fingerprint or fit_fingerprint(recipe, sources))
    try:
        pipeline = DefectInpaintPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
        twins = load_file(folder / "twins.safetensors")["twins"]
        screen = Screen.load(folder, facts["screen"], num_classes=len(sources.class_names))
        crops = real_crops(recipe, sources)
        models = [
            Model(crop, np.ascontiguousarray(twin), bool(photographed))
            for crop, twin, photographed in zip(crops, twins, facts["photographed"], strict=True)
        ]
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{folder}: the generator is damaged ({error}); delete the folder and run `defectgen fit`"
        ) from None
    import torch

    pipeline.unet.to(device=best_device(), memory_format=torch.channels_last).eval()
    return Studio(pipeline, models, screen, facts["margins"], facts["least_contrasts"], facts["fingerprint"])


def _facts(folder: Path, fingerprint: str) -> dict[str, Any]:
    path = folder / "fit.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = facts["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: is no record of a fitted generator ({error}); delete {folder} and fit again") from None
    if found != fingerprint:
        raise RunError(
            f"{folder}: holds a generator fitted on other data or settings (fingerprint {found[:12]}, this recipe has "
            f"{fingerprint[:12]}); choose another --out, or --overwrite to fit again"
        )
    return facts
