from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from defectgen.data.demo import write_demo
from defectgen.dataset.manifest import read_manifest
from defectgen.dataset.verify import verify_dataset
from defectgen.recipe import DemoData

# A list of classes serves many products: this one has no crack.
OWN_CLASSES = ["Kratzer", "Riss", "Grübchen", "Ölfleck", "Beule groß"]
# What is drawn after 4 steps is noise: patches are pasted, and nothing is screened.
TINY = {
    "generator": {"window_px": 32, "channels": [16, 32], "steps": 4, "batch": 4, "check_every": 2},
    "inpaint": {"num_steps": 2, "backend": "paste"},
    "labels.min_area_fraction": 0,
    "screen": {"classifier": False, "min_contrast": 0},
    "synth.num_images": 4,
    "train_yolo": {"imgsz": 64, "iterations": 2, "batch": 4, "arms": ["real", "real+defectgen"]},
}


def test_a_recipe_becomes_a_set_and_judged_detectors(made: Any) -> None:
    assert verify_dataset(made.run / "dataset") == []
    rows = read_manifest(made.run / "dataset/manifest.jsonl").rows
    *classes, real, own, weights, page = made.done.stdout.splitlines()
    for line in classes:
        name, _, counts = line.partition(": ")
        placed = [sum(one["class_name"] == name for one in row["placed"]) for row in rows]
        assert counts == f"{sum(placed)} placed in {sum(map(bool, placed))} images"
    assert len(classes) == 4 and len(rows) == 4
    arms = json.loads((made.run / "yolo/results.json").read_text())["arms"]
    figures = [f"{name}: mAP50-95 {arm['mean']['map50_95']:.3f}" for name, arm in arms.items()]
    assert [real, own] == figures and list(arms) == ["real", "real+defectgen"]
    assert (made.run.parents[1] / weights).is_file()
    assert (made.run.parents[1] / page) == made.run / "report.html" and (made.run / "report.html").is_file()


@pytest.mark.long
def test_a_folder_of_own_data_becomes_a_recipe_a_set_and_judged_detectors(example: Any, tmp_path: Path) -> None:
    write_demo(DemoData(defects_per_class=3, clean_parts=6, test_parts=4, size_px=128), tmp_path / "gehäuse")
    data = tmp_path / "gehäuse/data.yaml"
    data.write_text(yaml.safe_dump(yaml.safe_load(data.read_text()) | {"names": OWN_CLASSES}, allow_unicode=True))
    for labels in (tmp_path / "gehäuse").rglob("labels/*.txt"):
        rows = [row.split(maxsplit=1) for row in labels.read_text().splitlines()]
        labels.write_text("".join(f"{int(number) + (int(number) > 0)} {rest}\n" for number, rest in rows))
    overrides = [f"{field}={json.dumps(value)}" for field, value in TINY.items()]
    done = example.start("python_api.py", "gehäuse", *overrides, cwd=tmp_path)
    assert yaml.safe_load((tmp_path / "gehäuse.yaml").read_text(encoding="utf-8"))["data"]["classes"] == OWN_CLASSES
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        *OWN_CLASSES,
        "real",
        "real+defectgen",
        *done.stdout.splitlines()[-2:],
    ]
    assert (tmp_path / done.stdout.splitlines()[-1]).is_file()
    (run,) = (tmp_path / "runs").iterdir()
    assert verify_dataset(run / "dataset") == []
