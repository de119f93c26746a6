"""One training and its evaluation, in a process of its own: `python -m defectgen.yolo.worker job.json [TRACKER ...]`.

Events go to stdout as JSON lines, everything ultralytics says to stderr. ultralytics changes PIL, torch and OpenCV
when it is imported, hence the process. `train.py` starts it with the variables of `environment.py`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from defectgen.device import best_device, bf16_pays
from defectgen.trackers import Log, tracked
from defectgen.yolo.environment import num_threads

_EVENT_SECONDS = 5.0
_CURVE_POINTS = 60
# Share of the iterations, the last, without mosaics.
_WITHOUT_MOSAIC = 0.1
_INTEGRATIONS = ("sync", "clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb")

Emit = Callable[[dict[str, Any]], None]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # Whatever prints to stdout must not get between the events.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    result = run_job(job, _emitter(events), sys.argv[2:])
    _emitter(events)({"event": "done", "result": result})


def run_job(job: dict[str, Any], emit: Emit, trackers: Sequence[str] = ()) -> dict[str, Any]:
    """Train as `job` says, or take its `weights`; evaluate them; the figures, for result.json.

    `trackers` get them, too, in the run folder's logs/yolo/ARM/seedN: ultralytics' own would log an epoch at a time,
    of unequal length between arms, nothing of an evaluation that it does not make, and nothing at all where it finds
    itself under GitHub Actions; MLflow's would also patch torch and upload the weights.
    """
    save_dir = Path(job["save_dir"])
    with tracked(
        trackers,
        save_dir.parents[2] / "logs",
        "/".join(save_dir.parts[-3:]),
        warn=lambda message: emit({"event": "warning", "message": message}),
    ) as log:
        return _run_job(job, emit, log)


def _run_job(job: dict[str, Any], emit: Emit, log: Log) -> dict[str, Any]:
    import ultralytics
    import ultralytics.data.utils

    known = [name for name in _INTEGRATIONS if name in ultralytics.settings]
    ultralytics.settings.update(dict.fromkeys(known, False))
    # Reading a data set, it would fetch a font for plots that are not made, YOLO_OFFLINE or not.
    ultralytics.data.utils.check_font = lambda font: None
    if job["model"].endswith(".pt") and (task := ultralytics.YOLO(job["model"]).task) != job["task"]:
        raise SystemExit(
            f"{job['model']}: is a model for {task}, not for {job['task']}; the file name must end in -seg.pt for "
            "outlines, -obb.pt for oriented boxes, -cls.pt for classes of crops, and in none of these for boxes"
        )
    device, precision = choose_device(job.get("precision", "auto"))
    emit(
        {
            "event": "start",
            "device": device,
            "precision": precision,
            "threads": num_threads(os.environ),
            "iterations": job["iterations"],
        }
    )
    weights = Path(job.get("weights") or Path(job["save_dir"]) / "weights" / "last.pt")
    training = None if "weights" in job else _train(job, device=device, precision=precision, emit=emit, log=log)
    from defectgen.yolo.evaluate import evaluate, evaluate_crops

    emit({"event": "evaluate", "images": job["num_test_files"]})
    settings: dict[str, Any] = {
        "imgsz": job["imgsz"],
        "batch": job["batch"],
        "device": device,
        "class_names": job["class_names"],
        "num_clean_images": job["num_clean_images"],
        "on_start": _set_threads,
    }
    if job["task"] == "classify":
        metrics = evaluate_crops(weights, folder=Path(job["test"]), **settings)
    else:
        metrics = evaluate(
            weights,
            task=job["task"],
            data=Path(job["data"]),
            clean_stems=job["clean_stems"],
            save_dir=Path(job["save_dir"]),
            **settings | {"imgsz": job["test_imgsz"], "trained_imgsz": job["imgsz"]},
        )
    log({name: value for name, value in metrics.items() if isinstance(value, float)}, job["iterations"])
    return {
        "metrics": metrics,
        "training": training,
        "device": torch.cuda.get_device_name(0) if device == "0" else device,
        "precision": precision,
        "versions": {"torch": torch.__version__, "ultralytics": ultralytics.__version__},
    }


def choose_device(precision: str) -> tuple[str, str]:
    """ultralytics' name of the device, and the precision of the forward pass: bf16 where the hardware has it."""
    device = best_device()
    if precision == "auto":
        precision = "bf16" if bf16_pays(device) else "fp32"
    return "0" if device.type == "cuda" else device.type, precision


def _train(job: dict[str, Any], *, device: str, precision: str, emit: Emit, log: Log) -> dict[str, Any]:
    from ultralytics.models.yolo.classify import ClassificationTrainer
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.models.yolo.obb import OBBTrainer
    from ultralytics.models.yolo.segment import SegmentationTrainer
    from ultralytics.utils.torch_utils import strip_optimizer

    base = {
        "detect": DetectionTrainer,
        "segment": SegmentationTrainer,
        "obb": OBBTrainer,
        "classify": ClassificationTrainer,
    }[job["task"]]

    class ArmTrainer(base):  # type: ignore[misc, valid-type]
        """Trains to the last iteration and keeps the last weights: the test set is not looked at meanwhile."""

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def final_eval(self) -> None:
            strip_optimizer(self.last)

    monitor = _Monitor(job, emit, log)
    trainer = ArmTrainer(overrides=_arguments(job, device, precision))
    trainer.add_callback("on_pretrain_routine_end", _set_threads)
    trainer.add_callback("on_train_start", _set_threads)
    trainer.add_callback("on_train_batch_start", partial(_follow_schedule, iterations=job["iterations"]))
    trainer.add_callback("on_train_batch_end", monitor)
    closing = _CloseMosaic(round((1 - _WITHOUT_MOSAIC) * job["iterations"]))
    if job["mosaic"] > 0 and job["task"] != "classify":
        trainer.add_callback("on_train_batch_start", closing.at_batch)
    if device == "cpu":
        # After the EMA copy was made: what is saved stays a plain float model.
        trainer.add_callback("on_train_start", lambda trainer: _speed_up_on_cpu(trainer.model, precision))
    trainer.train()
    monitor.check_complete()
    return monitor.summary() | {"mosaics_ended_at": closing.ended_at}


def _arguments(job: dict[str, Any], device: str, precision: str) -> dict[str, Any]:
    """What ultralytics is told. Its augmentation is the same in every arm: defaults, but for what the recipe says."""
    save_dir = Path(job["save_dir"])
    return {
        "task": job["task"],
        "mode": "train",
        "model": job["model"],
        "pretrained": job["model"].endswith(".pt"),
        "data": job["data"],
        "epochs": job["epochs"],
        "batch": job["batch"],
        # Equal to the batch: an optimizer step per iteration, weight decay not rescaled.
        "nbs": job["batch"],
        "imgsz": job["imgsz"],
        "device": device,
        "workers": min(8, num_threads(os.environ)) if device == "0" else 0,
        # Of crops, ultralytics would warn and do without.
        "cache": False if job["task"] == "classify" else "ram",
        "optimizer": "AdamW",
        "lr0": job["learning_rate"],
        "mosaic": 0.0 if job["task"] == "classify" else job["mosaic"],
        "scale": job["scale"],
        "lrf": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "warmup_epochs": 0.1 * job["epochs"],
        # The default, 0.1, is meant for SGD.
        "warmup_bias_lr": 0.0,
        # See _CloseMosaic.
        "close_mosaic": 0,
        "patience": 0,
        "val": False,
        "plots": False,
        "save": False,
        "seed": job["torch_seed"],
        "deterministic": True,
        # True would download a model on CUDA; 'bf16' raises on a CPU (see _speed_up_on_cpu).
        "amp": "bf16" if device == "0" and precision == "bf16" else False,
        "project": str(save_dir.parent),
        "name": save_dir.name,
        "exist_ok": True,
        "verbose": False,
    }


def _set_threads(_: Any) -> None:
    # device='cpu' makes ultralytics leave one core out, whatever OMP_NUM_THREADS says.
    torch.set_num_threads(num_threads(os.environ))


def _follow_schedule(trainer: Any, *, iterations: int) -> None:
    """The learning rate falls with every iteration, not in steps of an epoch, and has fallen at the last one, in an arm
    whose last epoch is cut short, too. Warm-up, later in the loop, overrides.
    """
    trainer.arm_iteration = getattr(trainer, "arm_iteration", -1) + 1
    factor = trainer.lf(trainer.epochs * trainer.arm_iteration / iterations)
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


class _CloseMosaic:
    """Ends mosaics at one iteration in every arm: ultralytics would count epochs, which arms have of unequal length."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration
        self.ended_at: int | None = None

    def at_batch(self, trainer: Any) -> None:
        if trainer.arm_iteration == self.iteration:
            trainer._close_dataloader_mosaic()
            loader = trainer.train_loader
            # Loaders in processes of their own hold copies of the data set, and batches of mosaics made ahead.
            if loader.num_workers:
                loader.reset()
                # Within an epoch it goes on by the iterator that it has; newer releases of ultralytics leave it none.
                loader.iterator = loader.iterator or loader._get_iterator()
            self.ended_at = trainer.arm_iteration


def _speed_up_on_cpu(model: Any, precision: str) -> None:
    """Channels last; with bf16, the forward pass under autocast and the loss in float32."""
    model.to(memory_format=torch.channels_last)
    predict = model.predict

    def fast_predict(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            predictions = predict(x.contiguous(memory_format=torch.channels_last), *args, **kwargs)
        return _to_float(predictions)

    model.predict = fast_predict


def _to_float(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _to_float(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_float(entry) for entry in value)
    return value


class _Monitor:
    """Watches every iteration: reports, records the loss, stops at the last, fails on a loss that is not finite."""

    def __init__(self, job: dict[str, Any], emit: Emit, log: Log) -> None:
        self.job, self.emit, self.log = job, emit, log
        self.losses: list[float] = []
        self.started = self.reported = time.monotonic()
        self.first_done: float | None = None
        self.parent = os.getppid()

    def __call__(self, trainer: Any) -> None:
        if os.getppid() != self.parent:
            # The run was killed: nobody is left to read the result.
            os._exit(1)
        if trainer.batch_size != self.job["batch"]:
            raise SystemExit(f"out of memory with batch {self.job['batch']}: set a smaller train_yolo.batch")
        self.losses.append(_total(trainer.loss_items))
        iteration, iterations, now = len(self.losses), self.job["iterations"], time.monotonic()
        if not math.isfinite(self.losses[-1]):
            raise SystemExit(f"the loss is {self.losses[-1]} at iteration {iteration}: lower train_yolo.learning_rate")
        if self.first_done is None:
            self.first_done = now
        if iteration == iterations or now - self.reported >= _EVENT_SECONDS:
            self.reported = now
            recent = self.losses[-10:]
            loss, images_per_second = sum(recent) / len(recent), self.images_per_second(now)
            self.emit(
                {
                    "event": "train",
                    "iteration": iteration,
                    "iterations": iterations,
                    "loss": round(loss, 4),
                    "images_per_second": round(images_per_second, 2),
                }
            )
            rate = trainer.optimizer.param_groups[0]["lr"]
            self.log({"loss": loss, "learning_rate": rate, "images_per_second": images_per_second}, iteration)
        if iteration >= iterations:
            trainer.stop = True

    def images_per_second(self, now: float) -> float:
        """Over all iterations but the first, which pays for setting up."""
        if self.first_done is None or len(self.losses) < 2:
            return self.job["batch"] * len(self.losses) / max(now - self.started, 1e-9)
        return self.job["batch"] * (len(self.losses) - 1) / max(now - self.first_done, 1e-9)

    def check_complete(self) -> None:
        """Equal iterations are what makes arms comparable."""
        if len(self.losses) != self.job["iterations"]:
            raise SystemExit(f"trained for {len(self.losses)} iterations, asked for {self.job['iterations']}")

    def summary(self) -> dict[str, Any]:
        now = time.monotonic()
        width = math.ceil(len(self.losses) / _CURVE_POINTS)
        bins = [self.losses[start : start + width] for start in range(0, len(self.losses), width)]
        curve = [[min((i + 1) * width, len(self.losses)), sum(part) / len(part)] for i, part in enumerate(bins)]
        return {
            "iterations": len(self.losses),
            "seconds": round(now - self.started, 2),
            "images_per_second": round(self.images_per_second(self.reported), 2),
            "loss_curve": curve,
        }


def _total(loss_items: Any) -> float:
    # A dict of terms in newer releases of ultralytics, a tensor in older ones.
    return float(sum(loss_items.values()) if isinstance(loss_items, dict) else loss_items.sum())


def _emitter(events: TextIO) -> Emit:
    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    return emit


if __name__ == "__main__":
    main()
