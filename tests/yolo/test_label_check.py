from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defectgen.dataset.write import finish, write_composite
from defectgen.errors import DataError
from defectgen.images import sha256_file
from defectgen.records import Composite, LabelledImage, PlacedDefect
from defectgen.yolo.label_check import ultralytics_label_check


def written_set(folder: Path, *, task: str) -> Path:
    """Three images with a defect that touches the edge, one clean image."""
    for index in range(4):
        image = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        placed: tuple[PlacedDefect, ...] = ()
        if index < 3:
            image[40:48, 50:64], mask[40:48, 50:64] = 255, 2
            outline = ((50.0, 40.0), (64.0, 40.0), (64.0, 48.0), (50.0, 48.0))
            box = (50.0, 40.0, 64.0, 48.0)
            placed = (PlacedDefect(1, (48.3, 38.7, 66.0, 50.0), box, (outline,), box, {}),)
        source = LabelledImage(Path("/clean.png"), "clean.png", (64, 48), "a")
        composite = Composite(index, image, mask, source, "0" * 64, (), placed, ())
        write_composite(folder, composite, image_format="jpg", task=task, class_names=["a", "b"])  # type: ignore[arg-type]
    finish(
        folder,
        recipe_yaml="name: x\n",
        class_names=["a", "b"],
        task=task,  # type: ignore[arg-type]
        num_images=4,
        fingerprint="x",
    )
    return folder


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_ultralytics_accepts_what_was_written(tmp_path: Path, task: str) -> None:
    assert ultralytics_label_check(written_set(tmp_path / "images" / "set", task=task)) == {
        "num_images": 4,
        "num_missing": 0,
        "num_empty": 1,
        "num_corrupt": 0,
        "messages": [],
        "modified_files": [],
    }


def test_ultralytics_reports_a_broken_set_and_leaves_it_alone(tmp_path: Path) -> None:
    folder = written_set(tmp_path, task="detect")
    (folder / "labels/000000.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    (folder / "labels/000001.txt").unlink()
    padded = folder / "images/000002.jpg"
    padded.write_bytes(padded.read_bytes() + b"\0\0")
    before = {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    report = ultralytics_label_check(folder)
    assert (report["num_images"], report["num_missing"], report["num_empty"], report["num_corrupt"]) == (4, 1, 1, 1)
    corrupt, restored = report["messages"]
    assert corrupt.startswith("images/000000.jpg: ignoring corrupt image/label: Label class 7 exceeds")
    assert restored == "images/000002.jpg: corrupt JPEG restored and saved"
    # Rewritten in the copy, not here.
    assert report["modified_files"] == ["images/000002.jpg"]
    assert {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"has no data\.yaml, labels; name the folder of a finished data set"):
        ultralytics_label_check(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("train: images\n")
    with pytest.raises(DataError, match=r"data\.yaml: names must list the classes, got None"):
        ultralytics_label_check(tmp_path)
