"""Training windows as the tensors the generator learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from defectgen.augment import Windows


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        x_0: float32 (B, 4, H, W) in [-1, 1]: RGB and mask.
        region: float32 (B, 1, H, W), 1 where the generator draws.
        class_id: int64 (B,), as the UNet counts classes.
        has_context: bool (B,), False where the surroundings are dropped.
    """

    x_0: torch.Tensor
    region: torch.Tensor
    class_id: torch.Tensor
    has_context: torch.Tensor


def to_batch(
    windows: Windows, rng: np.random.Generator, *, no_class: int, class_dropout: float, context_dropout: float
) -> Batch:
    """The windows as tensors, with class and context dropped for the given shares of them."""
    size = len(windows.images)
    x_0 = np.concatenate([windows.images, windows.masks[..., None]], axis=-1).astype(np.float32) / 127.5 - 1
    class_ids = np.where(rng.random(size) < class_dropout, no_class, windows.class_ids)
    return Batch(
        x_0=torch.from_numpy(x_0).permute(0, 3, 1, 2).contiguous(),
        region=torch.from_numpy(windows.regions[:, None].astype(np.float32)),
        class_id=torch.from_numpy(class_ids),
        has_context=torch.from_numpy(rng.random(size) >= context_dropout),
    )
