"""How well generators of a few real defects know those that they never saw, setting by setting:

    python tests/benchmarks/unseen_defects.py RECIPE [--set FIELD=VALUE ...] --try generator.inside_weight=4 [--try ...]

Fits one generator as RECIPE says, and one per `--try`, on the same defects with the same seed. Each then predicts the
real training defects beyond the budget (name `data.per_class` or `data.max_images`; of other groups where there are
any), hardly noised and noised to the strengths that drawing uses: the error in the region, in grey levels, and its
ratio to the first generator's, defect by defect, with a 95 % interval over images. It costs no detector, and hundreds
of defects tell small differences apart.
Fits are kept in --out, by data and settings, and continued.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from defectgen.augment import Windows
from defectgen.crops import Crop, centre, region_of
from defectgen.data.load import load_sources
from defectgen.diffusion.batches import to_batch
from defectgen.diffusion.pipelines import DefectInpaintPipeline
from defectgen.diffusion.train import FitProgress
from defectgen.diffusion.unet import context_of, no_class, predict_clean
from defectgen.recipe import Recipe, load_recipe
from defectgen.records import Sources
from defectgen.seeds import numpy_rng, torch_rng
from defectgen.studio import fit_fingerprint, real_crops, train, training_clean_crops

# The first, hardly noised, shows what the network cannot render.
STRENGTHS = (0.02, 0.2, 0.4, 0.6, 0.8)
BATCH = 32


def fitted(recipe: Recipe, sources: Sources, out: Path) -> tuple[DefectInpaintPipeline, int]:
    """The generator alone, as `studio.fit` trains it, and the step that was best on its held-out defects."""
    crops = real_crops(recipe, sources)

    def report(state: FitProgress) -> None:
        if state.step % recipe.generator.check_every == 0:
            print(f"{state.step} of {state.num_steps} steps", flush=True)

    pipeline, log = train(
        recipe,
        sources,
        crops,
        training_clean_crops(recipe, sources, crops),
        state_path=out / f"{fit_fingerprint(recipe, sources)[:16]}.pt",
        progress=report,
    )
    return pipeline, log.best_step


def unseen(recipe: Recipe, sources: Sources) -> list[Crop]:
    """The real defects of groups that the budget has none of; where it has of all, those of its other images."""
    groups, names = {image.group for image in sources.train}, {image.name for image in sources.train}
    others = [image for image in sources.train_pool if image.group not in groups]
    others = others or [image for image in sources.train_pool if image.name not in names]
    return real_crops(recipe, replace(sources, train=tuple(others)))


@torch.inference_mode()
def errors(pipeline: DefectInpaintPipeline, crops: list[Crop], recipe: Recipe, num_classes: int) -> np.ndarray:
    """float (N, len(STRENGTHS)): mean squared error in the region, RGB, grey levels squared; the same noise always."""
    side = recipe.generator.window_px
    found = []
    for start in range(0, len(crops), BATCH):
        of_batch = crops[start : start + BATCH]
        masks = np.stack([centre(crop.mask, side) for crop in of_batch])
        regions = [
            region_of(mask, outlined=crop.outlined, grow=1.0) for mask, crop in zip(masks, of_batch, strict=True)
        ]
        windows = Windows(
            np.stack([centre(crop.image, side) for crop in of_batch]),
            masks,
            np.stack(regions),
            np.array([crop.class_id for crop in of_batch], np.int64),
        )
        batch = to_batch(
            windows,
            numpy_rng(0, "nothing dropped"),
            no_class=no_class(num_classes),
            class_dropout=0,
            context_dropout=0,
        )
        noise = torch.randn(batch.x_0.shape, generator=torch_rng(0, "unseen", start), dtype=torch.float64).float()
        context = context_of(batch.x_0[:, :3], batch.region)
        of_strengths = []
        for strength in STRENGTHS:
            x = (1 - strength) * batch.x_0 + strength * noise
            sigma = torch.full((len(of_batch),), strength)
            predicted = predict_clean(pipeline.unet, x, context, sigma, batch.class_id)
            squared = ((predicted - batch.x_0)[:, :3] * 127.5) ** 2 * batch.region
            of_strengths.append(squared.sum((1, 2, 3)) / (3 * batch.region.sum((1, 2, 3))))
        found.append(torch.stack(of_strengths, 1).numpy())
    return np.concatenate(found)


def over_base(tried: np.ndarray, base: np.ndarray, images: list[str]) -> list[str]:
    """Per strength, the geometric mean of the ratio of root mean squared errors, its interval over images."""
    ratios = 0.5 * np.log(tried / base)
    names = sorted(set(images))
    of_images = np.array([ratios[[image == name for image in images]].mean(0) for name in names])
    half = stats.t.ppf(0.975, len(names) - 1) * of_images.std(0, ddof=1) / len(names) ** 0.5
    middle = of_images.mean(0)
    return [
        f"{100 * (np.exp(m) - 1):+.1f} % ({100 * (np.exp(m - h) - 1):+.1f} to {100 * (np.exp(m + h) - 1):+.1f})"
        for m, h in zip(middle, half, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--try", action="append", default=[], dest="tries", help="overrides, separated by spaces")
    parser.add_argument("--every", type=int, default=1, help="take one of so many unseen defects")
    parser.add_argument("--out", type=Path, default=Path("runs/unseen_defects"))
    arguments = parser.parse_args()
    base: np.ndarray | None = None
    for tried in ["", *arguments.tries]:
        recipe = load_recipe(arguments.recipe, [*arguments.overrides, *tried.split()])
        sources = load_sources(recipe, arguments.out / "demo")
        pipeline, best = fitted(recipe, sources, arguments.out)
        crops = unseen(recipe, sources)[:: arguments.every]
        found = errors(pipeline, crops, recipe, len(sources.class_names))
        if base is None:
            base = found
            print(f"{len(crops)} unseen defects; root mean squared error in grey levels at strengths {STRENGTHS}")
        figures = " / ".join(f"{value:.2f}" for value in np.sqrt(found.mean(0)))
        print(f"{tried or 'base'}: {figures}, best step {best}", flush=True)
        if tried:
            print("  over base: " + "; ".join(over_base(found, base, [crop.source for crop in crops])), flush=True)


if __name__ == "__main__":
    main()
