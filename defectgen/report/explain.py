"""How the generator works, shown on the user's own data; and what was refused, as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from defectgen.compose import NO_PLACE, compose, redraw
from defectgen.crops import centre, region_of
from defectgen.dataset.manifest import ImageRow
from defectgen.diffusion.pipelines import DefectPatchPipeline, to_images
from defectgen.recipe import Recipe
from defectgen.records import Rejection, Sources
from defectgen.report.pictures import data_uri
from defectgen.seeds import derive_seed, torch_rng
from defectgen.studio import Studio

NOISE_LEVELS = (0.0, 0.1, 0.3, 0.5, 0.75, 1.0)
STRENGTHS = (0.1, 0.3, 0.6, 0.96)
GUIDANCES = (0.0, 1.0, 1.5, 3.0)
_STEPS_SHOWN = 6
_MOST_CLASSES = 8
# Images made again to see their refusals, and pictures per reason.
_REPLAYED, _PER_REASON = 8, 6


@dataclass(frozen=True)
class Strip:
    """Pictures in a row, each a data URI with its caption."""

    title: str
    text: str
    pictures: tuple[tuple[str, str], ...]


def explain(recipe: Recipe, sources: Sources, studio: Studio) -> list[Strip]:
    """Strips of one real defect noised and redrawn, and of patches from noise by step, class and guidance."""
    window_px = recipe.generator.window_px
    # One of middling size: the smallest shows nothing, the largest is no example.
    models = sorted(studio.followed, key=lambda number: float(studio.models[number].crop.mask.mean()))
    model = studio.models[models[len(models) // 2]]
    name = sources.class_names[model.crop.class_id or 0]
    real = centre(model.crop.image, window_px)
    strips = [
        Strip(
            f"Forwards: a real {name} is covered with noise",
            "Training shows the model windows like this one at every level of noise, and asks for the clean window. "
            "The share is sigma: 0 is the photograph, 1 is noise alone.",
            tuple((_uri(_noised(real, sigma, recipe.seed)), f"sigma {sigma:g}") for sigma in NOISE_LEVELS),
        )
    ]
    strips += _from_noise(recipe, sources, studio, model.crop.class_id or 0)
    mask = centre(model.crop.mask, window_px)
    pictures = [(_uri(real), "the real defect"), (_uri(model.twin), "its place without it")]
    for strength in STRENGTHS:
        drawn = redraw(
            studio.pipeline,
            model.twin[None],
            region_of(mask, outlined=model.crop.outlined)[None],
            [model.crop.class_id or 0],
            seeds=[derive_seed(recipe.seed, "report", "strength")],
            patches=np.concatenate([real, mask[..., None]], axis=2)[None],
            strength=strength,
            num_steps=recipe.inpaint.num_steps,
            guidance=recipe.inpaint.guidance,
        )
        pictures.append((_uri(drawn.images[0]), f"strength {strength:g}"))
    low, high = recipe.inpaint.strength
    used = f" This recipe draws at {low:g} to {high:g}." if recipe.inpaint.backend == "diffusion" else ""
    strips.append(
        Strip(
            "Redrawn in its place: what strength changes",
            "A defect is noised to this share and drawn anew, within its region alone. Low: the real one, harmonised. "
            "High: one of the model's own." + used,
            tuple(pictures),
        )
    )
    return strips


def _from_noise(recipe: Recipe, sources: Sources, studio: Studio, class_id: int) -> list[Strip]:
    of = studio.pipeline
    pipeline = DefectPatchPipeline(of.unet, of.scheduler, of.config.class_names, of.config.window_px)
    steps = recipe.inpaint.num_steps
    shown = sorted({round(step) for step in np.linspace(0, steps - 1, min(_STEPS_SHOWN, steps))})
    seed = derive_seed(recipe.seed, "report", "patch")
    at, thought = [], []

    def keep(step: int, sigma: float, x: torch.Tensor, x_0: torch.Tensor) -> None:
        if step in shown:
            at.append((_uri(to_images(x)[0]), f"step {step + 1} of {steps}"))
            thought.append((_uri(to_images(x_0)[0]), f"from sigma {sigma:.2f}"))

    name = sources.class_names[class_id]
    pipeline([class_id], seeds=[seed], num_steps=steps, guidance=recipe.inpaint.guidance, on_step=keep)
    strips = [
        Strip(
            f"Backwards: a {name} from noise",
            "From noise alone, without any real defect to start from, the model takes the noise away step by step.",
            tuple(at),
        ),
        Strip("What it expects to see in the end, at each of these steps", "", tuple(thought)),
    ]
    classes = [*range(min(len(sources.class_names), _MOST_CLASSES)), len(sources.class_names)]
    names = [*sources.class_names, "clean product"]
    by_class = [
        pipeline([number], seeds=[seed], num_steps=steps, guidance=recipe.inpaint.guidance) for number in classes
    ]
    strips.append(
        Strip(
            "What the class changes",
            "The same noise, drawn as each class.",
            tuple((_uri(drawn.images[0]), names[number]) for drawn, number in zip(by_class, classes, strict=True)),
        )
    )
    by_guidance = [pipeline([class_id], seeds=[seed], num_steps=steps, guidance=value) for value in GUIDANCES]
    strips.append(
        Strip(
            "What guidance changes",
            f"0 ignores the class, 1 is the model as trained, more insists on it. This recipe takes "
            f"{recipe.inpaint.guidance:g}.",
            tuple(
                (_uri(drawn.images[0]), f"guidance {value:g}")
                for drawn, value in zip(by_guidance, GUIDANCES, strict=True)
            ),
        )
    )
    return strips


def refused(recipe: Recipe, sources: Sources, studio: Studio, rows: Sequence[ImageRow]) -> dict[str, Strip]:
    """Per reason, examples of what was drawn and refused, before and after: by making a few of the images again."""
    # Where there was no place, nothing was drawn.
    reasons = Counter(one["reason"] for row in rows for one in row["rejected"] if one["reason"] != NO_PLACE)
    missing = {reason: _PER_REASON for reason in reasons}
    found: dict[str, list[tuple[str, str]]] = {reason: [] for reason in reasons}

    for _ in range(_REPLAYED):
        rest = [row for row in rows if any(missing.get(one["reason"], 0) > 0 for one in row["rejected"])]
        if not rest:
            break
        row = max(rest, key=lambda row: _gain(row, missing))
        recorded = {(one["reason"], one["detail"]) for one in row["rejected"]}

        def watch(
            rejection: Rejection,
            before: np.ndarray,
            after: np.ndarray,
            recorded: set[tuple[str, str]] = recorded,
        ) -> None:
            # Threads may change last bits, and with them what happens: only what happened then is shown.
            pictures = found.get(rejection.reason)
            if pictures is None or (rejection.reason, rejection.detail) not in recorded:
                return
            if len(pictures) < _PER_REASON:
                caption = f"{sources.class_names[rejection.class_id]}: {rejection.detail}"
                pictures.append((_uri(np.concatenate([before, after], axis=1)), caption))

        compose(recipe, sources, studio, row["index"], watch=watch)
        rows = [other for other in rows if other is not row]
        missing = {reason: _PER_REASON - len(pictures) for reason, pictures in found.items()}
    return {
        reason: Strip(reason, "Before and after, at the generator's scale.", tuple(found[reason]))
        for reason, _ in reasons.most_common()
    }


def _gain(row: ImageRow, missing: dict[str, int]) -> int:
    """How many missing examples the image can give."""
    counts = Counter(one["reason"] for one in row["rejected"])
    return sum(min(count, max(missing.get(reason, 0), 0)) for reason, count in counts.items())


def _noised(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """(1 - sigma) * image + sigma * noise, as in training (Lipman et al. 2023, the straight path)."""
    x_0 = torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    noise = torch.randn(x_0.shape, generator=torch_rng(seed, "report", "noise"))
    return to_images((1 - sigma) * x_0 + sigma * noise)[0]


def _uri(image: np.ndarray) -> str:
    return data_uri(image, quality=90)
