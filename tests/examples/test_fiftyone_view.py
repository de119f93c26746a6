"""In the environment that the variable FIFTYONE_PYTHON names, or this one: FiftyOne is too large for `dev`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from defectgen.dataset.manifest import read_manifest
from defectgen.export import export
from defectgen.progress import silent
from defectgen.run import read_sources

PYTHON = os.environ.get("FIFTYONE_PYTHON", sys.executable)

pytestmark = pytest.mark.skipif(
    "FIFTYONE_PYTHON" not in os.environ and importlib.util.find_spec("fiftyone") is None,
    reason="FiftyOne is not installed: pip install fiftyone, or name another environment's Python in FIFTYONE_PYTHON",
)

# What FiftyOne then holds, as JSON on the last line.
SHOWN = """
import json, runpy, sys
from pathlib import Path
dataset = runpy.run_path(sys.argv[1])["load"](Path(sys.argv[2]))
defects = "defects.detections"
fields = ["label", "bounding_box", "model", "angle_deg", "difference"]
has = dataset.get_field_schema(flat=True)
shown = {field: dataset.values(f"{defects}.{field}") for field in fields if f"{defects}.{field}" in has}
shown["tags of images"] = dataset.values("tags")
for field in ("source", "refused"):
    shown[field] = dataset.values(field) if field in has else None
shown["mask"] = [one.changed.get_mask().max().item() for one in dataset] if "changed" in has else None
shown |= {"files": dataset.values("filepath"), "targets": dataset.default_mask_targets}
print()
print(json.dumps(shown))
"""


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """FiftyOne's own data base and settings in a folder of the test's, and nothing sent."""
    home = str(tmp_path_factory.getbasetemp() / "fiftyone")
    return {"HOME": home, "FIFTYONE_DATABASE_DIR": f"{home}/db", "FIFTYONE_DO_NOT_TRACK": "true"}


def shown(example: Any, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    command = [PYTHON, "-c", SHOWN, example.folder / "fiftyone_view.py", folder]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_placement_is_shown_with_its_scores(example: Any, made: Any, environment: dict[str, str]) -> None:
    manifest = read_manifest(made.run / "dataset/manifest.jsonl")
    found = shown(example, made.run / "dataset", environment)
    placed = [row["placed"] for row in manifest.rows]
    assert sum(map(len, placed)) > 2
    assert found["files"] == [str(made.run / "dataset" / row["image"]) for row in manifest.rows]
    assert found["label"] == [[one["class_name"] for one in ones] for ones in placed]
    for boxes, ones in zip(found["bounding_box"], placed, strict=True):
        for (x, y, width, height), one in zip(boxes, ones, strict=True):
            x1, y1, x2, y2 = one["label_xyxy"]
            assert [side * 128 for side in (x, y, x + width, y + height)] == pytest.approx([x1, y1, x2, y2])
    for score in ("model", "angle_deg", "difference"):
        assert found[score] == [[one["placement"][score] for one in ones] for ones in placed]
    assert found["source"] == [row["source"] for row in manifest.rows]
    assert [len(reasons) for reasons in found["refused"]] == [len(row["rejected"]) for row in manifest.rows]
    # In the mask a placement is its class and 1, and the names say so.
    highest = [max((one["class_id"] + 1 for one in ones), default=0) for ones in placed]
    assert found["mask"] == highest
    assert found["targets"] == {"1": "scratch", "2": "pit", "3": "stain", "4": "dent"}


@pytest.mark.parametrize("to", ["yolo", "coco"])
def test_an_exported_set_is_shown_with_its_splits(
    example: Any, fitted: Any, tmp_path: Path, environment: dict[str, str], to: str
) -> None:
    sources = read_sources(fitted.recipe, fitted.out)
    export(sources, tmp_path / "out", to, progress=silent)
    found = shown(example, tmp_path / "out", environment)
    train = [*sources.train_pool, *sources.train_clean]
    test = [*sources.test, *sources.test_clean]
    tags = [tag for (tag,) in found["tags of images"]]
    assert [tags.count(split) for split in ("train", "test")] == [len(train), len(test)]
    by_name = {
        (tag, Path(path).name): number for number, (tag, path) in enumerate(zip(tags, found["files"], strict=True))
    }
    for split, images in (("train", train), ("test", test)):
        for image in images:
            number = by_name[split, image.name]
            assert (found["label"][number] or []) == [sources.class_names[mark.class_id] for mark in image.annotations]
            for (x, y, width, height), mark in zip(found["bounding_box"][number] or [], image.annotations, strict=True):
                corners = [side * 128 for side in (x, y, x + width, y + height)]
                assert corners == pytest.approx(mark.xyxy, abs=0.5)


def test_the_script_says_what_it_holds(example: Any, made: Any, environment: dict[str, str]) -> None:
    said = example.start(
        "fiftyone_view.py", made.run / "dataset", "--no-app", cwd=made.run, python=PYTHON, **environment
    ).stdout
    assert "Num samples: 4" in said
    rows = read_manifest(made.run / "dataset/manifest.jsonl").rows
    names = [one["class_name"] for row in rows for one in row["placed"]]
    assert all(f"'{name}': {names.count(name)}" in said for name in set(names))


def test_a_folder_without_a_set_is_named(example: Any, tmp_path: Path, environment: dict[str, str]) -> None:
    command = [PYTHON, example.folder / "fiftyone_view.py", tmp_path, "--no-app"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and f"{tmp_path}: holds neither manifest.jsonl" in done.stderr
