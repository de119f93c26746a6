"""Speed of what `synth` does, part by part, side by side in one run.

    python tests/benchmarks/bench_synth.py [--recipe recipes/quickstart.yaml] [--rounds 5]

On the demo product, with random weights (they cost as much as trained ones) and one thread, as a worker of `synth` has.
Every round runs every part once, so that whatever else the machine does meets all alike; the table shows medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from rich.console import Console
from rich.table import Table

from defectgen.compose import MICRO_BATCH
from defectgen.copies import copied_in
from defectgen.crops import Crop, centre
from defectgen.data.load import load_sources
from defectgen.dataset.labels import measure, window_view
from defectgen.diffusion.pipelines import DefectInpaintPipeline, DefectPatchPipeline
from defectgen.diffusion.unet import build_unet
from defectgen.images import encode_image, read_rgb
from defectgen.inpaint.backends import composite
from defectgen.inpaint.placement import Model, Placement, draw_turn, find_place
from defectgen.recipe import Backend, Place, Recipe, load_recipe
from defectgen.records import LabelledImage, Sources
from defectgen.seeds import numpy_rng
from defectgen.studio import Studio, real_crops
from defectgen.windows import crop_window, resize

SEEDS = list(range(MICRO_BATCH))


class Bench:
    """The demo product, a generator with random weights, and `MICRO_BATCH` places on one clean image."""

    def __init__(self, recipe: Recipe, sources: Sources) -> None:
        self.recipe, self.config = recipe, recipe.inpaint
        self.window_px = recipe.generator.window_px
        self.base: LabelledImage = sources.train_clean[0]
        self.image = read_rgb(self.base.path)
        crops = real_crops(recipe, sources)
        self.models = [Model(crop, self.twin(crop)) for crop in crops]
        torch.manual_seed(0)
        unet = build_unet(
            len(sources.class_names),
            window_px=self.window_px,
            channels=recipe.generator.channels,
            fold=recipe.generator.fold,
        )
        self.num_weights = sum(weight.numel() for weight in unet.parameters())
        unet = unet.to(memory_format=torch.channels_last).eval()
        parts = (unet, FlowMatchEulerDiscreteScheduler(shift=1.0), sources.class_names, self.window_px)
        self.inpaint, self.patch = DefectInpaintPipeline(*parts), DefectPatchPipeline(*parts)
        for pipeline in (self.inpaint, self.patch):
            pipeline.set_progress_bar_config(disable=True)
        screen: Any = None
        self.studio = Studio(self.inpaint, self.models, screen, [0.0] * len(sources.class_names), [], "")
        self.sources = sources
        self.places = self.find_places()
        self.class_ids = [place.class_id for place in self.places]

    def find_places(self) -> list[Placement]:
        """`MICRO_BATCH` places, of the first models that have one."""
        rng = numpy_rng(self.recipe.seed, "bench")
        places: list[Placement] = []
        for number in range(len(self.models)):
            place = find_place(
                self.image,
                self.models,
                number,
                turn=draw_turn(rng, Place()),
                scale=1.0,
                taken=[],
                max_overlap=0,
                allowed=None,
                top=self.recipe.place.top,
                rng=rng,
            )
            places += [place] if place is not None else []
            if len(places) == MICRO_BATCH:
                return places
        raise SystemExit("too few models of the demo product have a place on its first clean image")

    def twin(self, crop: Crop) -> np.ndarray:
        """The window without its defect: good enough to look for places with."""
        window, mask = centre(crop.image, self.window_px), centre(crop.mask, self.window_px)
        return cv2.inpaint(window, cv2.dilate(mask, np.ones((5, 5), np.uint8)), 3, cv2.INPAINT_TELEA)

    def copies(self) -> list[np.ndarray]:
        """The windows with copies of real defects in them."""
        return [
            crop_window(
                copied_in(self.recipe, self.sources, self.studio, place.model, place.turn, place.window, self.image)[0],
                place.window,
            )
            for place in self.places
        ]

    def draw_patches(self) -> np.ndarray:
        """uint8 (B, p, p, 4): RGB and mask."""
        output = self.patch(self.class_ids, seeds=SEEDS, num_steps=self.config.num_steps, guidance=self.config.guidance)
        masks = np.round(output.masks * 255).astype(np.uint8)
        return np.concatenate([output.images, masks[..., None]], axis=3)

    def defects(self, backend: Backend, strength: float = 1.0) -> None:
        """`MICRO_BATCH` defects drawn, blended and measured; below strength 1 over copies."""
        starts = self.copies() if strength < 1 else [None] * MICRO_BATCH
        patches = self.draw_patches() if backend != "diffusion" else None
        if strength < 1:
            small = np.stack([resize(start, self.window_px) for start in starts])
            patches = np.concatenate([small, np.stack([place.outline for place in self.places])[..., None]], axis=3)
        if backend != "diffusion":
            assert patches is not None
            drawn = patches[..., :3]
        else:
            drawn = self.inpaint(
                np.stack([window_view(self.image, place.window, self.window_px) for place in self.places]),
                np.stack([place.region for place in self.places]),
                self.class_ids,
                seeds=SEEDS,
                patches=patches,
                strength=strength,
                num_steps=self.config.num_steps,
                guidance=self.config.guidance,
            ).images
        for place, pixels, start in zip(self.places, drawn, starts, strict=True):
            image = composite(
                self.image,
                place.window,
                np.ascontiguousarray(pixels),
                outline=place.outline,
                region=place.region,
                backend=backend,
                feather_px=self.config.feather_px,
                start=start,
            )
            measure(
                image,
                self.image,
                place.window,
                min_change=self.recipe.labels.min_change,
                window_px=self.window_px,
                weak_change=None,
            )

    def parts(self) -> list[tuple[str, int, Callable[[], object]]]:
        """Name, things made per call, and the call."""
        return [
            ("read an image", 1, lambda: read_rgb(self.base.path)),
            ("find a place", MICRO_BATCH, self.find_places),
            ("defect, paste", MICRO_BATCH, lambda: self.defects("paste")),
            ("defect, poisson", MICRO_BATCH, lambda: self.defects("poisson")),
            ("defect, diffusion 1", MICRO_BATCH, lambda: self.defects("diffusion")),
            ("copy a real defect in", MICRO_BATCH, self.copies),
            ("defect, diffusion over a copy", MICRO_BATCH, lambda: self.defects("diffusion", self.config.strength[1])),
            ("encode png", 1, lambda: encode_image(self.image, "png")),
            ("encode jpg", 1, lambda: encode_image(self.image, "jpg")),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    recipe = load_recipe(arguments.recipe)
    with tempfile.TemporaryDirectory(prefix="defectgen-bench-") as folder:
        bench = Bench(recipe, load_sources(recipe, Path(folder) / "demo"))
        parts = bench.parts()
        seconds: dict[str, list[float]] = {name: [] for name, _, _ in parts}
        for round_number in range(arguments.rounds + 1):
            for name, count, call in parts:
                started = time.perf_counter()
                call()
                if round_number:  # The first round warms up.
                    seconds[name].append((time.perf_counter() - started) / count)
        sizes = {kind: len(encode_image(bench.image, kind)) for kind in ("png", "jpg")}
    height, width = bench.image.shape[:2]
    table = Table(
        "part",
        "per second",
        "ms, median",
        "ms, least to most",
        title=f"{width}x{height}, {bench.num_weights / 1e6:.1f} M weights at {recipe.generator.window_px} px, "
        f"{recipe.inpaint.num_steps} steps, one thread, {arguments.rounds} rounds",
        caption=f"file size: png {sizes['png'] / 1024:.0f} KiB, jpg {sizes['jpg'] / 1024:.0f} KiB",
    )
    for name, _, _ in parts:
        median = statistics.median(seconds[name])
        spread = f"{1000 * min(seconds[name]):.1f} to {1000 * max(seconds[name]):.1f}"
        table.add_row(name, f"{1 / median:.1f}", f"{1000 * median:.1f}", spread)
    Console().print(table)


if __name__ == "__main__":
    main()
