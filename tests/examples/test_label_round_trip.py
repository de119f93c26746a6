"""Label Studio itself is not run: what it gives back was made by its own converter, see `exported`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from defusedxml.ElementTree import parse

from defectgen.data.formats.cvat import read_cvat
from defectgen.data.look import look
from defectgen.draft import read_layout
from defectgen.images import encode_image
from defectgen.records import Sources

CLASSES = ("Ölfleck", "Kratzer groß")
# As a YOLO row each, and the same by hand in pixels of an image of 64 x 48.
ROWS = {
    "teil 1.png": ["1 0.25 0.5 0.25 0.25", "0 0.890625 0.125 0.1875 0.25"],
    "b.png": ["0 0.513671875 0.4609375 0.015625 0.0546875"],
    "leer.png": [],
}
BOXES: dict[str, list[tuple[str, tuple[float, ...]]]] = {
    "teil 1.png": [("Kratzer groß", (8, 18, 24, 30)), ("Ölfleck", (51, 0, 63, 12))],
    "b.png": [("Ölfleck", (32.375, 20.8125, 33.375, 23.4375))],
    "leer.png": [],
}
RECORDED = Path(__file__).parent / "label_studio_export"


@pytest.fixture(scope="module")
def example_module(example: Any) -> ModuleType:
    return example.load("label_round_trip.py")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for name in ("images", "labels", "defect_masks"):
        (folder / name).mkdir(parents=True)
    for seed, (name, rows) in enumerate(ROWS.items()):
        pixels = np.random.default_rng(seed).integers(60, 200, (48, 64, 3)).astype(np.uint8)
        (folder / "images" / name).write_bytes(encode_image(pixels, "png"))
        (folder / "defect_masks" / name).write_bytes(encode_image(np.zeros((48, 64), np.uint8), "png"))
        (folder / "labels" / name).with_suffix(".txt").write_text("\n".join(rows))
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"train: images\nval: images\nnames:\n{names}\n", encoding="utf-8")
    return folder


def boxes(sources: Sources) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    images = [*sources.train_pool, *sources.train_clean]
    return {
        image.name: [(sources.class_names[mark.class_id], mark.xyxy) for mark in image.annotations] for image in images
    }


def assert_same_boxes(found: dict[str, Any], *, prefixed: bool = False) -> None:
    if prefixed:  # The code that Label Studio puts before a name.
        found = {name.split("__", 1)[1]: marks for name, marks in found.items()}
    assert found.keys() == BOXES.keys()
    for name, marks in BOXES.items():
        assert sorted(mark[0] for mark in found[name]) == sorted(mark[0] for mark in marks)
        for (_, got), (_, wanted) in zip(sorted(found[name]), sorted(marks), strict=True):
            assert got == pytest.approx(wanted, abs=0.5)


def read_back(folder: Path) -> Sources:
    """As `defectgen init` and `check` read it."""
    return read_layout(folder, look(folder)[0], split=False)[1]


def test_boxes_come_back_from_cvat(example: Any, labelled: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    shutil.copytree(labelled / "images", back / "images")
    done = example.start("label_round_trip.py", labelled, "--to", "cvat", "--out", "back/annotations.xml", cwd=tmp_path)
    assert json.loads(done.stdout) == [{"name": name, "attributes": []} for name in CLASSES]
    sources = read_back(back)
    assert sources.class_names == CLASSES
    assert_same_boxes(boxes(sources))


def test_a_correction_in_cvat_comes_back(example: Any, labelled: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    shutil.copytree(labelled / "images", back / "images")
    path = back / "annotations.xml"
    example.start("label_round_trip.py", labelled, "--to", "cvat", "--out", path, cwd=tmp_path)
    tree = parse(path)
    (image,) = (one for one in tree.getroot().iter("image") if one.get("name") == "b.png")
    image.find("box").set("xbr", "40.00")
    image.find("box").set("label", "Kratzer groß")
    tree.write(path, encoding="utf-8")
    ((name, xyxy),) = boxes(read_back(back))["b.png"]
    assert name == "Kratzer groß" and xyxy == pytest.approx((32.375, 20.8125, 40, 23.4375), abs=0.01)


def test_tasks_for_label_studio_hold_predictions_in_percent(example: Any, labelled: Path, tmp_path: Path) -> None:
    done = example.start("label_round_trip.py", labelled, "--to", "label-studio", "--out", "tasks.json", cwd=tmp_path)
    tasks = {task["data"]["image"]: task for task in json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))}
    assert set(tasks) == {f"/data/local-files/?d=images/{name}" for name in ("b.png", "leer.png", "teil%201.png")}
    first, second = tasks["/data/local-files/?d=images/teil%201.png"]["predictions"][0]["result"]
    # (8, 18, 24, 30) of 64 x 48.
    assert first["value"] == {
        "x": 12.5,
        "y": 37.5,
        "width": 25,
        "height": 25,
        "rotation": 0,
        "rectanglelabels": ["Kratzer groß"],
    }
    assert (first["original_width"], first["original_height"]) == (64, 48)
    assert second["value"]["rectanglelabels"] == ["Ölfleck"]
    assert tasks["/data/local-files/?d=images/leer.png"]["predictions"][0]["result"] == []
    # The names by which tasks and interface find each other.
    assert {first["from_name"], first["to_name"]} == {"label", "image"}
    assert done.stdout.strip() == (
        '<View><Image name="image" value="$image" /><RectangleLabels name="label" toName="image">'
        '<Label value="Ölfleck" /><Label value="Kratzer groß" /></RectangleLabels></View>'
    )


@pytest.mark.parametrize("format", ["YOLO", "COCO"])
def test_boxes_come_back_from_a_recorded_export_of_label_studio(labelled: Path, tmp_path: Path, format: str) -> None:
    back = Path(shutil.copytree(RECORDED / format, tmp_path / "back"))
    (back / "images").mkdir()
    names = json.loads((RECORDED / "names.json").read_text(encoding="utf-8"))
    assert set(names) == set(ROWS)
    for name, coded in names.items():
        shutil.copyfile(labelled / "images" / name, back / "images" / coded)
    sources = read_back(back)
    assert sources.class_names == tuple(sorted(CLASSES))
    assert_same_boxes(boxes(sources), prefixed=True)


@pytest.mark.parametrize("format", ["YOLO", "COCO"])
def test_boxes_come_back_from_label_studios_own_converter(
    example_module: ModuleType, labelled: Path, tmp_path: Path, format: str
) -> None:
    back = exported(example_module, labelled, tmp_path, format)
    assert_same_boxes(boxes(read_back(back)), prefixed=True)
    if format == "COCO":
        recorded = (RECORDED / "COCO/result.json").read_text(encoding="utf-8")
        assert (
            json.loads((back / "result.json").read_text(encoding="utf-8"))["annotations"]
            == (json.loads(recorded)["annotations"])
        )


def exported(example_module: ModuleType, labelled: Path, tmp_path: Path, format: str) -> Path:
    """What Label Studio exports after a person submitted every prediction as it is.

    tests/examples/label_studio_export holds what this made with label-studio-sdk 2.1.2, without the images.
    """
    converter = os.environ.get("LABEL_STUDIO_CONVERTER") or shutil.which("label-studio-converter")
    if converter is None:
        pytest.skip(
            "label-studio-converter is not installed: pip install label-studio-sdk, or name it in the variable "
            "LABEL_STUDIO_CONVERTER"
        )
    sources = example_module.read(labelled)
    tasks = example_module.label_studio_tasks(example_module.all_images(sources), sources.class_names, labelled)
    for number, task in enumerate(tasks, 1):
        (prediction,) = task.pop("predictions")
        submitted = {"id": number, "completed_by": 1, "was_cancelled": False, "result": prediction["result"]}
        task |= {"id": number, "annotations": [submitted]}
    export, config = tmp_path / "export.json", tmp_path / "config.xml"
    export.write_text(json.dumps(tasks))
    config.write_text(example_module.label_studio_config(sources.class_names), encoding="utf-8")
    files = {"LOCAL_FILES_SERVING_ENABLED": "true", "LOCAL_FILES_DOCUMENT_ROOT": str(labelled)}
    subprocess.run(
        [converter, "export", "-i", export, "-c", config, "-o", tmp_path / format, "-f", format, "--heartex-format"],
        env=os.environ | files,
        check=True,
        capture_output=True,
    )
    return tmp_path / format


def test_a_faulty_label_file_is_named_instead_of_left_out(example_module: ModuleType, labelled: Path) -> None:
    (labelled / "labels/b.txt").write_text("0 0.5 nan 0.1 0.1")
    with pytest.raises(SystemExit, match=r"labels/b\.txt"):
        example_module.read(labelled)


def test_a_set_of_defectgen_goes_out_with_every_image(example_module: ModuleType, made: Any, tmp_path: Path) -> None:
    sources = example_module.read(made.run / "dataset")
    images = example_module.all_images(sources)
    assert [image.path.parent.name for image in images] == ["images"] * 4
    xml = tmp_path / "made.xml"
    xml.write_bytes(example_module.cvat_xml(images, sources.class_names))
    listed = read_cvat(xml)
    assert sum(len(marks.items) for marks in listed.of_file.values()) == sum(len(one.annotations) for one in images) > 0
