"""report.html from what a run or bench folder holds: the same folder gives the same page, whoever asks for it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from defectgen import __version__
from defectgen.bench.cells import PROFILES
from defectgen.bench.summary import diagnostics_lines, sentences
from defectgen.dataset.card import portable_recipe
from defectgen.dataset.manifest import MANIFEST_NAME, read_manifest
from defectgen.errors import DefectgenError, RunError
from defectgen.images import write_bytes_atomic
from defectgen.progress import Progress
from defectgen.recipe import Recipe, TrainYolo
from defectgen.report import charts
from defectgen.report.answer import Answer, answer_of, is_stale, rival_of
from defectgen.report.detectors import bench_charts, bench_rows, detector_parts
from defectgen.report.synthetic import set_parts
from defectgen.run import read_sources
from defectgen.yolo.results import alarms_caption
from defectgen.yolo.verdict import OWN_ARM

REPORT_NAME = "report.html"
_TEMPLATE = Path(__file__).parent / "template"
_STAMP_WITHIN = 1000


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
    try:
        if (out / "recipe.yaml").exists():
            context = _of_run(out, progress)
        elif benches:
            context = _of_bench(benches, progress)
        else:
            raise RunError(f"{out}: holds no run of defectgen; name the folder that synth, train-yolo or bench wrote")
        # A page that lacks something is made again where what it lacks may be back.
        text = _render(context | {"stamp": "" if context["warnings"] else stamp})
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{out}: a record in it is damaged, or of another version ({type(error).__name__}: {error}); "
            "run the command that made it again"
        ) from error
    write_bytes_atomic(path, text.encode())
    progress("report", 1, 1, "")
    return path


def _stamp(out: Path) -> str:
    """A hash of what the page is made from: a page that has it already need not be made again."""
    digest = hashlib.sha256(__version__.encode())
    of_run = ("recipe.yaml", "generator/fit.json", f"dataset/{MANIFEST_NAME}", "yolo/results.json")
    # A cell of a bench is a run.
    for pattern in (*of_run, "*/bench.json", *(f"*/k*/seed*/{name}" for name in of_run)):
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
        parts, warnings = detector_parts(results, out / "yolo")
        context |= parts | {"charts": context["charts"] | parts["charts"]}
        context["warnings"] += warnings
    context["repeat"] = _repeated(recipe, out if made else None, results)
    context["answer"] = answer_of(results, figures, out / "dataset" if made else None)
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
    recipe = None
    for k, seed in sorted({(row["k"], -row["seed"]) for row in rows}, reverse=True):
        run = path.parent / f"k{k}" / f"seed{-seed}"
        # What is shown is the first draw at the largest K that is still there.
        if (run / "recipe.yaml").exists() and (run / "dataset" / MANIFEST_NAME).exists():
            recipe = _read_recipe(run)
            context |= _of_recipe(recipe, run, None) | {"of_cell": f"K = {k}, seed {-seed}"}
            context["review_with"] = shlex.join(
                ["defectgen", "synth", str(run / "recipe.yaml"), "--out", str(run), "--review", "review.json"]
            )
            _add_set(context, recipe, run, progress)
            break
    context["repeat"] = _bench_repeated(summary, rows, recipe)
    context["bench"] = bench_rows(summary)
    # A bench of an earlier version does not say how many clean images it was judged on.
    context["at_fp"] = alarms_caption(summary.get("test_clean_images") or 0)
    context["charts"] |= bench_charts(rows, path.parent)
    context["notes"] = diagnostics_lines(summary)
    context["answer"] = _bench_answer(summary, rows, path.parent)
    return context


def _bench_repeated(summary: dict[str, Any], rows: Sequence[dict[str, Any]], recipe: Recipe | None) -> list[str]:
    """A command per set of arms that was measured: budgets added to the curve of `real` may have that arm alone."""
    trusting = "" if recipe is None else _trusting(recipe.train_yolo.model)
    measured: dict[tuple[str, ...], list[int]] = {}
    for k in sorted({row["k"] for row in rows}):
        arms = tuple(dict.fromkeys(row["arm"] for row in rows if row["k"] == k))
        measured.setdefault(arms, []).append(k)
    if recipe is not None:
        # What was not left to the profile.
        pinned = PROFILES[summary["profile"]].train_yolo
        trusting += "".join(
            f" --set train_yolo.{name}={used}"
            for name, value in pinned.items()
            if (used := getattr(recipe.train_yolo, name)) != value
        )
    commands = []
    for arms, ks in measured.items():
        seeds = {row["seed"] for row in rows if row["k"] in ks}
        commands.append(
            f"defectgen bench {summary['recipe']}.yaml --profile {summary['profile']} --k {','.join(map(str, ks))} "
            f"--seeds {len(seeds)} --arms {','.join(arms)}{trusting}"
        )
    return commands


def _bench_answer(summary: dict[str, Any], rows: Sequence[dict[str, Any]], folder: Path) -> Answer:
    """Of the largest budget that has a verdict."""
    by_k = {int(k): of_k["verdict"] for k, of_k in summary["k"].items()}
    judged = [k for k, verdict in by_k.items() if verdict is not None]
    said = list(sentences(summary))
    for k, seed in sorted({(row["k"], row["seed"]) for row in rows}):
        run = folder / f"k{k}" / f"seed{seed}"
        if (run / "yolo/results.json").exists() and is_stale(_read_json(run / "yolo/results.json"), run / "dataset"):
            said.append(
                f"K = {k}, seed {seed}: the detectors were trained on the set as it was before a review replaced some "
                "of its images: run `defectgen bench` again."
            )
    if not judged:
        own = any(row["arm"] == OWN_ARM for row in rows)
        return Answer("not proven" if own else "not measured", tuple(said))
    k = max(judged)
    verdict = by_k[k]
    where = f"with {k} real defects per class" if len(by_k) > 1 else ""
    return Answer(verdict["finding"], tuple(said), where, rival_of(verdict))


def _of_recipe(recipe: Recipe, out: Path, results: dict[str, Any] | None) -> dict[str, Any]:
    if results is not None:
        # As it was when the detectors were trained: later commands may have changed it in recipe.yaml.
        recipe = recipe.model_copy(update={"train_yolo": TrainYolo.model_validate(results["profile"])})
    # Without the folders of this machine: pages are passed on.
    return {"recipe": portable_recipe(recipe.to_yaml()), "facts": _facts(recipe, out, results)}


def _repeated(recipe: Recipe, out: Path | None, results: dict[str, Any] | None) -> list[str]:
    """The recipe below holds all that --set, --arms and --focus changed; a person's reviews it does not hold."""
    reviewed = out is not None and bool(read_manifest(out / "dataset" / MANIFEST_NAME).header.get("rejected"))
    review = " --review FILE (once per review, in the order they were made)" * reviewed
    commands = [f"defectgen synth {recipe.name}.yaml{review}"] if out is not None else []
    if results is not None:
        commands.append(f"defectgen train-yolo {recipe.name}.yaml{_trusting(results['profile']['model'])}{review}")
    return commands


def _trusting(model: str) -> str:
    return " --trust-checkpoint" if model.endswith(".pt") else ""


def _add_set(context: dict[str, Any], recipe: Recipe, out: Path, progress: Progress) -> dict[str, Any] | None:
    """Adds to `context` what concerns the data set in `out`; its figures. Where the data or the generator are gone or
    others, a warning instead: what was measured is shown all the same.
    """
    try:
        parts, figures = set_parts(recipe, read_sources(recipe, out), out, progress)
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
        "review_with": "defectgen synth RECIPE --review review.json",
        "compared": 0,
        "version": __version__,
    }


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
