from __future__ import annotations

import numpy as np
import pytest
import torch

from defectgen.augment import Windows
from defectgen.diffusion.batches import Batch, to_batch


def windows(count: int = 2, side: int = 2) -> Windows:
    images = np.zeros((count, side, side, 3), np.uint8)
    masks = np.zeros((count, side, side), np.uint8)
    regions = np.zeros((count, side, side), bool)
    images[0, 0, 1] = (255, 0, 51)
    masks[0, 0, 1] = 255
    regions[0, 0] = True
    return Windows(images, masks, regions, np.arange(count) % 2)


def batch_of(windows: Windows, *, class_dropout: float = 0, context_dropout: float = 0, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return to_batch(windows, rng, no_class=9, class_dropout=class_dropout, context_dropout=context_dropout)


def test_pixels_and_mask_become_four_channels_from_minus_one_to_one() -> None:
    batch = batch_of(windows())
    assert batch.x_0.shape == (2, 4, 2, 2) and batch.x_0.dtype == torch.float32
    # 51 of 255 is a fifth of the way from -1 to 1.
    assert batch.x_0[0, :, 0, 1].tolist() == pytest.approx([1, -1, -0.6, 1])
    assert batch.x_0[1].unique().tolist() == [-1]
    assert batch.region.tolist() == [[[[1, 1], [0, 0]]], [[[0, 0], [0, 0]]]]
    assert batch.class_id.tolist() == [0, 1] and batch.class_id.dtype == torch.int64
    assert batch.has_context.tolist() == [True, True]


def test_everything_is_dropped_at_a_share_of_one() -> None:
    batch = batch_of(windows(5), class_dropout=1, context_dropout=1)
    assert batch.class_id.tolist() == [9] * 5
    assert batch.has_context.tolist() == [False] * 5


def test_shares_are_dropped_independently() -> None:
    batch = batch_of(windows(4000), class_dropout=0.1, context_dropout=0.3)
    no_class, no_context = batch.class_id == 9, ~batch.has_context
    # Within five standard deviations of 0.1, 0.3 and 0.03.
    assert no_class.float().mean().item() == pytest.approx(0.1, abs=0.024)
    assert no_context.float().mean().item() == pytest.approx(0.3, abs=0.037)
    assert (no_class & no_context).float().mean().item() == pytest.approx(0.03, abs=0.014)


def test_what_is_dropped_follows_from_the_generator_alone() -> None:
    one, same, other = (batch_of(windows(64), class_dropout=0.5, context_dropout=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.class_id, same.class_id) and torch.equal(one.has_context, same.has_context)
    assert not torch.equal(one.class_id, other.class_id)
