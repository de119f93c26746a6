from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectgen.boxes import yolo_from_xyxy
from defectgen.data.formats.labelme import parse_labelme
from defectgen.data.formats.yolo import faults_in_data_yaml, parse_yolo
from defectgen.data.places import find_labels
from defectgen.data.readers import class_names, read_clean, read_labelled
from defectgen.errors import DataError
from defectgen.images import encode_image, write_bytes_atomic
from defectgen.recipe import Data
from defectgen.records import Annotation, Problem

CLASSES = ("pit", "scratch")
SIZE_WH = (200, 100)


def _write_image(path: Path, size_wh: tuple[int, int] = SIZE_WH) -> None:
    write_bytes_atomic(path, encode_image(np.full((size_wh[1], size_wh[0], 3), 90, np.uint8), "png"))


def _write_set(root: Path, labels: dict[str, str]) -> Path:
    """Images of SIZE_WH under root/images with these label files; returns the folder of the images."""
    for name, text in labels.items():
        _write_image(root / "images" / f"{name}.png")
        write_bytes_atomic(root / "labels" / f"{name}.txt", text.encode())
    return root / "images"


def _messages(problems: list[Problem]) -> list[str]:
    return [f"{problem.severity} {problem}" for problem in problems]


def _labelme(*shapes: dict[str, Any], **fields: Any) -> str:
    return json.dumps({"shapes": list(shapes), "imageWidth": 200, "imageHeight": 100, **fields})


def test_box_and_polygon_rows_become_pixels() -> None:
    annotations, problems = parse_yolo("\n1 0.5 0.5 0.1 0.2\n\n0 0.1 0.1 0.2 0.1 0.2 0.4\n", SIZE_WH, CLASSES, "a.txt")
    assert _messages(problems) == [
        "warning a.txt: has boxes and outlines; keep to one of them: trainers take all rows for one kind"
    ]
    assert [mark.class_id for mark in annotations] == [1, 0]
    assert annotations[0].xyxy == pytest.approx((90, 40, 110, 60)) and annotations[0].polygon is None
    assert annotations[1].xyxy == pytest.approx((20, 10, 40, 40))
    np.testing.assert_allclose(annotations[1].polygon or (), [(20, 10), (40, 10), (40, 40)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "0 0.5 0.5 0.1",
            "has 4 values, got '0 0.5 0.5 0.1'; a row is `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...`",
        ),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 6 values, got '0 0.5 0.5 0.1 0.1 0.9'; a row is `class x y w h`"),
        ("0 0.5 0.5 0.1 0.1 0.2 0.2 0.3", "has 8 values"),
        ("0 0.5 abc 0.1 0.1", "'abc' is no number; a row is"),
        ("0 0.5 nan 0.1 0.1", "'nan' is no finite number; a row is"),
        ("0 0.5 0.5 inf 0.1", "'inf' is no finite number"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is not one of 0 to 1; correct it, or add the class to the class names"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is not one of 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not one of 0 to 1"),
        ("0 90 40 110 60", "110 is no fraction of the image; divide pixels by the image's width and height"),
        ("0 0.5 0.5 0 0.1", "the box has no area, got 0 x 10 px; draw it again or remove it"),
        ("0 0.5 0.5 -0.1 0.1", "the box has no area, got -20 x 10 px"),
        ("0 0.5 0.5 0.004 0.1", "the box is 0.80 x 10.00 px, less than a pixel; draw it again or remove it"),
        ("0 0.98 0.5 0.1 0.1", "the box reaches 6.0 px outside the image of 200 x 100 px; draw it inside"),
        ("0 1.5 1.5 0.1 0.1", "the box reaches 110.0 px outside the image"),
        ("0 0.1 0.1 0.2 0.1 1.02 0.4", "the outline reaches 4.0 px outside the image"),
        ("0 0.1 0.2 0.2 0.4 0.3 0.6", "the outline has no area, got 40 x 40 px, its points on one line"),
    ],
)
def test_faulty_row_names_file_row_value_and_remedy(row: str, message: str) -> None:
    annotations, problems = parse_yolo(f"1 0.5 0.5 0.5 0.5\n{row}\n", SIZE_WH, CLASSES, "labels/a.txt")
    assert len(annotations) == 1
    assert len(problems) == 1
    assert f"{problems[0].severity} {problems[0]}".startswith(f"error labels/a.txt: row 2: {message}")


def test_edge_that_is_out_by_rounding_is_cut_to_the_image() -> None:
    annotations, problems = parse_yolo("0 0.95 0.5 0.104 0.5\n", SIZE_WH, CLASSES, "a.txt")
    assert problems == []
    assert annotations[0].xyxy == pytest.approx((179.6, 25, 200, 75))
    assert annotations[0].xyxy[2] == 200


def test_repeated_row_counts_once_with_a_warning() -> None:
    row = "0 0.5 0.5 0.1 0.1\n"
    annotations, problems = parse_yolo(row + "1" + row[1:] + row, SIZE_WH, CLASSES, "a.txt")
    assert [mark.class_id for mark in annotations] == [0, 1]
    assert _messages(problems) == [
        "warning a.txt: row 2: is the box of row 1, as class 1 instead of 0; check it",
        "warning a.txt: row 3: repeats row 1 (class 0); it counts once; remove it",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.501 0.5 0.1 0.1", "is nearly the box of row 1 (class 0); check it"),
        ("0 0.2 0.2 0.005 0.1", "is 1.0 x 10.0 px, too small for a detector to see; check it"),
    ],
)
def test_doubtful_row_counts_with_a_warning(row: str, message: str) -> None:
    annotations, problems = parse_yolo(f"0 0.5 0.5 0.1 0.1\n{row}\n", SIZE_WH, CLASSES, "a.txt")
    assert len(annotations) == 2 and _messages(problems) == [f"warning a.txt: row 2: {message}"]


@given(
    st.tuples(st.integers(8, 4000), st.integers(8, 4000)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.integers(0, len(CLASSES) - 1),
)
def test_written_box_is_read_back_within_half_a_pixel(
    size_wh: tuple[int, int], corners: tuple[float, float, float, float], class_id: int
) -> None:
    width, height = size_wh
    # A box of at least two pixels a side, inside.
    x1, y1 = corners[0] * (width - 2), corners[1] * (height - 2)
    xyxy = (x1, y1, x1 + 2 + corners[2] * (width - 2 - x1), y1 + 2 + corners[3] * (height - 2 - y1))
    row = f"{class_id} " + " ".join(f"{value:.6f}" for value in yolo_from_xyxy(xyxy, size_wh))
    annotations, problems = parse_yolo(row, size_wh, CLASSES, "a.txt")
    assert problems == []
    assert annotations[0].class_id == class_id
    assert np.abs(np.subtract(annotations[0].xyxy, xyxy)).max() < 0.5


def test_labelme_polygon_keeps_its_outline_and_rectangle_is_a_box() -> None:
    text = _labelme(
        {"label": "scratch", "shape_type": "polygon", "points": [[10, 10], [30, 12], [20, 40]]},
        {"label": "pit", "shape_type": "rectangle", "points": [[50, 60], [40, 20]]},
    )
    annotations, problems = parse_labelme(text, SIZE_WH, CLASSES, "a.json")
    assert problems == []
    assert annotations == [
        Annotation(1, (10, 10, 30, 40), ((10, 10), (30, 12), (20, 40))),
        Annotation(0, (40, 20, 50, 60)),
    ]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "pti"}, "label 'pti' is not one of pit, scratch; correct it, or add it to data.classes"),
        ({"label": None}, "label None is not one of pit, scratch"),
        ({"shape_type": "circle"}, "shape_type 'circle' cannot be used; draw a polygon or a rectangle"),
        ({"points": [[1, 1], [5, 5]]}, "the polygon has 2 points, needs 3; draw the shape again"),
        ({"points": [[1, 1], [5, "x"], [3, 3]]}, "points are no pairs of numbers, got [[1, 1], [5, 'x'], [3, 3]]"),
        ({"points": [[1, 1], [5, 5, 5]]}, "points are no pairs of numbers"),
        ({"points": [[1, 1], [5, float("nan")], [3, 3]]}, "has a point that is no finite number"),
        ({"points": [[1, 1], [9, 9], [900, 3]]}, "the outline reaches 700.0 px outside the image of 200 x 100 px"),
    ],
)
def test_faulty_shape_names_file_shape_value_and_remedy(shape: dict[str, Any], message: str) -> None:
    whole = {"label": "pit", "shape_type": "polygon", "points": [[1, 1], [9, 1], [5, 9]], **shape}
    annotations, problems = parse_labelme(_labelme(whole), SIZE_WH, CLASSES, "a.json")
    assert annotations == []
    assert len(problems) == 1
    assert f"{problems[0].severity} {problems[0]}".startswith(f"error a.json: shape 1: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"shapes": [}', "error a.json: is no valid JSON (Expecting value at line 1); save it again from labelme"),
        ("[]", "error a.json: has no list `shapes`; save it from labelme"),
        (
            _labelme(imageWidth=100),
            "error a.json: imageWidth is 100, but the image has 200 px; mark the defects on this very image, upright",
        ),
        (_labelme("pit"), "error a.json: shape 1: is no mapping, got 'pit'; save the file from labelme"),  # type: ignore[arg-type]
    ],
)
def test_faulty_labelme_file_says_what_is_wrong(text: str, message: str) -> None:
    assert _messages(parse_labelme(text, SIZE_WH, CLASSES, "a.json")[1]) == [message]


def test_set_is_read_with_sizes_groups_and_an_empty_file_as_clean(tmp_path: Path) -> None:
    images = _write_set(tmp_path, {"p1_a": "0 0.5 0.5 0.1 0.2", "deep/p2_b": "", "p1_c": "\ufeff1 0.5 0.5 0.1 0.2"})
    found, problems = read_labelled(images, None, "yolo", CLASSES, group_pattern=r"^(p\d+)_")
    assert problems == []
    assert [(image.name, image.group, len(image.annotations)) for image in found] == [
        ("deep/p2_b.png", "p2", 0),
        ("p1_a.png", "p1", 1),
        ("p1_c.png", "p1", 1),
    ]
    assert all(image.size_wh == SIZE_WH and image.path.is_file() and image.path.is_absolute() for image in found)


def test_every_fault_of_a_set_is_reported_and_its_images_left_out(tmp_path: Path) -> None:
    images = _write_set(
        tmp_path, {"a": "0 0.5 0.5 0.1 0.1", "b": "9 0.5 0.5 0.1 0.1\n0 0 x 1 1", "c": "", "d": "", "e": ""}
    )
    labels = tmp_path / "labels"
    (images / "a.png").rename(images / "a.PNG")
    (labels / "c.txt").unlink()
    (labels / "d.txt").write_bytes(b"0 0.5 \xff")
    (images / "e.png").write_bytes((images / "e.png").read_bytes()[:-30])
    (labels / "gone.txt").touch()
    (labels / "classes.txt").touch()
    found, problems = read_labelled(images, labels, "yolo", CLASSES)
    assert [image.name for image in found] == ["a.PNG"]
    size = (images / "e.png").stat().st_size
    assert _messages(problems) == [
        f"error {labels}/b.txt: row 1: class 9 is not one of 0 to 1; correct it, or add the class to the class names",
        f"error {labels}/b.txt: row 2: 'x' is no number; a row is `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...`",
        f"error {labels}/c.txt: the label file is missing; mark its defects, or add an empty .txt if it is clean",
        f"error {labels}/d.txt: is not UTF-8 (byte 0xff at 6); save it as UTF-8 text",
        f"error {images}/e.png: the image is cut short after {size} bytes; copy it again from its origin",
        f"warning {labels}/gone.txt: the label file has no image; add its image under {images}, or remove it",
    ]


def test_name_without_the_group_is_an_error(tmp_path: Path) -> None:
    images = _write_set(tmp_path, {"p1_a": "", "q": ""})
    found, problems = read_labelled(images, None, "yolo", CLASSES, group_pattern=r"^(p\d+)_")
    assert [image.name for image in found] == ["p1_a.png"]
    assert _messages(problems) == [
        f"error {images}/q.png: data.group_pattern '^(p\\\\d+)_' finds no group in it; "
        "rename the file or correct the pattern"
    ]


def test_two_images_of_one_label_file_are_an_error(tmp_path: Path) -> None:
    images = _write_set(tmp_path, {"a": ""})
    _write_image(images / "a.bmp")
    assert _messages(read_labelled(images, None, "yolo", CLASSES)[1]) == [
        f"error {tmp_path}/labels/a.txt: 2 images share the label file; "
        "rename the images so that their names differ before the suffix"
    ]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights on Windows")
def test_links_that_lose_images_are_reported(tmp_path: Path) -> None:
    images = _write_set(tmp_path / "set", {"a": "", "b": ""})
    (images / "b.png").rename(tmp_path / "b.png")
    (images / "b.png").symlink_to(tmp_path / "b.png")
    assert _messages(read_labelled(images, None, "yolo", CLASSES)[1]) == []
    (tmp_path / "b.png").unlink()
    _write_image(tmp_path / "disk" / "deep" / "c.png")
    (images / "more").symlink_to(tmp_path / "disk")
    found, problems = read_labelled(images, None, "yolo", CLASSES)
    assert [image.name for image in found] == ["a.png"]
    assert _messages(problems) == [
        f"warning {images}/more: is a link to a folder, which is not followed; "
        "name its target in the recipe, or copy it there",
        f"error {images}/b.png: cannot be read (No such file or directory); check that it exists",
    ]
    assert _messages(read_clean(images)[1]) == _messages(problems)


def test_folder_without_images_is_an_error_and_without_folder_raises(tmp_path: Path) -> None:
    assert _messages(read_clean(tmp_path)[1]) == [
        f"error {tmp_path}: holds no image; "
        "put images (.bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp) there, or name another folder"
    ]
    with pytest.raises(DataError, match="gone: no such folder"):
        read_clean(tmp_path / "gone")


def test_clean_images_need_no_labels_and_ignore_those_beside(tmp_path: Path) -> None:
    images = _write_set(tmp_path, {"a": "0 0.5 0.5 0.1 0.2"})
    found, problems = read_clean(images)
    assert problems == []
    assert [(image.name, image.annotations) for image in found] == [("a.png", ())]


def test_labelme_files_are_found_beside_the_images(tmp_path: Path) -> None:
    _write_image(tmp_path / "a.png")
    _write_image(tmp_path / "b.png")
    shape = {"label": "pit", "shape_type": "polygon", "points": [[1, 1], [9, 1], [5, 9]]}
    (tmp_path / "a.json").write_text(_labelme(shape))
    found, problems = read_labelled(tmp_path, None, "labelme", CLASSES)
    assert [(image.name, len(image.annotations)) for image in found] == [("a.png", 1)]
    assert _messages(problems) == [
        f"error {tmp_path}/b.json: the label file is missing; "
        "mark its defects, or add a .json without shapes if it is clean"
    ]


def test_labels_default_to_ultralytics_layout_then_sibling_then_beside(tmp_path: Path) -> None:
    photos, mirrored = tmp_path / "train" / "photos", tmp_path / "images" / "train"
    for folder in (photos, mirrored):
        folder.mkdir(parents=True)
    assert find_labels(photos) == photos
    (tmp_path / "train" / "labels").mkdir()
    assert find_labels(photos) == tmp_path / "train" / "labels"
    (tmp_path / "labels" / "train").mkdir(parents=True)
    assert find_labels(mirrored) == tmp_path / "labels" / "train"


def _data(**fields: Any) -> Data:
    return Data(root="x", train_images="images", base="defective", **fields)


@pytest.mark.parametrize("names", ["[pit, scratch]", "{0: pit, 1: scratch}", "{1: scratch, 0: pit}"])
def test_class_names_come_from_data_yaml_unless_the_recipe_has_them(tmp_path: Path, names: str) -> None:
    (tmp_path / "data.yaml").write_text(f"names: {names}\n")
    assert class_names(_data(), tmp_path) == ("pit", "scratch")
    assert class_names(_data(classes=["dent"]), tmp_path) == ("dent",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "names: {1: pit, 2: scratch}",
            "names: must be numbered from 0 without gaps, got [1, 2]; list the class names",
        ),
        ("nc: 2", "names: must be a list or mapping of class names, got None; list the class names"),
        ("names: [pit, pit]", "names: 'pit' occurs more than once; give every class a name of its own"),
        ("names: [", "cannot be read for the class names ("),
        ("names: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_unusable_data_yaml_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        class_names(_data(), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/data.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nc: 3", "error {yaml}: nc: is 3, but names has 2; correct the one or the other"),
        (
            "download: exit(1)",
            "warning {yaml}: download: Ultralytics would run this as code; defectgen",
        ),
        ("path: /content/x", "warning {yaml}: path: there is no folder '/content/x'; remove the line"),
        ("val: gone", "warning {yaml}: val: there is no 'gone'; correct the path, relative to {root}"),
        ("test: [images, gone]", "warning {yaml}: test: there is no 'gone'; correct the path, relative to {root}"),
        (f"val: {'long' * 100}", "warning {yaml}: val: there is no 'long"),
        ("nc: 2", None),
        ("val: ../images", None),  # Roboflow's.
        ("path: .\ntrain: images\nval: images", None),
    ],
)
def test_data_yaml_that_trainers_stumble_over_is_a_problem(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "data.yaml"
    path.write_text(f"names: [pit, scratch]\n{text}\n")
    lines = [f"{problem.severity} {problem}" for problem in faults_in_data_yaml(path)]
    if message is None:
        assert lines == []
    else:
        assert len(lines) == 1 and lines[0].startswith(message.format(yaml=path, root=tmp_path)), lines


def test_missing_data_yaml_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        class_names(_data(), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/data.yaml: cannot be read for the class names (No such file or directory); "
        "list the class names in label order there, or in data.classes"
    )


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "format", "classes", "pattern", "num_images", "num_defects", "groups"),
    [
        ("deeppcb/train/images", "yolo", 6, r"^(\d+)_", 327, 1965, {"44000", "77000", "92000"}),
        ("quay_cracks/train/images", "yolo", 1, r"^([a-z]+\d+)_", 221, 272, {"k1", "o6"}),
    ],
)
def test_real_yolo_set_is_read_without_a_problem(
    folder: str, format: str, classes: int, pattern: str, num_images: int, num_defects: int, groups: set[str]
) -> None:
    found, problems = read_labelled(
        _shared(folder), None, "yolo", [str(n) for n in range(classes)], group_pattern=pattern
    )
    assert problems == []
    assert len(found) == num_images
    assert sum(len(image.annotations) for image in found) == num_defects
    assert {image.group for image in found} == groups


@pytest.mark.shared_data
def test_real_labelme_set_is_read_without_a_problem() -> None:
    found, problems = read_labelled(
        _shared("bsdata/train/defective"), None, "labelme", ["Pitting"], group_pattern=r"_(\d+_\d+)_crop"
    )
    assert problems == []
    assert len(found) == 163
    assert sum(len(image.annotations) for image in found) == 167
    assert len({image.group for image in found}) == 7
    assert all(mark.polygon for image in found for mark in image.annotations)


@pytest.mark.shared_data
def test_real_clean_twins_are_read_without_a_problem() -> None:
    found, problems = read_clean(_shared("deeppcb/train/clean"), group_pattern=r"^(\d+)_")
    assert problems == []
    assert len(found) == 327


def _shared(folder: str) -> Path:
    root = os.environ.get("DEFECTGEN_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"DEFECTGEN_DATA names no folder with {folder}: the real inspection sets are absent")
    return Path(root) / folder
