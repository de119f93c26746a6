"""`train-yolo`: YOLO11 trained per arm and seed, each in a process of its own, and results.json."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from defectgen.device import best_device, bf16_pays
from defectgen.errors import DefectgenError, RunError, UsageError
from defectgen.images import sha256_file, write_bytes_atomic
from defectgen.progress import WARNING, Progress
from defectgen.recipe import TrainYolo
from defectgen.records import Problem, Sources
from defectgen.seeds import derive_seed
from defectgen.yolo.arm_files import read_json, to_json, write_arm, write_test
from defectgen.yolo.arms import ArmPlan, Plan, arm_slug, check_outlines, plan_arms
from defectgen.yolo.environment import worker_environment
from defectgen.yolo.results import collect_results

# Raised when a change of the worker makes earlier results incomparable.
JOB_VERSION = 5
# Raised when a change makes earlier figures of the same detectors incomparable: they are judged again.
JUDGING_VERSION = 2
_LOG_LINES_SHOWN = 12
_YAML_MODEL = re.compile(r"yolo11[nsmlx](-seg|-obb|-cls)?\.yaml")


def train_arms(
    *,
    config: TrainYolo,
    sources: Sources,
    synthetic: dict[str, Path],
    out: Path,
    seed: int,
    progress: Progress,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Train and evaluate every arm and seed of `config`; the content of `out`/results.json.

    Finished trainings whose job (settings, lists, images, labels, weights) is unchanged are kept, so that a stopped
    run continues; others are replaced (`refuse_other_settings`). Where the test set alone is another, they are judged
    again.

    Args:
        synthetic: YOLO data-set folder (images/, labels/) per arm other than `real`.
        out: the run's yolo/ folder.
        trackers: see `trackers.tracked`; they log to logs/ beside `out`.

    Raises:
        UsageError: the model is neither a YOLO11 .yaml nor a local .pt.
        DataError: as `plan_arms`.
        RunError: a training failed; names its log.
    """
    model = resolve_model(config.model)
    plan = plan_arms(config=config, sources=sources, synthetic=synthetic, seed=seed)
    out = out.absolute()
    test_digest = write_test(plan, out, progress)
    results: dict[str, list[dict[str, Any]]] = {}
    for arm in plan.arms:
        arm_digest = write_arm(plan, arm, out, sources.class_names, progress)
        for index in config.seeds:
            job = _job(plan, arm, config, model, sources.class_names, out, seed=seed, index=index)
            trained_sha256 = _fingerprint(job, arm_digest)
            judged_by = [JUDGING_VERSION, trained_sha256, test_digest, *(job[name] for name in _JUDGED_BY)]
            judged_sha256 = hashlib.sha256(to_json(judged_by)).hexdigest()
            fingerprints = {"trained_sha256": trained_sha256, "judged_sha256": judged_sha256}
            results.setdefault(arm.name, []).append(_run_or_keep(job, fingerprints, arm, out, progress, trackers))
    summary = collect_results(results, config=config, class_names=sources.class_names, plan=plan)
    summary["test_sha256"] = test_digest
    manifests = {arm: folder / "manifest.jsonl" for arm, folder in synthetic.items()}
    summary["sets_sha256"] = {arm: sha256_file(path) for arm, path in manifests.items() if path.exists()}
    write_bytes_atomic(out / "results.json", to_json(summary))
    return summary


def refuse_other_settings(config: TrainYolo, out: Path) -> None:
    """Of what the user sets: what follows from the data changes with it, and the detectors are trained anew.

    Args:
        out: the run's yolo/ folder.

    Raises:
        RunError: a finished detector would be lost to one of other settings.
    """
    now = _settings(config)
    for arm, index in itertools.product(config.arms, config.seeds):
        folder = out / arm_slug(arm) / f"seed{index}"
        was = read_json(folder / "job.json")
        if was is None or not (folder / "result.json").exists():
            continue
        # A model by its name: it may lie elsewhere, and other weights of that name are seen by their hash.
        was["model"] = Path(was.get("model", "")).name
        unlike = [
            f"{name} is {was[name]!r} there and {value!r} here"
            for name, value in now.items()
            if was.get(name, value) != value
        ]
        if unlike:
            raise RunError(
                f"{folder}: holds a detector of other settings: {'; '.join(unlike)}; choose another --out, or "
                "--overwrite to train it again"
            )


# What the arms' lists and tiles follow from, of which the digest of an arm tells where it matters.
_SETTINGS_OF_LISTS = ("real_share", "clean_share", "tile_px")


def _settings(config: TrainYolo) -> dict[str, Any]:
    """Of a job, what the user sets."""
    return {
        "model": Path(config.model).name,
        "iterations": config.iterations,
        "batch": config.batch,
        "imgsz": config.imgsz,
        "learning_rate": config.learning_rate,
        "mosaic": config.mosaic,
        "scale": config.scale_jitter,
        **{name: getattr(config, name) for name in _SETTINGS_OF_LISTS},
    }


def label_agreement(out: Path, arm: str, *, judge: str, progress: Progress) -> dict[str, Any]:
    """How far a detector trained on all real images finds the synthetic defects of `arm` where their labels say.

    Its mAP50 and mAP50-95 over the synthetic images of the arm, taken for real ones: low where labels or defects are
    not like real ones. Both arms have been trained into `out` by `train_arms`.
    """
    folder, trained = out.absolute() / arm_slug(arm), out.absolute() / arm_slug(judge) / "seed0"
    target = folder / "agreement"
    images = sorted((folder / "train/images").glob("synthetic-*"))
    write_bytes_atomic(folder / "agreement.txt", "".join(f"./train/images/{path.name}\n" for path in images).encode())
    settings = json.loads((trained / "job.json").read_text(encoding="utf-8"))
    data = {"train": "agreement.txt", "val": "agreement.txt", "names": settings["class_names"]}
    write_bytes_atomic(folder / "agreement.yaml", to_json(data))
    job = settings | {
        "weights": str(trained / "weights/last.pt"),
        "data": str(folder / "agreement.yaml"),
        "save_dir": str(target),
        "clean_stems": [],
        "num_clean_images": 0,
        "num_test_files": len(images),
        "test_imgsz": settings["imgsz"],
    }
    samples = sha256_file(folder / "samples.json")
    judged_by = [JUDGING_VERSION, job, sha256_file(Path(job["weights"])), samples]
    fingerprint = hashlib.sha256(to_json(judged_by)).hexdigest()
    kept = read_json(target / "result.json")
    if kept is None or kept.get("job_sha256") != fingerprint:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for cache in (folder / "train").glob("*.cache"):
            cache.unlink()
        write_bytes_atomic(target / "job.json", to_json(job))
        label = f"{judge} on the synthetic images of {arm}"
        kept = _run_worker(target / "job.json", folder / "log.txt", out.absolute() / ".ultralytics", label, progress)
        kept = {"job_sha256": fingerprint, **kept}
        write_bytes_atomic(target / "result.json", to_json(kept))
    return {name: kept["metrics"][name] for name in ("map50", "map50_95")}


def resolve_model(model: str) -> str:
    """The model as ultralytics is to be told: a name of its own, or the absolute path of local weights.

    Raises:
        UsageError: it is neither; nothing is ever downloaded.
    """
    if model.endswith(".pt"):
        path = Path(model).expanduser().absolute()
        if not path.is_file():
            raise UsageError(
                f"train_yolo.model: no file {path}; weights are never downloaded: fetch them, give a local path, or "
                "set yolo11n.yaml for random weights"
            )
        if not zipfile.is_zipfile(path):
            raise UsageError(
                f"train_yolo.model: {path} ({path.stat().st_size} bytes) holds no weights as torch saves them, or not "
                "all of them; copy it again"
            )
        return str(path)
    if not _YAML_MODEL.fullmatch(model):
        raise UsageError(
            f"train_yolo.model: is no YOLO11, got {model!r}; name yolo11n.yaml (or s, m, l, x, with -seg for outlines, "
            "-obb for oriented boxes, -cls for classes of crops) or a local .pt file"
        )
    return model


def faults_of_model(config: TrainYolo, sources: Sources) -> list[Problem]:
    """An error where `config.model` cannot be trained on the images: what `train-yolo` would refuse, for `check`."""
    try:
        resolve_model(config.model)
        check_outlines(sources, config)
    except DefectgenError as error:
        return [Problem.of_error(error)]
    return []


def _job(
    plan: Plan,
    arm: ArmPlan,
    config: TrainYolo,
    model: str,
    class_names: Sequence[str],
    out: Path,
    *,
    seed: int,
    index: int,
) -> dict[str, Any]:
    folder = out / arm.slug
    return {
        "version": JOB_VERSION,
        **_settings(config),
        "task": plan.task,
        "model": model,
        "data": str(folder if plan.task == "classify" else folder / "data.yaml"),
        "test": str(out / "test"),
        "save_dir": str(folder / f"seed{index}"),
        "epochs": arm.schedule.epochs,
        "torch_seed": derive_seed(seed, "yolo", "train", index) % 2**31,
        "class_names": list(class_names),
        "clean_stems": list(plan.clean_stems),
        "num_clean_images": plan.num_clean_images,
        "num_test_files": len(plan.test),
        "test_imgsz": plan.test_imgsz,
    }


# What a job says of the test set, and of where files lie; and what the digest of its arm says better.
_JUDGED_BY = ("clean_stems", "num_clean_images", "num_test_files", "test_imgsz")
_NOT_TRAINED_WITH = {"data", "test", "save_dir", "model", *_JUDGED_BY, *_SETTINGS_OF_LISTS}


def _fingerprint(job: dict[str, Any], arm_digest: str) -> str:
    """A hash of everything the weights follow from, wherever the run folder lies: a training from another machine, or
    from before an update, is not compared with a new one.
    """
    portable = {key: value for key, value in job.items() if key not in _NOT_TRAINED_WITH}
    model = sha256_file(Path(job["model"])) if job["model"].endswith(".pt") else job["model"]
    return hashlib.sha256(to_json([portable, model, arm_digest, computed_by()])).hexdigest()


def computed_by() -> list[str | bool]:
    """Device, precision and packages: of other ones, weights differ in more than their last bits."""
    device = best_device()
    return [device.type, bf16_pays(device), *(version(name) for name in ("torch", "ultralytics"))]


def _run_or_keep(
    job: dict[str, Any],
    fingerprints: dict[str, str],
    arm: ArmPlan,
    out: Path,
    progress: Progress,
    trackers: Sequence[str],
) -> dict[str, Any]:
    """What is in result.json. A detector judged by another test set is judged again; of other data, trained again."""
    folder = Path(job["save_dir"])
    label = f"{arm.name}, {folder.name}"
    weights = folder / "weights" / "last.pt"
    kept = read_json(folder / "result.json") or {}
    is_trained = kept.get("trained_sha256") == fingerprints["trained_sha256"] and weights.is_file()
    if is_trained and kept.get("judged_sha256") == fingerprints["judged_sha256"]:
        progress(label, job["iterations"], job["iterations"], "already trained")
        return kept
    # It tells of the detector that goes, or of the other test set.
    (out / "results.json").unlink(missing_ok=True)
    if is_trained:
        job = job | {"weights": str(weights)}
    else:
        shutil.rmtree(out.parent / "logs" / "yolo" / arm.slug / folder.name, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for cache in (*out.glob("test/*.cache"), *folder.parent.glob("train/*.cache")):
        # Pickles that ultralytics loads before it checks them.
        cache.unlink()
    write_bytes_atomic(folder / "job.json", to_json(job))
    log = folder.parent / "log.txt"
    figures = _run_worker(folder / "job.json", log, out / ".ultralytics", label, progress, trackers)
    if is_trained:
        figures["training"] = kept["training"]
    relative = weights.relative_to(out).as_posix()
    seed_index = int(folder.name.removeprefix("seed"))
    result = {
        "arm": arm.name,
        "seed": seed_index,
        "date": date.today().isoformat(),
        **fingerprints,
        "weights": relative,
        **figures,
    }
    write_bytes_atomic(folder / "result.json", to_json(result))
    return result


def _run_worker(
    job: Path, log: Path, config_dir: Path, label: str, progress: Progress, trackers: Sequence[str] = ()
) -> dict[str, Any]:
    config_dir.mkdir(parents=True, exist_ok=True)
    # Trackers stand beside the job: a job is what the result follows from.
    command = [sys.executable, "-m", "defectgen.yolo.worker", str(job), *trackers]
    result: dict[str, Any] | None = None
    with log.open("ab") as sink:
        sink.write(f"== {label}\n".encode())
        sink.flush()
        start = sink.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            # Away from files named like a model or a data set, which ultralytics would take.
            cwd=job.parent,
            env=worker_environment(config_dir, os.environ),
            start_new_session=os.name == "posix",
            encoding="utf-8",
            errors="replace",
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                sink.write(line.encode())
                sink.flush()
                event = json.loads(line)
                if event["event"] == "done":
                    result = event["result"]
                else:
                    _report(event, label, progress)
            code = process.wait()
        finally:
            _kill(process)
    if code != 0 or result is None:
        raise RunError(f"train-yolo: {label} failed (exit code {code}); {log} ends with:\n{_tail(log, start)}")
    return result


def _kill(process: subprocess.Popen[str]) -> None:
    """End the worker and its data loaders, if they still run (Ctrl-C, or an error while reading)."""
    if process.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _report(event: dict[str, Any], label: str, progress: Progress) -> None:
    match event["event"]:
        case "start":
            note = f"device {event['device']}, {event['precision']}, {event['threads']} threads"
            progress(label, 0, event["iterations"], note)
        case "train":
            progress(label, event["iteration"], event["iterations"], f"loss {event['loss']:.3f}")
        case "evaluate":
            progress(f"{label}, evaluating", 0, 0, f"on {event['images']} test images")
        case _:
            progress(f"{label}{WARNING}", 0, 0, event["message"])


def _tail(log: Path, start: int) -> str:
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in deque(lines, maxlen=_LOG_LINES_SHOWN))
