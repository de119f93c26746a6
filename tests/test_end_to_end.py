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


# Python runs it at the start of every process, workers included.
NO_NETWORK = """
import socket, sys

def refuse(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and not isinstance(arguments[1], (str, bytes))):
        with open({log!r}, "a") as file:
            file.write(f"{{event}} {{arguments[1:]}} by {{sys.argv}}\\n")
        raise OSError("there is no network in this test")

sys.addaudithook(refuse)
"""


def program(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, in a process without a network, which asks for none."""
    command = [sys.executable, "-m", "defectgen", *map(str, args)]
    guard, log = cwd / ".guard", cwd / ".guard" / "asked.txt"
    guard.mkdir(exist_ok=True)
    (guard / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(log)))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | {"PYTHONPATH": str(guard)}
    )
    assert not log.exists(), log.read_text()
    return done


def test_guard_sees_who_asks_for_the_network(tmp_path: Path) -> None:
    program("--version", cwd=tmp_path)
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / ".guard")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "there is no network in this test" in done.stderr
    assert "socket.getaddrinfo" in (tmp_path / ".guard/asked.txt").read_text()


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
        "report.html",
        "yolo",
    ]

    weights = {path: path.stat().st_mtime_ns for path in (run / "yolo").glob("*/seed0/weights/last.pt")}
    assert len(weights) == 3
    again = program("train-yolo", QUICKSTART, *changes, "--json", cwd=tmp_path)
    assert again.returncode == 0 and json.loads(again.stdout) == results
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in weights.items())


def test_bench_judges_every_arm_over_two_draws_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    tiny = TINY | {"train_yolo.iterations": 2, "synth.num_images": 4}
    changes = [part for field, value in tiny.items() for part in ("--set", f"{field}={json.dumps(value)}")]
    arms = ["real", "real+aug", "real+procedural", "real+defectgen", "full-real"]
    command = ("bench", QUICKSTART, *changes, "--seeds", 2, "--k", "2", "--arms", ",".join(arms), "--json")
    measured = program(*command, cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    folder = tmp_path / "runs/quickstart-bench/small"
    summary = json.loads(measured.stdout)
    assert summary == json.loads((folder / "bench.json").read_text())
    (of_k,) = summary["k"].values()
    assert list(of_k["arms"]) == arms and {arm["num_seeds"] for arm in of_k["arms"].values()} == {2}
    assert "over 2 draws of the real images" in of_k["verdict"]["sentence"]
    rows = [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["arm"]) for row in rows] == [(seed, arm) for seed in (0, 1) for arm in arms]
    for one in summary["diagnostics"]:
        assert 0 <= one["label_agreement"]["map50"] <= 1 and -1 <= one["sets"]["real+defectgen"]["likeness"] < 1.001
    # Each seed draws other real images, and judges on the same ones.
    read = {seed: json.loads((folder / f"k2/seed{seed}/yolo/real/samples.json").read_text()) for seed in (0, 1)}
    real = [{file["source_sha256"] for file in one["files"] if file["origin"] == "real"} for one in read.values()]
    assert real[0] != real[1]
    tests = [json.loads((folder / f"k2/seed{seed}/yolo/test/samples.json").read_text())["digest"] for seed in (0, 1)]
    assert tests[0] == tests[1]
    assert {"map_over_k.png", "gain_per_class.png"} <= {path.name for path in folder.iterdir()}

    (folder / "bench.jsonl").unlink()
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("k2/*/yolo/*/seed0/weights/last.pt")}
    assert len(weights) == 10
    again = program(*command, cwd=tmp_path)
    assert again.returncode == 0 and json.loads(again.stdout) == summary
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in weights.items())
    assert [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines()] == rows
