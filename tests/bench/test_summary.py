"""From rows whose truth is known to means, verdicts and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from defectgen.bench.plots import write_plots
from defectgen.bench.summary import diagnostics_lines, sentences, summarise, worth
from defectgen.images import read_rgb


def row(arm: str, seed: int, score: float, *, k: int = 10, recall: float | None = 0.5) -> dict[str, Any]:
    return {
        "recipe": "housing",
        "profile": "small",
        "k": k,
        "seed": seed,
        "arm": arm,
        "iterations": 200,
        "map50": 2 * score,
        "map5095": score,
        "recall_at_fp": recall,
        "ap5095": {"scratch": score, "dent": score / 2, "stain": None},
        "device": "cpu",
        "date": "2026-01-01",
        "version": "0",
    }


def rows(k: int = 10, **scores: tuple[float, ...]) -> list[dict[str, Any]]:
    """A row per arm (its + written as _plus_, its - as _) and seed."""
    names = {"real": "real", "pasted": "real+copy-paste", "own": "real+defectgen", "full": "full-real"}
    return [row(names[arm], seed, score, k=k) for arm, of in scores.items() for seed, score in enumerate(of)]


def test_means_and_paired_differences_have_their_intervals() -> None:
    summary = summarise(rows(real=(0.2, 0.3, 0.4), own=(0.25, 0.36, 0.44)), num_test_images=70)
    of_k = summary["k"]["10"]
    assert of_k["arms"]["real"]["map5095"]["mean"] == pytest.approx(30)
    # Student's t for two degrees of freedom: 4.3027; standard deviation 10.
    assert of_k["arms"]["real"]["map5095"]["high"] == pytest.approx(30 + 4.3027 * 10 / 3**0.5, abs=0.01)
    gain = of_k["difference"]["real"]
    assert gain["mean"] == pytest.approx(5)
    assert gain["low"] == pytest.approx(5 - 4.3027 * 1 / 3**0.5, abs=0.01)
    assert of_k["verdict"]["finding"] == "helps"
    assert "real+defectgen" not in of_k["difference"]


def test_verdict_is_against_the_best_rival_and_the_ceiling_is_none() -> None:
    scores = {"real": (0.2, 0.2), "pasted": (0.3, 0.31), "own": (0.4, 0.41), "full": (0.6, 0.6)}
    of_k = summarise(rows(**scores), num_test_images=70)["k"]["10"]
    assert of_k["verdict"]["decided_by"]["against"] == "real+copy-paste"
    assert of_k["verdict"]["decided_by"]["mean"] == pytest.approx(10)
    assert of_k["difference"]["full-real"]["mean"] < 0


def test_sentences_say_what_the_seeds_differ_in_and_what_it_takes() -> None:
    both = rows(5, real=(0.2,), own=(0.3,)) + rows(10, real=(0.2, 0.21), own=(0.1, 0.12))
    few, many = sentences(summarise(both, num_test_images=70))
    assert few == "K = 5: no verdict; it takes real+defectgen, another arm and two seeds."
    assert many.startswith("K = 10: Adding the synthetic images hurts: on 70 real held-out images")
    assert many.endswith("over 2 draws of the real images).")


def test_worth_is_said_of_what_is_better_than_real_images_for_certain() -> None:
    real = rows(5, real=(0.1, 0.1, 0.1)) + rows(10, real=(0.2, 0.2, 0.2))
    (helps,) = sentences(summarise(real + rows(5, own=(0.15, 0.15, 0.15)), num_test_images=9))
    (unsure,) = sentences(summarise(real + rows(5, own=(0.11, 0.25)), num_test_images=9))
    (worse,) = sentences(summarise(real + rows(5, own=(0.15,) * 3, pasted=(0.3,) * 3), num_test_images=9))
    assert " Worth about 2 more real defects" in helps and "worth" not in unsure.lower()
    assert " The gain over real images alone is worth about 2 more real defects per class" in worse


def test_worth_is_read_off_the_curve_of_the_same_draws() -> None:
    both = rows(5, real=(0.1, 0.3), own=(0.15, 0.35)) + rows(10, real=(0.2, 0.4))
    assert summarise(both, num_test_images=9)["k"]["5"]["worth"]["mean"]["defects"] == pytest.approx(5 * 2**0.5 - 5)
    # One draw of the second: its curve is another one.
    lacking = [one for one in both if (one["k"], one["seed"]) != (10, 0)]
    assert summarise(lacking, num_test_images=9)["k"]["5"]["worth"] is None
    further = lacking + rows(20, real=(0.3, 0.5))
    assert summarise(further, num_test_images=9)["k"]["5"]["worth"]["mean"]["defects"] == pytest.approx(5 * 4**0.25 - 5)


def test_worth_that_cannot_be_told_is_said_to_be_missing() -> None:
    both = rows(5, real=(0.1, 0.3), own=(0.15, 0.352)) + rows(10, real=(0.2, 0.4))
    (told,) = sentences(summarise(both, num_test_images=9))
    assert "more real defects" in told and "is not told" not in told
    lacking = [one for one in both if (one["k"], one["seed"]) != (10, 0)]
    (said,) = sentences(summarise(lacking, num_test_images=9))
    assert said.endswith("Its worth in real defects is not told: no larger K has `real` with all of these draws.")
    (alone,) = sentences(summarise([one for one in both if one["k"] == 5], num_test_images=9))
    assert "worth" not in alone


def test_draws_that_a_person_reviewed_are_named() -> None:
    both = rows(real=(0.2, 0.21), own=(0.3, 0.31))
    both[-1]["rejected"] = 4
    (said,) = sentences(summarise(both, num_test_images=9))
    assert said.endswith(" Of 1 of 2 draws a person rejected synthetic images.")


def test_points_of_the_curve_of_real_images_are_not_said_to_lack_a_verdict() -> None:
    both = rows(5, real=(0.2, 0.2), own=(0.3, 0.3)) + rows(10, real=(0.2, 0.2), full=(0.5, 0.5))
    assert [line[:6] for line in sentences(summarise(both, num_test_images=9))] == ["K = 5:"]
    alone = rows(5, real=(0.2, 0.2))
    assert sentences(summarise(alone, num_test_images=9)) == [
        "K = 5: no verdict; it takes real+defectgen, another arm and two seeds."
    ]


def test_one_seed_has_no_interval_and_an_unanswered_figure_is_none() -> None:
    summary = summarise([row("real", 0, 0.2, recall=None)], num_test_images=1)
    arm = summary["k"]["10"]["arms"]["real"]
    assert arm["map5095"] == {"mean": 20, "low": None, "high": None} and arm["recall_at_fp"] is None
    assert summary["k"]["10"]["verdict"] is None and summary["k"]["10"]["difference"] == {}


def test_worth_in_real_defects_is_read_off_the_real_curve() -> None:
    real = {5: 0.10, 10: 0.20, 20: 0.30}
    assert worth(real, 5, 0.25) == {"defects": pytest.approx(10 * 2**0.5 - 5), "at_least": False}
    assert worth(real, 5, 0.15) == {"defects": pytest.approx(5 * 2**0.5 - 5), "at_least": False}
    assert worth(real, 10, 0.5) == {"defects": 10, "at_least": True}
    assert worth(real, 10, 0.2) == {"defects": 0, "at_least": False}
    # The end of the curve has nothing to compare with.
    assert worth(real, 20, 0.4) is None and worth({10: 0.2}, 10, 0.4) is None


def test_worth_is_in_the_sentence_with_its_interval() -> None:
    curve = rows(5, real=(0.1,) * 3) + rows(10, real=(0.15,) * 3) + rows(20, real=(0.25,) * 3)
    sure = sentences(summarise(curve + rows(5, own=(0.2,) * 3), num_test_images=9))[0]
    # 5 + 9.1 defects: outwards to whole ones.
    assert sure.endswith("Worth about 9 more real defects per class (95 % interval: 9 to 10).")
    # A gain of 10 points, give or take 12.7 * 0.5: more than the curve's 3.65 to 4 defects, and than its end.
    spread = sentences(summarise(curve + rows(5, own=(0.195, 0.205)), num_test_images=9))[0]
    assert spread.endswith("Worth about 9 more real defects per class (95 % interval: 3 to over 15).")


def test_spread_of_the_real_curve_is_in_the_interval_of_the_worth() -> None:
    own = rows(10, real=(0.1, 0.1, 0.1), own=(0.13, 0.131, 0.129))
    steep = summarise(own + rows(30, real=(0.15, 0.15, 0.15)), num_test_images=9)["k"]["10"]["worth"]
    unsure = summarise(own + rows(30, real=(0.22, 0.08, 0.15)), num_test_images=9)["k"]["10"]["worth"]
    assert steep["mean"] == unsure["mean"] and not steep["high"]["at_least"]
    # A curve that is not shown to rise names no number of defects that would do as much.
    assert unsure["high"] == {"defects": 20, "at_least": True} and unsure["low"]["defects"] < steep["low"]["defects"]


def test_same_gain_in_two_seeds_is_worth_nothing_that_could_be_told() -> None:
    curve = rows(10, real=(0.2, 0.3))
    (said, *_) = sentences(summarise(rows(5, real=(0.1, 0.2), own=(0.15, 0.25)) + curve, num_test_images=9))
    assert "the same in both seeds, so without interval" in said and "more real defects" not in said


def test_verdict_names_few_test_groups_and_draws_that_are_alike() -> None:
    both = [one | {"images": 27, "pool": 31} for one in rows(real=(0.2, 0.21), own=(0.3, 0.31))]
    (said,) = sentences(summarise(both, num_test_images=148, num_test_groups=1))
    assert ": on 148 real held-out images, with defects of 1 group alone, mAP50-95 changes by" in said
    assert said.endswith(
        "A draw takes 87% of the images there are to draw from: draws so alike differ less than new "
        "ones would, so the intervals are too narrow."
    )
    few = [one | {"images": 12, "pool": 327} for one in both]
    (said,) = sentences(summarise(few, num_test_images=148, num_test_groups=6))
    assert ": on 148 real held-out images mAP50-95 changes by" in said and "A draw takes" not in said


def test_sets_are_described_beside_the_verdict_with_the_copies_to_read_them_by() -> None:
    def boxes(real: float, synthetic: float) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"longest_side_px": [0, real, 99]}, {"longest_side_px": [0, synthetic, 99]}

    summary = summarise(rows(real=(0.2, 0.2), own=(0.3, 0.3)), num_test_images=9)
    of_class = [dict(zip(("real", "synthetic"), boxes(*pair), strict=True)) for pair in ((20, 30), (40, 20))]
    generated = [
        {"kid": kid, "nearest_real": 0.5, "likeness": 0.7, "copies": 0.01, "refused": refused}
        | {"boxes": {"scratch": of_class[0], "dent": of_class[1], "stain": {"real": None, "synthetic": None}}}
        for kid, refused in ((0.01, {"too faint": 0.1, "no fitting place": 0.2}), (0.03, {"no fitting place": 0.2}))
    ]
    copied = {"kid": None, "nearest_real": 0.1, "likeness": 0.99, "copies": 0.9, "refused": {}, "boxes": {}}
    summary["diagnostics"] = [
        {"k": 10, "seed": 0, "sets": {"real+defectgen": generated[0], "real+copy-paste": copied}},
        {"k": 10, "seed": 1, "sets": {"real+defectgen": generated[1]}, "label_agreement": {"map50": 0.715}},
    ]
    assert diagnostics_lines(summary) == [
        "K = 10, the sets: defectgen: to 0.70 like pasted copies (1% of them to 0.9 or more), 0.50 of the distance "
        "between real defects to the nearest one, KID 0.020, boxes 1.00 times as long as real ones, 25% of the tries "
        "refused (20% no fitting place, 5% too faint); copy-paste: to 0.99 like pasted copies (90% of them to 0.9 or "
        "more), 0.10 of the distance between real defects to the nearest one; a detector of all real images finds the "
        "generated defects with mAP50 71.5."
    ]
    assert diagnostics_lines(summary | {"diagnostics": []}) == []


def test_plots_show_every_arm_and_what_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    data = rows(5, real=(0.1, 0.2), own=(0.2, 0.3)) + rows(10, real=(0.2, 0.25), own=(0.3, 0.4))
    curves = [
        {
            "k": one["k"],
            "seed": one["seed"],
            "arm": one["arm"],
            "precision_over_recall": [[0, 1], [0.5, one["map50"]], [1, 0]],
            "recall_over_false_alarms": [],
        }
        for one in data
    ]
    written = write_plots(data, curves, tmp_path)
    assert [path.name for path in written] == ["map_over_k.png", "gain_per_class.png", "precision_recall.png"]
    for path in written:
        # The arms' own colours, black and green, are on white.
        colours = {tuple(pixel) for pixel in read_rgb(path).reshape(-1, 3)[::3].tolist()}
        assert {(255, 255, 255), (0, 0, 0)} <= colours
        assert (0, 158, 115) in colours or path.name == "gain_per_class.png"
    alarms = tmp_path / "alarms"
    alarms.mkdir()
    levels = [curve | {"recall_over_false_alarms": [[0.05, 0.2], [1.0, 0.6]]} for curve in curves]
    assert write_plots(data, levels, alarms)[-1].name == "false_alarms.png"
    seen = {tuple(pixel) for pixel in read_rgb(alarms / "false_alarms.png").reshape(-1, 3).tolist()}
    assert {(0, 0, 0), (0, 158, 115)} <= seen
    # Rows of an earlier call, at a larger K, come without curves.
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    few = [curve for curve in curves if curve["k"] == 5]
    assert "precision_recall.png" in [path.name for path in write_plots(data, few, earlier)]
    alone = tmp_path / "alone"
    alone.mkdir()
    assert [path.name for path in write_plots(data[:2], [], alone)] == ["map_over_k.png"]
