from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectgen.data.split import draw_budget, find_leaks, group_of, split_groups
from defectgen.errors import UsageError
from defectgen.recipe import Data
from defectgen.records import Annotation, LabelledImage

CLASSES = ("pit", "scratch", "dent")


def _image(name: str, *class_ids: int, group: str | None = None) -> LabelledImage:
    marks = tuple(Annotation(class_id, (x, 0, x + 5, 5)) for x, class_id in enumerate(class_ids))
    return LabelledImage(Path("/data") / name, name, (100, 100), group or name, marks)


def _data(**fields: Any) -> Data:
    return Data(root="/data", train_images="images", base="defective", **fields)


def _names(images: list[LabelledImage]) -> list[str]:
    return [image.name for image in images]


# Ten parts of three shots each, every part with a clean shot as well, and five parts that are clean alone.
PARTS = [_image(f"p{part}_{shot}", 0, group=f"p{part}") for part in range(10) for shot in "abc"]
CLEAN = [_image(f"p{part}_clean", group=f"p{part}") for part in range(15)]


def test_group_is_searched_in_the_last_part_of_the_name() -> None:
    assert group_of("p1/44000_7.jpg", r"^(\d+)_") == "44000"
    assert group_of("p1/44000_7.jpg", r"^(p\d+)") is None
    assert group_of("p1/44000_7.jpg", None) == "p1/44000_7.jpg"


def test_named_groups_are_held_out_with_their_clean_images() -> None:
    split = split_groups(PARTS, CLEAN, _data(test_groups=["p3", "p12"]), seed=0)
    assert _names(split.test) == ["p3_a", "p3_b", "p3_c"]
    assert _names(split.test_clean) == ["p3_clean", "p12_clean"]
    assert len(split.train) == 27 and len(split.train_clean) == 13
    assert split.problems == []


def test_unknown_test_group_is_a_usage_error_that_lists_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        split_groups(PARTS[:6], CLEAN[:3], _data(test_groups=["p1", "board7"]), seed=0)
    assert str(caught.value) == ("data.test_groups: no image is of the group 'board7'; known are p0, p1, p2")


@given(st.floats(0, 1), st.integers(0, 2**32))
def test_no_group_is_on_both_sides_and_no_image_is_lost(fraction: float, seed: int) -> None:
    split = split_groups(PARTS, CLEAN, _data(test_fraction=fraction), seed)
    trained = {image.group for image in split.train + split.train_clean}
    held_out = {image.group for image in split.test + split.test_clean}
    assert not trained & held_out
    assert sorted(_names(split.train + split.test)) == sorted(_names(PARTS))
    assert sorted(_names(split.train_clean + split.test_clean)) == sorted(_names(CLEAN))


def test_share_counts_groups_of_defective_and_of_clean_images_apart() -> None:
    split = split_groups(PARTS, CLEAN, _data(test_fraction=0.4), seed=0)
    assert len({image.group for image in split.test}) == 4
    assert len(split.test_clean) == 4 + 2


def test_split_follows_the_seed_and_not_the_order_or_the_clean_images() -> None:
    config = _data(test_fraction=0.5)
    first = split_groups(PARTS, CLEAN, config, seed=0)
    assert {image.name for image in split_groups(PARTS[::-1], CLEAN[::-1], config, seed=0).test} == set(
        _names(first.test)
    )
    assert _names(split_groups(PARTS, [], config, seed=0).test) == _names(first.test)
    others = [_names(split_groups(PARTS, CLEAN, config, seed=seed).test) for seed in range(1, 6)]
    assert any(other != _names(first.test) for other in others)


def test_clean_groups_stay_for_training_where_test_clean_is_named() -> None:
    split = split_groups(PARTS, CLEAN, _data(test_fraction=0.4, test_clean="test/clean"), seed=0)
    assert {image.group for image in split.test_clean} == {image.group for image in split.test}


def test_single_group_is_not_split_and_warns() -> None:
    split = split_groups(PARTS[:3], [], _data(test_fraction=0.3), seed=0)
    assert len(split.train) == 3 and split.test == []
    assert [f"{problem.severity} {problem}" for problem in split.problems] == [
        "warning data.test_fraction: all images are of one group, 'p0': nothing is held out for evaluation; "
        "name held-out images in data.test_images, or correct data.group_pattern"
    ]


def test_group_on_both_sides_is_a_leak() -> None:
    (leak,) = find_leaks(PARTS[:5], [*PARTS[5:9], _image("other", 0)], by_group=True)
    assert f"{leak.severity} {leak}" == (
        "error data.test_images: group 'p1': leaks: 2 for training, 1 held out; "
        "move them to one side: a detector is not tested on what it was trained on"
    )


def test_without_groups_only_the_same_file_is_a_leak() -> None:
    twin = LabelledImage(Path("/other/p0_a"), "p0_a", (100, 100), "p0_a")
    assert find_leaks(PARTS[:1], [twin], by_group=False) == []
    (leak,) = find_leaks(PARTS[:1], PARTS[:2], by_group=False)
    assert str(leak).startswith("data.test_images: file '/data/p0_a': leaks: 1 for training, 1 held out")


def test_without_a_budget_all_images_are_used_sorted_by_name() -> None:
    drawn, problems = draw_budget(PARTS[::-1], None, None, CLASSES, seed=0)
    assert _names(drawn) == _names(PARTS) and problems == []


def _mixed() -> list[LabelledImage]:
    """40 images with pits, 12 of them with a scratch as well, 3 dents."""
    images = [_image(f"i{index:02d}", *([0, 1] if index < 12 else [0, 0])) for index in range(40)]
    return images + [_image(f"j{index}", 2) for index in range(3)]


def _counts(images: list[LabelledImage]) -> Counter[int]:
    return Counter(mark.class_id for image in images for mark in image.annotations)


def test_per_class_budget_draws_whole_images_until_each_class_has_enough() -> None:
    drawn, problems = draw_budget(_mixed(), None, 5, CLASSES, seed=0)
    counts = _counts(drawn)
    # The five scratches bring five pits along: no further image is needed.
    assert (counts[0], counts[1], counts[2]) == (5, 5, 3)
    assert _names(drawn) == sorted(_names(drawn))
    assert [f"{problem.severity} {problem}" for problem in problems] == [
        "warning data.per_class: class 2 'dent': has 3 real defects for training, not the 5 asked for; "
        "mark more, or lower it"
    ]


def test_max_images_keeps_every_class_where_there_is_room() -> None:
    for seed in range(10):
        drawn, problems = draw_budget(_mixed(), 3, None, CLASSES, seed)
        assert len(drawn) == 3 and problems == []
        assert set(_counts(drawn)) == {0, 1, 2}
    assert len(draw_budget(_mixed(), 1, None, CLASSES, seed=0)[0]) == 1


def test_both_budgets_draw_per_class_first_and_cut_after() -> None:
    drawn, _ = draw_budget(_mixed(), 4, 5, CLASSES, seed=0)
    per_class, _ = draw_budget(_mixed(), None, 5, CLASSES, seed=0)
    assert len(drawn) == 4 and set(_names(drawn)) < set(_names(per_class))


@pytest.mark.parametrize(("max_images", "per_class"), [(8, None), (None, 5)])
def test_budget_follows_the_seed_and_not_the_order(max_images: int | None, per_class: int | None) -> None:
    def draw(images: list[LabelledImage], seed: int) -> list[str]:
        return _names(draw_budget(images, max_images, per_class, CLASSES, seed)[0])

    assert draw(_mixed(), 0) == draw(_mixed()[::-1], 0)
    assert any(draw(_mixed(), seed) != draw(_mixed(), 0) for seed in range(1, 4))


# Ten images with a pit, of which one has the only scratch and two have all dents.
RARE = [_image(f"i{index}", *([0, 1] if index == 3 else [0, 2] if index in (5, 8) else [0])) for index in range(10)]


def test_no_class_is_held_out_whole_where_that_can_be_avoided() -> None:
    for seed in range(60):
        split = split_groups(RARE, [], _data(test_fraction=0.5), seed)
        assert {mark.class_id for image in split.train for mark in image.annotations} == {0, 1, 2}, seed
        assert len(split.test) == 5 and split.problems == []


def test_split_that_takes_no_whole_class_is_as_it_was() -> None:
    # As drawn before groups were spared.
    split = split_groups(PARTS, [], _data(test_fraction=0.3), seed=0)
    assert {image.group for image in split.test} == {"p0", "p3", "p9"}


def test_groups_with_a_class_of_their_own_are_kept_and_the_user_is_told() -> None:
    images = [_image("a", 0), _image("b", 1), _image("c", 2)]
    split = split_groups(images, [], _data(test_fraction=0.3), seed=0)
    assert len(split.train) == 3 and split.test == []
    assert [f"{problem.severity} {problem}" for problem in split.problems] == [
        "warning data.test_fraction: 0 of 3 groups are held out for evaluation, not 1: each other one has the last "
        "defects of a class; mark more, or name held-out groups in data.test_groups"
    ]
