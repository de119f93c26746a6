"""A bench as pictures: gain over the budget, per class, precision over recall, recall over false alarms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defectgen.yolo.verdict import CEILING, OWN_ARM, REAL_ARM, paired_interval

# Over the width.
_HEIGHT = 0.64
# Okabe and Ito's colours, told apart by the colour-blind.
COLOURS = {
    "real": "#000000",
    "real+aug": "#56B4E9",
    "real+copy-paste": "#E69F00",
    "real+procedural": "#CC79A7",
    "real+defectgen": "#009E73",
    "full-real": "#999999",
}


def write_plots(rows: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Writes map_over_k.png, gain_per_class.png, precision_recall.png and false_alarms.png; those with something on."""
    written = []
    for name, (draw, height) in drawings(rows, curves).items():
        # Without pyplot, which keeps global state and may ask for a screen.
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with rc_context({"text.parse_math": False, "text.usetex": False}):  # A class may be called anything.
            figure = Figure(figsize=(7, 7 * height), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.add_subplot()
            if draw(axes):
                figure.savefig(out / f"{name}.png", dpi=120)
                written.append(out / f"{name}.png")
    return written


def drawings(
    rows: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]]
) -> dict[str, tuple[Callable[[Any], bool], float]]:
    """By name, what draws into matplotlib axes, and says whether there was something to draw; and the picture's height
    over its width.
    """
    k = _largest_k(rows)
    compared = _arms([row for row in rows if row["k"] == k and row["arm"] not in (OWN_ARM, CEILING)])
    num_classes = sum(value is not None for value in next(row for row in rows if row["k"] == k)["ap5095"].values())
    # A run that was deleted has none.
    k_of_curves = _largest_k(curves) if curves else k
    of_k = [curve for curve in curves if curve["k"] == k_of_curves]
    return {
        "map_over_k": (lambda axes: _map_over_k(axes, rows), _HEIGHT + 0.1),
        "gain_per_class": (
            lambda axes: _gain_per_class(axes, [row for row in rows if row["k"] == k]),
            0.3 + 0.03 * num_classes * len(compared),
        ),
        "precision_recall": (
            lambda axes: _curves(
                axes,
                of_k,
                "precision_over_recall",
                f"recall (K = {k_of_curves}, IoU 0.5, mean of classes and seeds)",
                "precision",
            ),
            _HEIGHT,
        ),
        "false_alarms": (
            lambda axes: _curves(
                axes,
                of_k,
                "recall_over_false_alarms",
                f"false alarms per clean image (K = {k_of_curves})",
                "recall",
                logarithmic=True,
            ),
            _HEIGHT,
        ),
    }


def _largest_k(rows: Sequence[dict[str, Any]]) -> int:
    """With synthetic data, where any has: budgets added to the curve of `real` have that arm alone."""
    return max([row["k"] for row in rows if row["arm"] == OWN_ARM] or [row["k"] for row in rows])


def log_axis(axes: Any) -> None:
    """Makes the axis of x logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    axes.set(xscale="log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")


def _arms(rows: Sequence[dict[str, Any]]) -> list[str]:
    present = {row["arm"] for row in rows}
    return [arm for arm in COLOURS if arm in present]


def _map_over_k(axes: Any, rows: Sequence[dict[str, Any]]) -> bool:
    ks = sorted({row["k"] for row in rows})
    for arm in _arms(rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        if arm == CEILING:
            # Of all real images, however many of them K lets the others have.
            mean = np.mean([100 * row["map5095"] for row in of_arm])
            axes.axhline(mean, label=arm, color=COLOURS[arm], linestyle=":")
            continue
        places, means, lows, highs = [], [], [], []
        for k in sorted({row["k"] for row in of_arm}):
            values = [100 * row["map5095"] for row in of_arm if row["k"] == k]
            mean, low, high = paired_interval(values) if len(values) > 1 else (float(np.mean(values)),) * 3
            means.append(mean)
            lows.append(mean - low)
            highs.append(high - mean)
            # Beside one another, or their bars would hide each other.
            there = [other for other in _arms([row for row in rows if row["k"] == k]) if other != CEILING]
            places.append(k + 0.012 * (1.2 * ks[-1] - 0.7 * ks[0]) * (there.index(arm) - (len(there) - 1) / 2))
        axes.errorbar(places, means, yerr=(lows, highs), label=arm, color=COLOURS[arm], marker="o", capsize=3)
    axes.set(xlabel="real defects per class (K)", ylabel="mAP50-95, %", xticks=ks)
    axes.set(xlim=(0.7 * ks[0], 1.2 * ks[-1]), ylim=(0, 1.05 * axes.get_ylim()[1]))
    _legend_below(axes)
    return True


def _gain_per_class(axes: Any, rows: Sequence[dict[str, Any]]) -> bool:
    own = {row["seed"]: row["ap5095"] for row in rows if row["arm"] == OWN_ARM}
    paired = [row for row in rows if row["seed"] in own]
    arms = [arm for arm in _arms(paired) if arm not in (OWN_ARM, "full-real")]
    if not own or not arms:
        return False
    names = [name for name, value in next(iter(own.values())).items() if value is not None]
    width = 0.8 / len(arms)
    for position, arm in enumerate(arms):
        others = {row["seed"]: row["ap5095"] for row in paired if row["arm"] == arm}
        gains = [100 * np.mean([own[seed][name] - others[seed][name] for seed in others]) for name in names]
        places = np.arange(len(names)) + (position - (len(arms) - 1) / 2) * width
        axes.barh(places, gains, width, label=f"over {arm}", color=COLOURS[arm])
    axes.axvline(0, color=COLOURS[REAL_ARM], linewidth=0.8)
    axes.set(xlabel=f"gain of {OWN_ARM}, AP50-95, points", yticks=range(len(names)), yticklabels=names)
    axes.invert_yaxis()
    _legend_below(axes)
    return True


def _legend_below(axes: Any) -> None:
    """Half an inch below the axes, however high these are: within them it would hide what is drawn."""
    from matplotlib.transforms import ScaledTranslation

    below = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=2)


def _curves(
    axes: Any, curves: Sequence[dict[str, Any]], name: str, x_label: str, y_label: str, *, logarithmic: bool = False
) -> bool:
    shown = [curve for curve in curves if curve[name]]
    for arm in _arms(shown):
        points = np.array([curve[name] for curve in shown if curve["arm"] == arm])
        axes.plot(points[0, :, 0], points[:, :, 1].mean(axis=0), label=arm, color=COLOURS[arm], marker=".")
    if not shown:
        return False
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1.02))
    if logarithmic:
        log_axis(axes)
    axes.legend()
    return True
