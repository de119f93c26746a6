"""What a detector finds, misses and takes for a defect, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.errors import DataError, RunError
from defectgen.images import encode_image
from defectgen.report.misses import judged

SIDE = 100
# The detection that set it is kept with four decimals, and then lies above.
THRESHOLD = 0.14128


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Three test files: two defects of class 0 and 1, one of class 0, clean product."""
    labels = {"a": "0 0.2 0.2 0.2 0.2\n1 0.7 0.7 0.2 0.2\n", "b": "0 0.5 0.5 0.2 0.2\n", "c": ""}
    for stem, text in labels.items():
        for folder in ("images", "labels"):
            (tmp_path / "test" / folder).mkdir(parents=True, exist_ok=True)
        image = np.full((SIDE, SIDE, 3), 90, np.uint8)
        (tmp_path / f"test/images/{stem}.png").write_bytes(encode_image(image, "png"))
        (tmp_path / f"test/labels/{stem}.txt").write_text(text)
    detections = {
        "a": [
            [0, 10, 10, 30, 30, 0.9],  # Found.
            [0, 11, 10, 31, 30, 0.8],  # Again.
            [0, 60, 60, 80, 80, 0.7],  # The other class.
            [1, 0, 60, 10, 70, 0.6],  # Nothing there.
        ],
        "b": [[0, 50, 50, 70, 70, 0.5], [0, 40, 40, 60, 60, 0.05]],  # Loose; right, but below the threshold.
        "c": [[1, 5, 5, 20, 20, 0.1413], [1, 40, 40, 60, 60, 0.3]],
    }
    folder = tmp_path / "real/seed0"
    (folder / "weights").mkdir(parents=True)
    (folder / "detections.json").write_text(json.dumps(detections))
    (folder / "job.json").write_text(json.dumps({"clean_stems": ["c"]}))
    return tmp_path


def arm(threshold: float | None) -> dict[str, Any]:
    metrics = {"confidence_at_fp": threshold}
    return {"seeds": [{"arm": "real", "weights": "real/seed0/weights/last.pt", "metrics": metrics}]}


def test_every_detection_counts_once_and_the_one_that_set_the_threshold_not_at_all(yolo: Path) -> None:
    result = judged(yolo, arm(THRESHOLD), ["pit", "dent"])
    assert result is not None
    ((stem, found),) = result.found
    assert (stem, found.class_id) == ("a", 0) and found.xyxy == pytest.approx((10, 10, 30, 30))
    assert sorted((stem, mark.class_id) for stem, mark in result.missed) == [("a", 1), ("b", 0)]
    # The second box, the other class, the loose box.
    assert result.num_beside == 3
    assert [(stem, mark.confidence, clean) for stem, mark, clean in result.alarms] == [
        ("a", 0.6, False),
        ("c", 0.3, True),
    ]


def test_without_clean_images_a_usual_confidence_counts(yolo: Path) -> None:
    result = judged(yolo, arm(None), ["pit", "dent"])
    assert result is not None and result.threshold == 0.25
    assert len(result.found) == 1 and [stem for stem, _, _ in result.alarms] == ["a", "c"]


def test_detector_of_before_detections_were_kept_shows_none_and_a_damaged_record_says_so(yolo: Path) -> None:
    path = yolo / "real/seed0/detections.json"
    path.write_text("{")
    with pytest.raises(RunError, match=r"detections\.json: is damaged .*; delete .* and run `defectgen train-yolo`"):
        judged(yolo, arm(THRESHOLD), ["pit", "dent"])
    path.unlink()
    assert judged(yolo, arm(THRESHOLD), ["pit", "dent"]) is None


def test_label_that_cannot_be_read_names_its_line(yolo: Path) -> None:
    (yolo / "test/labels/b.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"b\.txt: line 1: the class must be within 0 to 1"):
        judged(yolo, arm(THRESHOLD), ["pit", "dent"])
