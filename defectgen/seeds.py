"""Every random number derives from (root seed, purpose, ...), never from order, worker or time."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(root: int, *keys: str | int) -> int:
    """A 63-bit seed, the same for the same root and keys on every machine (SHA-256 of their text)."""
    text = "/".join([str(root), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(root: int, *keys: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(root, *keys)))


def torch_rng(root: int, *keys: str | int) -> torch.Generator:
    """A CPU generator; draw in float64 and cast, since float32 `randn` differs between CPU kernels."""
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(root, *keys))
