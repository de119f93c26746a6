"""What a trained detector misses on real held-out parts, and where it raises false alarms: pictures and counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from defectgen.boxes import iou_xyxy
from defectgen.errors import RunError
from defectgen.images import read_rgb
from defectgen.records import XYXY
from defectgen.report.pictures import data_uri
from defectgen.windows import crop_window, window_at
from defectgen.yolo.evaluate import DETECTIONS_FILE, KEPT_CONFIDENCE
from defectgen.yolo.folder import read_yolo_folder

# Where there are no clean images to set it by.
DEFAULT_CONFIDENCE = 0.25
_MATCH_IOU, _BESIDE_IOU = 0.5, 0.1
# As many decimals of a confidence are kept on disk.
_DECIMALS = 4
_MOST_SHOWN = 18
_SURROUNDINGS, _LEAST_PX, _SHOWN_PX = 3.0, 64, 168
_TRUE, _FOUND = (0, 158, 115), (213, 94, 0)


@dataclass(frozen=True)
class Mark:
    class_id: int
    xyxy: XYXY
    confidence: float = 1.0


@dataclass
class Judged:
    """One arm's detector, first seed, at its threshold.

    Attributes:
        found, missed: (file stem, defect) of the real defects.
        alarms: (file stem, detection, whether on clean product), the most confident first.
        num_beside: detections that count as false alarms in every figure, but lie on a real defect: second or loose
            boxes, other classes.
    """

    arm: str
    threshold: float
    found: list[tuple[str, Mark]] = field(default_factory=list)
    missed: list[tuple[str, Mark]] = field(default_factory=list)
    alarms: list[tuple[str, Mark, bool]] = field(default_factory=list)
    num_beside: int = 0


def judged(yolo: Path, arm: dict[str, Any], class_names: Sequence[str]) -> Judged | None:
    """What the arm's first detector does on the test files; None where it was trained before that was kept, or is a
    classifier.

    Args:
        yolo: the run's yolo/ folder.
        arm: its entry in results.json.

    Raises:
        RunError, DataError: what the detector found, or the test files, are damaged or gone.
    """
    run = arm["seeds"][0]
    folder = (yolo / run["weights"]).parent.parent
    path = folder / DETECTIONS_FILE
    if not path.exists():
        return None
    try:
        detections: dict[str, list[list[float]]] = json.loads(path.read_text(encoding="utf-8"))
        clean = set(json.loads((folder / "job.json").read_text(encoding="utf-8"))["clean_stems"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: is damaged ({error}); delete {folder} and run `defectgen train-yolo` again") from None
    threshold = run["metrics"].get("confidence_at_fp")
    threshold = DEFAULT_CONFIDENCE if threshold is None else max(threshold, KEPT_CONFIDENCE)
    result = Judged(run["arm"], threshold)
    for image in read_yolo_folder(yolo / "test", class_names=class_names, outlines=False):
        stem = image.path.stem
        truth = [Mark(one.class_id, one.xyxy) for one in image.annotations]
        marks = [Mark(int(row[0]), (row[1], row[2], row[3], row[4]), row[5]) for row in detections.get(stem, [])]
        _match(stem, truth, marks, stem in clean, result)
    result.alarms.sort(key=lambda alarm: -alarm[1].confidence)
    return result


def _match(stem: str, truth: Sequence[Mark], detections: Sequence[Mark], is_clean: bool, into: Judged) -> None:
    """Each defect is found by the most confident detection of its class at IoU 0.5 that has found none before.

    What lies on no defect at all is an alarm.
    """
    open_defects = list(truth)
    for mark in sorted(detections, key=lambda mark: -mark.confidence):
        # The detection that sets the threshold is on the other side of it; rounded, it may lie above.
        if mark.confidence <= round(into.threshold, _DECIMALS):
            break
        fits = [one for one in open_defects if one.class_id == mark.class_id]
        best = max(fits, key=lambda one: iou_xyxy(one.xyxy, mark.xyxy), default=None)
        if best is not None and iou_xyxy(best.xyxy, mark.xyxy) >= _MATCH_IOU:
            open_defects.remove(best)
            into.found.append((stem, best))
        elif any(iou_xyxy(one.xyxy, mark.xyxy) >= _BESIDE_IOU for one in truth):
            into.num_beside += 1
        else:
            into.alarms.append((stem, mark, is_clean))
    into.missed += [(stem, one) for one in open_defects]


def miss_pictures(yolo: Path, one: Judged, class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Missed real defects, of all classes in turn: a data URI and a caption each."""
    by_class: dict[int, list[tuple[str, Mark]]] = {}
    for stem, mark in one.missed:
        by_class.setdefault(mark.class_id, []).append((stem, mark))
    in_turn = [miss for of_class in zip_longest(*by_class.values()) for miss in of_class if miss is not None]
    return [(_picture(yolo, stem, mark, _TRUE), class_names[mark.class_id]) for stem, mark in in_turn[:_MOST_SHOWN]]


def alarm_pictures(yolo: Path, one: Judged, class_names: Sequence[str]) -> list[tuple[str, str]]:
    """The most confident false alarms, those on clean product first: a data URI and a caption each."""
    in_order = sorted(one.alarms, key=lambda alarm: not alarm[2])[:_MOST_SHOWN]
    return [
        (
            _picture(yolo, stem, mark, _FOUND),
            f"{class_names[mark.class_id]}, {mark.confidence:.2f}{', clean product' if clean else ''}",
        )
        for stem, mark, clean in in_order
    ]


def _picture(yolo: Path, stem: str, mark: Mark, colour: tuple[int, int, int]) -> str:
    image = read_rgb(yolo / "test" / "images" / f"{stem}.png")
    x1, y1, x2, y2 = mark.xyxy
    side = round(max(_SURROUNDINGS * max(x2 - x1, y2 - y1), _LEAST_PX))
    side = min(side, max(image.shape[:2]))
    window = window_at(((x1 + x2) / 2, (y1 + y2) / 2), side, (image.shape[1], image.shape[0]))
    how = cv2.INTER_AREA if side > _SHOWN_PX else cv2.INTER_CUBIC
    crop = np.ascontiguousarray(cv2.resize(crop_window(image, window), (_SHOWN_PX, _SHOWN_PX), interpolation=how))
    left, top, right, bottom = (round(edge) for edge in window.to_window(mark.xyxy, _SHOWN_PX))
    cv2.rectangle(crop, (left - 2, top - 2), (right + 1, bottom + 1), colour, 1, cv2.LINE_AA)
    return data_uri(crop)
