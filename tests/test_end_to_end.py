"""From a recipe to trained detectors, by the commands alone, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.long
QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"

# What is drawn after 40 steps is noise: nothing is screened, and patches are pasted, not drawn to suit their place.
TINY = {
    "data.demo": {"defects_per_class": 4, "clean_parts": 8, "test_parts": 8, "size_px": 128},
    "generator.window_px": 32,
    "generator.channels": [16, 32],
    "generator.steps": 40,
    "generator.batch": 8,
    "generator.check_every": 20,
    "inpaint.backend": "paste",
    "inpaint.num_steps": 2,
    "labels.min_area_fraction": 0,
    "screen.classifier": False,
    "screen.min_contrast": 0,
    "synth.num_images": 6,
    "train_yolo.imgsz": 64,
    "train_yolo.iterations": 4,
    "train_yolo.batch": 4,
}


def program(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "defectgen", *map(str, args)]
    # No proxy leads anywhere: whatever looks for the network fails.
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | offline)


def test_quickstart_gives_a_verified_set_and_three_judged_detectors(tmp_path: Path) -> None:
    changes = [part for field, value in TINY.items() for part in ("--set", f"{field}={json.dumps(value)}")]
    made = program("synth", QUICKSTART, *changes, "--workers", 1, "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    summary = json.loads(made.stdout)
    assert summary["num_images"] == 6 and summary["num_composites"] == 5 and summary["num_clean"] == 1
    run = tmp_path / "runs/quickstart"
    names = yaml.safe_load((run / "dataset/data.yaml").read_text())["names"]
    assert names == {0: "scratch", 1: "pit", 2: "stain", 3: "dent"}

    verified = program("verify", "runs/quickstart", "--json", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["good"] is True

    trained = program("train-yolo", QUICKSTART, *changes, "--workers", 1, "--json", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    results = json.loads(trained.stdout)
    assert results == json.loads((run / "yolo/results.json").read_text())
    assert list(results["arms"]) == ["real", "real+copy-paste", "real+defectgen"]
    for arm in results["arms"].values():
        (one,) = arm["seeds"]
        assert one["training"]["iterations"] == 4
        assert 0 <= one["metrics"]["map50"] <= 1 and one["metrics"]["recall_at_fp"] is not None
        assert [row["class"] for row in one["metrics"]["per_class"]] == list(names.values())
        assert (run / "yolo" / one["weights"]).is_file()
    assert results["best"]["arm"] in results["arms"]
    # The control arm has the same images, of other pixels.
    for name in (f"images/{index:06d}.png" for index in range(6)):
        assert (run / "yolo/copy-paste-set" / name).is_file() and (run / "dataset" / name).is_file()
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "dataset",
        "demo",
        "generator",
        "recipe.yaml",
        "yolo",
    ]

    weights = {path: path.stat().st_mtime_ns for path in (run / "yolo").glob("*/seed0/weights/last.pt")}
    assert len(weights) == 3
    again = program("train-yolo", QUICKSTART, *changes, "--json", cwd=tmp_path)
    assert again.returncode == 0 and json.loads(again.stdout) == results
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in weights.items())
