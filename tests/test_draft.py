"""A folder as somebody's tool left it -> a recipe that reads it without an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defectgen.data.load import load_sources, require_usable
from defectgen.data.look import look
from defectgen.draft import draft
from defectgen.errors import DataError
from defectgen.images import encode_image
from defectgen.recipe import load_recipe

BOX = "1 0.5 0.5 0.2 0.2\n"


def image(path: Path, value: int = 90, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_image(np.full((side, side, 3), value, np.uint8), "png"))


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def roboflow_yolo(root: Path) -> None:
    text(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: [dent, pit]\n",
    )
    for split in ("train", "valid", "test"):
        for number in range(4):
            image(root / split / "images" / f"p{number}.png")
            text(root / split / "labels" / f"p{number}.txt", BOX + BOX.replace("1 0.5", "0 0.2") if number else "")


def cvat_yolo(root: Path) -> None:
    text(root / "obj.names", "dent\npit\n")
    text(root / "obj.data", "classes = 2\n")
    text(root / "train.txt", "data/obj_train_data/p0.png\n")
    for number in range(4):
        image(root / "obj_train_data" / f"p{number}.png")
        text(root / "obj_train_data" / f"p{number}.txt", BOX + BOX.replace("1 0.5", "0 0.2"))


def roboflow_coco(root: Path) -> None:
    for split in ("train", "valid"):
        names = [f"p{number}.png" for number in range(4)]
        for name in names:
            image(root / split / name)
        marks = [
            {"id": 2 * n + c, "image_id": n, "category_id": 1 + c, "bbox": [5 + 20 * c, 5, 9, 9]}
            for n in range(4)
            for c in (0, 1)
        ]
        content = {
            "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
            "categories": [
                {"id": 0, "name": "defects", "supercategory": "none"},
                {"id": 1, "name": "dent", "supercategory": "defects"},
                {"id": 2, "name": "pit", "supercategory": "defects"},
            ],
            "annotations": marks,
        }
        text(root / split / "_annotations.coco.json", json.dumps(content))


def pascal_voc(root: Path) -> None:
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    for number in range(4):
        image(root / "JPEGImages" / f"p{number}.png")
        marks = "".join(f"<object><name>{name}</name>{box}</object>" for name in ("pit", "dent"))
        text(root / "Annotations" / f"p{number}.xml", f"<annotation>{marks}</annotation>")


def labelme(root: Path) -> None:
    for number in range(4):
        image(root / f"p{number}.png")
        shapes = [{"label": name, "points": [[4, 4], [20, 4], [9, 30]]} for name in ("dent", "pit")]
        text(root / f"p{number}.json", json.dumps({"shapes": shapes}))


def cvat_xml(root: Path) -> None:
    boxes = "".join(f'<box label="{name}" xtl="4" ytl="4" xbr="20" ybr="22"/>' for name in ("dent", "pit"))
    for number in range(4):
        image(root / "images" / f"p{number}.png")
    listed = "".join(f'<image name="p{number}.png" width="64" height="64">{boxes}</image>' for number in range(4))
    text(root / "annotations.xml", f"<annotations>{listed}</annotations>")


def mvtec(root: Path) -> None:
    for number in range(4):
        image(root / "train/good" / f"{number}.png")
        for kind in ("dent", "pit"):
            image(root / "test" / kind / f"{number}.png")
            image(root / "ground_truth" / kind / f"{number}_mask.png", 255)


FOLDERS = {
    "yolo": roboflow_yolo,
    "yolo from CVAT": cvat_yolo,
    "coco": roboflow_coco,
    "voc": pascal_voc,
    "labelme": labelme,
    "cvat": cvat_xml,
    "mvtec": mvtec,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_recipe_for_a_tools_folder_reads_it_without_an_error(tmp_path: Path, name: str) -> None:
    root = tmp_path / "my parts"
    FOLDERS[name](root)
    layout = look(root)[0]
    assert layout.data["format"] == name.partition(" ")[0]
    content, drafted = draft(root, layout)
    text(tmp_path / "recipe.yaml", content)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.name == "my_parts"
    sources = load_sources(recipe)
    require_usable(sources)
    assert sources == drafted and sources.class_names == ("dent", "pit")
    assert sources.train and sources.test
    assert recipe.data.base == ("clean" if name in ("mvtec", "yolo") else "defective")


def test_masks_beside_images_are_not_taken_for_the_labelled_ones(tmp_path: Path) -> None:
    for number in range(3):
        for folder in ("defect_masks", "images", "thermal"):
            image(tmp_path / folder / f"part{number}_a.png", side=256)
        text(tmp_path / "labels" / f"part{number}_a.txt", "0 0.5 0.5 0.04 0.03\n")
    layout = look(tmp_path)[0]
    assert layout.data["train_images"] == "images" and not any("left aside" in note for note in layout.notes)


def test_clean_folders_are_told_by_their_names_and_held_out_ones_stay_so(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(3):
            image(tmp_path / split / "images" / f"part{number}_a.png", side=256)
            text(tmp_path / split / "labels" / f"part{number}_a.txt", "0 0.5 0.5 0.04 0.03\n")
            image(tmp_path / split / "clean" / f"part{number}_c.png", side=256)
    layout = look(tmp_path)[0]
    assert layout.data["classes"] == ["class0"] and "class names: found none" in layout.notes[-1]
    assert {
        field: layout.data.get(field) for field in ("train_images", "train_clean", "test_images", "test_clean")
    } == {
        "train_images": "train/images",
        "train_clean": "train/clean",
        "test_images": "test/images",
        "test_clean": "test/clean",
    }
    content, _ = draft(tmp_path, layout)
    assert "  per_image: [1, 1]  # as on the real images\n" in content and "  imgsz: 256\n" in content
    assert "# group_pattern: '^(.+?)[_-][^_-]*$'" in content and "3 groups of 12 images" in content


def test_coco_of_one_annotations_folder_is_told_by_the_images_each_file_lists(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        names = [f"{split}_{number}.png" for number in range(4)]
        for name in names:
            image(tmp_path / split / name)
        listed = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        marks = [{"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 9, 9]} for number in range(4)]
        content = {"images": listed, "categories": [{"id": 1, "name": "pit"}], "annotations": marks}
        text(tmp_path / f"annotations/instances_{split}.json", json.dumps(content))
        captions = [{"id": number, "image_id": number, "caption": "a pit"} for number in range(4)]
        text(tmp_path / f"annotations/captions_{split}.json", json.dumps({"images": listed, "annotations": captions}))
    layout = look(tmp_path)[0]
    assert layout.data == {
        "format": "coco",
        "train_images": "train2017",
        "train_labels": "annotations/instances_train2017.json",
        "test_images": "val2017",
        "test_labels": "annotations/instances_val2017.json",
    }
    _, sources = draft(tmp_path, layout)
    require_usable(sources)
    assert (len(sources.train), len(sources.test)) == (4, 4)


def test_small_defects_on_large_images_are_looked_at_in_tiles(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", side=1600)
    text(tmp_path / "labels/a.txt", "0 0.5 0.5 0.01 0.01\n")
    content, _ = draft(tmp_path, look(tmp_path)[0])
    assert "  tile_px: 640  # half of the defects are at most 16 px: whole images would hide them\n" in content


def test_folder_that_can_be_read_in_two_ways_says_both_and_takes_the_one_asked_for(tmp_path: Path) -> None:
    pascal_voc(tmp_path)
    for path in list((tmp_path / "JPEGImages").iterdir()):
        text(tmp_path / "labels" / f"{path.stem}.txt", BOX)
    assert [layout.data["format"] for layout in look(tmp_path)] == ["yolo", "voc"]
    assert [layout.data["format"] for layout in look(tmp_path, "voc")] == ["voc"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "holds no image; name the folder"),
        (
            lambda root: image(root / "a.png"),
            r"found 1 images, but no annotations of them in a known format \(mvtec, coco",
        ),
    ],
)
def test_folder_that_nothing_fits_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        look(tmp_path)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name, make in FOLDERS.items():
        make(root / name.replace(" ", "_"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    draft(root / "coco", look(root / "coco")[0])
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    shutil.rmtree(root)


def test_copies_that_roboflow_made_of_a_picture_are_a_group(tmp_path: Path) -> None:
    for picture in range(8):
        for version in range(3):
            stem = f"part{picture:02d}_bmp.rf.{picture}{version}{'a' * 30}"
            image(tmp_path / "train/images" / f"{stem}.png")
            text(tmp_path / "train/labels" / f"{stem}.txt", "0 0.5 0.5 0.3 0.3\n")
    text(tmp_path / "data.yaml", "names: [dent]\n")
    content, drafted = draft(tmp_path, look(tmp_path)[0])
    text(tmp_path / "recipe.yaml", content)
    sources = load_sources(load_recipe(tmp_path / "recipe.yaml"))
    assert sources == drafted
    of_train, of_test = ({one.name.partition(".rf.")[0] for one in images} for images in (sources.train, sources.test))
    assert len(of_train | of_test) == 8 and of_test and not of_train & of_test


def test_pictures_of_one_name_on_both_sides_of_roboflows_split_are_two(tmp_path: Path) -> None:
    for split, letter in (("train", "a"), ("test", "d")):
        for picture in range(3):
            stem = f"{picture}_jpg.rf.{letter * 32}"
            image(tmp_path / split / "images" / f"{stem}.png", 40 + len(list(tmp_path.rglob("*.png"))))
            text(tmp_path / split / "labels" / f"{stem}.txt", "0 0.5 0.5 0.3 0.3\n")
    text(tmp_path / "data.yaml", "names: [dent]\n")
    content, sources = draft(tmp_path, look(tmp_path)[0])
    assert "\n  group_pattern" not in content
    assert [str(problem) for problem in sources.problems if problem.severity == "error"] == []
