"""A trained detector on the real held-out parts. The final weights are judged: nothing is selected here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from defectgen.images import write_bytes_atomic

FALSE_ALARMS_PER_CLEAN_IMAGE = 0.01
# Of the curve of recall over false alarms per clean image.
ALARM_LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# Of detections; low, since average precision needs the whole curve. As ultralytics has it.
MIN_CONFIDENCE = {"detect": 0.001, "segment": 0.001, "obb": 0.01}
# Per image, or part of one that is as large as a tile: ultralytics' default.
MAX_DETECTIONS = 300
# Of detections that are kept to be looked at, per image or part of one as large as a tile.
DETECTIONS_FILE, KEPT_CONFIDENCE, KEPT_PER_TILE = "detections.json", 0.01, 50


def allowed_alarms(num_clean_images: int, alarms_per_image: float = FALSE_ALARMS_PER_CLEAN_IMAGE) -> int:
    """How many false alarms a level allows on so many clean images: one at least, since none at all would make recall
    hang on the single worst of them.
    """
    # The small number keeps 0.01 * 300 from falling below 3.
    return max(int(num_clean_images * alarms_per_image + 1e-9), 1)


def recall_at_false_alarms(
    *,
    hits: Sequence[np.ndarray],
    confidences: Sequence[np.ndarray],
    is_clean: Sequence[bool],
    num_clean_images: int,
    num_defects: int,
    alarms_per_image: float = FALSE_ALARMS_PER_CLEAN_IMAGE,
) -> tuple[float, float] | None:
    """Recall at the lowest threshold with at most `alarms_per_image` false alarms per clean image, and the threshold.

    A false alarm is one detection on a clean image; see `allowed_alarms`. Detections count where their confidence is
    above the threshold returned; it is 0 where the clean images would bear every detection.

    Args:
        hits: per test file, bool (N,): the detection finds a defect of its class at IoU 0.5 that none with a higher
            confidence has found (so that the matching does not depend on the threshold).
        confidences: per test file, float (N,).
        is_clean: per test file, whether it was cut from a clean image.
        num_clean_images: clean images before cutting; with none of them there is no answer, None.
        num_defects: in the test files; with none there is no answer, None.
    """
    if not num_clean_images or not num_defects:
        return None
    alarms = np.concatenate([np.zeros(0), *(conf for conf, clean in zip(confidences, is_clean, strict=True) if clean)])
    allowed = allowed_alarms(num_clean_images, alarms_per_image)
    threshold = float(np.sort(alarms)[::-1][allowed]) if len(alarms) > allowed else 0.0
    found = sum(int(hit[conf > threshold].sum()) for hit, conf in zip(hits, confidences, strict=True))
    return found / num_defects, threshold


def mean_precision(found: Sequence[np.ndarray], num_points: int, num_classes: int) -> np.ndarray:
    """float (num_points,): the mean curve of all classes of the test set.

    `found`: the classes' curves, each (num_points,). Of a class of which nothing was detected older releases of
    ultralytics have none: its precision is 0.
    """
    curve: np.ndarray = np.asarray(found, float).reshape(-1, num_points).sum(axis=0) / max(num_classes, 1)
    return curve


def evaluate(
    weights: Path,
    *,
    task: str,
    data: Path,
    imgsz: int,
    trained_imgsz: int,
    batch: int,
    device: str,
    class_names: Sequence[str],
    clean_stems: Sequence[str],
    num_clean_images: int,
    save_dir: Path,
    on_start: Callable[[Any], None],
) -> dict[str, Any]:
    """Box (and mask) AP over the test set, per class, and recall at one false alarm per 100 clean images.

    `save_dir`/detections.json gets the more confident detections per test file: [class_id, x1, y1, x2, y2, confidence],
    boxes in pixels of the file (upright ones around oriented ones).

    The curves are the classes' mean precision over recall at IoU 0.5, and recall over false alarms per clean image.
    A class without a defect in the test set has null figures and does not enter the means. Precision and recall are
    those at the confidence with the best mean F1, which ultralytics picks on the test set itself: for reading, not
    for comparing.
    """
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.models.yolo.obb import OBBValidator
    from ultralytics.models.yolo.segment import SegmentationValidator
    from ultralytics.utils import nms, ops

    kept: dict[str, list[list[float]]] = {}
    detections: dict[str, list[np.ndarray]] = {}
    base = {"detect": DetectionValidator, "segment": SegmentationValidator, "obb": OBBValidator}[task]
    # Whole images at the scale of the tiles it was trained on: so many of these are seen at once, and may hold as much.
    tiles = math.ceil((imgsz / trained_imgsz) ** 2)
    # Past a time limit ultralytics takes the batch's other images for empty: figures would follow the machine's load.
    nms.non_max_suppression = partial(nms.non_max_suppression, max_time_img=math.inf)

    class KeepingValidator(base):  # type: ignore[misc, valid-type]
        """Keeps each file's detections, which `get_stats` drops after use."""

        def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
            super().update_metrics(preds, batch)
            for number, found in enumerate(preds):
                best = found["conf"].argsort(descending=True)[: KEPT_PER_TILE * tiles]
                best = best[found["conf"][best] >= KEPT_CONFIDENCE]
                boxes = found["bboxes"][best].float()
                if task == "obb":
                    corners = ops.xywhr2xyxyxyxy(boxes)
                    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
                boxes = ops.scale_boxes(
                    batch["img"].shape[2:], boxes, batch["ori_shape"][number], ratio_pad=batch["ratio_pad"][number]
                )
                kept[Path(batch["im_file"][number]).stem] = [
                    [int(class_id), *(round(edge, 1) for edge in box), round(confidence, 4)]
                    for class_id, box, confidence in zip(
                        found["cls"][best].tolist(), boxes.tolist(), found["conf"][best].tolist(), strict=True
                    )
                ]

        def get_stats(self) -> dict[str, Any]:
            detections.update({key: list(self.metrics.stats[key]) for key in ("tp", "conf", "target_cls")})
            return super().get_stats()

    arguments = {
        "model": str(weights),
        "task": task,
        "mode": "val",
        "data": str(data),
        "imgsz": imgsz,
        "batch": max(batch // tiles, 1),
        "max_det": MAX_DETECTIONS * tiles,
        "device": device,
        "conf": MIN_CONFIDENCE[task],
        "plots": False,
        "verbose": False,
        "workers": 0,
        # Of oblong images of a line-scan camera, a square would be mostly padding.
        "rect": tiles > 1,
    }
    validator = KeepingValidator(args=arguments, save_dir=save_dir)
    validator.add_callback("on_val_start", on_start)
    validator(model=str(weights))

    write_bytes_atomic(save_dir / DETECTIONS_FILE, json.dumps(kept).encode())
    stems = [Path(name).stem for name in validator.dataloader.dataset.im_files]
    assert len(stems) == len(detections["conf"]), "the validator did not see every test file once"
    clean = set(clean_stems)
    counts = np.bincount(
        np.concatenate([np.zeros(0), *detections["target_cls"]]).astype(int), minlength=len(class_names)
    )
    found = {
        level: recall_at_false_alarms(
            hits=[np.asarray(tp)[:, 0].astype(bool) for tp in detections["tp"]],
            confidences=detections["conf"],
            is_clean=[stem in clean for stem in stems],
            num_clean_images=num_clean_images,
            num_defects=int(counts.sum()),
            alarms_per_image=level,
        )
        for level in ALARM_LEVELS
    }
    at_alarms = found[FALSE_ALARMS_PER_CLEAN_IMAGE]
    metrics = validator.metrics
    recalls = np.linspace(0, 1, 21)
    precisions = mean_precision(metrics.box.prec_values, len(metrics.box.px), len(metrics.box.ap_class_index))
    figures = {
        "map50": float(metrics.box.map50),
        "map50_95": float(metrics.box.map),
        "precision": float(metrics.box.mp),
        "recall": float(metrics.box.mr),
        "recall_at_fp": at_alarms[0] if at_alarms else None,
        "confidence_at_fp": at_alarms[1] if at_alarms else None,
        "mask_map50": float(metrics.seg.map50) if task == "segment" else None,
        "mask_map50_95": float(metrics.seg.map) if task == "segment" else None,
    }
    per_class = _per_class(metrics, class_names, counts, segment=task == "segment")
    curves = {
        "precision_over_recall": [[x, float(np.interp(x, metrics.box.px, precisions))] for x in recalls.tolist()],
        # With fewer clean images than one alarm takes, a level would mean a higher one.
        "recall_over_false_alarms": [
            [level, recall[0]] for level, recall in found.items() if recall and level * num_clean_images >= 1
        ],
    }
    return {
        **figures,
        "per_class": per_class,
        "curves": curves,
        "test_files": len(stems),
        "test_defects": int(counts.sum()),
    }


def evaluate_crops(
    weights: Path,
    *,
    folder: Path,
    imgsz: int,
    batch: int,
    device: str,
    class_names: Sequence[str],
    num_clean_images: int,
    on_start: Callable[[Any], None],
) -> dict[str, Any]:
    """How often a classifier gives a test crop its class: of all crops, per class and the classes' mean; and recall at
    one false alarm per 100 clean images, a clean crop taken for a defect.

    Args:
        folder: of the test crops, in a folder per class, by number; the one after the last class is of clean product.
    """
    from ultralytics import YOLO

    files = sorted(folder.glob("*/*.png"))
    truth = np.array([int(path.parent.name) for path in files])
    model = YOLO(str(weights))
    model.add_callback("on_predict_start", on_start)
    names = [str(path) for path in files]
    shares = np.empty((len(files), len(model.names)), np.float32)
    # Of a list of files ultralytics makes one batch, whatever `batch` says.
    for start in range(0, len(names), batch):
        found: Any = model.predict(names[start : start + batch], imgsz=imgsz, device=device, verbose=False)
        shares[start : start + batch] = [one.probs.data.float().cpu().numpy() for one in found]
    # A class that no training crop shows has no output: by number, as they were trained.
    shown = [int(name) for _, name in sorted(model.names.items())]
    guess = np.array(shown)[shares.argmax(axis=1)]
    is_clean = truth == len(class_names)
    defects = [column for column, number in enumerate(shown) if number != len(class_names)]
    # An alarm is raised by the share of clean alone, so a defect is found by its class among the defects'.
    named = np.array(shown)[defects][shares[:, defects].argmax(axis=1)]
    as_clean = shares[:, shown.index(len(class_names))] if len(class_names) in shown else np.zeros(len(files))
    at_alarms = recall_at_false_alarms(
        hits=[np.array([right]) for right in (named == truth) & ~is_clean],
        confidences=[np.array([1 - share]) for share in as_clean],
        is_clean=is_clean.tolist(),
        num_clean_images=num_clean_images,
        num_defects=int((~is_clean).sum()),
    )
    accuracies = [_share(guess[truth == number] == number) for number in range(len(class_names) + 1)]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return {
        "accuracy": _share(guess == truth),
        "mean_class_accuracy": float(np.mean(known)),
        "recall_at_fp": at_alarms[0] if at_alarms else None,
        "confidence_at_fp": at_alarms[1] if at_alarms else None,
        "per_class": [
            {"class": name, "defects": int((truth == number).sum()), "accuracy": accuracies[number]}
            for number, name in enumerate([*class_names, "clean"])
        ],
        "test_files": len(files),
        "test_defects": int((~is_clean).sum()),
    }


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None


def _per_class(metrics: Any, class_names: Sequence[str], counts: np.ndarray, *, segment: bool) -> list[dict[str, Any]]:
    # `ap_class_index` names the classes of the rows; `maps` would fill absent classes with the mean.
    rows = {int(class_id): row for row, class_id in enumerate(metrics.box.ap_class_index)}
    table = []
    for class_id, name in enumerate(class_names):
        row = rows.get(class_id)
        entry = {
            "class": name,
            "defects": int(counts[class_id]),
            "ap50": None if row is None else float(metrics.box.ap50[row]),
            "ap50_95": None if row is None else float(metrics.box.ap[row]),
        }
        if segment:
            entry["mask_ap50"] = None if row is None else float(metrics.seg.ap50[row])
            entry["mask_ap50_95"] = None if row is None else float(metrics.seg.ap[row])
        table.append(entry)
    return table
