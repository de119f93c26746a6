"""report.html from what a run or bench folder holds: the same folder gives the same page, whoever asks for it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from defectgen import __version__
from defectgen.bench.cells import curves_on_disk
from defectgen.bench.plots import drawings
from defectgen.bench.summary import diagnostics_lines, sentences
from defectgen.dataset.card import portable_recipe
from defectgen.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest, summarise
from defectgen.diagnostics import COPY, Nearest, examine
from defectgen.errors import DefectgenError, RunError
from defectgen.images import read_rgb, sha256_file, write_bytes_atomic
from defectgen.recipe import Recipe
from defectgen.records import Sources
from defectgen.report import charts
from defectgen.report.explain import explain, refused
from defectgen.report.gallery import gallery
from defectgen.report.misses import alarm_pictures, judged, miss_pictures
from defectgen.report.pictures import window_uri
from defectgen.run import read_sources
from defectgen.studio import Progress, Studio, load_studio
from defectgen.windows import Window
from defectgen.yolo.results import FIGURE_NAMES, SCORES, verdict_line
from defectgen.yolo.verdict import CEILING, OWN_ARM

REPORT_NAME = "report.html"
_TEMPLATE = Path(__file__).parent / "template"
_STAMP_WITHIN = 1000
_SHOWN_BESIDE = 8
# More of the defects tried than this refused is worth a word, and so is a larger share of copies.
_MANY_REFUSED, _MANY_COPIES = 0.8, 0.2


@dataclass(frozen=True)
class Answer:
    """What the page says first.

    Attributes:
        finding: a verdict's, or `not proven` (one training per arm), or `not measured`.
        headline: whether to use the set, in a few words.
        sentences: why, and what to do next.
    """

    finding: str
    headline: str
    sentences: tuple[str, ...]


def write_report(out: Path, *, progress: Progress) -> Path:
    """The page written: `out`/report.html.

    Args:
        out: a run folder with a finished data set or trained detectors, or a folder of `bench`.

    Raises:
        RunError: it holds neither, or a record in it is damaged.
    """
    benches = sorted(out.glob("*/bench.json"))
    path, stamp = out / REPORT_NAME, _stamp(out)
    if path.exists() and stamp in path.read_text(encoding="utf-8", errors="replace")[:_STAMP_WITHIN]:
        return path
    if (out / "recipe.yaml").exists():
        context = _of_run(out, progress)
    elif benches:
        context = _of_bench(benches, progress)
    else:
        raise RunError(f"{out}: holds no run of defectgen; name the folder that synth, train-yolo or bench wrote")
    write_bytes_atomic(path, _render(context | {"stamp": stamp}).encode())
    progress("report", 1, 1, "")
    return path


def _stamp(out: Path) -> str:
    """A hash of what the page is made from: a page that has it already need not be made again."""
    digest = hashlib.sha256(__version__.encode())
    sources = ("recipe.yaml", "generator/fit.json", f"dataset/{MANIFEST_NAME}", "yolo/results.json", "*/bench.json")
    for pattern in sources:
        for path in sorted(out.glob(pattern)):
            digest.update(path.read_bytes())
    for part in sorted(_TEMPLATE.iterdir()):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def _render(context: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["code"] = _code
    style, script = (Markup((_TEMPLATE / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    # `<` could end the script element.
    data = Markup(json.dumps(context["gallery"], separators=(",", ":")).replace("<", "\\u003c"))
    return environment.get_template("report.html").render(**context, style=style, script=script, data=data)


def _code(text: str) -> Markup:
    """`text` with what stands between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup(f"<code>{part}</code>") if number % 2 else part for number, part in enumerate(parts))


def _read_json(path: Path) -> Any:
    """Raises RunError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); run the command that made it again") from None


def _read_recipe(out: Path) -> Recipe:
    path = out / "recipe.yaml"
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path}: cannot be read, or is of another version ({reason}); run `synth` again") from None


def _of_run(out: Path, progress: Progress) -> dict[str, Any]:
    recipe = _read_recipe(out)
    results_path = out / "yolo" / "results.json"
    results = _read_json(results_path) if results_path.exists() else None
    made = (out / "dataset" / MANIFEST_NAME).exists()
    if not made and results is None:
        raise RunError(f"{out}: holds no data set and no trained detector yet; run synth or train-yolo first")
    context = _empty() | {"title": recipe.name} | _of_recipe(recipe, out, results)
    figures: dict[str, Any] | None = None
    if made:
        figures = _add_set(context, recipe, out, progress)
    if results is not None:
        parts = _detector_parts(results, out / "yolo")
        context |= parts | {"charts": context["charts"] | parts["charts"]}
    context["repeat"] = _repeated(recipe.name, out if made else None, ["synth"] * made + ["train-yolo"] * bool(results))
    context["answer"] = _answer(results, figures, out / "dataset" if made else None)
    return context


def _of_bench(benches: Sequence[Path], progress: Progress) -> dict[str, Any]:
    path = max(benches, key=lambda path: path.stat().st_mtime)
    summary = _read_json(path)
    table = path.parent / "bench.jsonl"
    try:
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{table}: cannot be read ({error}); run `bench` again") from None
    context = _empty() | {"title": f"{summary['recipe']}, bench ({summary['profile']})"}
    for k, seed in sorted({(row["k"], -row["seed"]) for row in rows}, reverse=True):
        run = path.parent / f"k{k}" / f"seed{-seed}"
        # What is shown is the first draw at the largest K that is still there.
        if (run / "recipe.yaml").exists() and (run / "dataset" / MANIFEST_NAME).exists():
            recipe = _read_recipe(run)
            context |= _of_recipe(recipe, run, None) | {"of_cell": f"K = {k}, seed {-seed}"}
            _add_set(context, recipe, run, progress)
            break
    ks, seeds, arms = (dict.fromkeys(row[name] for row in rows) for name in ("k", "seed", "arm"))
    context["repeat"] = [
        f"defectgen bench {summary['recipe']}.yaml --profile {summary['profile']} --k {','.join(map(str, ks))} "
        f"--seeds {len(seeds)} --arms {','.join(arms)}"
    ]
    context["bench"] = _bench_rows(summary)
    context["charts"] |= _bench_charts(rows, path.parent)
    context["notes"] = diagnostics_lines(summary)
    of_last = summary["k"][str(max(ks))]["verdict"]
    finding = "not proven" if of_last is None else of_last["finding"]
    context["answer"] = Answer(finding, _HEADLINES[finding], tuple(sentences(summary)))
    return context


def _of_recipe(recipe: Recipe, out: Path, results: dict[str, Any] | None) -> dict[str, Any]:
    # Without the folders of this machine: pages are passed on.
    return {"recipe": portable_recipe(recipe.to_yaml()), "facts": _facts(recipe, out, results)}


def _repeated(name: str, out: Path | None, commands: Sequence[str]) -> list[str]:
    """The recipe below holds all that --set, --arms and --focus changed; a person's reviews it does not hold."""
    reviewed = out is not None and bool(read_manifest(out / "dataset" / MANIFEST_NAME).header.get("rejected"))
    return [f"defectgen {command} {name}.yaml{' --review review.json' * reviewed}" for command in commands]


def _add_set(context: dict[str, Any], recipe: Recipe, out: Path, progress: Progress) -> dict[str, Any] | None:
    """Adds to `context` what concerns the data set in `out`; its figures. Where the data or the generator are gone or
    others, a warning instead: what was measured is shown all the same.
    """
    try:
        parts, figures = _set_parts(recipe, read_sources(recipe, out), out, progress)
    except DefectgenError as error:
        context["warnings"] += [f"The data set itself cannot be shown: {line}" for line in str(error).splitlines()[:3]]
        return None
    context |= parts | {"charts": context["charts"] | parts["charts"]}
    return figures


def _empty() -> dict[str, Any]:
    return {
        "title": "",
        "answer": None,
        "warnings": [],
        "bench": [],
        "arms": None,
        "charts": {},
        "colours": (charts.REAL_COLOUR, charts.SYNTHETIC_COLOUR),
        "notes": [],
        "gallery": {"items": [], "classes": []},
        "beside": [],
        "summary": None,
        "rejections": [],
        "strips": [],
        "misses": None,
        "recipe": "",
        "facts": [],
        "repeat": [],
        "of_cell": "",
        "version": __version__,
    }


_HEADLINES = {
    "helps": "Use it: it helps",
    "no difference shown": "No gain shown: do not count on it",
    "hurts": "Do not use it: it hurts",
    "not proven": "Not proven either way",
    "not measured": "Not measured yet",
}


def _answer(results: dict[str, Any] | None, figures: dict[str, Any] | None, dataset: Path | None) -> Answer:
    said: list[str] = []
    trained_on = None if results is None else results.get("sets_sha256", {}).get(OWN_ARM)
    if dataset is not None and trained_on not in (None, sha256_file(dataset / MANIFEST_NAME)):
        finding = "not measured"
        said.append(
            "The detectors below were trained on this set as it was before a review replaced some of its images: run "
            "`defectgen train-yolo` again."
        )
    elif results is None:
        finding = "not measured"
        said.append(
            "Whether these images make a better detector is not known until detectors were trained with and without "
            "them, and judged on real parts: `defectgen train-yolo` with the same recipe does that."
        )
    elif results["verdict"] is not None:
        finding = results["verdict"]["finding"]
        said.append(results["verdict"]["sentence"])
    else:
        finding = "not proven"
        score = SCORES[results["task"]]
        means = {arm: 100 * entry["mean"][score] for arm, entry in results["arms"].items()}
        listed = ", ".join(f"{arm} {mean:.1f}" for arm, mean in means.items())
        said.append(f"{FIGURE_NAMES[score]} on {results['test_images']} real held-out images: {listed}.")
        rivals = [mean for arm, mean in means.items() if arm not in (OWN_ARM, CEILING)]
        if OWN_ARM in means and rivals:
            gain = means[OWN_ARM] - max(rivals)
            said.append(f"That is {gain:+.1f} points over the best other arm, from one training each: chance, maybe.")
        said.append(verdict_line(results) + ".")
    if figures is not None:
        refused_share = sum(figures["refused"].values())
        if refused_share > _MANY_REFUSED:
            said.append(f"{refused_share:.0%} of the placements tried were refused: see the reasons below.")
        if figures["copies"] is not None and figures["copies"] > _MANY_COPIES:
            said.append(
                f"{figures['copies']:.0%} of the synthetic defects are near copies of a real one: they add places, "
                "not kinds of defect."
            )
    if dataset is not None:
        said.append("Look at the gallery before you train on anything: reject what no part of yours would show.")
    return Answer(finding, _HEADLINES[finding], tuple(said))


def _set_parts(
    recipe: Recipe, sources: Sources, out: Path, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page shows of the data set in `out`, and its figures."""
    dataset = out / "dataset"
    manifest = read_manifest(dataset / MANIFEST_NAME)
    studio = load_studio(recipe, sources, out / "generator")
    progress("report", 0, 0, "comparing with the real defects")
    figures, nearest = examine(recipe, sources, studio, dataset)
    beside = _beside(sources, studio, dataset, manifest, nearest)
    bases = sources.train_clean if recipe.data.base == "clean" else sources.train
    items = gallery(
        dataset,
        manifest,
        {image.name: image.path for image in bases},
        nearest,
        first=[one["index"] for group in beside for one in group["pairs"]],
        report=lambda done, total: progress("report: pictures", done, total, ""),
    )
    summary = summarise(manifest.rows, sources.class_names)
    progress("report", 0, 0, "drawing what was refused again")
    strips = refused(recipe, sources, studio, [row for row in manifest.rows if row["rejected"]])
    progress("report", 0, 0, "how the generator works")
    parts = {
        "beside": beside,
        "gallery": items,
        "summary": summary,
        "charts": _set_charts(sources, manifest),
        "rejections": [
            {"reason": reason, "counts": counts, "strip": strips.get(reason)}
            for reason, counts in sorted(summary["rejections"].items(), key=lambda pair: -sum(pair[1].values()))
        ],
        "strips": explain(recipe, sources, studio),
        "notes": _notes(figures, len(nearest)),
    }
    return parts, figures


def _notes(figures: dict[str, Any], compared: int) -> list[str]:
    notes = []
    if figures["nearest_real"] is not None:
        notes.append(
            f"The first {compared} synthetic defects are {figures['nearest_real']:.2f} times as far from their nearest "
            "real one as real defects are from each other (median, in the class check's features); "
            f"{figures['copies']:.1%} are copies (below {COPY:g})."
        )
    if figures["kid"] is not None:
        notes.append(f"KID of synthetic against real windows: {figures['kid']:.3f} (0: alike).")
    return notes


def _beside(
    sources: Sources, studio: Studio, dataset: Path, manifest: Manifest, nearest: Sequence[Nearest]
) -> list[dict[str, Any]]:
    """The surest and the least sure of the set next to the real defects they were made from; the most copied ones, and
    those furthest from any real one, next to the nearest.
    """
    rows = {row["index"]: row for row in manifest.rows}
    of_real = {image.name: image.path for image in sources.train}
    ratios = {(one.index, one.number): one.ratio for one in nearest}
    followed = [
        Nearest(row["index"], number, placed["placement"]["model"], ratios.get((row["index"], number)))
        for row in manifest.rows
        for number, placed in enumerate(row["placed"])
    ]

    def score(one: Nearest) -> float:
        return float(rows[one.index]["placed"][one.number]["placement"].get("probability", 0.0))

    orders = []
    if any("probability" in placed["placement"] for row in manifest.rows for placed in row["placed"]):
        by_score = sorted(followed, key=score)
        made_from = "Beside the real defect each was made from."
        orders = [
            ("Surest of its class", f"The class check is surest of these. {made_from}", by_score[::-1]),
            ("Least sure", f"The class check hardly let these pass: look for what is wrong. {made_from}", by_score),
        ]
    if any(one.ratio is not None for one in nearest):
        by_ratio = sorted(nearest, key=lambda one: one.ratio if one.ratio is not None else math.inf)
        of_these = f"Of the first {len(nearest)} defects, beside the nearest real one."
        orders += [
            ("Most copied", f"Nearest to a real defect. {of_these}", by_ratio),
            ("Furthest from any real one", f"New kinds of defect, or nonsense. {of_these}", by_ratio[::-1]),
        ]
    groups = []
    for title, text, order in orders:
        pairs = []
        for one in order[:_SHOWN_BESIDE]:
            row, model = rows[one.index], studio.models[one.model]
            placed = row["placed"][one.number]
            caption = f"{placed['class_name']}, image {one.index}"
            if "probability" in placed["placement"]:
                caption += f", {score(one):.2f} sure"
            if one.ratio is not None:
                caption += f", distance {one.ratio:.2f}"
            pairs.append(
                {
                    "index": one.index,
                    "made": window_uri(read_rgb(dataset / row["image"]), Window(*placed["placement"]["window"])),
                    "real": window_uri(read_rgb(of_real[model.crop.source]), model.crop.window),
                    "caption": caption,
                }
            )
        groups.append({"title": title, "text": text, "pairs": pairs})
    return groups


def _set_charts(sources: Sources, manifest: Manifest) -> dict[str, Markup]:
    names = sources.class_names
    real = [(names[mark.class_id], mark.xyxy, image.size_wh) for image in sources.train for mark in image.annotations]
    made = [
        (placed["class_name"], tuple(placed["label_xyxy"]), tuple(row["size_wh"]))
        for row in manifest.rows
        for placed in row["placed"]
    ]

    def spread(marks: Sequence[tuple[str, Any, Any]], aspect: bool) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {name: [] for name in names}
        for name, (x1, y1, x2, y2), _ in marks:
            longest, shortest = max(x2 - x1, y2 - y1), max(min(x2 - x1, y2 - y1), 1.0)
            values[name].append(longest / shortest if aspect else longest)
        return values

    counts = [Counter(name for name, _, _ in marks) for marks in (real, made)]
    found = {
        "balance": charts.balance_chart({name: counts[0][name] for name in names}, counts[1]),
        "size": charts.spread_chart(spread(real, False), spread(made, False), "longest side, px", title="Box size"),
        "aspect": charts.spread_chart(
            spread(real, True), spread(made, True), "longer over shorter side", title="Box aspect"
        ),
        "where_real": charts.position_chart([mark[1:] for mark in real], "real", charts.REAL_COLOUR),
        "where_made": charts.position_chart([mark[1:] for mark in made], "synthetic", charts.SYNTHETIC_COLOUR),  # type: ignore[misc]
    }
    return _marked(found)


def _detector_parts(results: dict[str, Any], yolo: Path) -> dict[str, Any]:
    score = SCORES[results["task"]]
    arms = results["arms"]
    colours = charts.colours_of(list(arms))
    of_class = "ap50" if "ap50" in next(iter(arms.values()))["mean"]["per_class"][0] else "accuracy"
    scores = {arm: [100 * run["metrics"][score] for run in entry["seeds"]] for arm, entry in arms.items()}
    per_class = {
        arm: [(row["class"], row[of_class]) for row in entry["mean"]["per_class"]] for arm, entry in arms.items()
    }
    curves = {
        name: {
            arm: [run["metrics"].get("curves", {}).get(name, []) for run in entry["seeds"]]
            for arm, entry in arms.items()
        }
        for name in ("precision_over_recall", "recall_over_false_alarms")
    }
    found = {
        "arms": charts.arms_chart(scores, FIGURE_NAMES[score], colours),
        "classes": charts.classes_chart(per_class, "accuracy" if of_class == "accuracy" else "AP50", colours),
        "precision": charts.curves_chart(curves["precision_over_recall"], "recall", "precision", colours),
        "alarms": charts.curves_chart(
            curves["recall_over_false_alarms"], "false alarms per clean image", "recall", colours, logarithmic=True
        ),
    }
    figures = [name for name in FIGURE_NAMES if any(entry["mean"].get(name) is not None for entry in arms.values())]
    return {
        "arms": {
            "headings": [FIGURE_NAMES[name] for name in figures],
            "rows": [
                (arm, [_percent(entry["mean"].get(name)) for name in figures], len(entry["seeds"]))
                for arm, entry in arms.items()
            ],
            "best": results["best"]["arm"],
            "test": f"{results['test_images']} real held-out images, {results['test_clean_images']} of them clean",
        },
        "charts": _marked(found),
        "misses": _misses(results, yolo),
    }


def _misses(results: dict[str, Any], yolo: Path) -> dict[str, Any] | None:
    arms, class_names = results["arms"], results["classes"]
    shown = OWN_ARM if OWN_ARM in arms else results["best"]["arm"]
    try:
        one = judged(yolo, arms[shown])
        other = judged(yolo, arms["real"]) if "real" in arms and shown != "real" else None
    except DefectgenError:  # The test pictures or a training were deleted.
        return None
    if one is None:
        return None
    why = "" if results["test_clean_images"] else ", for want of clean test images to set it by"
    lines = [
        f"{shown}, at confidence {one.threshold:.2f}{why}: {len(one.found)} of {len(one.found) + len(one.missed)} real "
        f"defects found, {len(one.alarms)} false alarms, {sum(clean for _, _, clean in one.alarms)} of them on clean "
        "product."
    ]
    if other is not None:
        mine, theirs = set(one.found), set(other.found)
        lines.append(
            f"Against the detector of real images alone, at confidence {other.threshold:.2f}: "
            f"{len(mine - theirs)} more defects are found, {len(theirs - mine)} are lost."
        )
    return {
        "lines": lines,
        "missed": miss_pictures(yolo, one, class_names),
        "alarms": alarm_pictures(yolo, one, class_names),
    }


def _bench_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for k, of_k in summary["k"].items():
        for arm, figures in of_k["arms"].items():
            cells = [_with_interval(figures[name]) for name in ("map50", "map5095", "recall_at_fp")]
            gain = _with_interval(of_k["difference"].get(arm), signed=True)
            rows.append({"k": k, "arm": arm, "seeds": figures["num_seeds"], "cells": [*cells, gain]})
    return rows


def _bench_charts(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Markup]:
    titles = {
        "map_over_k": "mAP50-95 over the number of real defects",
        "gain_per_class": "Gain per class",
        "precision_recall": "Precision over recall",
        "false_alarms": "Recall over false alarms",
    }
    found = {
        name: charts.svg(draw, titles[name]) for name, draw in drawings(rows, curves_on_disk(rows, folder)).items()
    }
    if all(len(row["ap5095"]) == 1 for row in rows):
        found["gain_per_class"] = None  # The arms themselves say it.
    if len({row["k"] for row in rows}) == 1:
        # A curve of one point says less than the draws themselves.
        arms = dict.fromkeys(row["arm"] for row in rows)
        scores = {arm: [100 * row["map5095"] for row in rows if row["arm"] == arm] for arm in arms}
        del found["map_over_k"]
        found["arms"] = charts.arms_chart(scores, "mAP50-95", charts.colours_of(list(arms)))
    return _marked(found)


def _facts(recipe: Recipe, out: Path, results: dict[str, Any] | None) -> list[tuple[str, str]]:
    facts = [("seed", str(recipe.seed))]
    record = out / "generator" / "fit.json"
    if record.exists():
        fitted = _read_json(record)
        minutes = fitted["log"]["seconds"] / 60
        facts.append(
            ("generator", f"{fitted['log']['steps']} steps in {minutes:.1f} min, defectgen {fitted['version']}")
        )
    if results is not None:
        runs = [run for entry in results["arms"].values() for run in entry["seeds"]]
        seconds = sum(run["training"]["seconds"] for run in runs)
        iterations = runs[0]["training"]["iterations"]
        model = Path(results["profile"]["model"]).name
        facts.append(("detectors", f"{len(runs)} of {iterations} iterations, {seconds / 60:.1f} min"))
        facts.append(("detector", f"{model}, {results['device']}, {results['precision']}"))
        facts += [(name, str(value)) for name, value in results["versions"].items()]
    return [*facts, ("page made by", f"defectgen {__version__}")]


def _with_interval(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    mean = f"{value['mean']:+.1f}" if signed else f"{value['mean']:.1f}"
    return mean if value["low"] is None else f"{mean} ({value['low']:.1f} to {value['high']:.1f})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _marked(found: Mapping[str, str | None]) -> dict[str, Markup]:
    """Charts that show something, as they are."""
    return {name: Markup(text) for name, text in found.items() if text is not None}
