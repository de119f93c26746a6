"""The one network: a class-conditioned UNet over a noisy [RGB + mask], beside it [context RGB + region].

Shapes: B batch, C channels, H and W window pixels. Images and masks are in [-1, 1], regions 0 or 1.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch.nn import functional

SAMPLE_CHANNELS = 4  # RGB + mask
CONTEXT_CHANNELS = 4  # context RGB + region


def build_unet(num_classes: int, *, window_px: int, channels: list[int], fold: int) -> UNet2DModel:
    """A UNet with random weights. Class ids: 0 to num_classes - 1 defects, then *clean*, then *no class*."""
    last = len(channels) - 1
    return UNet2DModel(
        sample_size=window_px // fold,
        in_channels=(SAMPLE_CHANNELS + CONTEXT_CHANNELS) * fold**2,
        out_channels=SAMPLE_CHANNELS * fold**2,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * last + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * last,
        attention_head_dim=32,
        norm_num_groups=16,
        num_class_embeds=num_classes + 2,
    )


def clean_class(num_classes: int) -> int:
    return num_classes


def no_class(num_classes: int) -> int:
    return num_classes + 1


def context_of(image_BCHW: torch.Tensor, region_B1HW: torch.Tensor) -> torch.Tensor:
    """The condition: RGB with the region blanked, and the region. A region of ones hides everything: no context."""
    return torch.cat([image_BCHW * (1 - region_B1HW), region_B1HW], dim=1)


def predict_clean(
    unet: UNet2DModel,
    x_BCHW: torch.Tensor,
    context_BCHW: torch.Tensor,
    sigma_B: torch.Tensor,
    class_B: torch.Tensor,
) -> torch.Tensor:
    """The network's x_0 for x = (1 - sigma) x_0 + sigma noise, float32.

    Pixel blocks are folded into channels before the UNet and unfolded after it: a quarter of the work at fold 2. The
    network predicts x_0, not the noise: folded noise has more dimensions than its layers can carry, x_0 has not (Li and
    He 2025, "Back to Basics: Let Denoising Generative Models Denoise").
    """
    fold = round((unet.config.out_channels / SAMPLE_CHANNELS) ** 0.5)
    folded = functional.pixel_unshuffle(torch.cat([x_BCHW, context_BCHW], dim=1), fold)
    folded = folded.contiguous(memory_format=torch.channels_last)
    out = unet(folded, sigma_B * 1000, class_labels=class_B).sample
    # What the context shows is known, and there is no defect: the network is left what the region hides.
    known = torch.cat([context_BCHW[:, :3], context_BCHW[:, 3:] - 1], dim=1)
    return functional.pixel_shuffle(out.float(), fold) + known


def velocity(x_BCHW: torch.Tensor, x_0_BCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    """noise - x_0 (Lipman et al. 2023, Eq. 23, time reversed), from x and x_0; sigma above 0.

    Not clamped, as a loss would have to be: a step of Euler's from sigma to 0 ends at x_0 however small sigma is.
    """
    return (x_BCHW - x_0_BCHW) / sigma_B[:, None, None, None]
