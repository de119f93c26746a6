"""Readers of the formats that are not YOLO or labelme: right marks in pixels, and every fault with its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from defectgen.boxes import polygon_mask
from defectgen.data.formats.labelme import parse_labelme
from defectgen.data.load import load_sources, require_usable
from defectgen.data.readers import class_names, read_labelled
from defectgen.errors import DataError
from defectgen.images import encode_image
from defectgen.recipe import Data, Recipe

CLASSES = ("scratch", "pit")
SIZE_WH = (40, 20)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def write_image(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_image(np.full((20, 40, 3), 90, np.uint8) if array is None else array, "png"))
    return path


def read(images: Path, labels: Path | None, format: str, classes: Sequence[str] = CLASSES) -> tuple[Any, list[str]]:
    """(class, box, outline) of every mark per image, and the problems as text."""
    found, problems = read_labelled(images, labels, format, classes)
    marks = {one.name: [(mark.class_id, mark.xyxy, mark.polygon) for mark in one.annotations] for one in found}
    return marks, [f"{problem.severity} {problem}" for problem in problems]


def voc(*objects: str, width: int = 40) -> str:
    size = f"<size><width>{width}</width><height>20</height></size>"
    return f"<annotation>{size}{''.join(f'<object>{one}</object>' for one in objects)}</annotation>"


def voc_box(name: str, *sides: object) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{tag}>{side}</{tag}>" for tag, side in zip(tags, sides, strict=True))
    return f"<name>{name}</name><bndbox>{box}</bndbox>"


def test_voc_pixels_count_from_1_and_the_last_is_inside(images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.xml").write_text(voc(voc_box("pit", 1, 3, 10, 6), voc_box("scratch", 0, 0, 40, 20)))
    (tmp_path / "labels/b.xml").write_text(voc())
    marks, problems = read(images, None, "voc")
    assert problems == []
    assert marks == {"a.png": [(1, (0, 2, 10, 6), None), (0, (0, 0, 40, 20), None)], "b.png": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc(voc_box("dent", 1, 2, 9, 9)), "object 1: label 'dent' is not one of scratch, pit; correct it"),
        (voc(voc_box("pit", 9, 2, 3, 9)), "object 1: the box has no area, got -5 x 8 px"),
        (voc(voc_box("pit", 1, 2, 60, 9)), "object 1: the box reaches 20.0 px outside the image of 40 x 20 px"),
        (voc(voc_box("pit", 1, 2, "x", 9)), "object 1: 'x' is no number; export it again"),
        (voc("<name>pit</name>"), "object 1: has no bndbox"),
        (voc(width=50), "the file states a width of 50, but the image has 40 px"),
        ("<annotation><object>", "is no valid XML"),
        ("<root/>", "its root is <root>, not <annotation>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "is no valid XML (EntitiesForbidden"),
    ],
)
def test_faulty_voc_file_says_what_is_wrong(images: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.xml").write_text(text)
    (tmp_path / "labels/b.xml").write_text(voc())
    marks, (problem,) = read(images, None, "voc")
    assert list(marks) == ["b.png"] and problem.startswith(f"error {tmp_path / 'labels/a.xml'}: {message}")


def coco(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "train/a.png", "width": 40, "height": 20},
            {"id": 8, "file_name": "b.png", "width": 40, "height": 20},
        ],
        "categories": [{"id": 3, "name": "scratch"}, {"id": 5, "name": "pit"}],
        "annotations": list(annotations),
    } | more


def write_coco(folder: Path, content: Any) -> Path:
    path = folder / "marks.json"
    path.write_text(json.dumps(content))
    return path


RING = np.zeros((20, 40), bool)
RING[4:12, 6:16], RING[6:10, 9:13] = True, False
RUNS = [sum(1 for _ in group) for group in np.split(RING.T.ravel(), np.flatnonzero(np.diff(RING.T.ravel())) + 1)]


def test_coco_boxes_polygons_and_run_lengths_become_pixels(images: Path, tmp_path: Path) -> None:
    square, piece = [2, 2, 8, 2, 8, 8, 2, 8], [20, 2, 30, 2, 30, 9, 20, 9]
    compressed = coco_mask.encode(np.asfortranarray(RING.astype(np.uint8)))
    content = coco(
        {"image_id": 7, "category_id": 5, "bbox": [1, 2, 9, 4]},
        {"image_id": 7, "category_id": 3, "segmentation": [square], "bbox": [2, 2, 6, 6]},
        {"image_id": 7, "category_id": 3, "segmentation": [square, piece]},
        {"image_id": 8, "category_id": 5, "segmentation": {"size": [20, 40], "counts": RUNS}},
        {"image_id": 8, "category_id": 3, "segmentation": {"size": [20, 40], "counts": compressed["counts"].decode()}},
    )
    marks, problems = read(images, write_coco(tmp_path, content), "coco")
    # The ring is listed twice, as its two run lengths.
    (doubt,) = problems
    assert doubt.endswith(
        "annotations[4] (b.png): is the box of annotations[3] (b.png), as class 0 instead of 1; check it"
    )
    box, polygon, parts = marks["a.png"]
    assert box == (1, (1, 2, 10, 6), None)
    assert polygon == (0, (2, 2, 8, 8), ((2, 2), (8, 2), (8, 8), (2, 8)))
    expected = np.zeros((20, 40), bool)
    expected[2:8, 2:8] = expected[2:9, 20:30] = True
    assert parts[:2] == (0, (2, 2, 30, 9)) and (polygon_mask(parts[2], SIZE_WH) == expected).all()
    assert [mark[:2] for mark in marks["b.png"]] == [(1, (6, 4, 16, 12)), (0, (6, 4, 16, 12))]
    # The hole stays open.
    assert all((polygon_mask(mark[2], SIZE_WH) == RING).all() for mark in marks["b.png"])


def test_coco_names_its_classes_and_roboflows_parent_of_all_is_none(images: Path, tmp_path: Path) -> None:
    content = coco(
        {"image_id": 7, "category_id": 5, "bbox": [1, 2, 9, 4]}, {"image_id": 8, "category_id": 3, "bbox": [0, 0, 5, 5]}
    )
    content["categories"] = [
        {"id": 0, "name": "defects", "supercategory": "none"},
        {"id": 3, "name": "scratch", "supercategory": "defects"},
        {"id": 5, "name": "pit", "supercategory": "defects"},
    ]
    write_coco(tmp_path, content)
    data = Data(root=str(tmp_path), format="coco", train_images="images", train_clean="images")
    assert class_names(data, tmp_path) == ("scratch", "pit")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 9, "bbox": [1, 2, 3, 4]}, "category_id 9 is not in categories; export it again"),
        ({"category_id": 3, "bbox": [1, 2, 0, 4]}, "the box has no area, got 0 x 4 px"),
        ({"category_id": 3, "bbox": [1, 2, "w", 4]}, "has neither a segmentation nor a bbox of four numbers"),
        ({"category_id": 3, "segmentation": [[1, 2, 3, 4]]}, "a part of the segmentation has fewer than 3 points"),
        ({"category_id": 3, "segmentation": [[1, 2, 3]]}, "segmentation is no list of x, y pairs, got [[1, 2, 3]]"),
        ({"category_id": 3, "segmentation": {"size": [20, 40], "counts": [3]}}, "run lengths sum to 3, not 800 pixels"),
        ({"category_id": 3, "segmentation": {"size": [9, 9], "counts": [81]}}, "run lengths are of [9, 9], the image"),
        ({"category_id": 3, "segmentation": {"size": [20, 40], "counts": [800]}}, "its run lengths cover no pixel"),
        ({"category_id": 3, "bbox": [float("nan"), 2, 3, 4]}, "bbox has a number that is not finite"),
    ],
)
def test_faulty_coco_annotation_names_its_place(
    images: Path, tmp_path: Path, annotation: dict[str, Any], message: str
) -> None:
    path = write_coco(tmp_path, coco({"image_id": 7} | annotation))
    marks, (problem,) = read(images, path, "coco")
    assert list(marks) == ["b.png"]
    assert problem.startswith(f"error {path}: annotations[0] (train/a.png): {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is no COCO file"),
        ({"images": []}, "is no COCO file, it has no list `categories`"),
        (coco({"image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2]}), "annotations[0]: is of image_id 1, which"),
        (
            coco(images=[{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]),
            "lists 'a.png' more than once",
        ),
    ],
)
def test_unusable_coco_file_is_refused(images: Path, tmp_path: Path, content: Any, message: str) -> None:
    path = write_coco(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read(images, path, "coco")
    assert f"{path}: " in str(caught.value) and message in str(caught.value)


def test_coco_image_that_is_not_listed_or_not_there_is_said(images: Path, tmp_path: Path) -> None:
    content = coco()
    content["images"][1]["file_name"] = "c.png"
    path = write_coco(tmp_path, content)
    marks, problems = read(images, path, "coco")
    assert marks == {"a.png": []}
    assert problems == [
        f"error {path}: does not list 'b.png'; mark its defects there, or list it without any if it is clean",
        f"warning {path}: 'c.png': is listed, but there is no such image; add it under {images}, or remove the entry",
    ]
    (images / "a.png").write_bytes(b"damaged")
    _, problems = read(images, path, "coco")
    assert len(problems) == 3 and not any("'train/a.png': is listed, but" in problem for problem in problems)


def test_coco_that_states_another_size_is_an_error(images: Path, tmp_path: Path) -> None:
    content = coco()
    content["images"][0]["width"] = 41
    path = write_coco(tmp_path, content)
    _, problems = read(images, path, "coco")
    assert problems[0].startswith(
        f"error {path}: 'train/a.png': the file states a width of 41, but the image has 40 px"
    )


def test_file_for_all_images_is_found_or_asked_for(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images: found no \.json file with its annotations; name it in data"):
        read(images, None, "coco")
    write_coco(images, coco())
    assert read(images, None, "coco")[0] == {"a.png": [], "b.png": []}
    (images / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds 2 \.json files \(marks\.json, other\.json\); name one in data"):
        read(images, None, "coco")


def cvat(*shapes: str, more: str = "") -> str:
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    first = f'<image id="0" name="sub/a.png" width="40" height="20"><tag label="x"/>{"".join(shapes)}</image>'
    second = '<image id="1" name="b.png" width="40" height="20"/>'
    return f"<annotations><meta><task><labels>{labels}</labels></task></meta>{first}{second}{more}</annotations>"


def test_cvat_shapes_become_pixels(images: Path, tmp_path: Path) -> None:
    ring = RING[4:12, 6:16]
    runs = [len(part) for part in np.split(ring.ravel(), np.flatnonzero(np.diff(ring.ravel())) + 1)]
    shapes = [
        '<box label="pit" xtl="1" ytl="2" xbr="10.5" ybr="6"/>',
        '<box label="pit" xtl="10" ytl="8" xbr="20" ybr="12" rotation="90"/>',
        '<polygon label="scratch" points="1,1;9,1;5,9"/>',
        f'<mask label="pit" left="6" top="4" width="10" height="8" rle="{", ".join(map(str, [0, *runs]))}"/>',
    ]
    path = tmp_path / "annotations.xml"
    path.write_text(cvat(*shapes))
    marks, problems = read(images, None, "cvat")
    assert problems == [] and marks["b.png"] == []
    box, turned, polygon, mask = marks["a.png"]
    assert box == (1, (1, 2, 10.5, 6), None)
    assert turned[1] == pytest.approx((13, 5, 17, 15))
    assert polygon == (0, (1, 1, 9, 9), ((1, 1), (9, 1), (5, 9)))
    assert mask[:2] == (1, (6, 4, 16, 12)) and (polygon_mask(mask[2], SIZE_WH) == RING).all()
    data = Data(root=str(tmp_path), format="cvat", train_images="images", train_clean="images")
    assert class_names(data, tmp_path) == CLASSES


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<box label="pit" xtl="1" ytl="2" xbr="9"/>', "'' is no number"),
        ('<box label="dent" xtl="1" ytl="2" xbr="9" ybr="4"/>', "label 'dent' is not one of"),
        ('<polygon label="pit" points="1,1;2,2"/>', "points are no three or more x,y pairs, got '1,1;2,2'"),
        ('<polyline label="pit" points="1,1;2,2"/>', "a polyline cannot be used; draw a box, a polygon or a mask"),
        (
            '<mask label="pit" left="0" top="0" width="3" height="2" rle="2, 2"/>',
            "its run lengths are not those of 3 x 2",
        ),
        ('<mask label="pit" left="0" top="0" width="1" height="2" rle="2"/>', "the mask covers no pixel"),
        ('<mask label="pit" left="0" top="0" width="1" height="2" rle="x"/>', "rle is no list of whole numbers"),
    ],
)
def test_faulty_cvat_shape_names_its_place(images: Path, tmp_path: Path, shape: str, message: str) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text(cvat(shape))
    marks, (problem,) = read(images, path, "cvat")
    assert list(marks) == ["b.png"]
    assert problem.startswith(f"error {path}: image 'sub/a.png', ") and message in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations>", "is no valid XML"),
        ("<annotation/>", "its root is <annotation>, not <annotations>"),
        (cvat(more='<image name="b.png"/>'), "an image has the name 'b.png' of another"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "is no valid XML (EntitiesForbidden"),
    ],
)
def test_unusable_cvat_file_is_refused(images: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read(images, path, "cvat")
    assert f"{path}: " in str(caught.value) and message in str(caught.value)


def test_parts_of_a_coco_outline_are_wound_alike(images: Path, tmp_path: Path) -> None:
    left, right = [2, 2, 8, 2, 8, 8, 2, 8], [12, 2, 12, 8, 18, 8, 18, 2]
    mark = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [2, 2, 16, 6], "segmentation": [left, right]}
    listed = [{"id": number, "file_name": name} for number, name in enumerate(("a.png", "b.png"))]
    content = {"images": listed, "categories": [{"id": 1, "name": "pit"}], "annotations": [mark]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    ((_, _, outline),) = read(images, tmp_path / "instances.json", "coco", ["pit"])[0]["a.png"]
    # Signed areas, which `area` of an export is the sum of.
    assert cv2.contourArea(np.array(outline, np.float32)) == 72


def test_video_of_cvat_is_told_by_its_tracks(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text('<annotations><track id="0" label="pit"><box frame="0"/></track></annotations>')
    with pytest.raises(DataError) as caught:
        read(images, path, "cvat")
    expected = f"{path}: holds the tracks of a video, not images; export it again as CVAT for images 1.1"
    assert str(caught.value) == expected


def test_entry_that_fits_two_images_is_an_error(images: Path, tmp_path: Path) -> None:
    write_image(images / "cam1/0.png")
    write_image(images / "cam2/0.png", np.full((20, 40, 3), 30, np.uint8))
    listed = [{"id": number, "file_name": name} for number, name in enumerate(("a.png", "b.png", "0.png"))]
    content = {"images": listed, "categories": [{"id": 1, "name": "pit"}], "annotations": []}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    _, problems = read(images, path, "coco", ["pit"])
    reason = "is the entry of 2 images of that name; list each by its path, or name the folder of those that it lists"
    assert problems == [f"error {path}: '0.png': {reason}"]


def test_pieces_of_a_mask_are_defects_of_the_class_of_their_value(images: Path, tmp_path: Path) -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[RING], mask[2:5, 30:36], mask[14:18, 30:36] = 2, 1, 2
    write_image(tmp_path / "masks/a.png", mask)
    write_image(tmp_path / "masks/b_mask.png", np.zeros((20, 40), np.uint8))
    marks, problems = read(images, None, "masks")
    assert problems == [] and marks["b.png"] == []
    assert [mark[:2] for mark in marks["a.png"]] == [
        (0, (30, 2, 36, 5)),
        (1, (6, 4, 16, 12)),
        (1, (30, 14, 36, 18)),
    ]
    assert (polygon_mask(marks["a.png"][1][2], SIZE_WH) == RING).all()
    (only,) = {mark[0] for mark in read(images, None, "masks", ["pit"])[0]["a.png"]}
    assert only == 0


def test_numbers_in_a_mask_are_read_unscaled_and_as_indices_of_its_palette(images: Path, tmp_path: Path) -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[2:5, 30:36], mask[14:18, 30:36] = 1, 2
    write_image(tmp_path / "masks/b.png", np.zeros((20, 40), np.uint8))
    expected = [(0, (30, 2, 36, 5)), (1, (30, 14, 36, 18))]
    path = tmp_path / "masks/a.png"

    def found(classes: list[str] | None = None) -> tuple[list[Any], list[str]]:
        marks, problems = read(images, None, "masks", *([] if classes is None else [classes]))
        return [mark[:2] for mark in marks.get("a.png", [])], problems

    write_image(path, mask.astype(np.uint16))
    assert found() == (expected, [])
    with_palette = Image.fromarray(mask, "P")
    # Of PASCAL VOC: the first two classes are as bright as each other.
    with_palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    with_palette.save(path)
    assert found() == (expected, [])
    coloured = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)[mask]
    write_image(path, coloured)
    reason = "is coloured, and which of the 2 classes a colour is, it does not say"
    assert found()[1] == [f"error {path}: {reason}; save it in grey, 1 for the first class, or with a palette"]
    marks, problems = found(["pit"])
    assert [box for _, box in marks] == [box for _, box in expected]
    (problem,) = problems
    assert problem.startswith(f"warning {path}: has 2 colours beside black, but there is one class")
    path.unlink()
    shares = tmp_path / "masks/a.tif"
    assert cv2.imwrite(str(shares), 0.7 * np.repeat(mask[..., None], 3, axis=2).astype(np.float32))
    assert found(["pit"])[1] == [f"error {shares}: has float32 pixels; export it with 8 or 16 bits per channel"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((20, 40), 255, np.uint8), "has the value 255, but there are 2 classes; give each class its number"),
        (np.zeros((20, 41), np.uint8), "has 41 x 20 px, but the image 40 x 20; export it at the image's size"),
        (None, "cannot be decoded"),
    ],
)
def test_faulty_mask_says_what_is_wrong(images: Path, tmp_path: Path, mask: np.ndarray | None, message: str) -> None:
    path = write_image(tmp_path / "masks/a.png", mask)
    if mask is None:
        path.write_bytes(b"no image")
    marks, problems = read(images, None, "masks")
    assert marks == {} and problems[0].startswith(f"error {path}: ") and message in problems[0]
    assert problems[1] == (
        f"error {images / 'b.png'}: has no mask in {tmp_path / 'masks'}; "
        "draw it, or add a black one if the image is clean"
    )


def test_tree_of_mvtec_is_a_whole_recipe(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"train/good/{number:03}.png")
        for kind in ("good", "crack", "hole"):
            write_image(tmp_path / f"test/{kind}/{number:03}.png")
            if kind != "good":
                write_image(tmp_path / f"ground_truth/{kind}/{number:03}_mask.png", RING.astype(np.uint8) * 255)
    recipe = Recipe.model_validate(
        {
            "name": "bottle",
            "data": {
                "root": str(tmp_path),
                "format": "mvtec",
                "train_images": "test",
                "train_labels": "ground_truth",
                "train_clean": "train/good",
            },
        }
    )
    sources = load_sources(recipe)
    require_usable(sources)
    assert sources.class_names == ("crack", "hole")
    everything = [*sources.train, *sources.test]
    assert len(everything) == 8 and len(sources.train_clean) + len(sources.test_clean) == 8
    for image in everything:
        (mark,) = image.annotations
        assert sources.class_names[mark.class_id] == image.path.parent.name and mark.xyxy == (6, 4, 16, 12)


def test_labelme_numbers_too_large_for_a_coordinate_are_a_problem() -> None:
    shape = {"label": "pit", "shape_type": "polygon", "points": [[10**400, 2], [30, 4], [10, 20]]}
    text = json.dumps({"imageWidth": 200, "imageHeight": 100, "shapes": [shape]})
    found, (problem,) = parse_labelme(text, (200, 100), ("scratch", "pit"), "a.json")
    assert found == [] and problem.reason.startswith("points are no pairs of numbers")
