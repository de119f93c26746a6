"""How crisp drawn defects are beside the copies they were drawn over: python tests/benchmarks/drawing_sharpness.py RUN

RUN is a run folder with a fitted generator. For the first images, the mean absolute Laplacian of what was drawn over
that of the copy, both at the generator's scale, on the copied pixels: with the correction by the model's own rendering
(`compose.redraw`) and without it, on the same placements and noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

import defectgen.compose
from defectgen.compose import HARDLY_NOISED, clean_indexes, compose
from defectgen.recipe import Recipe
from defectgen.run import read_sources
from defectgen.studio import load_studio


def crispness(image: np.ndarray, where: np.ndarray) -> float:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F))[where].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=18)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe.model_validate(yaml.safe_load((arguments.run / "recipe.yaml").read_text(encoding="utf-8")))
    sources = read_sources(recipe, arguments.run)
    studio = load_studio(recipe, sources, arguments.run / "generator")
    ratios: dict[str, list[float]] = {"corrected": [], "as drawn": []}

    def measured(pipeline: Any, *args: Any, patches: np.ndarray, **options: Any) -> Any:
        plain = pipeline(*args, patches=patches, **options)
        corrected = redraw(pipeline, *args, patches=patches, **options)
        for number, patch in enumerate(patches):
            where = patch[..., 3] >= 128
            if where.any():
                of_copy = max(crispness(np.ascontiguousarray(patch[..., :3]), where), 1e-6)
                ratios["as drawn"].append(crispness(plain.images[number], where) / of_copy)
                ratios["corrected"].append(crispness(corrected.images[number], where) / of_copy)
        return corrected

    redraw, defectgen.compose.redraw = defectgen.compose.redraw, measured
    composites = [index for index in range(recipe.synth.num_images) if index not in clean_indexes(recipe)]
    for index in composites[: arguments.images]:
        compose(recipe, sources, studio, index)
    print(
        f"{len(ratios['corrected'])} drawings, rendered at strength {HARDLY_NOISED}; median over the copy's crispness:"
    )
    for name, values in ratios.items():
        print(f"  {name}: {np.median(values):.3f}")


if __name__ == "__main__":
    main()
