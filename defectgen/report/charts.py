"""Charts as SVG that takes its ink from the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from defectgen.bench.plots import COLOURS, log_axis
from defectgen.records import XYXY
from defectgen.yolo.verdict import CEILING, OWN_ARM

# Okabe and Ito's colours, told apart by the colour-blind; None is the page's ink.
REAL_COLOUR, SYNTHETIC_COLOUR = "#E69F00", "#009E73"
_INK = "#000001"
# By the thousand, dots would outweigh the pictures.
_MOST_DOTS = 1500
_PX_PER_INCH = 120
# Values that differ by more than this factor are drawn on a logarithmic axis.
_WIDE = 4


def svg(draw: Callable[[Any], bool], title: str, *, size: tuple[float, float] = (4.4, 2.8)) -> str | None:
    """The chart that `draw` draws into matplotlib axes, as an <svg> element; None where it says it drew nothing.

    Args:
        title: read out by screen readers.
        size: inches, of _PX_PER_INCH on the page; it shrinks with the page.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text: small, searchable, in the page's font.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, "font.family": "sans-serif"}
    style |= {"text.parse_math": False, "text.usetex": False}  # A class may be called anything.
    style |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        if not draw(axes):
            return None
        page = io.StringIO()
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
    text = page.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace("#000000", "currentColor")
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace(
        "<svg", f'<svg role="img" aria-label="{label}" style="max-width:{_PX_PER_INCH * size[0]:.0f}px"', 1
    )


def arms_chart(scores: Mapping[str, Sequence[float]], figure: str, colours: Mapping[str, str]) -> str | None:
    """A dot per training, a bar at the mean; `scores`: per arm, in percent."""

    def draw(axes: Any) -> bool:
        names = list(scores)[::-1]
        for place, name in enumerate(names):
            values = np.asarray(scores[name], float)
            axes.barh(place, values.mean(), height=0.6, color=colours[name], alpha=0.45)
            axes.plot(
                values, np.full(len(values), place), "o", color=colours[name], markeredgecolor=_INK, clip_on=False
            )
        axes.set(yticks=range(len(names)), yticklabels=names, xlabel=f"{figure}, %")
        axes.set(xlim=(0, max(1.0, 1.05 * max(max(values) for values in scores.values()))))
        return bool(names)

    return svg(draw, f"{figure} of each arm", size=(4.4, 1.2 + 0.4 * len(scores)))


def _class_labels(per_class: Mapping[str, Sequence[tuple[str, float | None]]]) -> list[str]:
    rows = zip(*per_class.values(), strict=True)
    return [_short(row[0][0]) + (" (not tested)" if all(value is None for _, value in row) else "") for row in rows]


def classes_chart(
    per_class: Mapping[str, Sequence[tuple[str, float | None]]], figure: str, colours: Mapping[str, str]
) -> str | None:
    """Bars per class and arm; `per_class`: per arm, (class name, share from 0 to 1 or None)."""
    names = [name for name, _ in next(iter(per_class.values()))]

    def draw(axes: Any) -> bool:
        height = 0.8 / len(per_class)
        for position, (arm, values) in enumerate(per_class.items()):
            places = np.arange(len(names)) + (position - (len(per_class) - 1) / 2) * height
            lengths = [np.nan if value is None else 100 * value for _, value in values]
            axes.barh(places, lengths, height, label=arm, color=colours[arm])
        axes.set(yticks=range(len(names)), yticklabels=_class_labels(per_class), xlabel=f"{figure}, %")
        axes.set(xlim=(0, max(1.0, axes.get_xlim()[1])))
        axes.invert_yaxis()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
        return len(names) > 1

    return svg(draw, f"{figure} per class and arm", size=(4.4, 1.6 + 0.3 * len(names) * max(len(per_class) / 2, 1)))


def balance_chart(real: Mapping[str, int], made: Mapping[str, int]) -> str | None:
    """Share of each class among the real and among the synthetic defects, in percent."""

    def draw(axes: Any) -> bool:
        names = list(real)
        for offset, counts, label, colour in (
            (-0.2, real, "real", REAL_COLOUR),
            (0.2, made, "synthetic", SYNTHETIC_COLOUR),
        ):
            total = max(sum(counts.values()), 1)
            shares = [100 * counts.get(name, 0) / total for name in names]
            axes.barh(np.arange(len(names)) + offset, shares, 0.4, color=colour, label=f"{label} ({total})")
        axes.set(
            yticks=range(len(names)), yticklabels=[_short(name) for name in names], xlabel="share of the defects, %"
        )
        axes.invert_yaxis()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
        return len(names) > 1

    return svg(draw, "Class balance, real against synthetic", size=(4.4, 1.5 + 0.4 * len(real)))


def spread_chart(
    real: Mapping[str, Sequence[float]], made: Mapping[str, Sequence[float]], label: str, *, title: str
) -> str | None:
    """Per class the spread of a figure, real beside synthetic: quartiles as a box, the 5 to 95 % range as whiskers."""

    def draw(axes: Any) -> bool:
        drawn = False
        for offset, groups, colour in ((-0.2, real, REAL_COLOUR), (0.2, made, SYNTHETIC_COLOUR)):
            for place, name in enumerate(real):
                values = groups.get(name) or []
                if values:
                    drawn = True
                    axes.boxplot(
                        [list(values)],
                        positions=[place + offset],
                        widths=0.34,
                        orientation="horizontal",
                        whis=(5, 95),
                        showfliers=False,
                        patch_artist=True,
                        boxprops={"facecolor": colour, "edgecolor": _INK, "linewidth": 0.6},
                        whiskerprops={"color": _INK, "linewidth": 0.8},
                        capprops={"color": _INK, "linewidth": 0.8},
                        medianprops={"color": _INK},
                    )
        everything = [value for groups in (real, made) for values in groups.values() for value in values]
        if drawn and max(everything) > _WIDE * min(everything):
            log_axis(axes)
        axes.set(xlabel=label, yticks=range(len(real)), yticklabels=[_short(name) for name in real])
        axes.set(ylim=(len(real) - 0.4, -0.6))
        return drawn

    return svg(draw, title, size=(4.4, 1.0 + 0.42 * len(real)))


def position_chart(boxes: Sequence[tuple[XYXY, tuple[int, int]]], title: str, colour: str) -> str | None:
    """Where the boxes' centres lie, as dots within the image: x to the right, y down, as shares of its size.

    Args:
        boxes: each with the width and height of its image.
    """
    total = len(boxes)
    if total > _MOST_DOTS:
        boxes = [boxes[number] for number in np.linspace(0, total - 1, _MOST_DOTS, dtype=int)]

    def draw(axes: Any) -> bool:
        x = [(box[0] + box[2]) / 2 / size[0] for box, size in boxes]
        y = [(box[1] + box[3]) / 2 / size[1] for box, size in boxes]
        axes.scatter(x, y, s=12, color=colour, alpha=min(1.0, max(0.15, 60 / max(total, 1))), linewidths=0)
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), title=f"{title} ({total})")
        width, height = np.median([size for _, size in boxes], axis=0) if boxes else (1, 1)
        axes.set_box_aspect(float(np.clip(height / width, 0.3, 2)))
        axes.spines[["top", "right"]].set_visible(True)
        return bool(boxes)

    return svg(draw, f"Positions of {title} defects", size=(2.2, 2.1))


def curves_chart(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    x_label: str,
    y_label: str,
    colours: Mapping[str, str],
    *,
    logarithmic: bool = False,
) -> str | None:
    """Per arm the mean over its trainings of y over x, both shares from 0 to 1 (x of alarms: any)."""

    def draw(axes: Any) -> bool:
        drawn = False
        for arm, runs in curves.items():
            points = np.array([run for run in runs if run], float)
            if points.size:
                drawn = True
                width = 2.4 if arm == OWN_ARM else 1.2
                style = ":" if arm == CEILING else "-"
                axes.plot(
                    points[0, :, 0], points[:, :, 1].mean(axis=0), style, label=arm, color=colours[arm], linewidth=width
                )
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1.02))
        if logarithmic:
            log_axis(axes)
        if drawn:
            axes.legend()
        return drawn

    return svg(draw, f"{y_label} over {x_label}")


def colours_of(arms: Sequence[str]) -> dict[str, str]:
    """A colour per arm; the arm of real images alone is drawn in the page's ink."""
    return {arm: _INK if COLOURS[arm] == "#000000" else COLOURS[arm] for arm in arms}


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def marked(found: Mapping[str, str | None]) -> dict[str, Markup]:
    """Charts that show something, as they are."""
    return {name: Markup(text) for name, text in found.items() if text is not None}
