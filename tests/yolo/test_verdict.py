from __future__ import annotations

import numpy as np
import pytest

from defectgen.yolo.verdict import judge, paired_interval


def test_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.3027.
    mean, low, high = paired_interval([1, 2, 3])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)


def test_interval_holds_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        _, low, high = paired_interval(rng.normal(1.5, 2.0, 5).tolist())
        held += low <= 1.5 <= high
    assert 0.93 < held / 2000 < 0.97


@pytest.mark.parametrize(
    ("own", "finding"),
    [
        ((0.40, 0.41, 0.43), "helps"),
        ((0.30, 0.33, 0.29), "no difference shown"),
        ((0.20, 0.21, 0.23), "hurts"),
    ],
)
def test_finding_follows_from_the_interval(own: tuple[float, ...], finding: str) -> None:
    scores = {
        "real": dict(enumerate((0.25, 0.26, 0.27))),
        "real+copy-paste": dict(enumerate((0.30, 0.31, 0.32))),
        "real+defectgen": dict(enumerate(own)),
    }
    verdict = judge(scores)
    assert verdict is not None and verdict.finding == finding
    decided_by = verdict.decided_by
    assert decided_by.against == "real+copy-paste" and decided_by.num_seeds == 3
    assert decided_by.low <= decided_by.mean <= decided_by.high
    assert decided_by.mean == pytest.approx(100 * (np.mean(own) - 0.31))
    assert verdict.over_real is not None and verdict.over_real.mean == pytest.approx(100 * (np.mean(own) - 0.26))


def test_differences_are_paired_by_seed() -> None:
    # Seeds differ far more than arms do: unpaired, nothing would be shown.
    rival = {0: 0.10, 1: 0.50, 2: 0.30}
    verdict = judge({"real": rival, "real+defectgen": {seed: value + 0.02 for seed, value in rival.items()}})
    assert verdict is not None and verdict.finding == "helps"
    assert verdict.decided_by.mean == pytest.approx(2)


def test_it_helps_only_where_every_rival_is_beaten_for_certain() -> None:
    # The best rival by mean is beaten in every seed, a worse one is not.
    scores = {
        "real": {0: 0.10, 1: 0.30, 2: 0.05},
        "real+copy-paste": {0: 0.20, 1: 0.21, 2: 0.22},
        "real+defectgen": {0: 0.25, 1: 0.26, 2: 0.27},
    }
    verdict = judge(scores)
    assert verdict is not None and verdict.finding == "no difference shown"
    assert verdict.decided_by.against == "real" and verdict.over_real is None


def test_the_more_rivals_the_surer_a_harm_has_to_be() -> None:
    own = {0: 0.200, 1: 0.212, 2: 0.224}
    # By 2.0 points, give or take 1.7.
    better = {0: 0.213, 1: 0.232, 2: 0.251}
    alone = judge({"real": better, "real+defectgen": own})
    assert alone is not None and alone.finding == "hurts"
    poor = {name: {0: 0.10, 1: 0.11, 2: 0.12} for name in ("real+aug", "real+copy-paste", "real+procedural")}
    among = judge({"real": better, "real+defectgen": own, **poor})
    assert among is not None and among.finding == "no difference shown"
    # The interval beside that finding is the one that it follows from.
    assert among.decided_by.against == "real" and among.decided_by.low < 0 < among.decided_by.high
    assert "(98.8 % interval -" in among.sentence(70)


def test_worse_than_copies_but_better_than_real_alone_is_not_said_to_hurt() -> None:
    scores = {
        "real": {0: 0.10, 1: 0.11, 2: 0.12},
        "real+copy-paste": {0: 0.30, 1: 0.31, 2: 0.32},
        "real+defectgen": {0: 0.20, 1: 0.21, 2: 0.22},
        "real+aug": {0: 0.1},
    }
    verdict = judge(scores)
    assert verdict is not None and verdict.finding == "hurts"
    assert verdict.sentence(9) == (
        "Adding the synthetic images is worse than copy-paste: on 9 real held-out images mAP50-95 changes by -10.0 "
        "points against real+copy-paste (95 % interval -10.0 to -10.0, over 3 trainings on the same real images), and "
        "by +10.0 points against real (95 % interval +10.0 to +10.0); not compared for want of seeds: real+aug."
    )


def test_better_than_copies_alone_says_nothing_of_the_gain_over_real_images() -> None:
    own = {0: 0.20, 1: 0.21, 2: 0.22}
    over_copies = judge({"real+copy-paste": {0: 0.10, 1: 0.11, 2: 0.12}, "real+defectgen": own})
    assert over_copies is not None and over_copies.over_rival_alone == "real+copy-paste"
    assert over_copies.sentence(9).startswith("Adding the synthetic images is better than copy-paste: on 9 real")
    over_real = judge({"real": {0: 0.10, 1: 0.11, 2: 0.12}, "real+defectgen": own})
    assert over_real is not None and over_real.over_rival_alone is None


def test_what_helps_names_the_arms_that_were_not_tried() -> None:
    own = {0: 0.20, 1: 0.21, 2: 0.22}
    poor = {0: 0.10, 1: 0.11, 2: 0.12}
    some = judge({"real": poor, "real+copy-paste": poor, "real+defectgen": own})
    assert some is not None and some.untried == ("real+aug", "real+procedural")
    assert some.sentence(9).endswith("; not tried, and may do as well: real+aug, real+procedural.")
    rivals = dict.fromkeys(("real", "real+aug", "real+copy-paste", "real+procedural", "full-real"), poor)
    every = judge({**rivals, "real+defectgen": own})
    assert every is not None and every.finding == "helps" and "not tried" not in every.sentence(9)
    # Where it does not help already, they change nothing.
    none = judge({"real": own, "real+defectgen": poor})
    assert none is not None and "not tried" not in none.sentence(9)


def test_without_real_images_beside_them_the_synthetic_ones_are_not_said_to_be_added() -> None:
    scores = {"real": {0: 0.30, 1: 0.31, 2: 0.32}, "real+defectgen": {0: 0.20, 1: 0.21, 2: 0.22}}
    verdict = judge(scores, alone=True)
    assert verdict is not None and verdict.over_rival_alone is None
    assert verdict.sentence(9).startswith("Training on the synthetic images alone hurts: on 9 real held-out images")


@pytest.mark.parametrize(
    "scores",
    [
        {"real": {0: 0.2}, "real+defectgen": {0: 0.3}},
        {"real": {0: 0.2, 1: 0.2}},
        {"real+defectgen": {0: 0.2, 1: 0.2}},
        {"real": {0: 0.2, 1: 0.2}, "real+defectgen": {2: 0.3, 3: 0.3}},
    ],
)
def test_one_seed_or_no_rival_gives_no_verdict(scores: dict[str, dict[int, float]]) -> None:
    assert judge(scores) is None


def test_sentence_says_what_how_much_against_what_and_how_sure() -> None:
    verdict = judge({"real": {0: 0.2, 1: 0.2}, "real+defectgen": {0: 0.24, 1: 0.25}})
    assert verdict is not None
    assert verdict.sentence(194) == (
        "No difference is shown by adding the synthetic images: on 194 real held-out images mAP50-95 changes by "
        "+4.5 points against real (95 % interval -1.9 to +10.9, over 2 trainings on the same real images)."
    )


def test_differences_without_spread_show_nothing() -> None:
    # Accuracies on twenty crops: one crop more in both seeds.
    own, real = {0: 0.95, 1: 0.9}, {0: 0.9, 1: 0.85}
    verdict = judge({"real+defectgen": own, "real": real})
    assert verdict is not None and verdict.finding == "no difference shown"
    assert "+5.0 points against real (the same in both seeds, so without interval" in verdict.sentence(20)
    swapped = judge({"real+defectgen": real, "real": own})
    assert swapped is not None and swapped.finding == "no difference shown"
    told = judge({"real+defectgen": {0: 0.95, 1: 0.951}, "real": {0: 0.5, 1: 0.5}})
    assert told is not None and told.finding == "helps"


def test_score_that_is_no_number_shows_nothing() -> None:
    verdict = judge({"real+defectgen": {0: float("nan"), 1: 0.9}, "real": {0: 0.5, 1: 0.5}})
    assert verdict is not None and verdict.finding == "no difference shown"
