"""Your own data, from a folder or a recipe to judged detectors, in Python.

    python examples/python_api.py housing                              # a folder: drafts housing.yaml first
    python examples/python_api.py recipes/quickstart.yaml synth.num_images=20 train_yolo.iterations=100

What it makes lies in runs/NAME, as after `defectgen train-yolo`; run again, it goes on from there.
"""

import sys
from pathlib import Path

from rich.console import Console

from defectgen.data.look import look
from defectgen.draft import draft
from defectgen.progress import ProgressLines
from defectgen.recipe import load_recipe
from defectgen.report.page import write_report
from defectgen.run import available_cores, run_synth, run_train_yolo
from defectgen.yolo.results import FIGURE_NAMES, SCORES


def main(path: Path, overrides: list[str]) -> None:
    if path.is_dir():
        folder, path = path, Path(f"{path.resolve().name}.yaml")
        if not path.exists():  # It may have been edited since.
            path.write_text(draft(folder, look(folder)[0])[0], encoding="utf-8")
    recipe = load_recipe(path, overrides)
    out = Path("runs") / recipe.name
    options = {"workers": available_cores(), "progress": ProgressLines(Console(stderr=True))}
    made = run_synth(recipe, out, **options)
    for name, row in made["classes"].items():
        print(f"{name}: {row['num_placed']} placed in {row['num_images']} images")
    results = run_train_yolo(recipe, out, **options)
    score = SCORES[results["task"]]
    for arm, row in results["arms"].items():
        print(f"{arm}: {FIGURE_NAMES[score]} {row['mean'][score]:.3f}")
    print(out / "yolo" / results["best"]["weights"])
    print(write_report(out, progress=options["progress"]))


# `run_synth` starts processes that import this file: without this line each would start the next.
if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
