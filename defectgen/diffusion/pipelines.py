"""Two pipelines over one set of weights: rare-defect patches from noise, and defects inpainted into a window.

Both are saved and loaded whole, as diffusers does: `save_pretrained(folder)`, `from_pretrained(folder)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.utils import BaseOutput

from defectgen.device import autocast
from defectgen.diffusion.unet import SAMPLE_CHANNELS, context_of, no_class, predict_clean, velocity

# A drawing takes so many steps at least, or all where there are fewer.
LEAST_STEPS = 2

# After a step: its number, the sigma it came from, x there, and the clean image predicted from it, float (B, 4, H, W).
OnStep = Callable[[int, float, torch.Tensor, torch.Tensor], None]


@dataclass
class DefectOutput(BaseOutput):
    """
    Attributes:
        images: uint8 (B, H, W, 3).
        masks: float32 (B, H, W) in [0, 1], how sure the generator is that a pixel is the defect's.
    """

    images: np.ndarray
    masks: np.ndarray


class _DefectPipeline(DiffusionPipeline):
    """The modules and facts that both pipelines are made of."""

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        class_names: Sequence[str] = (),
        window_px: int = 64,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=list(class_names), window_px=window_px)


class DefectPatchPipeline(_DefectPipeline):
    """Rare defects from noise, with their shape, without regard to a place."""

    @torch.inference_mode()
    def __call__(
        self,
        class_ids: Sequence[int],
        *,
        seeds: Sequence[int],
        num_steps: int = 14,
        guidance: float = 1.5,
        on_step: OnStep | None = None,
    ) -> DefectOutput:
        """One patch per class id.

        Args:
            class_ids: index into `class_names`; len(class_names) draws clean product.
            seeds: one per patch. A patch depends on its own seed alone, given the batch size.
        """
        side = self.config.window_px
        nothing = torch.zeros(len(class_ids), 3, side, side)
        everything = torch.ones(len(class_ids), 1, side, side)
        start = _noise(seeds, side)
        x = _sample(self, start, context_of(nothing, everything), class_ids, num_steps, guidance, on_step=on_step)
        return _output(x)


class DefectInpaintPipeline(_DefectPipeline):
    """A defect drawn into a window of clean product, to suit what surrounds it."""

    @torch.inference_mode()
    def __call__(
        self,
        windows: np.ndarray,
        regions: np.ndarray,
        class_ids: Sequence[int],
        *,
        seeds: Sequence[int],
        patches: np.ndarray | None = None,
        strength: float = 1.0,
        num_steps: int = 14,
        guidance: float = 1.5,
    ) -> DefectOutput:
        """Windows in which each region was drawn; outside it the pixels of `windows` are returned as they came.

        Args:
            windows: uint8 (B, H, W, 3), clean product.
            regions: bool (B, H, W), where to draw.
            class_ids: index into `class_names`; len(class_names) draws clean product.
            seeds: one per window.
            patches: uint8 (B, H, W, 4), RGB and mask to start from; needed where strength < 1.
            strength: 1 draws afresh from noise; lower keeps that much more of the patch (Meng et al. 2022, SDEdit).
            num_steps: from strength 1; from a lower one its share of them, rounded up, as in diffusers' image-to-image.

        Raises:
            ValueError: strength < 1 without patches.
        """
        if strength < 1 and patches is None:
            raise ValueError(f"strength {strength} needs patches to start from")
        window = _to_tensor(windows)
        region = torch.from_numpy(regions.astype(np.float32))[:, None]
        noise = _noise(seeds, self.config.window_px)
        # Outside the region nothing is unknown: the window's pixels, and no defect.
        known = torch.cat([window, -torch.ones_like(region)], dim=1)
        start = noise
        if strength < 1 and patches is not None:
            start = (1 - strength) * torch.where(region > 0, _to_tensor(patches), known) + strength * noise
        x = _sample(
            self,
            start,
            context_of(window, region),
            class_ids,
            max(math.ceil(num_steps * strength), min(num_steps, LEAST_STEPS)),
            guidance,
            strength=strength,
            outside=_Outside(region, known, noise),
        )
        output = _output(x)
        output.images = np.where(regions[..., None], output.images, windows)
        output.masks = output.masks * regions
        return output


@dataclass
class _Outside:
    """What is known where `region` (B, 1, H, W) is 0: its pixels `known` and their `noise`, both (B, 4, H, W)."""

    region: torch.Tensor
    known: torch.Tensor
    noise: torch.Tensor


def _sample(
    pipeline: DiffusionPipeline,
    x: torch.Tensor,
    context: torch.Tensor,
    class_ids: Sequence[int],
    num_steps: int,
    guidance: float,
    *,
    strength: float = 1.0,
    outside: _Outside | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Euler steps from sigma = `strength` to 0, guided by class (Ho and Salimans 2022, Eq. 6), in one doubled batch.

    `outside` the region, x is kept on the straight line from its noise to its known pixels (Lugmayr et al. 2022,
    RePaint, Eq. 8): what is drawn inside meets its surroundings as they are.
    """
    device = pipeline.unet.device
    num_classes = len(pipeline.config.class_names)
    scheduler = pipeline.scheduler
    # The scheduler shifts what it is given: the first sigma after the shift is `strength`.
    shift = scheduler.config.shift
    first = strength / (shift - (shift - 1) * strength)
    scheduler.set_timesteps(sigmas=np.linspace(first, first / num_steps, num_steps).tolist())
    sigmas = scheduler.sigmas
    x, context = x.to(device), context.to(device)
    wanted = torch.tensor(list(class_ids), device=device)
    guided = guidance != 1
    classes = torch.cat([wanted, torch.full_like(wanted, no_class(num_classes))]) if guided else wanted
    contexts = torch.cat([context, context]) if guided else context
    with autocast(device):
        for step in range(num_steps):
            inputs = torch.cat([x, x]) if guided else x
            sigma = sigmas[step].to(device).expand(len(inputs))
            x_0 = predict_clean(pipeline.unet, inputs, contexts, sigma, classes)
            if guided:
                with_class, without = x_0.chunk(2)
                x_0 = without + guidance * (with_class - without)
            if on_step is not None:
                on_step(step, float(sigmas[step]), x.float().cpu(), x_0.float().cpu())
            step_velocity = velocity(x, x_0, sigma[: len(x)])
            x = scheduler.step(step_velocity, scheduler.timesteps[step], x, return_dict=False)[0]
            if outside is not None:
                next_sigma = sigmas[step + 1]
                line = (1 - next_sigma) * outside.known + next_sigma * outside.noise
                x = torch.where(outside.region.to(device) > 0, x, line.to(device))
    return x.float().cpu()


def _noise(seeds: Sequence[int], side: int) -> torch.Tensor:
    """float32 (B, 4, side, side), each sample from its own seed; float64 first, as float32 differs between CPUs."""
    samples = [
        torch.randn(SAMPLE_CHANNELS, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(samples).float()


def _to_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def _output(x: torch.Tensor) -> DefectOutput:
    return DefectOutput(images=to_images(x), masks=(x.clamp(-1, 1)[:, 3].numpy() + 1) / 2)


def to_images(x: torch.Tensor) -> np.ndarray:
    """uint8 (B, H, W, 3), of x in [-1, 1], (B, 4, H, W) on the CPU."""
    return np.round((x[:, :3].clamp(-1, 1).permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
