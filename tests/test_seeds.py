from __future__ import annotations

from itertools import combinations

import numpy as np
import torch

from defectgen.seeds import derive_seed, numpy_rng, torch_rng


def test_seed_is_the_documented_hash() -> None:
    # printf 7/str:place/int:3 | sha256sum | cut -c1-16, halved
    assert derive_seed(7, "place", 3) == 2217250162570253505


def test_every_part_of_a_key_changes_the_seed() -> None:
    keys: list[tuple[int, tuple[str | int, ...]]] = [
        (0, ()),
        (1, ()),
        (0, ("a",)),
        (0, ("b",)),
        (0, ("a", 1)),
        (0, ("a", "1")),
        (0, (1, "a")),
        (0, ("a1",)),
        (0, ("a", 11)),
        (0, ("a", 1, 1)),
    ]
    seeds = [derive_seed(root, *rest) for root, rest in keys]
    assert len(keys) == 10
    for (left, left_seed), (right, right_seed) in combinations(zip(keys, seeds, strict=True), 2):
        assert left_seed != right_seed, (left, right)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_same_key_gives_the_same_numbers_and_another_gives_others() -> None:
    first, again, other = numpy_rng(0, "x", 1), numpy_rng(0, "x", 1), numpy_rng(0, "x", 2)
    draws = [rng.random(4) for rng in (first, again, other)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_torch_numbers_follow_the_key_and_not_the_global_generator() -> None:
    def draw(key: int) -> torch.Tensor:
        return torch.randn(4, dtype=torch.float64, generator=torch_rng(0, "x", key))

    first = draw(1)
    torch.rand(3)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))
