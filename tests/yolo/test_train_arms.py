import io
import json
import math
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from defectgen.errors import RunError, UsageError
from defectgen.progress import silent
from defectgen.recipe import TrainYolo
from defectgen.records import Annotation, LabelledImage
from defectgen.yolo.environment import _container_cores, num_threads, worker_environment
from defectgen.yolo.results import collect_results, mean_metrics, missed_weights, results_tables, verdict_line
from defectgen.yolo.train import refuse_other_settings, resolve_model, train_arms
from defectgen.yolo.worker import _follow_schedule


def test_missing_weights_are_not_downloaded(tmp_path):
    with pytest.raises(UsageError, match=r"no file .*yolo11n\.pt; weights are never downloaded"):
        resolve_model(str(tmp_path / "yolo11n.pt"))


@pytest.mark.parametrize("model", ["yolov8n.yaml", "yolo11n", "https://example.org/yolo11n.yaml", "yolo11n-pose.yaml"])
def test_other_models_are_refused(model):
    with pytest.raises(UsageError, match=r"train_yolo\.model: is no YOLO11, .*name yolo11n\.yaml"):
        resolve_model(model)


@pytest.mark.parametrize("size", "nsmlx")
def test_every_size_is_accepted(size):
    assert resolve_model(f"yolo11{size}.yaml") == f"yolo11{size}.yaml"
    assert resolve_model(f"yolo11{size}-seg.yaml") == f"yolo11{size}-seg.yaml"
    assert resolve_model(f"yolo11{size}-obb.yaml") == f"yolo11{size}-obb.yaml"


def test_worker_is_offline_and_no_rank_of_a_launcher(tmp_path):
    environment = worker_environment(tmp_path, {"RANK": "1", "LOCAL_RANK": "1", "PATH": "/bin"})
    assert environment["YOLO_OFFLINE"] == "1"
    assert environment["YOLO_CONFIG_DIR"] == str(tmp_path)
    assert environment["OMP_NUM_THREADS"] == str(num_threads({}))
    assert environment["PATH"] == "/bin"
    assert "RANK" not in environment and "LOCAL_RANK" not in environment


def test_threads_are_those_asked_for_or_all_allowed(tmp_path):
    assert num_threads({"OMP_NUM_THREADS": "3"}) == 3
    assert num_threads({"OMP_NUM_THREADS": "many"}) == num_threads({}) >= 1
    limit = tmp_path / "cpu.max"
    limit.write_text("250000 100000\n")
    assert _container_cores(limit) == 2
    limit.write_text("max 100000\n")
    assert _container_cores(limit) > 1000


def test_train_module_imports_neither_ultralytics_nor_torch():
    code = "import sys, defectgen.yolo.train; print([m for m in ('torch', 'ultralytics') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _run(map50, spot, recall_at_fp=None):
    rows = [
        {"class": "scratch", "defects": 3, "ap50": map50, "ap50_95": 0.1},
        {"class": "spot", "defects": 0, "ap50": spot, "ap50_95": None},
    ]
    figures = dict.fromkeys(("precision", "recall", "confidence_at_fp", "mask_map50", "mask_map50_95"), None)
    return {"metrics": {**figures, "map50": map50, "map50_95": 0.2, "recall_at_fp": recall_at_fp, "per_class": rows}}


def test_means_over_seeds_leave_out_what_is_not_known():
    mean = mean_metrics([_run(0.4, None, 0.5), _run(0.6, None)])
    assert mean["map50"] == pytest.approx(0.5)
    assert mean["recall_at_fp"] == 0.5
    assert mean["mask_map50"] is None
    assert [row["ap50"] for row in mean["per_class"]] == [pytest.approx(0.5), None]


def test_tables_show_percent_and_a_dash_for_the_unknown():
    runs = [_run(0.4, None)]
    arms = {name: {"seeds": runs, "mean": mean_metrics(runs)} for name in ("real", "real+copy-paste")}
    results = {
        "arms": arms,
        "classes": ["scratch", "spot"],
        "test_images": 3,
        "test_clean_images": 75,
        "best": {"arm": "real"},
    }
    by_arm, by_class = results_tables(results)
    assert by_arm.caption == "recall@FP: share of defects found with 1 false alarm on the 75 clean test images"
    assert [list(column.cells) for column in by_arm.columns] == [
        ["real", "real+copy-paste"],
        *[[n] * 2 for n in ("40.0", "20.0", "–")],
    ]
    assert [list(column.cells) for column in by_class.columns] == [
        ["scratch", "spot"],
        ["3", "0"],
        *[["40.0", "–"]] * 2,
    ]
    # Six classes and three arms fit a terminal of 80 columns.
    wide = {
        name: {**arm, "mean": {**arm["mean"], "per_class": arm["mean"]["per_class"] * 3}} for name, arm in arms.items()
    }
    console = Console(width=80, record=True, file=io.StringIO())
    for table in results_tables({**results, "arms": wide | {"real+defectgen": wide["real"]}}):
        console.print(table)
    shown = console.export_text()
    assert "…" not in shown and "defectgen" in shown


def test_weights_follow_what_the_detector_misses(tmp_path):
    rows = [
        {"class": "pit", "ap50": 0.2},
        {"class": "dent", "ap50": 0.6},
        {"class": "stain", "ap50": None},
        {"class": "scratch", "ap50": 1.0},
    ]
    other = [{**row, "ap50": 0.5} for row in rows]
    arms = {"real": {"mean": {"per_class": other}}, "real+defectgen": {"mean": {"per_class": rows}}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"arms": arms, "best": {"arm": "real"}}))
    assert missed_weights(path) == {"pit": 0.8, "dent": 0.4, "stain": 0.4, "scratch": 0.1}
    path.write_text(json.dumps({"arms": {"real": arms["real"]}, "best": {"arm": "real"}}))
    assert set(missed_weights(path).values()) == {0.5}
    path.write_text("[]")
    with pytest.raises(UsageError, match=r"--focus: .*results\.json holds no results of train-yolo"):
        missed_weights(path)
    with pytest.raises(UsageError, match="--focus: cannot read"):
        missed_weights(tmp_path / "none.json")


def test_two_seeds_give_a_verdict_and_one_says_what_it_takes():
    def runs(*scores):
        return [
            {**_run(0.4, 0.5), "seed": seed, "device": "cpu", "precision": "bf16", "versions": {}, "weights": "w"}
            | {"metrics": {**_run(0.4, 0.5)["metrics"], "map50_95": score}}
            for seed, score in enumerate(scores)
        ]

    mark = Annotation(0, (1, 1, 5, 5))
    images = [LabelledImage(Path(name), name, (9, 9), name, marks) for name, marks in (("a", (mark,)), ("b", ()))]
    test = [SimpleNamespace(image=image) for image in images]
    plan = SimpleNamespace(task="detect", test=test, num_clean_images=1, test_imgsz=320)

    def collected(*per_arm):
        results = dict(zip(("real", "real+defectgen"), (runs(*scores) for scores in per_arm), strict=True))
        return collect_results(results, config=TrainYolo(), class_names=["scratch", "spot"], plan=plan)

    said = (
        "Adding the synthetic images helps: on 2 real held-out images, with defects of 1 group alone, mAP50-95 changes"
    )
    assert verdict_line(collected((0.2, 0.21), (0.3, 0.32))).startswith(said)
    assert collected((0.2, 0.21), (0.1, 0.12))["verdict"]["finding"] == "hurts"
    assert "two seeds" in verdict_line(collected((0.2,), (0.3,)))


def test_detectors_of_other_settings_are_not_replaced_unasked(tmp_path, make_sources, monkeypatch):
    def worker(job, log, config_dir, label, progress, trackers=()):
        if trackers == ("fails",):
            raise RunError("stopped")
        weights = job.parent / "weights/last.pt"
        weights.parent.mkdir()
        weights.write_bytes(b"weights")
        facts = {"device": "cpu", "precision": "bf16", "versions": {}}
        return _run(0.4, 0.5) | facts | {"training": json.loads(job.read_text())["iterations"]}

    monkeypatch.setattr("defectgen.yolo.train._run_worker", worker)
    sources = make_sources(tmp_path / "sources")

    def train(iterations, *, overwrite=False, **options):
        config = TrainYolo(arms=["real", "full-real"], imgsz=64, iterations=iterations, batch=4)
        out = tmp_path / "yolo"
        if not overwrite:
            refuse_other_settings(config, out)
        return train_arms(config=config, sources=sources, synthetic={}, out=out, seed=0, progress=silent, **options)

    train(4)
    curve = tmp_path / "logs/yolo/real/seed0/events"
    curve.parent.mkdir(parents=True)
    curve.touch()
    with pytest.raises(RunError, match=r"real/seed0: holds a detector of other settings: iterations is 4 there and 8 "):
        train(8)
    assert json.loads((tmp_path / "yolo/results.json").read_text())["arms"]["real"]["seeds"][0]["training"] == 4
    assert curve.exists()
    # Figures of a detector that is gone are not left behind.
    with pytest.raises(RunError, match="stopped"):
        train(8, overwrite=True, trackers=("fails",))
    assert not (tmp_path / "yolo/results.json").exists() and not curve.exists()
    assert train(8, overwrite=True)["arms"]["real"]["seeds"][0]["training"] == 8


def test_failing_worker_shows_the_end_of_its_log(tmp_path, make_sources):
    broken = tmp_path / "broken.pt"
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("broken/data.pkl", b"no weights")
    config = TrainYolo(arms=["real"], model=str(broken), imgsz=64, iterations=4, batch=4)
    sources = make_sources(tmp_path / "sources")
    with pytest.raises(RunError, match=r"real, seed0 failed \(exit code 1\); .*log\.txt ends with") as caught:
        train_arms(config=config, sources=sources, synthetic={}, out=tmp_path / "yolo", seed=0, progress=silent)
    assert "Error" in str(caught.value)
    assert not (tmp_path / "yolo/results.json").exists()


def test_another_test_set_costs_no_training(tmp_path, make_sources, monkeypatch):
    jobs = []

    def worker(job, log, config_dir, label, progress, trackers=()):
        settings = json.loads(job.read_text())
        jobs.append(settings)
        weights = job.parent / "weights/last.pt"
        if "weights" not in settings:
            weights.parent.mkdir()
            weights.write_bytes(b"weights")
        facts = {"device": "cpu", "precision": "bf16", "versions": {}}
        training = None if "weights" in settings else {"iterations": 4}
        return _run(settings["num_test_files"] / 100, 0.5) | facts | {"training": training}

    monkeypatch.setattr("defectgen.yolo.train._run_worker", worker)
    sources = make_sources(tmp_path / "sources")
    config = TrainYolo(arms=["real"], imgsz=64, iterations=4, batch=4)

    def train(sources):
        out = tmp_path / "yolo"
        found = train_arms(config=config, sources=sources, synthetic={}, out=out, seed=0, progress=silent)
        return found["arms"]["real"]["seeds"][0]

    first = train(sources)
    fewer = replace(sources, test=sources.test[:-1])
    again = train(fewer)
    assert jobs[1]["weights"] == str(tmp_path / "yolo/real/seed0/weights/last.pt")
    assert again["metrics"] != first["metrics"] and again["training"] == first["training"] == {"iterations": 4}
    assert train(fewer) == again and len(jobs) == 2
    # Other training data, other weights.
    train(replace(fewer, train=sources.train[:-1]))
    assert "weights" not in jobs[2]


@pytest.mark.parametrize("batches", [4, 37])
def test_learning_rate_ends_with_the_last_iteration(batches):
    # 150 iterations are 38 epochs of 4 batches, the last one cut, or 5 of 37.
    epochs, group = math.ceil(150 / batches), {"initial_lr": 1.0}
    trainer = SimpleNamespace(
        epochs=epochs,
        lf=lambda epoch: max(1 - epoch / epochs, 0) * 0.99 + 0.01,
        train_loader=[None] * batches,
        optimizer=SimpleNamespace(param_groups=[group]),
    )
    rates = []
    for _ in range(150):
        _follow_schedule(trainer, iterations=150)
        rates.append(group["lr"])
    assert rates[0] == 1 and rates[75] == pytest.approx(0.505) and rates[-1] == pytest.approx(0.0166, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("model", ["yolo11n.yaml", "yolo11n-seg.yaml", "yolo11n-obb.yaml"])
def test_arms_are_trained_evaluated_and_kept(tmp_path, make_sources, make_synthetic, model):
    segment = "-seg" in model
    rows = "0 0.375 0.375 0.625 0.375 0.625 0.625\n" if model != "yolo11n.yaml" else "0 0.5 0.5 0.25 0.25\n"
    config = TrainYolo(model=model, arms=["real", "real+defectgen"], imgsz=64, iterations=5, batch=4)
    arguments = {
        "config": config,
        "sources": make_sources(tmp_path / "sources", polygons=model != "yolo11n.yaml"),
        "synthetic": {"real+defectgen": make_synthetic(tmp_path / "set", 3, rows=rows)},
        "out": tmp_path / "yolo",
        "seed": 0,
    }
    lines: list[tuple[str, int, int, str]] = []

    def note(*report) -> None:
        lines.append(report)

    results = train_arms(**arguments, progress=note)
    assert json.loads((tmp_path / "yolo/results.json").read_text()) == results
    assert list(results["arms"]) == ["real", "real+defectgen"]
    for arm in results["arms"].values():
        (run,) = arm["seeds"]
        assert run["training"]["iterations"] == 5
        # At one iteration, though arms have epochs of unequal length.
        assert run["training"]["mosaics_ended_at"] == 4
        assert 0 <= run["metrics"]["map50"] <= 1
        assert (run["metrics"]["mask_map50"] is not None) == segment
        # The second class stands in one of three held-out images, the first in two.
        assert [row["defects"] for row in run["metrics"]["per_class"]] == [2, 1]
        assert run["metrics"]["recall_at_fp"] is not None
    assert results["verdict"] is None  # one seed
    assert (tmp_path / "yolo" / results["best"]["weights"]).is_file()
    assert {line[:3] for line in lines} >= {("real, seed0", 0, 5), ("real, seed0", 5, 5), ("write the test set", 5, 5)}
    written = [(done, total) for stage, done, total, _ in lines if stage == "write real+defectgen"]
    assert written == [(done, len(written)) for done in range(1, len(written) + 1)] and written
    for arm in ("real", "real-defectgen"):
        assert (tmp_path / "yolo" / arm / "log.txt").read_text().count("Closing dataloader mosaic") == 1

    lines.clear()
    assert train_arms(**arguments, progress=note) == results
    assert lines == [(f"{arm}, seed0", 5, 5, "already trained") for arm in ("real", "real+defectgen")]

    if model == "yolo11n.yaml":
        lines.clear()
        sources = arguments["sources"]
        fewer = train_arms(**arguments | {"sources": replace(sources, test=sources.test[:2])}, progress=note)
        assert not [line for line in lines if line[3].startswith("loss")]
        assert fewer["arms"]["real"]["seeds"][0]["training"] == results["arms"]["real"]["seeds"][0]["training"]
        assert sum(row["defects"] for row in fewer["arms"]["real"]["seeds"][0]["metrics"]["per_class"]) < 3
        # Judged by the first test set again, it has its first figures.
        (run,) = train_arms(**arguments, progress=note)["arms"]["real"]["seeds"]
        assert run["metrics"] == results["arms"]["real"]["seeds"][0]["metrics"]

    lines.clear()
    changed = {**arguments, "config": config.model_copy(update={"learning_rate": 0.001, "arms": ["real"]})}
    if model == "yolo11n.yaml":
        train_arms(**changed, progress=note)
        notes = {(stage, text) for stage, _, _, text in lines}
        assert ("real, seed0", "already trained") not in notes
        assert ("real, seed0, evaluating", "on 5 test images") in notes


@pytest.mark.long
def test_trackers_get_a_detectors_curves_and_change_nothing_of_it(tmp_path, make_sources):
    pytest.importorskip("tensorboard", reason="the extra defectgen[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainYolo(arms=["real"], imgsz=64, iterations=5, batch=4)
    found = {}
    for name, trackers in (("plain", ()), ("tracked", ("tensorboard",))):
        arguments = {"sources": make_sources(tmp_path / "sources"), "synthetic": {}, "seed": 0, "progress": silent}
        out = tmp_path / name / "yolo"
        (run,) = train_arms(config=config, out=out, trackers=trackers, **arguments)["arms"]["real"]["seeds"]
        losses = run["training"]["loss_curve"]
        found[name] = (run["metrics"], losses, run["judged_sha256"], out / run["weights"])
    assert not (tmp_path / "plain/logs").exists()
    plain, tracked = found.values()
    assert plain[:3] == tracked[:3]
    # Not before both are trained: reading them imports ultralytics, which sets OMP_NUM_THREADS to 1 for what follows.
    weights, others = torch_weights(plain[3]), torch_weights(tracked[3])
    assert weights.keys() == others.keys() and all((weights[key] == others[key]).all() for key in weights)
    read = EventAccumulator(str(tmp_path / "tracked/logs/yolo/real/seed0")).Reload()
    assert {"loss", "learning_rate", "images_per_second", "map50", "map50_95"} <= set(read.Tags()["scalars"])
    assert [(event.step, event.value) for event in read.Scalars("map50")] == [(5, pytest.approx(plain[0]["map50"]))]
    last = read.Scalars("loss")[-1]
    assert (last.step, last.value) == (5, pytest.approx(np.mean([loss for _, loss in losses]), rel=1e-4))


def torch_weights(path):
    import torch

    model = torch.load(path, map_location="cpu", weights_only=False)["model"]
    return model.float().state_dict()


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_interrupt_ends_the_worker(tmp_path, make_sources):
    config = TrainYolo(arms=["real"], imgsz=64, iterations=1000, batch=4)
    sources = make_sources(tmp_path / "sources")

    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        if total == 1000 and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_arms(config=config, sources=sources, synthetic={}, out=tmp_path / "yolo", seed=0, progress=interrupt)
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "yolo") not in listing
    assert not (tmp_path / "yolo/real/seed0/result.json").exists()


@pytest.mark.long
def test_classifiers_are_trained_on_crops_and_judged_by_the_mean_over_classes(tmp_path, make_sources, make_synthetic):
    config = TrainYolo(
        model="yolo11n-cls.yaml", arms=["real", "real+defectgen"], imgsz=32, iterations=6, batch=4, seeds=[0, 1]
    )
    results = train_arms(
        config=config,
        sources=make_sources(tmp_path / "sources"),
        synthetic={"real+defectgen": make_synthetic(tmp_path / "set", 3)},
        out=tmp_path / "yolo",
        seed=0,
        progress=silent,
    )
    assert results["task"] == "classify"
    for arm in results["arms"].values():
        for run in arm["seeds"]:
            metrics = run["metrics"]
            assert run["training"]["iterations"] == 6
            per_class = {row["class"]: (row["defects"], row["accuracy"]) for row in metrics["per_class"]}
            # Four crops of each of two clean images.
            assert {name: count for name, (count, _) in per_class.items()} == {"scratch": 2, "spot": 1, "clean": 8}
            assert metrics["mean_class_accuracy"] == pytest.approx(np.mean([share for _, share in per_class.values()]))
            assert metrics["accuracy"] == pytest.approx(sum(n * share for n, share in per_class.values()) / 11)
            assert 0 <= metrics["recall_at_fp"] <= 1
    assert "mean accuracy per class changes by" in results["verdict"]["sentence"]
    folders = {path.name: len(list(path.iterdir())) for path in (tmp_path / "yolo/real/train").iterdir()}
    samples = json.loads((tmp_path / "yolo/real/samples.json").read_text())
    assert set(folders) == {"000", "001", "002"} and sum(folders.values()) == samples["list_length"]
    text = io.StringIO()
    for table in results_tables(results):
        Console(file=text, width=120).print(table)
    assert "mean accuracy per class" in text.getvalue() and "mAP" not in text.getvalue()
    assert set(missed_weights(tmp_path / "yolo/results.json")) == {"scratch", "spot"}
