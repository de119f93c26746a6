"""What a folder holds is found whatever tool left it so; what is not read is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from defectgen.data.aside import with_aside
from defectgen.data.load import load_sources
from defectgen.data.look import look
from defectgen.draft import draft, read_layout
from defectgen.errors import DataError
from defectgen.images import encode_image
from defectgen.recipe import Recipe
from defectgen.records import Sources

ROW, ROWS = "0 0.5 0.5 0.3 0.3\n", "0 0.5 0.5 0.3 0.3\n1 0.2 0.2 0.2 0.2\n"


def images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng(len(list(folder.iterdir()))).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        (folder / name).write_bytes(encode_image(pixels, "png"))
    return folder


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def yolo(folder: Path, labels: Path, *stems: str, rows: str = ROWS) -> None:
    images(folder, *(f"{stem}.png" for stem in stems))
    for stem in stems:
        text(labels / f"{stem}.txt", rows)


def coco(path: Path, *names: str, x: int = 5, classes: tuple[str, ...] = ("dent",)) -> None:
    listed = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    marks = [
        {"id": 10 * one + kind, "image_id": one, "category_id": kind, "bbox": [x, 5 + 20 * kind, 9, 9]}
        for one in range(len(names))
        for kind in range(len(classes))
    ]
    text(path, json.dumps({"images": listed, "categories": categories, "annotations": marks}))


def voc(path: Path, *classes: str) -> None:
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    marks = "".join(f"<object><name>{name}</name>{box}</object>" for name in classes)
    text(path, f"<annotation>{marks}</annotation>")


def cvat(path: Path, *names: str) -> None:
    box = '<box label="dent" xtl="4" ytl="4" xbr="20" ybr="22"/>'
    listed = "".join(f'<image name="{name}" width="64" height="64">{box}</image>' for name in names)
    text(path, f"<annotations>{listed}</annotations>")


def checked(root: Path) -> Sources:
    """As `check FOLDER` reads it."""
    layout = look(root)[0]
    return with_aside(read_layout(root, layout)[1], root, layout)


def fields(root: Path, format: str | None = None) -> dict[str, object]:
    return {field: value for field, value in look(root, format)[0].data.items() if field not in ("format", "classes")}


def notes(root: Path) -> str:
    return "\n".join(look(root)[0].notes)


def test_splits_that_share_file_names_get_the_labels_of_their_own(tmp_path: Path) -> None:
    for split, x in (("train", 5), ("test", 30)):
        images(tmp_path / split, "0.png", "1.png")
        coco(tmp_path / f"annotations/instances_{split}.json", "0.png", "1.png", x=x)
    sources = checked(tmp_path)
    assert {mark.xyxy[0] for image in sources.train_pool for mark in image.annotations} == {5}
    assert {mark.xyxy[0] for image in sources.test for mark in image.annotations} == {30}


def test_split_whose_own_labels_are_gone_gets_no_others(tmp_path: Path) -> None:
    for split in ("train", "test"):
        images(tmp_path / split, "0.png", "1.png")
    coco(tmp_path / "annotations/instances_train.json", "0.png", "1.png")
    assert "test_images" not in fields(tmp_path)
    assert "no annotations, left aside: test (2 images)" in notes(tmp_path)


def test_file_that_lists_most_images_is_taken_and_others_are_passed_over(tmp_path: Path) -> None:
    images(tmp_path / "images", "0.png", "1.png", "2.png")
    text(tmp_path / "info.json", "{}")
    coco(tmp_path / "annotations/a.json", "0.png")
    coco(tmp_path / "annotations/b.json", "0.png", "1.png", "2.png")
    assert fields(tmp_path)["train_labels"] == "annotations/b.json"


def test_image_is_not_given_the_labels_of_one_in_another_folder(tmp_path: Path) -> None:
    images(tmp_path / "cam1", "0.png", "1.png")
    images(tmp_path / "cam2", "0.png", "1.png")
    coco(tmp_path / "all.json", "cam1/0.png", "cam1/1.png")
    assert fields(tmp_path)["train_images"] == "cam1"
    assert "no annotations, left aside: cam2 (2 images)" in notes(tmp_path)


@pytest.mark.parametrize("format", ["coco", "cvat", "voc"])
def test_depth_images_beside_the_photos_are_not_taken_for_them(tmp_path: Path, format: str) -> None:
    photos = "JPEGImages" if format == "voc" else "images"
    for folder in ("Depth", photos):
        images(tmp_path / folder, "0.png", "1.png")
    if format == "voc":
        for stem in "01":
            voc(tmp_path / f"Annotations/{stem}.xml", "dent")
    elif format == "coco":
        coco(tmp_path / "annotations/instances.json", "0.png", "1.png")
    else:
        cvat(tmp_path / "annotations.xml", "0.png", "1.png")
    assert fields(tmp_path)["train_images"] == photos
    assert f"the same file names as other images, not read: Depth (as {photos})" in notes(tmp_path)


def test_split_of_cvats_folders_is_known(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        folder = tmp_path / f"obj_{split}_data"
        yolo(folder, folder, f"{split}0", f"{split}1")
    assert fields(tmp_path) == {"train_images": "obj_train_data", "test_images": "obj_test_data"}


def test_split_in_data_yaml_is_kept_and_never_leaves_the_root(tmp_path: Path) -> None:
    for line in ("line1", "line2", "line3"):
        yolo(tmp_path / "set/images" / line, tmp_path / "set/labels" / line, f"{line}_0", f"{line}_1")
    head = "names: [dent, pit]\ntest: /etc\n"
    text(tmp_path / "set/data.yaml", f"{head}train: [images/line2, images/line3]\nval: ../images/line1\n")
    found = fields(tmp_path / "set")
    assert (found["train_images"], found["test_images"]) == ("images", "images/line1")
    text(tmp_path / "set/data.yaml", f"{head}train: images/line1\nval: ../../set/images/line2\n")
    assert fields(tmp_path / "set")["train_images"] == "images"
    text(tmp_path / "set/data.yaml", "names: [")
    assert fields(tmp_path / "set")["train_images"] == "images"


@pytest.mark.parametrize("places", [("ImageSets/Main/train.txt", "ImageSets/Main/val.txt"), ("train.txt", "valid.txt")])
def test_split_in_lists_is_named_since_it_is_not_read(tmp_path: Path, places: tuple[str, str]) -> None:
    yolo(tmp_path / "JPEGImages", tmp_path / "labels", "0", "1", "2")
    text(tmp_path / places[0], "0\n1\n")
    assert "lists a split" not in notes(tmp_path)
    text(tmp_path / places[1], "2\n")
    expected = f"lists a split in {', '.join(places)}, which is not read; name held-out groups in data.test_groups"
    assert expected in notes(tmp_path)


def test_folder_without_annotations_is_named(tmp_path: Path) -> None:
    yolo(tmp_path / "valid/images", tmp_path / "valid/labels", "0", "1")
    yolo(tmp_path / "train/images", tmp_path / "train/label", "2", "3", "4")
    assert "no annotations, left aside: train/images (3 images)" in notes(tmp_path)


def test_damaged_file_for_all_images_is_an_error_with_its_reason(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        images(tmp_path / split, "0.png", "1.png")
        coco(tmp_path / split / "_annotations.coco.json", "0.png", "1.png")
    damaged = tmp_path / "train/_annotations.coco.json"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (error,) = checked(tmp_path).problems
    assert error.severity == "error" and error.path == str(damaged) and "export it again" in error.remedy
    (tmp_path / "valid/_annotations.coco.json").unlink()
    with pytest.raises(DataError, match=r"found 4 images, but no annotations .*\n.*train/_annotations\.coco\.json: "):
        look(tmp_path)
    # Read in another way, the file is named all the same.
    yolo(tmp_path / "train", tmp_path / "train", "0", "1")
    assert f"not read: {damaged}: " in notes(tmp_path)


def test_truncated_cvat_file_is_named_with_its_reason(tmp_path: Path) -> None:
    images(tmp_path / "images", "0.png")
    cvat(tmp_path / "annotations.xml", "0.png")
    (tmp_path / "annotations.xml").write_text((tmp_path / "annotations.xml").read_text()[:-9])
    with pytest.raises(DataError, match=r"annotations\.xml: .*XML"):
        look(tmp_path)


def test_three_labels_of_many_images_are_found(tmp_path: Path) -> None:
    images(tmp_path / "images", *(f"{number:03d}.png" for number in range(90)))
    for number in (7, 45, 83):
        text(tmp_path / f"labels/{number:03d}.txt", ROWS)
    assert look(tmp_path)[0].data["format"] == "yolo"


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights on Windows")
def test_link_to_a_folder_is_named_with_its_target(tmp_path: Path) -> None:
    yolo(tmp_path / "disk/images", tmp_path / "disk/labels", "0", "1")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to(tmp_path / "disk/images")
    (tmp_path / "set/labels").symlink_to(tmp_path / "disk/labels")
    message = f"images: is a link to a folder, which is not followed; name its target, {tmp_path}/disk/images"
    with pytest.raises(DataError, match="holds no image") as caught:
        look(tmp_path / "set")
    assert str(caught.value).count("is a link") == 1 and message in str(caught.value)
    yolo(tmp_path / "set/train", tmp_path / "set/train", "2", "3")
    assert message in notes(tmp_path / "set")


def test_test_folder_within_the_training_folder_is_read_once(tmp_path: Path) -> None:
    yolo(tmp_path, tmp_path, "a", "b", "c")
    yolo(tmp_path / "test", tmp_path / "test", "d", "e")
    sources = checked(tmp_path)
    assert sources.problems == () and (len(sources.train_pool), len(sources.test)) == (3, 2)


def test_clean_folder_within_the_images_needs_no_labels(tmp_path: Path) -> None:
    yolo(tmp_path / "images", tmp_path / "labels", "a", "b", "c", "d")
    images(tmp_path / "images/good", "e.png", "f.png")
    sources = checked(tmp_path)
    assert sources.problems == () and len(sources.train_pool) + len(sources.test) == 4


def test_validation_folder_within_the_training_folder_is_left_aside(tmp_path: Path) -> None:
    for folder in (".", "val", "test"):
        yolo(tmp_path / folder, tmp_path / folder, f"{len(folder)}_0", f"{len(folder)}_1")
    layout = look(tmp_path)[0]
    assert len(read_layout(tmp_path, layout)[1].train_pool) == 2
    assert len(checked(tmp_path).test) == 4
    recipe, sources = draft(tmp_path, layout)
    assert len(sources.train_pool) == 2 and "leave_out: [val]" in recipe


def test_subfolders_of_a_split_are_read_together(tmp_path: Path) -> None:
    for camera in ("cam1", "cam2", "cam3"):
        yolo(tmp_path / "images/train" / camera, tmp_path / "labels/train" / camera, f"{camera}_0", f"{camera}_1")
    assert fields(tmp_path) == {"train_images": "images/train"}
    images(tmp_path / "images/train/good", "g.png")
    yolo(tmp_path / "images/train/test", tmp_path / "labels/train/test", "t")
    assert fields(tmp_path) == {
        "train_images": "images/train",
        "train_clean": "images/train/good",
        "test_images": "images/train/test",
    }
    sources = checked(tmp_path)
    assert sources.problems == () and (len(sources.train_pool), len(sources.test)) == (6, 1)


@pytest.mark.parametrize("stranger", ["val", "unmarked"])
def test_subfolders_are_not_read_together_where_others_lie_among_them(tmp_path: Path, stranger: str) -> None:
    for folder in ("cam1", "cam2", "test"):
        yolo(tmp_path / "images" / folder, tmp_path / "labels" / folder, f"{folder}_0")
    images(tmp_path / "images" / stranger, "x.png")
    if stranger == "val":
        text(tmp_path / "labels/val/x.txt", ROWS)
    assert fields(tmp_path) == {"train_images": "images/cam1", "test_images": "images/test"}
    assert "left aside: images/cam2 (one folder is read per subset)" in notes(tmp_path)


def test_slip_in_a_class_number_makes_no_classes(tmp_path: Path) -> None:
    yolo(tmp_path / "images", tmp_path / "labels", "0", "1", "2", rows=ROWS.replace("1 0.2", "1.0 0.2"))
    yolo(tmp_path / "images", tmp_path / "labels", "3", rows=f"{ROWS}2024 0.7 0.7 0.1 0.1\n")
    text(tmp_path / "labels/gone.txt", "7 0.7 0.7 0.1 0.1\n")
    text(tmp_path / "labels/2.txt", f"{ROWS}9 0.7\n{'1' * 5000} 0.5 0.5 0.1 0.1\n")
    assert look(tmp_path)[0].data["classes"] == ["class0", "class1"]
    errors = [str(problem) for problem in checked(tmp_path).problems if problem.severity == "error"]
    assert len(errors) == 3 and any("labels/3.txt: row 3: class 2024 is not one of 0 to 1" in line for line in errors)


def test_notes_beside_images_are_no_labels(tmp_path: Path) -> None:
    yolo(tmp_path, tmp_path, "a", "b", "c")
    text(tmp_path / "notes.txt", "2024 line 3, camera 2\n")
    assert look(tmp_path)[0].data["classes"] == ["class0", "class1"]
    assert checked(tmp_path).problems == ()


@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_labels_that_subsets_share_are_only_unused_where_none_has_them(tmp_path: Path, format: str) -> None:
    names = [f"{split}{number}" for split in ("train", "valid", "test") for number in range(2)]
    for name in names:
        images(tmp_path / name[:-1], f"{name}.png")
    if format == "coco":
        coco(tmp_path / "all.json", *(f"{name}.png" for name in [*names, "gone"]))
    for name in [*names, "gone"]:
        if format == "yolo":
            text(tmp_path / f"labels/{name}.txt", ROWS)
        elif format == "voc":
            voc(tmp_path / f"Annotations/{name}.xml", "dent")
    layout = look(tmp_path)[0]
    assert layout.data["format"] == format
    for sources in (draft(tmp_path, layout)[1], checked(tmp_path)):
        (warning,) = sources.problems
        assert warning.severity == "warning" and "gone" in str(warning)


def test_orphan_is_not_excused_by_an_image_of_the_same_name_with_labels_of_its_own(tmp_path: Path) -> None:
    for split in ("train", "test"):
        yolo(tmp_path / split / "images", tmp_path / split / "labels", "0", "1", "2")
    (tmp_path / "train/images/1.png").unlink()
    (warning,) = checked(tmp_path).problems
    assert str(warning).startswith(f"{tmp_path}/train/labels/1.txt: the label file has no image")


def test_cocos_own_tree_is_found(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        images(tmp_path / "images" / split, f"{split}.png")
        coco(tmp_path / f"annotations/instances_{split}.json", f"{split}.png")
    assert fields(tmp_path) == {
        "train_images": "images/train2017",
        "train_labels": "annotations/instances_train2017.json",
        "test_images": "images/val2017",
        "test_labels": "annotations/instances_val2017.json",
    }


def test_cvats_folders_below_images_are_read_by_the_names_in_its_file(tmp_path: Path) -> None:
    for lot in ("lot1", "lot2"):
        images(tmp_path / "images" / lot, "0.png", "1.png")
    cvat(tmp_path / "annotations.xml", *(f"{lot}/{number}.png" for lot in ("lot1", "lot2") for number in range(2)))
    assert fields(tmp_path) == {"train_images": "images", "train_labels": "annotations.xml"}
    sources = checked(tmp_path)
    assert sources.problems == () and len(sources.train_pool) + len(sources.test) == 4


def test_masks_in_a_tree_beside_that_of_the_images_are_found(tmp_path: Path) -> None:
    for split in ("train", "test"):
        images(tmp_path / "images" / split, f"{split}0.png", f"{split}1.png")
        images(tmp_path / "masks" / split, f"{split}0.png", f"{split}1.png")
    assert fields(tmp_path) == {
        "train_images": "images/train",
        "train_labels": "masks/train",
        "test_images": "images/test",
        "test_labels": "masks/test",
    }


def test_upper_case_names_are_found(tmp_path: Path) -> None:
    images(tmp_path / "Images", "0.png", "1.png", "2.png")
    for number in range(3):
        text(tmp_path / f"Labels/{number}.TXT", ROWS)
    sources = checked(tmp_path)
    assert sources.problems == () and len(sources.train_pool) + len(sources.test) == 3
    (tmp_path / "Images/1.png").unlink()
    (warning,) = checked(tmp_path).problems
    assert str(warning).startswith(f"{tmp_path}/Labels/1.TXT: the label file has no image")


def test_class_names_come_from_the_file_nearest_to_the_root(tmp_path: Path) -> None:
    yolo(tmp_path / "train", tmp_path / "train", "0", "1")
    text(tmp_path / "train/_darknet.labels", "dent\npit\n")
    assert look(tmp_path)[0].data["classes"] == ["dent", "pit"]
    text(tmp_path / "train/old/classes.txt", "x\ny\n")
    assert look(tmp_path)[0].data["classes"] == ["dent", "pit"]
    text(tmp_path / "classes.txt", "\ufeffDelle\r\nLoch\r\n")
    assert look(tmp_path)[0].data["classes"] == ["Delle", "Loch"]


def test_folder_of_several_mvtec_products_names_them(tmp_path: Path) -> None:
    for product in ("bottle", "cable"):
        for folder in ("train/good", "test/good", "test/dent"):
            images(tmp_path / product / folder, "0.png")
        images(tmp_path / product / "ground_truth/dent", "0_mask.png")
    with pytest.raises(DataError, match=r"each a tree of MVTec AD \(bottle, cable\); name one, as in .*/bottle$"):
        look(tmp_path)
    assert look(tmp_path / "cable")[0].data["format"] == "mvtec"


@pytest.mark.parametrize("format", ["cvat", "voc"])
def test_annotations_outside_the_folder_name_the_one_to_look_at(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "set/images", "0.png", "1.png")
    if format == "cvat":
        cvat(tmp_path / "set/annotations.xml", "0.png", "1.png")
    else:
        voc(tmp_path / "set/Annotations/0.xml", "dent")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"outside it, in .*nnotations.*; name {tmp_path}/set instead"):
        look(Path("set/images"))
    assert fields(Path("set"))["train_images"] == "images"


def test_classes_of_the_validation_folder_are_classes(tmp_path: Path) -> None:
    for split, classes in (("train", "ab"), ("valid", "ac"), ("test", "ab")):
        images(tmp_path / split, f"{split}.png")
        voc(tmp_path / split / f"{split}.xml", *classes)
    assert look(tmp_path)[0].data["classes"] == ["a", "b", "c"]
    assert not any("is not one of" in str(problem) for problem in checked(tmp_path).problems)


def test_classes_of_coco_are_those_of_all_its_files(tmp_path: Path) -> None:
    for split, classes in (("train", ("dent",)), ("test", ("dent", "pit"))):
        images(tmp_path / split, f"{split}.png")
        coco(tmp_path / split / "a.json", f"{split}.png", classes=classes)
    assert look(tmp_path)[0].data["classes"] == ["dent", "pit"]
    (error,) = (problem for problem in checked(tmp_path).problems if problem.severity == "error")
    assert "class 1 'pit': has no marked defect in the 1 training images, but 1 in the held-out ones" in str(error)


@pytest.mark.parametrize("format", ["coco", "cvat"])
@pytest.mark.parametrize("place", ["", "annotations"])
def test_clean_folder_beside_images_with_one_file_for_all_is_found(tmp_path: Path, format: str, place: str) -> None:
    names = [f"{number}.png" for number in range(3)]
    images(tmp_path / "images", *names)
    # Named alike, as a camera counts.
    images(tmp_path / "clean", *names)
    if format == "coco":
        coco(tmp_path / place / "instances.json", *names)
    else:
        cvat(tmp_path / place / "annotations.xml", *names)
    found = fields(tmp_path)
    assert (found["train_images"], found["train_clean"]) == ("images", "clean")


def test_marked_images_in_a_folder_called_like_clean_product_are_defective(tmp_path: Path) -> None:
    for light in ("normal", "dark"):
        yolo(tmp_path / light / "images", tmp_path / light / "labels", "0", "1", "2")
    assert "train_clean" not in fields(tmp_path)
    assert fields(tmp_path)["train_images"] == "dark/images"
    assert "left aside: normal/images (one folder is read per subset)" in notes(tmp_path)
    # Empty labels, and those of other images of the same names, say that nothing is marked.
    for stem in ("0", "1", "2"):
        text(tmp_path / "normal/labels" / f"{stem}.txt", "")
    assert fields(tmp_path)["train_clean"] == "normal/images"
    other = tmp_path / "other"
    yolo(other / "images", other / "labels", "0", "1", "2")
    images(other / "clean", "0.png", "1.png", "2.png")
    assert fields(other)["train_clean"] == "clean"


def test_marked_images_of_a_set_in_a_folder_called_clean_are_defective(tmp_path: Path) -> None:
    images(tmp_path / "raw", "0.png", "1.png")
    images(tmp_path / "clean", "2.png", "3.png")
    coco(tmp_path / "instances.json", "raw/0.png", "raw/1.png", "clean/2.png", "clean/3.png")
    assert fields(tmp_path) == {"train_images": ".", "train_labels": "instances.json"}


def test_class_files_of_other_orders_are_an_error(tmp_path: Path) -> None:
    for split in ("train", "test"):
        yolo(tmp_path / split, tmp_path / split, "0", "1")
    text(tmp_path / "train/classes.txt", "scratch\ndent\n")
    text(tmp_path / "test/classes.txt", "scratch\n")
    assert look(tmp_path)[0].data["classes"] == ["scratch", "dent"]
    text(tmp_path / "test/classes.txt", "dent\nscratch\n")
    found = look(tmp_path)[0]
    (problem,) = found.problems
    assert str(problem) == (
        f"{tmp_path}/train/classes.txt: lists the classes as scratch, dent, but {tmp_path}/test/classes.txt as dent, "
        "scratch; a label file gives their numbers alone: give all folders one list"
    )
    assert found.data["classes"] == ["class0", "class1"]


def test_names_of_a_data_yaml_further_down_are_found(tmp_path: Path) -> None:
    inner = tmp_path / "housing.v1i.yolov11"
    yolo(inner / "train/images", inner / "train/labels", "0", "1")
    text(inner / "data.yaml", "names: [dent, pit]\n")
    assert look(tmp_path)[0].data["classes"] == ["dent", "pit"]
    # One beside other things says nothing of these labels, sound or not.
    (inner / "data.yaml").unlink()
    text(tmp_path / "old/run/data.yaml", "path: somewhere\n")
    found = look(tmp_path)[0]
    assert found.data["classes"] == ["class0", "class1"] and found.problems == ()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train_set", "test_set"),
        ("train_images", "test_images"),
        ("images-train", "images-test"),
        ("obj_train2017_data", "obj_test2017_data"),
    ],
)
def test_split_is_told_by_names_with_an_ending(tmp_path: Path, train: str, test: str) -> None:
    for folder, stems in ((train, ("0", "1")), (test, ("2", "3"))):
        yolo(tmp_path / folder / "images", tmp_path / folder / "labels", *stems)
    assert fields(tmp_path) == {"test_images": f"{test}/images", "train_images": f"{train}/images"}


def test_second_file_that_lists_images_of_a_folder_is_named(tmp_path: Path) -> None:
    images(tmp_path / "images", *(f"{number}.png" for number in range(5)))
    coco(tmp_path / "annotations/instances_a.json", "0.png", "1.png", "2.png")
    coco(tmp_path / "annotations/instances_b.json", "3.png", "4.png")
    expected = "more images of images are listed in annotations/instances_b.json; only annotations/instances_a.json is"
    assert expected in notes(tmp_path)
    (first, _) = (str(problem) for problem in checked(tmp_path).problems if problem.severity == "error")
    assert first.endswith(
        "annotations/instances_a.json: does not list '3.png', but instances_b.json does; one file is read: join them"
    )
    # A split counts its images from 0, too: these are others.
    for name in ("a", "b"):
        (tmp_path / f"annotations/instances_{name}.json").rename(
            tmp_path / f"annotations/instances_{'train' if name == 'a' else 'val'}.json"
        )
    errors = [str(problem) for problem in checked(tmp_path).problems if problem.severity == "error"]
    assert len(errors) == 2 and all("mark its defects there" in error for error in errors)


def test_images_that_are_not_read_share_no_entry(tmp_path: Path) -> None:
    images(tmp_path / "images/defective", "0.png", "1.png")
    images(tmp_path / "images/clean", "0.png", "1.png")
    coco(tmp_path / "instances.json", "0.png", "1.png")
    data = {"root": str(tmp_path), "format": "coco", "train_labels": "instances.json", "train_images": "images"}
    for more in ({"train_clean": "images/clean"}, {"leave_out": ["images/clean"], "base": "defective"}):
        sources = load_sources(Recipe.model_validate({"name": "x", "data": data | {"test_fraction": 0} | more}))
        assert [str(problem) for problem in sources.problems] == [] and len(sources.train) == 2
