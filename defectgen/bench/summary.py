"""Means, intervals and verdicts of a bench's rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from defectgen.diagnostics import COPY
from defectgen.yolo.results import alarms_caption
from defectgen.yolo.verdict import CEILING, FEWEST_SEEDS, OWN_ARM, REAL_ARM, Difference, judge, paired_interval

if TYPE_CHECKING:
    from rich.table import Table

FIGURES = ("map50", "map5095", "recall_at_fp")
_OVER = "draws of the real images"
# Draws that take a larger share of the images have more than half of them in common, and are no new product.
MOST_DRAWN = 0.5
_REASONS_SHOWN = 3


def summarise(
    rows: Sequence[dict[str, Any]],
    *,
    num_test_images: int,
    num_test_groups: int | None = None,
    num_test_clean: int | None = None,
    alone: bool = False,
) -> dict[str, Any]:
    """Per K: each arm's mean over the seeds with its 95 % interval, in percent, and the verdict.

    arms: {arm: {figure: {"mean", "low", "high"}, "num_seeds"}}; low and high are None with one seed, a figure is None
    where the test set cannot tell. difference: {arm: {"mean", "low", "high"}}, `real+defectgen` minus the arm in points
    of mAP50-95, paired by seed. worth: of the gain over `real`, {"mean", "low", "high"}: see `worth`; of the same draws
    of the real images alone. reviewed: of how many draws a person rejected synthetic images. drawn: the share of the
    images to draw from that a draw takes, on average; None where the rows do not say.
    `alone`: see `Verdict`.
    """
    by_k = {}
    ks = sorted({row["k"] for row in rows})
    real = {k: {row["seed"]: row["map5095"] for row in rows if (row["k"], row["arm"]) == (k, REAL_ARM)} for k in ks}
    for k in ks:
        of_k = [row for row in rows if row["k"] == k]
        arms = list(dict.fromkeys(row["arm"] for row in of_k))
        scores = {arm: {row["seed"]: row["map5095"] for row in of_k if row["arm"] == arm} for arm in arms}
        verdict = judge(scores, alone=alone)
        own = scores.get(OWN_ARM)
        difference = {arm: _difference(own, scores[arm]) for arm in arms if arm != OWN_ARM} if own else {}
        said = verdict and verdict.sentence(num_test_images, _OVER, num_test_groups=num_test_groups)
        shares = [row["images"] / row["pool"] for row in of_k if "pool" in row]
        by_k[str(k)] = {
            "arms": {arm: _arm([row for row in of_k if row["arm"] == arm]) for arm in arms},
            "difference": difference,
            "verdict": verdict.to_json(said) if verdict and said else None,
            "worth": _worth(real, own or {}, k),
            "reviewed": sum(row["arm"] == OWN_ARM and row.get("rejected", 0) > 0 for row in of_k),
            "drawn": float(np.mean(shares)) if shares else None,
        }
    first = rows[0]
    return {
        "recipe": first["recipe"],
        "profile": first["profile"],
        "test_images": num_test_images,
        "test_groups": num_test_groups,
        "test_clean_images": num_test_clean,
        "k": by_k,
    }


def worth(real: dict[int, float], k: int, score: float) -> dict[str, Any] | None:
    """How many more real defects per class would raise the arm `real` from K to `score`, read off its curve over K.

    `real` maps K to a mean mAP50-95; between two K it rises with the logarithm, as gains diminish. defects: the number,
    0 where `score` is no gain; at_least: whether the curve ends below, so that it is more. None where the curve does
    not go on from K.
    """
    above = [other for other in sorted(real) if other >= k]
    if k not in real or len(above) < 2:
        return None
    if score <= real[k]:
        return {"defects": 0.0, "at_least": False}
    for low, high in pairwise(above):
        if real[high] >= score:
            share = (score - real[low]) / (real[high] - real[low])
            return {"defects": low * (high / low) ** share - k, "at_least": False}
    return {"defects": float(above[-1] - k), "at_least": True}


def _worth(real: dict[int, dict[int, float]], own: dict[int, float], k: int) -> dict[str, Any] | None:
    """What `own`, the scores of `real+defectgen` by seed, is worth; `real`: those of `real` by K and seed.

    low, high: the largest number of further real defects that it is shown to be better than, and the least that is
    shown to be better than it, by the 95 % interval of the differences to the curves, draw by draw (the test turned
    round, as in Fieller, J. R. Stat. Soc. B 1954): the spread of the curve is in it as that of the gain. None with one
    seed, or where two have the same gain.
    """
    seeds = sorted(set(own) & set(real[k]))
    # Means over all of these draws, where there are all of them: others would shift the curve.
    curve = {other: of_k for other, of_k in sorted(real.items()) if other >= k and seeds and of_k.keys() >= set(seeds)}
    means = {other: float(np.mean([of_k[seed] for seed in seeds])) for other, of_k in curve.items()}
    found = worth(means, k, float(np.mean([own[seed] for seed in seeds]))) if seeds else None
    if found is None:
        return None
    gains = [own[seed] - real[k][seed] for seed in seeds]
    if len(seeds) < FEWEST_SEEDS or not Difference(REAL_ARM, *paired_interval(gains), len(seeds)).has_spread:
        return {"mean": found, "low": None, "high": None}
    numbers = np.arange(max(curve) - k + 1)
    logs = np.log(list(curve))
    at = [np.interp(np.log(k + numbers), logs, [of_k[seed] for of_k in curve.values()]) for seed in seeds]
    ends = [paired_interval([own[seed] - of[n] for seed, of in zip(seeds, at, strict=True)])[1:] for n in numbers]
    # Outwards to whole numbers; equal but for rounding is equal.
    below = next((int(n) - 1 for n in numbers if ends[n][0] <= 1e-9), None)
    above = next((int(n) + 1 for n in numbers[::-1] if ends[n][1] >= -1e-9), 0)
    last = int(numbers[-1])
    return {
        "mean": found,
        "low": {"defects": float(last if below is None else max(below, 0)), "at_least": below is None},
        "high": {"defects": float(min(above, last)), "at_least": above > last},
    }


def _arm(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for figure in FIGURES:
        values = [100 * row[figure] for row in rows if row[figure] is not None]
        figures[figure] = _interval(values) if values else None
    return {**figures, "num_seeds": len(rows)}


def _difference(own: dict[int, float], other: dict[int, float]) -> dict[str, Any] | None:
    values = [100 * (own[seed] - score) for seed, score in other.items() if seed in own]
    return _interval(values) if values else None


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    if len(values) < 2:
        return {"mean": values[0], "low": None, "high": None}
    mean, low, high = paired_interval(values)
    return {"mean": mean, "low": low, "high": high}


def sentences(summary: dict[str, Any]) -> list[str]:
    """What the bench says, one line per K; none for points of the curve of real images alone."""
    lines = []
    some_own = any(OWN_ARM in of_k["arms"] for of_k in summary["k"].values())
    for k, of_k in summary["k"].items():
        if some_own and set(of_k["arms"]) <= {REAL_ARM, CEILING}:
            continue
        if of_k["verdict"] is None:
            lines.append(f"K = {k}: no verdict; it takes {OWN_ARM}, another arm and two seeds.")
            continue
        line = f"K = {k}: {of_k['verdict']['sentence']}"
        over_real = of_k["difference"].get(REAL_ARM)
        if of_k["worth"] and of_k["worth"]["low"] and over_real["low"] > 0:
            mean, low, high = (of_k["worth"][end] for end in ("mean", "low", "high"))
            worth_it = "Worth" if of_k["verdict"]["finding"] == "helps" else "The gain over real images alone is worth"
            line += f" {worth_it} {'' if mean['at_least'] else 'about '}{_defects(mean)} more real defects per class"
            line += f" (95 % interval: {_defects(low)} to {_defects(high)})."
        elif of_k["worth"] is None and over_real and (over_real["low"] or 0) > 0 and _curve_lacks_seeds(summary, k):
            line += f" Its worth in real defects is not told: no larger K has `{REAL_ARM}` with all of these draws."
        if of_k.get("reviewed"):
            draws = of_k["arms"][OWN_ARM]["num_seeds"]
            line += f" Of {of_k['reviewed']} of {draws} draws a person rejected synthetic images."
        if (of_k.get("drawn") or 0) > MOST_DRAWN:
            line += (
                f" A draw takes {of_k['drawn']:.0%} of the images there are to draw from: draws so alike differ less "
                "than new ones would, so the intervals are too narrow."
            )
        lines.append(line)
    return lines


def _curve_lacks_seeds(summary: dict[str, Any], k: str) -> bool:
    """Whether there are points of the curve of real images above `k`, but none with all of its draws."""
    return any(int(other) > int(k) and REAL_ARM in of["arms"] for other, of in summary["k"].items())


def diagnostics_lines(summary: dict[str, Any]) -> list[str]:
    """Means over the runs of each set's figures, one line per K: beside the verdict, never instead of it."""
    lines = []
    for k in summary["k"]:
        of_k = [one for one in summary["diagnostics"] if str(one["k"]) == k]
        parts = []
        for arm in dict.fromkeys(arm for one in of_k for arm in one["sets"]):
            sets = [one["sets"][arm] for one in of_k if arm in one["sets"]]
            kid, nearest = (_mean([one[name] for one in sets]) for name in ("kid", "nearest_real"))
            # Diagnostics of an earlier version have no likeness, and other copies.
            known = [one for one in sets if "likeness" in one]
            alike, copies = (_mean([one[name] for one in known]) for name in ("likeness", "copies"))
            figures = []
            if alike is not None and copies is not None:
                figures.append(f"to {alike:.2f} like pasted copies ({copies:.0%} of them to {COPY} or more)")
            if nearest is not None:
                figures.append(f"{nearest:.2f} of the distance between real defects to the nearest one")
            if kid is not None:
                figures.append(f"KID {kid:.3f}")
            lengths = [_relative_length(one["boxes"]) for one in sets]
            if (relative := _mean(lengths)) is not None:
                figures.append(f"boxes {relative:.2f} times as long as real ones")
            if arm == OWN_ARM:
                figures.append(_refused([one["refused"] for one in sets]))
            parts.append(f"{arm.removeprefix('real+')}: {', '.join(figures)}")
        agreed = _mean([one["label_agreement"]["map50"] for one in of_k if "label_agreement" in one])
        if agreed is not None:
            parts.append(f"a detector of all real images finds the generated defects with mAP50 {100 * agreed:.1f}")
        if parts:
            lines.append(f"K = {k}, the sets: {'; '.join(parts)}.")
    return lines


def _relative_length(boxes: dict[str, Any]) -> float | None:
    """The median longest side of synthetic boxes over that of real ones, mean of the classes that have both."""
    both = [of for of in boxes.values() if of["real"] and of["synthetic"]]
    return _mean([of["synthetic"]["longest_side_px"][1] / of["real"]["longest_side_px"][1] for of in both])


def _refused(of_sets: Sequence[dict[str, float]]) -> str:
    """The share of tries that were refused, and the most frequent reasons."""
    reasons = dict.fromkeys(reason for one in of_sets for reason in one)
    shares = {reason: sum(one.get(reason, 0.0) for one in of_sets) / len(of_sets) for reason in reasons}
    often = sorted(shares, key=lambda reason: -shares[reason])[:_REASONS_SHOWN]
    listed = ", ".join(f"{shares[reason]:.0%} {reason}" for reason in often)
    return f"{sum(shares.values()):.0%} of the tries refused" + (f" ({listed})" if listed else "")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _defects(value: dict[str, Any]) -> str:
    return f"{'over ' if value['at_least'] else ''}{value['defects']:.0f}"


def bench_table(summary: dict[str, Any]) -> Table:
    """One row per K and arm: means over the seeds in percent, half their intervals, and the gain over the arm."""
    from rich.table import Table

    caption = "+-: half of the 95 % interval over the seeds. gain: real+defectgen over the arm, mAP50-95, paired."
    if summary["test_clean_images"]:
        caption += f" {alarms_caption(summary['test_clean_images'])}."
    table = Table(
        title=f"{summary['recipe']} ({summary['profile']}): YOLO on {summary['test_images']} real held-out images",
        caption=caption,
    )
    table.add_column("K", justify="right")
    table.add_column("arm")
    for heading in ("seeds", "mAP50", "mAP50-95", "recall@FP", "gain"):
        table.add_column(heading, justify="right")
    for k, of_k in summary["k"].items():
        for arm, figures in of_k["arms"].items():
            shown = [_shown(figures[figure]) for figure in FIGURES]
            gain = _shown(of_k["difference"].get(arm), signed=True)
            table.add_row(k, arm, str(figures["num_seeds"]), *shown, gain, end_section=arm == list(of_k["arms"])[-1])
    return table


def _shown(value: dict[str, Any] | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    mean = f"{value['mean']:+.1f}" if signed else f"{value['mean']:.1f}"
    return mean if value["low"] is None else f"{mean} ± {(value['high'] - value['low']) / 2:.1f}"
