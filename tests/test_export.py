"""What is written is read back, by defectgen and by the tools it is written for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import filelock
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from defectgen.cli import app
from defectgen.data.look import look
from defectgen.draft import read_layout
from defectgen.errors import DataError, RunError, UsageError
from defectgen.export import FORMATS, export
from defectgen.images import encode_image, read_rgb
from defectgen.records import Annotation, LabelledImage, Problem, Sources
from defectgen.yolo.environment import worker_environment

CLASSES = ("scratch", "pit")
TRIANGLE = ((10.0, 12.0), (40.5, 14.0), (22.0, 33.25))


def image_file(path: Path, *, seed: int, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(60, 200, (48, 64, 3)).astype(np.uint8)
    if orientation == 1:
        path.write_bytes(encode_image(pixels, "png"))
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.rot90(pixels)).save(path, exif=exif)
    return path


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Two marked images and a clean one of the same name for training, a marked one to test, turned by EXIF."""

    def image(name: str, seed: int, *marks: Annotation, orientation: int = 1) -> LabelledImage:
        path = image_file(tmp_path / "in" / str(seed) / name, seed=seed, orientation=orientation)
        return LabelledImage(path, name, (64, 48), name, marks)

    box, small = Annotation(1, (3.0, 4.5, 20.0, 30.0)), Annotation(0, (44.0, 2.0, 60.5, 11.0))
    outlined = Annotation(0, (10.0, 12.0, 40.5, 33.25), TRIANGLE)
    pool = (image("a/part.png", 1, box, small), image("b.png", 2, outlined))
    test = (image("turned.jpg", 4, box, orientation=6),)
    return Sources(CLASSES, pool[:1], pool, (image("b.png", 3),), test, ())


def silent(*report: Any) -> None:
    """No progress."""


def boxes_of(images: tuple[LabelledImage, ...]) -> list[list[tuple[int, ...]]]:
    """Per image, by pixels: classes and boxes to half a pixel."""
    return sorted(
        sorted((mark.class_id, *(round(2 * value) for value in mark.xyxy)) for mark in image.annotations)
        for image in images
    )


@pytest.mark.parametrize("to", ["yolo", "yolo-seg", "coco", "masks"])
def test_own_readers_give_the_same_boxes(sources: Sources, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out"
    facts = export(sources, out, to, progress=silent)
    assert facts["images"] == {"train": 3, "test": 1} and facts["defects"] == {"train": 3, "test": 1}
    layout, *_ = look(out, to.split("-")[0])
    if to == "masks":
        layout.data["classes"] = list(CLASSES)
    _, back = read_layout(out, layout, split=False)
    assert not [problem for problem in back.problems if problem.severity == "error"]
    expected, found = boxes_of(sources.train_pool), boxes_of(back.train_pool)
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1)
    np.testing.assert_allclose(np.concatenate(boxes_of(back.test)), np.concatenate(boxes_of(sources.test)), atol=1)


def test_masks_are_read_by_pillow_and_measured_by_pycocotools(sources: Sources, tmp_path: Path) -> None:
    from pycocotools import mask as coco_mask

    export(sources, tmp_path / "out", "masks", progress=silent)
    for stem, marks in (("a_part", sources.train_pool[0].annotations), ("b", sources.train_pool[1].annotations)):
        with Image.open(tmp_path / "out/train/masks" / f"{stem}.png") as picture:
            assert picture.mode == "L" and picture.size == (64, 48)
            values = np.asarray(picture)
        assert sorted(set(values.flat)) == [0, *sorted({mark.class_id + 1 for mark in marks})]
        for mark in marks:
            encoded = coco_mask.encode(np.asfortranarray(values == mark.class_id + 1).astype(np.uint8))
            x, y, width, height = coco_mask.toBbox(encoded)
            assert np.abs(np.array([x, y, x + width, y + height]) - mark.xyxy).max() <= 0.5


def test_plain_images_are_copied_and_turned_ones_written_upright(sources: Sources, tmp_path: Path) -> None:
    export(sources, tmp_path / "out", "yolo", progress=silent)
    written = {path.name: path for path in (tmp_path / "out").rglob("images/*")}
    assert sorted(written) == ["a_part.png", "b.png", "b_2.png", "turned.png"]
    assert written["b_2.png"].read_bytes() == sources.train_clean[0].path.read_bytes()
    turned = Image.open(written["turned.png"])
    assert turned.size == (64, 48) and turned.getexif().get(0x0112, 1) == 1
    assert (np.asarray(turned) == read_rgb(sources.test[0].path)).all()
    assert {path.stem for path in (tmp_path / "out").rglob("labels/*")} == {path.stem for path in written.values()}


def test_oriented_boxes_lie_around_their_outlines(sources: Sources, tmp_path: Path) -> None:
    facts = export(sources, tmp_path / "out", "yolo-obb", progress=silent)
    assert facts["boxes_as_outlines"] == 3
    (row,) = (tmp_path / "out/train/labels/b.txt").read_text().splitlines()
    class_id, *values = (float(value) for value in row.split())
    corners = np.array(values).reshape(4, 2) * (64, 48)
    edges = np.roll(corners, -1, axis=0) - corners
    # A corner that reached out by a pixel was moved in.
    assert class_id == 0 and abs(edges[0] @ edges[1]) < 0.02 * np.prod(np.linalg.norm(edges[:2], axis=1))
    # Every point of the outline is on the inner side of every edge, and every edge touches it.
    inner = np.array(
        [[np.cross(edge, point - corner) for point in TRIANGLE] for corner, edge in zip(corners, edges, strict=True)]
    )
    signed = inner * np.sign(inner.sum())
    scale = np.linalg.norm(edges, axis=1)[:, None]
    assert (signed / scale).min() > -0.5 and (np.abs(signed / scale).min(axis=1) < 0.5).all()


def test_crops_show_the_defects_and_clean_product(sources: Sources, tmp_path: Path) -> None:
    export(sources, tmp_path / "out", "yolo-cls", progress=silent)
    crops = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert crops == {
        "train/pit/a_part_0.png",
        "train/scratch/a_part_1.png",
        "train/scratch/b_0.png",
        "train/clean/b_2_0.png",
        "test/pit/turned_0.png",
    }
    crop, whole = read_rgb(tmp_path / "out/train/scratch/b_0.png"), read_rgb(sources.train_pool[1].path)
    # 1.5 x 30.5 px about the middle of the box, (25.25, 22.6), within the image.
    assert crop.shape == (46, 46, 3) and (crop == whole[0:46, 2:48]).all()


def test_coco_is_read_by_pycocotools(sources: Sources, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    export(sources, tmp_path / "out", "coco", progress=silent)
    coco = COCO(str(tmp_path / "out/train/_annotations.coco.json"))
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    by_name = {
        image["file_name"]: coco.loadAnns(coco.getAnnIds(image["id"])) for image in coco.loadImgs(coco.getImgIds())
    }
    assert [(one["category_id"], one["bbox"]) for one in by_name["a_part.png"]] == [
        (2, [3, 4.5, 17, 25.5]),
        (1, [44, 2, 16.5, 9]),
    ]
    (outlined,) = by_name["b.png"]
    assert coco.annToMask(outlined).sum() == pytest.approx(outlined["area"], rel=0.1)
    assert by_name["b_2.png"] == []


READ_BY_ULTRALYTICS = """
import json, sys
from pathlib import Path
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import ClassificationDataset, YOLODataset
from ultralytics.data.utils import check_det_dataset

found = {}
for to, task in (("yolo", "detect"), ("yolo-seg", "segment"), ("yolo-obb", "obb")):
    root = Path(sys.argv[1]) / to
    data = check_det_dataset(str(root / "data.yaml"))
    read = YOLODataset(data["train"], data=data, task=task, augment=False, imgsz=64)
    labels = {Path(one["im_file"]).name: (one["cls"], one["bboxes"]) for one in read.labels}
    found[to] = {name: [classes.ravel().tolist(), boxes.tolist()] for name, (classes, boxes) in labels.items()}
    for index in range(len(read)):
        read[index]
crops = ClassificationDataset(str(Path(sys.argv[1]) / "yolo-cls/train"), get_cfg(), augment=False)
found["yolo-cls"] = [crops.base.classes, len(crops)]
print(json.dumps(found))
"""


def test_ultralytics_reads_it(sources: Sources, tmp_path: Path) -> None:
    for to in ("yolo", "yolo-seg", "yolo-obb", "yolo-cls"):
        export(sources, tmp_path / to, to, progress=silent)
    (tmp_path / "settings").mkdir()
    environment = worker_environment(tmp_path / "settings", os.environ)
    command = [sys.executable, "-c", READ_BY_ULTRALYTICS, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for to in ("yolo", "yolo-seg"):
        classes, boxes = found[to]["a_part.png"]
        assert classes == [1, 0] and found[to]["b_2.png"] == [[], []]
        np.testing.assert_allclose(np.multiply(boxes[0], (64, 48, 64, 48)), (11.5, 17.25, 17, 25.5), atol=0.5)
    # Of an oriented box it keeps the upright one around it.
    assert found["yolo-obb"]["b.png"][0] == [0]
    assert found["yolo-cls"] == [["clean", "pit", "scratch"], 4]


@pytest.mark.parametrize("to", ["yolo", "yolo-seg", "coco"])
def test_supervision_reads_it(sources: Sources, tmp_path: Path, to: str) -> None:
    import supervision

    out = tmp_path / "out"
    export(sources, out, to, progress=silent)
    if to == "coco":
        read = supervision.DetectionDataset.from_coco(str(out / "train"), str(out / "train/_annotations.coco.json"))
    else:
        read = supervision.DetectionDataset.from_yolo(
            str(out / "train/images"), str(out / "train/labels"), str(out / "data.yaml")
        )
    assert read.classes == list(CLASSES)
    found = {Path(path).name: marks for path, _, marks in read}
    assert {name: len(marks) for name, marks in found.items()} == {"a_part.png": 2, "b.png": 1, "b_2.png": 0}
    np.testing.assert_allclose(found["b.png"].xyxy, [[10, 12, 40.5, 33.25]], atol=0.5 if to != "yolo-seg" else 1.01)


def test_datasets_reads_it_as_an_image_folder(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets

    out = tmp_path / "out"
    export(sources, out, "huggingface", progress=silent)
    read = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in read.items()} == {"train": 3, "test": 1}
    (row,) = read["test"]
    assert row["image"].size == (64, 48)
    assert row["objects"] == {"bbox": [[3.0, 4.5, 17.0, 25.5]], "categories": [1], "names": ["pit"]}


def test_nothing_is_overwritten_or_left_half_written(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(sources, out, "yolo", progress=silent)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    with pytest.raises(UsageError, match="is there already"):
        export(sources, out, "coco", progress=silent)

    def broken(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("defectgen.export.shutil.copyfile", broken)
    with pytest.raises(OSError, match="No space"):
        export(sources, out, "coco", progress=silent, overwrite=True)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UnicodeEncodeError("utf-8", "", 0, 1, "x")])
def test_what_fails_leaves_no_part_behind(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("defectgen.export.shutil.copyfile", broken)
    with pytest.raises(type(error)):
        export(sources, tmp_path / "out", "coco", progress=silent)
    assert {path.name for path in tmp_path.iterdir()} == {"in", ".out.lock"}


def split_set(root: Path) -> Path:
    """train, valid and test as Roboflow writes them, a camera more to train, and names that clash."""
    for number, place in enumerate(("train", "train/more", "valid", "test")):
        for name in ("a", "b"):
            image_file(root / place / "images" / f"{name}.png", seed=10 * number + ord(name))
            (root / place / "labels").mkdir(exist_ok=True)
            width = (number + 1) / 10
            (root / place / "labels" / f"{name}.txt").write_text(f"{number % 2} 0.5 0.5 {width} 0.5\n")
    (root / "data.yaml").write_text(
        "train: train/images\nval: valid/images\ntest: test/images\nnames: [scratch, pit]\n"
    )
    return root


def exported(root: Path, to: str, out: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", str(root), "--to", to, "--out", str(out)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_validation_set_is_a_split_of_its_own_and_no_image_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = split_set(tmp_path / "set"), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    code, told = exported(Path("set"), "yolo", out)
    assert code == 0, told
    assert "what is left aside is written all the same, a validation set as a split of its own" in told
    assert "2 images with 2 defects for val" in told
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}
    assert len(found) == 8 and set(found.values()) == {path.read_bytes() for path in root.rglob("*.png")}
    for split, place in (("val", "valid"), ("test", "test")):
        for name in ("a", "b"):
            assert found[f"{split}/images/{name}.png"] == (root / place / "images" / f"{name}.png").read_bytes()
            row = (out / split / "labels" / f"{name}.txt").read_text().split()
            before = (root / place / "labels" / f"{name}.txt").read_text().split()
            np.testing.assert_allclose([float(value) for value in row], [float(value) for value in before], atol=1e-4)
    for copy in (out / "train/images").iterdir():
        (origin,) = (path for path in root.rglob("train/**/*.png") if path.read_bytes() == copy.read_bytes())
        labels = origin.parents[1] / "labels" / f"{origin.stem}.txt"
        assert (out / "train/labels" / f"{copy.stem}.txt").read_text()[0] == labels.read_text()[0]
    lines = (out / "data.yaml").read_text().splitlines()
    assert lines[:3] == ["train: train/images", "val: val/images", "test: test/images"]


def test_image_without_its_label_file_is_not_left_out_in_silence(tmp_path: Path) -> None:
    root, out = split_set(tmp_path / "set"), tmp_path / "out"
    for place in ("valid", "train"):
        missing = root / place / "labels/b.txt"
        missing.unlink()
        code, told = exported(root, "coco", out)
        assert code == 1 and f"{missing}: the label file is missing; mark its defects, or" in told.replace("\n", " ")
        assert not out.exists()


def test_name_that_is_no_utf8_is_refused_before_anything_is_written(sources: Sources, tmp_path: Path) -> None:
    image = sources.test[0]
    odd = replace(image, name="caf\udce9.jpg", path=image.path.with_name("caf\udce9.jpg"))
    for to in FORMATS:
        with pytest.raises(DataError, match=r"caf\\udce9\.jpg': the file's name is not UTF-8.*; rename it"):
            export(replace(sources, test=(odd,)), tmp_path / "out", to, progress=silent)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    with pytest.raises(DataError, match=r"the name of class 'p\\ud800' is no UTF-8"):
        export(replace(sources, class_names=("scratch", "p\ud800")), tmp_path / "out", "yolo", progress=silent)


@pytest.mark.parametrize("place", [".", "train"])
def test_recipe_for_a_folder_whose_name_is_no_utf8_is_refused(tmp_path: Path, place: str) -> None:
    root = split_set(tmp_path / "set")
    (root / place).rename((root / place).with_name("caf\udce9"))
    folder = tmp_path / "caf\udce9" if place == "." else root
    if place != ".":
        (root / "data.yaml").write_text("names: [scratch, pit]\n")
    result = CliRunner().invoke(app, ["init", str(folder), "--recipe", str(tmp_path / "new.yaml")])
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, result.exception
    assert "caf\\udce9" in result.output and "is not UTF-8, as a recipe must be; rename the folder" in result.output
    assert not (tmp_path / "new.yaml").exists()


def test_folder_of_somebody_elses_is_never_replaced(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"was not written by export .*, and is not replaced"):
        export(sources, tmp_path / "in", "yolo", progress=silent, overwrite=True)
    assert all(image.path.is_file() for image in sources.train_pool)
    for to in ("yolo", "coco"):
        export(sources, tmp_path / "out", to, progress=silent, overwrite=True)
    assert not (tmp_path / "out/data.yaml").exists()


def test_one_process_at_a_time_writes_a_folder(sources: Sources, tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".out.lock"), pytest.raises(RunError, match="another process is writing it"):
        export(sources, tmp_path / "out", "yolo", progress=silent)
    export(sources, tmp_path / "out", "yolo", progress=silent)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", ".out.lock"}


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        (
            lambda s: {"problems": (Problem("error", str(s.test[0].path), "", "is damaged", "mend it"),)},
            "yolo",
            "mend it",
        ),
        (lambda s: {"class_names": ("scratch", "clean")}, "yolo-cls", "a class is called 'clean'"),
        (lambda s: {"class_names": ("scratch", "a/b")}, "yolo-cls", "'a/b' cannot be the name of a folder"),
        (lambda s: {"class_names": tuple(map(str, range(256)))}, "masks", "holds 255 classes at most, got 256"),
    ],
)
def test_what_cannot_be_written_is_refused(
    sources: Sources, tmp_path: Path, change: Callable[[Sources], dict[str, Any]], to: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        export(replace(sources, **change(sources)), tmp_path / "out", to, progress=silent)
    assert not (tmp_path / "out").exists()


def test_every_format_is_tried_here() -> None:
    assert set(FORMATS) == {"yolo", "yolo-seg", "yolo-obb", "yolo-cls", "coco", "masks", "huggingface"}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["pcb", "ball_screw", "quay_cracks"])
def test_real_sets_are_read_back_from_every_format(name: str, tmp_path: Path) -> None:
    if not os.environ.get("DEFECTGEN_DATA"):
        pytest.skip("DEFECTGEN_DATA names no folder: the real inspection sets are absent")
    from defectgen.data.load import load_sources
    from defectgen.recipe import load_recipe

    sources = load_sources(load_recipe(Path(__file__).parents[1] / f"recipes/{name}.yaml"))
    # Crops to classify have no boxes.
    for to in FORMATS.keys() - {"yolo-cls"}:
        out = tmp_path / to
        export(sources, out, to, progress=silent)
        for split, found in read_back(out, to, sources.class_names).items():
            before = {"train": sources.train_pool, "test": sources.test}[split]
            expected = {image.name.replace("/", "_"): marks_of(image, oriented=to == "yolo-obb") for image in before}
            assert found.keys() >= expected.keys()
            for image in expected:
                # In a mask, defects that touch or overlap are one.
                if to != "masks" or not touching(expected[image]):
                    np.testing.assert_allclose(found[image], expected[image], atol=0.5, err_msg=f"{to}: {image}")
        shutil.rmtree(out)


def read_back(out: Path, to: str, class_names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Split -> image -> (N, 5) class and box: by the own readers, and by `datasets` what these do not know."""
    if to == "huggingface":
        datasets = pytest.importorskip("datasets", reason="the extra defectgen[dev] is not installed")
        read = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(out / "cache"))
        read = read.cast_column("image", datasets.Image(decode=False))
        return {
            name: {
                Path(row["image"]["path"]).name: in_order(
                    (class_id, x, y, x + w, y + h)
                    for class_id, (x, y, w, h) in zip(row["objects"]["categories"], row["objects"]["bbox"], strict=True)
                )
                for row in split
            }
            for name, split in read.items()
        }
    layout, *_ = look(out, to.split("-")[0])
    if to == "masks":
        layout.data["classes"] = list(class_names)
    _, back = read_layout(out, layout, split=False)
    return {
        name: {image.name: marks_of(image) for image in images}
        for name, images in (("train", back.train_pool), ("test", back.test))
    }


def touching(marks: np.ndarray) -> bool:
    x1, y1, x2, y2 = marks[:, 1:].T
    apart = (x1[:, None] > x2[None] + 1) | (y1[:, None] > y2[None] + 1)
    return bool((~(apart | apart.T) & ~np.eye(len(marks), dtype=bool)).any())


def marks_of(image: LabelledImage, *, oriented: bool = False) -> np.ndarray:
    boxes = [oriented_xyxy(mark, image.size_wh) if oriented else mark.xyxy for mark in image.annotations]
    return in_order((mark.class_id, *box) for mark, box in zip(image.annotations, boxes, strict=True))


def oriented_xyxy(mark: Annotation, size_wh: tuple[int, int]) -> tuple[float, ...]:
    """Around the corners, within the image, of the smallest rectangle about an outline; a plain box is its own."""
    if mark.polygon is None:
        return mark.xyxy
    corners = cv2.boxPoints(cv2.minAreaRect(np.array(mark.polygon, np.float32))).clip(0, size_wh)
    return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def in_order(boxes: Iterable[tuple[float, ...]]) -> np.ndarray:
    return np.array(sorted(boxes, key=lambda box: [round(value) for value in box]), float)


def test_set_is_not_written_among_the_images_it_is_made_of(sources: Sources, tmp_path: Path) -> None:
    image = sources.train_pool[0]
    listed = image.path.parents[1]
    assert image.name.count("/") == 1
    for out in (image.path.parent / "exported", listed / "exported"):
        with pytest.raises(UsageError, match="lies among the images it is made of"):
            export(sources, out, "coco", progress=silent)
        assert not out.exists()
    export(sources, listed / "../../beside", "coco", progress=silent)
    assert (listed.parents[1] / "beside").is_dir()
