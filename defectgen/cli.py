"""The command line: parse, call one function, print. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from defectgen import __version__
from defectgen.errors import DataError, DefectgenError, UsageError
from defectgen.progress import Progress, ProgressLines, append_log, clear_live_line
from defectgen.recipe import Recipe, json_schema, load_recipe
from defectgen.trackers import installed_trackers

if TYPE_CHECKING:
    from defectgen.data.layout import Layout
    from defectgen.records import Sources

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Rare-defect images and YOLO labels from a few real defects, and the proof whether they help.",
)
recipe_app = typer.Typer(no_args_is_help=True, help="About recipes.")
app.add_typer(recipe_app, name="recipe")

stdout, stderr = Console(), Console(stderr=True)

Focus = Annotated[
    Path | None,
    typer.Option(
        "--focus", metavar="RESULTS", help="Make more of what a detector misses: results.json of a run on a fold."
    ),
]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, as in recipes/.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder. Default: runs/<recipe name>.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a recipe field; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
DataFormat = Annotated[
    str | None, typer.Option("--format", help="Of the annotations, where a folder can be read in more than one way.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what another recipe made in the run folder.")]
LogFile = Annotated[
    Path | None, typer.Option("--log-file", metavar="FILE", help="Progress and errors go to the end of it, too.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every step on a line of its own.")]
Trust = Annotated[
    bool, typer.Option("--trust-checkpoint", help="Load train_yolo.model although a .pt file can run any code.")
]
Tracker = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker", metavar="NAME", help="tensorboard or mlflow: the curves of what trains, in the run folder's logs/."
    ),
]
Reviews = Annotated[
    list[Path] | None,
    typer.Option(
        "--review", metavar="FILE", help="review.json of the report: others for the images it rejects. Repeatable."
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes. Default: all cores.")]


@contextlib.contextmanager
def _reported(resume: str, log_file: Path | None = None) -> Iterator[None]:
    """Turns errors into one message and an exit code; Ctrl-C into what to type to go on. Both go to `log_file`, too."""
    try:
        append_log(log_file, resume)
        yield
    except DefectgenError as error:
        clear_live_line(stderr)
        for line in str(error).splitlines():
            append_log(log_file, f"error: {line}")
            stderr.print(f"[bold red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # Read no further, as by `| head`: typer ends quietly.
            raise
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror or error}; check the disk and who may write there, then run it again"
        with contextlib.suppress(OSError):  # It may be the log file's disk.
            append_log(log_file, f"error: {message}")
        clear_live_line(stderr)
        stderr.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        append_log(log_file, "stopped")
        stderr.print(f"\nstopped; what was finished stays. To go on: {escape(resume)}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


def _command() -> str:
    words = ["defectgen", *sys.argv[1:]]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def _looked_at(folder: Path, data_format: str | None) -> tuple[Layout, list[Layout]]:
    """The best way to read `folder`, and the others."""
    from defectgen.data.look import FORMATS, look

    if data_format not in (None, *FORMATS):
        raise UsageError(f"--format: must be of {', '.join(FORMATS)}, got {data_format!r}")
    best, *others = look(folder, data_format)
    return best, others


def _load(path: Path, overrides: list[str] | None, out: Path | None, focus: Path | None = None) -> tuple[Recipe, Path]:
    overrides = list(overrides or [])
    if focus is not None:
        from defectgen.yolo.results import missed_weights

        if any(override.startswith("place.class_weights") for override in overrides):
            raise UsageError("--focus: sets place.class_weights, which --set does, too; give one of them")
        # On top of the recipe's own: a class that is not wanted at all stays so.
        own = load_recipe(path, overrides).place.class_weights
        weights = {name: own.get(name, 1.0) * weight for name, weight in missed_weights(focus).items()}
        overrides.append(f"place.class_weights={json.dumps(own | weights)}")
    recipe = load_recipe(path, overrides)
    folder = out if out is not None else Path("runs") / recipe.name
    if focus is not None and folder.resolve() in focus.resolve().parents:
        raise UsageError(
            f"--focus: {focus} is of the run in {folder}, which would make its own data set anew; choose another --out"
        )
    return recipe, folder


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        sys.stdout.write(f"defectgen {__version__}\n")
        raise typer.Exit


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images, with their annotations in any known format.")
    ],
    recipe_path: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="What to write. Default: <folder's name>.yaml here.")
    ] = None,
    data_format: DataFormat = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recipe that is there.")] = False,
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Look at a folder, say what it holds, and write a commented recipe for it."""
    with _reported(_command(), log_file):
        from defectgen.draft import draft
        from defectgen.images import write_bytes_atomic

        path = recipe_path or Path(f"{folder.resolve().name}.yaml")
        _require_utf8(str(folder.absolute()), str(path))
        if path.exists() and not overwrite:
            raise UsageError(f"{path}: is there already; name another --recipe, or --overwrite to replace it")
        layout, others = _looked_at(folder, data_format)
        _require_utf8(*layout.notes)
        text, sources = draft(
            folder, layout, ProgressLines(stderr, log_file=log_file, verbose=verbose), recipe_path=path
        )
        write_bytes_atomic(path, text.encode())
        errors = [str(problem) for problem in sources.problems if problem.severity == "error"]
        marks = sum(len(image.annotations) for image in sources.train_pool)
        if as_json:
            facts = {"recipe": str(path), "data": layout.data, "notes": list(layout.notes), "errors": errors}
            _print_json(facts | {"also": [other.data["format"] for other in others]})
        else:
            for note in layout.notes:
                stdout.print(note, markup=False, highlight=False)
            stdout.print(
                f"{len(sources.train_pool)} images with {marks} defects of {len(sources.class_names)} classes, "
                f"{len(sources.train_clean)} clean ones, {len(sources.test) + len(sources.test_clean)} held out; "
                f"{len(errors)} errors{', see `defectgen check`' if errors else ''}",
                highlight=False,
                soft_wrap=True,
            )
            for other in others:
                stdout.print(f"can be read as {other.data['format']}, too: --format {other.data['format']}")
            for problem in sources.problems:
                if problem.path == "data.group_pattern":
                    stdout.print(f"look at group_pattern in it: it {problem.reason}", markup=False, highlight=False)
            if not sources.train_clean:
                stdout.print(
                    "there is no clean image: defects would be added to the marked ones (data.base: defective)"
                )
            stderr.print(
                f"next: defectgen check {shlex.quote(str(path))}", markup=False, soft_wrap=True, highlight=False
            )
            stdout.print(str(path), markup=False, soft_wrap=True, highlight=False)


def _require_utf8(*names: str) -> None:
    from defectgen.data.formats.text import is_utf8

    for name in names:
        if not is_utf8(name):
            raise DataError(f"{name!r}: is not UTF-8, as a recipe must be; rename the folder")


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="RECIPE|FOLDER", help="A recipe, or a folder of data without one.")],
    out: Out = None,
    overrides: Set = None,
    data_format: DataFormat = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    as_json: AsJson = False,
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Look at the data: counts, sizes, classes, groups, leaks, and every problem with file and reason.

    Every image is decoded, nothing is written. Exits with 1 where there is an error.
    """
    with _reported(_command(), log_file):
        from defectgen.data.check import look_closely, render, summarise

        progress = ProgressLines(stderr, log_file=log_file, verbose=verbose)
        with tempfile.TemporaryDirectory() as scratch:
            # Looking leaves nothing behind: the demo product is written into the run folder by `fit` alone.
            demo = Path(scratch) / "demo"
            sources, layout = _read(path, data_format, overrides, out, demo, progress, split=True)
            sources = look_closely(sources, progress)
            if layout is None:
                from defectgen.yolo.train import faults_of_model

                faults = faults_of_model(_load(path, overrides, out)[0].train_yolo, sources)
                sources = replace(sources, problems=(*sources.problems, *faults))
            summary = summarise(sources, progress)
        notes = [*layout.notes] if layout else []
        if layout and layout.aside:
            notes.append("what is left aside is checked, and counted as training data or held out, all the same")
        if as_json:
            _print_json(summary | {"notes": notes})
        else:
            for note in notes:
                stdout.print(note, markup=False, highlight=False)
            stdout.print(render(summary))
        for problem in sources.problems:
            append_log(log_file, f"{problem.severity}: {problem}")
        if any(strict or one["severity"] == "error" for one in summary["problems"]):
            raise typer.Exit(1)


def _read(
    path: Path,
    data_format: str | None,
    overrides: list[str] | None,
    out: Path | None,
    demo: Path,
    progress: Progress,
    *,
    split: bool,
) -> tuple[Sources, Layout | None]:
    """What a recipe or a folder holds, and the layout that the folder was read by, with what that leaves aside.

    Args:
        split: a folder that has no test set.
    """
    if path.is_dir():
        if overrides or out:
            raise UsageError(f"{path}: is a folder; --set and --out go with a recipe, see `defectgen init`")
        from defectgen.data.aside import with_aside
        from defectgen.draft import read_layout

        path = path.absolute()
        layout, _ = _looked_at(path, data_format)
        sources = read_layout(path, layout, split=split, progress=progress)[1]
        return with_aside(sources, path, layout, progress) if layout.aside else sources, layout
    if data_format:
        raise UsageError("--format: goes with a folder; a recipe has data.format")
    from defectgen.data.load import load_sources

    recipe, _ = _load(path, overrides, out)
    return load_sources(recipe, demo, progress), None


@app.command()
def fit(
    recipe_path: RecipePath,
    out: Out = None,
    overrides: Set = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
    tracker: Tracker = None,
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Train the diffusion model on the real defects. Killed and run again, it goes on."""
    with _reported(_command(), log_file):
        recipe, folder = _load(recipe_path, overrides, out)
        from defectgen.run import run_fit

        facts = run_fit(
            recipe,
            folder,
            progress=ProgressLines(stderr, log_file=log_file, verbose=verbose),
            overwrite=overwrite,
            trackers=installed_trackers(tracker),
        )
        if as_json:
            _print_json(facts | {"generator": str(folder / "generator")})
        else:
            log = facts["log"]
            lines = f", {facts['num_lines']} of them thin lines found in their boxes" if facts["num_lines"] else ""
            stdout.print(
                f"generator of {facts['num_defects']} real defects{lines}: {log['steps']} steps in "
                f"{log['seconds'] / 60:.1f} min, weights of step {log['best_step']}; the class check finds "
                f"{facts['screen']['real_accuracy']:.0%} of real defects it has not seen, and takes "
                f"{facts['twins_clean']:.0%} of their twins without the defect for clean "
                f"({sum(facts['photographed'])} of these photographed, the others drawn)"
            )
            stdout.print(str(folder / "generator"), markup=False, soft_wrap=True, highlight=False)


@app.command()
def synth(
    recipe_path: RecipePath,
    out: Out = None,
    overrides: Set = None,
    workers: Workers = None,
    as_json: AsJson = False,
    focus: Focus = None,
    preview: Annotated[
        int | None, typer.Option("--preview", min=1, metavar="N", help="Make N composites to look at, and no more.")
    ] = None,
    reviews: Reviews = None,
    overwrite: Overwrite = False,
    tracker: Tracker = None,
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Make the YOLO data set, fitting first where needed."""
    with _reported(_command(), log_file):
        recipe, folder = _load(recipe_path, overrides, out, focus)
        from defectgen.run import available_cores, run_preview, run_synth

        options: dict[str, Any] = {
            "workers": workers or available_cores(),
            "progress": ProgressLines(stderr, log_file=log_file, verbose=verbose),
            "overwrite": overwrite,
            "trackers": installed_trackers(tracker),
        }
        if preview is None:
            summary = run_synth(recipe, folder, reviews=reviews or (), **options)
            made = folder / "dataset"
        else:
            if reviews:
                raise UsageError("--review: is of the whole set; leave out --preview")
            summary = run_preview(recipe, folder, preview, **options)
            made = folder / "preview"
        if as_json:
            _print_json(summary | {"dataset": str(made)})
        else:
            stdout.print(*_synth_tables(summary))
            stdout.print(f"look at {made / 'sheets/composites.jpg'}", markup=False, soft_wrap=True, highlight=False)
            stdout.print(str(made), markup=False, soft_wrap=True, highlight=False)
        if preview is None:
            _report(folder, options["progress"], log_file)


@app.command()
def verify(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A data set, or a run folder that holds one.")],
    as_json: AsJson = False,
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Re-read a data set: decode every image, check every label and hash, run Ultralytics' own check."""
    with _reported(_command(), log_file):
        from defectgen.dataset.verify import verify_dataset
        from defectgen.yolo.label_check import ultralytics_label_check

        progress = ProgressLines(stderr, log_file=log_file, verbose=verbose)
        folder = dataset / "dataset" if (dataset / "dataset").is_dir() else dataset
        if not (folder / "manifest.jsonl").is_file() and not (folder / "images").is_dir():
            raise UsageError(
                f"{dataset}: holds no data set of `synth`; name one, or its run folder, as in runs/housing"
            )
        problems = [str(problem) for problem in verify_dataset(folder, progress)]
        theirs: dict[str, Any] = {}
        if not problems:
            progress("ultralytics' check", 0, 0, "in a copy of the set")
            theirs = ultralytics_label_check(folder)
        rejected = theirs.get("num_corrupt", 0) + theirs.get("num_missing", 0)
        modified = len(theirs.get("modified_files", []))
        good = not problems and rejected == 0 and modified == 0
        verdict = f"{folder}: {'verified' if good else 'does not verify'}"
        for line in [*(f"problem: {problem}" for problem in problems), *theirs.get("messages", []), verdict]:
            append_log(log_file, line)
        if as_json:
            _print_json({"good": good, "problems": problems, "ultralytics": theirs})
        else:
            for problem in problems:
                stderr.print(f"[bold red]problem:[/] {escape(problem)}", highlight=False, soft_wrap=True)
            for message in theirs.get("messages", []):
                stderr.print(f"[bold red]ultralytics:[/] {escape(message)}", highlight=False, soft_wrap=True)
            if theirs:
                stdout.print(
                    f"Ultralytics' check: {theirs['num_images']} images, {rejected} rejected, {modified} modified"
                )
            stdout.print(verdict, markup=False, soft_wrap=True, highlight=False)
        if not good:
            raise typer.Exit(1)


def _synth_tables(summary: dict[str, Any]) -> list[Table]:
    made = Table(
        "class",
        "defects",
        "images",
        "longest side, px",
        title=f"{summary['num_images']} images, {summary['num_composites']} with synthetic defects",
    )
    for name, row in summary["classes"].items():
        spread = " / ".join(f"{value:.0f}" for value in row["longest_px"] or [])
        made.add_row(escape(name), str(row["num_placed"]), str(row["num_images"]), spread)
    refused = Table("reason", "count", "of which", title=f"{summary['num_rejected']} placements refused")
    for reason, counts in sorted(summary["rejections"].items(), key=lambda pair: -sum(pair[1].values())):
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        refused.add_row(reason, str(sum(counts.values())), escape(listed))
    return [made, refused] if summary["num_rejected"] else [made]


def _report(folder: Path, progress: Progress, log_file: Path | None) -> None:
    """Writes the report of what was made, and says where; one that cannot be written costs nothing else."""
    from defectgen.report.page import REPORT_NAME, write_report

    try:
        write_report(folder, progress=progress)
    except (DefectgenError, OSError) as error:
        said = f"no {REPORT_NAME}: {error}"
        clear_live_line(stderr)
        append_log(log_file, f"warning: {said}")
        stderr.print(f"[bold yellow]warning:[/] {escape(said)}", highlight=False, soft_wrap=True)
    else:
        stderr.print(f"look at {escape(str(folder / REPORT_NAME))}", soft_wrap=True, highlight=False)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, as runs/<recipe name>, or one of bench.")
    ],
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Write report.html again: what was made, what it is worth and why, on one page that needs no network."""
    with _reported(_command(), log_file):
        from defectgen.report.page import write_report

        stdout.print(
            str(write_report(folder, progress=ProgressLines(stderr, log_file=log_file, verbose=verbose))),
            markup=False,
            soft_wrap=True,
            highlight=False,
        )


@app.command("train-yolo")
def train_yolo(
    recipe_path: RecipePath,
    out: Out = None,
    overrides: Set = None,
    arms: Annotated[str | None, typer.Option("--arms", help="Comma-separated; default: the recipe's.")] = None,
    workers: Workers = None,
    as_json: AsJson = False,
    focus: Focus = None,
    reviews: Reviews = None,
    overwrite: Overwrite = False,
    trust_checkpoint: Trust = False,
    tracker: Tracker = None,
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Train YOLO11 per arm and judge it on held-out real parts, making what is missing first."""
    with _reported(_command(), log_file):
        chosen = [f"train_yolo.arms=[{','.join(listed)}]"] if (listed := _arms(arms)) is not None else []
        recipe, folder = _load(recipe_path, [*(overrides or []), *chosen], out, focus)
        from defectgen.run import available_cores, run_train_yolo

        progress = ProgressLines(stderr, log_file=log_file, verbose=verbose)
        results = run_train_yolo(
            recipe,
            folder,
            reviews=reviews or (),
            workers=workers or available_cores(),
            progress=progress,
            overwrite=overwrite,
            trust_checkpoint=trust_checkpoint,
            trackers=installed_trackers(tracker),
        )
        if as_json:
            _print_json(results)
        else:
            from defectgen.yolo.results import results_tables, verdict_line

            for table in results_tables(results):
                stdout.print(table)
            stdout.print(verdict_line(results), markup=False, highlight=False)
            best = folder / "yolo" / results["best"]["weights"]
            if len(results["arms"]) > 1:
                but = " but for full-real" if "full-real" in results["arms"] else ""
                line = f"Weights of {results['best']['arm']}, the highest here{but}"
                line += " (chosen by this very test set: expect less elsewhere):"
                stdout.print(line, markup=False, soft_wrap=True, highlight=False)
            stdout.print(str(best), markup=False, soft_wrap=True, highlight=False)
        _report(folder, progress, log_file)


@app.command()
def bench(
    recipe_path: RecipePath,
    profile: Annotated[
        str, typer.Option("--profile", help="small: 2 CPU cores. full: every arm and K, a GPU.")
    ] = "small",
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Draws of the real images. Default: 3; 5.")
    ] = None,
    ks: Annotated[
        str | None, typer.Option("--k", metavar="5,10,20", help="Real defects per class. Default: 10; 5,10,20.")
    ] = None,
    arms: Annotated[str | None, typer.Option("--arms", help="Comma-separated; default: the profile's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: runs/<recipe name>-bench.")] = None,
    overrides: Set = None,
    workers: Workers = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
    trust_checkpoint: Trust = False,
    tracker: Tracker = None,
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Measure over budgets and seeds whether the synthetic data helps. Stopped and run again, it goes on."""
    with _reported(_command(), log_file):
        recipe, _ = _load(recipe_path, overrides, out)
        folder = out if out is not None else Path("runs") / f"{recipe.name}-bench"
        chosen = _arms(arms)
        budgets = [int(k) for k in _listed("--k", ks, None) or []]
        if profile not in ("small", "full"):
            raise UsageError(f"--profile: must be small or full, got {profile!r}")
        pinned = {override.partition("=")[0].removeprefix("train_yolo.") for override in overrides or []}
        own = {"arms": "--arms", "seeds": "--seeds", "data.per_class": "--k", "data.max_images": "--k"}
        for field, option in own.items():
            if field in pinned:
                raise UsageError(f"--set {field}: bench sets this itself; use {option}")
        from defectgen.bench.cells import run_bench
        from defectgen.bench.summary import bench_table, diagnostics_lines, sentences
        from defectgen.run import available_cores

        progress = ProgressLines(stderr, log_file=log_file, verbose=verbose)
        summary = run_bench(
            recipe,
            folder,
            profile=cast(Any, profile),
            num_seeds=seeds,
            ks=budgets or None,
            arms=cast(Any, chosen),
            pinned=pinned,
            workers=workers or available_cores(),
            progress=progress,
            overwrite=overwrite,
            trust_checkpoint=trust_checkpoint,
            trackers=installed_trackers(tracker),
        )
        if as_json:
            _print_json(summary)
        else:
            stdout.print(bench_table(summary))
            for line in [*sentences(summary), *diagnostics_lines(summary)]:
                stdout.print(line, markup=False, highlight=False)
            stdout.print(str(folder), markup=False, soft_wrap=True, highlight=False)
        _report(folder, progress, log_file)


def _arms(text: str | None) -> list[str] | None:
    from defectgen.recipe import Arm

    return _listed("--arms", text, get_args(Arm))


def _listed(option: str, text: str | None, known: tuple[str, ...] | None) -> list[str] | None:
    """The comma-separated values of an option, each one of `known`, or a whole number above 0 where that is None."""
    if text is None:
        return None
    values = [value.strip() for value in text.split(",")]
    for value in values:
        if known is not None and value not in known:
            raise UsageError(f"{option}: must be of {', '.join(known)}, got {value!r}")
        if known is None and not (value.isdecimal() and int(value) > 0):
            raise UsageError(f"{option}: must be whole numbers above 0, as in 5,10,20, got {value!r}")
    if len(set(values)) < len(values):
        raise UsageError(f"{option}: must name each once, got {text!r}")
    return values


@app.command()
def export(
    path: Annotated[
        Path, typer.Argument(metavar="RECIPE|FOLDER", help="A recipe, or a folder of data, as `synth` makes it.")
    ],
    to: Annotated[str, typer.Option("--to", help="yolo, yolo-seg, yolo-obb, yolo-cls, coco, masks or huggingface.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    overrides: Set = None,
    data_format: DataFormat = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is there.")] = False,
    log_file: LogFile = None,
    verbose: Verbose = False,
) -> None:
    """Write a data set for other trainers and tools, split as it is; a folder without a split is one set."""
    with _reported(_command(), log_file):
        from defectgen.export import FORMATS
        from defectgen.export import export as write

        if to not in FORMATS:
            raise UsageError(f"--to: must be of {', '.join(FORMATS)}, got {to!r}")
        with tempfile.TemporaryDirectory() as scratch:
            progress, demo = ProgressLines(stderr, log_file=log_file, verbose=verbose), Path(scratch) / "demo"
            sources, layout = _read(path, data_format, overrides, None, demo, progress, split=False)
            for note in layout.notes if layout else ():
                stderr.print(note, markup=False, highlight=False)
            aside = layout.aside if layout else ()
            if aside:
                stderr.print(
                    "what is left aside is written all the same, a validation set as a split of its own",
                    highlight=False,
                    soft_wrap=True,
                )
            facts = write(
                sources,
                out,
                to,
                progress=progress,
                overwrite=overwrite,
                validation=[path / one.images for one in aside if one.split == "val"],
            )
        if as_json:
            _print_json(facts)
        else:
            counts = ", ".join(
                f"{number} images with {facts['defects'][name]} defects for {name}"
                for name, number in facts["images"].items()
            )
            stdout.print(counts, highlight=False)
            if facts["boxes_as_outlines"]:
                stdout.print(f"{facts['boxes_as_outlines']} boxes without an outline are written as rectangles")
            stdout.print(str(out), markup=False, soft_wrap=True, highlight=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, pairing of packages, device, threads, memory and disk, and what to mend."""
    with _reported(_command()):
        from defectgen.doctor import examine

        facts, problems = examine()
        if as_json:
            _print_json({"facts": facts, "problems": problems})
        else:
            for name, value in facts.items():
                stdout.print(f"{name:30} {value}", markup=False, highlight=False, soft_wrap=True)
            for problem in problems:
                stderr.print(f"[bold red]problem:[/] {escape(problem)}", highlight=False, soft_wrap=True)
        if problems:
            raise typer.Exit(1)


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    sys.stdout.write(json_schema() + "\n")


def _terminated(*_: Any, command: int = os.getpid()) -> None:
    # Not by each of its processes; and by the descriptor, as the signal may come amid a print.
    if os.getpid() == command:
        os.write(2, b"\nended by SIGTERM; what is done is kept: the same command goes on\n")
    sys.exit(143)


def main() -> None:
    """The console script. Wrong usage exits with 2, as typer does."""
    # Read when torch loads: threads that wait for each other soon sleep instead of spinning, so that two jobs on one
    # machine share it. Spinning, each ran up to ten times slower; sleeping at once costs a lone job 15 %.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows consoles and pipes may not be UTF-8.
            stream.reconfigure(encoding="utf-8", errors="replace")
    # So that what is under way ends as it does by Ctrl-C: its processes, too.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except UsageError as error:  # pragma: no cover - commands report their own
        stderr.print(str(error))
        raise SystemExit(error.exit_code) from None
