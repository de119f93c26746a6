"""Label files from a parser's side: what no tool should have written is a fault with its place, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from defectgen.data.annotations import MarkedSet, Marks
from defectgen.data.class_names import num_classes_in
from defectgen.data.formats.coco import _counts, read_coco
from defectgen.data.formats.cvat import read_cvat
from defectgen.data.formats.labelme import labels_in_labelme, parse_labelme
from defectgen.data.formats.masks import read_mask
from defectgen.data.formats.voc import labels_in_voc, parse_voc
from defectgen.data.formats.yolo import faults_in_data_yaml, names_in, parse_yolo
from defectgen.errors import DataError
from defectgen.images import encode_image
from defectgen.records import Annotation, Problem

CLASSES = ("dent", "pit")
SIZE_WH = (40, 20)
DEEP = "[" * 200_000
LONG = "7" * 6000
MANY_BRACKETS, MANY_DIGITS = "too many brackets in each other", "a number of thousands of digits"


def texts(problems: list[Problem]) -> list[str]:
    return [f"{problem.severity} {problem.where}: {problem.reason}; {problem.remedy}" for problem in problems]


def refused(read: Any, path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def coco(**lists: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 20}],
        "categories": [{"id": 3, "name": "dent"}, {"id": 5, "name": "pit"}],
        "annotations": [{"image_id": 7, "category_id": 5, "bbox": [1, 2, 9, 4]}],
    } | lists


def written(folder: Path, content: Any) -> Path:
    path = folder / "marks.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def marks_in(path: Path, name: str = "a.png") -> tuple[list[Annotation], list[str]]:
    read = read_cvat if path.suffix == ".xml" else read_coco
    found, problems = read(path).read(name, SIZE_WH, CLASSES)
    return found, texts(problems)


def marked(folder: Path, **fields: Any) -> tuple[list[Annotation], list[str]]:
    """What one annotation of a file, with `fields`, is read as."""
    return marks_in(written(folder, coco(annotations=[{"image_id": 7, "category_id": 3} | fields])))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_compressed_run_lengths_are_decoded_as_pycocotools_does(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice((0.02, 0.5, 0.98))
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = _counts(encoded["counts"].decode())
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
    assert (values == mask).all() and (values == coco_mask.decode(encoded)).all()


def test_compressed_run_lengths_that_do_not_fill_the_image_are_a_fault(tmp_path: Path) -> None:
    # 02 zeros, 3 ones: what follows is not said.
    short = coco_mask.frPyObjects({"size": [1, 5], "counts": [2, 3]}, 1, 5)["counts"].decode()
    found, (problem,) = marked(tmp_path, segmentation={"size": [20, 40], "counts": short})
    assert found == []
    assert problem.startswith("error annotations[0] (a.png): run lengths sum to 5, not 800 pixels; export it again")


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ("", "run lengths sum to 0, not 800 pixels"),
        ("o", "counts are compressed run lengths cut short, got 'o'"),
        ("o" * 20, "counts are no compressed run lengths"),
        ("é", "counts are no compressed run lengths, got 'é'"),
        (" ", "counts are no compressed run lengths, got ' '"),
        ("O", "a run length must be within 0 and 800 pixels, got -1"),
        ([-1, 801], "a run length must be within 0 and 800 pixels, got -1"),
        ([799.5, 0.5], "counts are no list of whole numbers"),
        ([10**4000] * 9, "a run length must be within 0 and 800 pixels, got 1000"),
        (None, "counts are no list of whole numbers, got None"),
    ],
)
def test_garbled_run_lengths_are_a_fault(tmp_path: Path, counts: Any, reason: str) -> None:
    found, (problem,) = marked(tmp_path, segmentation={"size": [20, 40], "counts": counts})
    assert found == [] and problem.startswith(f"error annotations[0] (a.png): {reason}"), problem


@pytest.mark.parametrize("category", [None, [3], float("inf"), float("nan"), 3.5, True, "x"])
def test_coco_category_that_is_no_number_is_a_fault_of_that_annotation(tmp_path: Path, category: Any) -> None:
    found, (problem,) = marked(tmp_path, category_id=category, bbox=[1, 2, 9, 4])
    assert found == [] and problem.startswith("error annotations[0] (a.png): category_id ")
    assert "is not in categories" in problem


def test_coco_category_that_is_not_listed_is_named(tmp_path: Path) -> None:
    _, (problem,) = marked(tmp_path, category_id=7, bbox=[1, 2, 9, 4])
    assert "category_id 7 is not in categories" in problem


def test_coco_box_with_a_number_beyond_floats_is_a_fault(tmp_path: Path) -> None:
    _, (problem,) = marked(tmp_path, bbox=[1, 2, 10**400, 4])
    assert "has neither a segmentation nor a bbox of four numbers" in problem


def test_coco_identifiers_may_be_text_and_sizes_decimal(tmp_path: Path) -> None:
    content = coco(
        images=[{"id": "7", "file_name": "a.png", "width": 40.0, "height": "20"}],
        categories=[{"id": "3", "name": "dent"}, {"id": 5.0, "name": "pit"}],
        annotations=[
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 9, 4]},
            {"image_id": "7", "category_id": "5", "bbox": [20, 2, 9, 4]},
        ],
    )
    found, problems = marks_in(written(tmp_path, content))
    assert problems == [] and [mark.class_id for mark in found] == [0, 1]


def test_coco_box_counts_where_the_outline_is_empty(tmp_path: Path) -> None:
    assert marked(tmp_path, segmentation=[[]], bbox=[1, 2, 9, 4]) == ([Annotation(0, (1, 2, 10, 6))], [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (DEEP, f"is no JSON that can be read ({MANY_BRACKETS})"),
        (LONG, f"is no JSON that can be read ({MANY_DIGITS})"),
        ("{", "is no valid JSON (Expecting property name"),
        (coco(annotations=[{"image_id": None}]), "annotations[0]: image_id must be a whole number, got None"),
        (coco(annotations=[{"image_id": float("inf")}]), "annotations[0]: image_id must be a whole number, got inf"),
        (coco(annotations=[5]), "annotations[0]: is no mapping, got 5"),
        (coco(images=[{"id": 1, "file_name": None}]), "images[0]: file_name must be a text, got None"),
        (coco(categories=[{"id": 1, "name": None}]), "categories[0]: name must be a text, got None"),
        (
            coco(categories=[{"id": 1, "name": "dent"}, {"id": 1, "name": "pit"}]),
            "categories[1]: 'pit' has the id 1 of 'dent'",
        ),
        (
            coco(images=[{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]),
            "images[1]: has the id 1 of another image",
        ),
    ],
)
def test_coco_file_that_cannot_be_right_is_refused_with_the_place(tmp_path: Path, content: Any, reason: str) -> None:
    assert refused(read_coco, written(tmp_path, content)).startswith(reason)


def test_coco_class_that_only_another_file_uses_stays_a_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "pit", "supercategory": "none"},
        {"id": 1, "name": "pit", "supercategory": "pit"},
        {"id": 2, "name": "dent", "supercategory": "pit"},
        # As COCO itself has it.
        {"id": 3, "name": "crack", "supercategory": "crack"},
    ]
    annotations = [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 9, 4]}]
    read = read_coco(written(tmp_path, coco(categories=categories, annotations=annotations)))
    assert read.class_names == ("pit", "dent", "crack")
    marked_parent = [{"image_id": 7, "category_id": 0, "bbox": [1, 2, 9, 4]}]
    assert len(read_coco(written(tmp_path, coco(categories=categories, annotations=marked_parent))).class_names) == 4


def test_names_with_backslashes_are_paths(tmp_path: Path) -> None:
    read = read_coco(written(tmp_path, coco(images=[{"id": 7, "file_name": "line 1\\top\\a.png"}])))
    assert list(read.of_file) == ["line 1/top/a.png"] and read.entry_of("a.png") == "line 1/top/a.png"
    path = tmp_path / "marks.xml"
    path.write_text('<annotations><image name="top\\a.png" width="40" height="20"/></annotations>')
    assert list(read_cvat(path).of_file) == ["top/a.png"]


def of_cameras(folder: Path, *entries: str) -> MarkedSet:
    return MarkedSet(folder / "marks.json", CLASSES, {entry: Marks([]) for entry in entries}, lambda *_: None)  # type: ignore[arg-type, return-value]


def test_entry_that_is_another_image_is_not_taken_by_its_last_part(tmp_path: Path) -> None:
    for camera in ("cam1", "cam2"):
        (tmp_path / camera).mkdir()
        (tmp_path / camera / "0.png").touch()
    listed = of_cameras(tmp_path, "cam1/0.png")
    assert listed.entry_of("cam1/0.png", tmp_path) == listed.entry_of("cam1/0.png") == "cam1/0.png"
    assert listed.entry_of("cam2/0.png", tmp_path) is None and listed.entry_of("cam2/0.png") is None
    # Read from within a camera's folder, the name alone does not tell.
    assert listed.entry_of("0.png", tmp_path / "cam1") == "cam1/0.png"
    assert listed.entry_of("0.png", tmp_path / "cam2") is None


def test_entry_of_an_image_that_moved_is_found_by_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "images/sub").mkdir(parents=True)
    (tmp_path / "images/sub/0.png").touch()
    for entry in ("cam1/0.png", "C:\\data\\0.png".replace("\\", "/"), f"{'x' * 300}/0.png", "/data/0.png"):
        assert of_cameras(tmp_path, entry).entry_of("sub/0.png", tmp_path / "images") == entry


@pytest.mark.parametrize("encoding", ["GB2312", "nonsense"])
def test_xml_in_an_encoding_that_is_not_known_is_a_fault(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "marks.xml"
    path.write_text(f'<?xml version="1.0" encoding="{encoding}"?><annotations/>')
    assert refused(read_cvat, path).startswith("is no valid XML (")
    # A file per image is read as UTF-8 whatever it says of itself.
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation/>'
    assert parse_voc(text, SIZE_WH, CLASSES, "a.xml") == ([], []) and labels_in_voc(text) == set()


@pytest.mark.parametrize(("width", "height"), [(-2, -2), (0, 0)])
def test_cvat_mask_without_a_surface_is_a_fault(tmp_path: Path, width: int, height: int) -> None:
    rle = "2,2" if width else "0"
    path = tmp_path / "marks.xml"
    shape = f'<mask label="pit" left="5" top="5" width="{width}" height="{height}" rle="{rle}"/>'
    path.write_text(f'<annotations><image name="a.png" width="40" height="20">{shape}</image></annotations>')
    found, (problem,) = marks_in(path)
    assert found == [] and f"its run lengths are not those of {width} x {height} px" in problem


def voc(*names: str, width: str = "40") -> str:
    box = "<bndbox><xmin> {} </xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    objects = (
        f"<object><name>{name}</name>{box.format(9 * at + 1, 9 * at + 8)}</object>" for at, name in enumerate(names)
    )
    return f"<annotation><size><width>{width}</width><height> 20\n</height></size>{''.join(objects)}</annotation>"


@pytest.mark.parametrize("width", [" 40 ", "40.0", "", "0"])
def test_voc_size_is_compared_as_a_number(width: str) -> None:
    found, problems = parse_voc(voc("pit", width=width), SIZE_WH, CLASSES, "a.xml")
    assert len(found) == 1 and problems == []


@pytest.mark.parametrize("width", ["41", "40.5", "x", "nan"])
def test_voc_size_of_another_image_is_an_error(width: str) -> None:
    found, (problem,) = parse_voc(voc("pit", width=width), SIZE_WH, CLASSES, "a.xml")
    assert found == [] and problem.reason == f"the file states a width of {width}, but the image has 40 px"


def labelme(*labels: Any, **fields: Any) -> str:
    shapes = [
        {"label": label, "points": [[9 * at, 2], [9 * at + 8, 2], [9 * at + 4, 9]]} for at, label in enumerate(labels)
    ]
    return json.dumps({"shapes": shapes} | fields)


@pytest.mark.parametrize(("text", "why"), [(DEEP, MANY_BRACKETS), (LONG, MANY_DIGITS)])
def test_labelme_file_that_no_parser_holds_is_a_fault(text: str, why: str) -> None:
    found, (problem,) = parse_labelme(text, SIZE_WH, CLASSES, "a.json")
    assert found == [] and problem.reason == f"is no JSON that can be read ({why})"
    assert labels_in_labelme(text) == set()


def test_labelme_label_may_be_a_number() -> None:
    (mark,), problems = parse_labelme(labelme(1), SIZE_WH, ("0", "1"), "a.json")
    assert mark.class_id == 1 and problems == []
    assert labels_in_labelme(labelme(1, "dent")) == {"1", "dent"}


@pytest.mark.parametrize("label", [None, True, 1.5, ["pit"], {}])
def test_labelme_label_that_names_nothing_is_a_fault_and_no_class(label: Any) -> None:
    found, (problem,) = parse_labelme(labelme("pit", label), SIZE_WH, CLASSES, "a.json")
    assert len(found) == 1
    assert (problem.severity, problem.where) == ("error", "shape 2") and problem.reason.startswith("label None is not")
    assert labels_in_labelme(labelme("pit", label)) == {"pit"}


def test_labelme_size_is_compared_as_a_number() -> None:
    assert parse_labelme(labelme("pit", imageWidth="40", imageHeight=20.0), SIZE_WH, CLASSES, "a.json")[1] == []


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_label_that_differs_from_a_class_by_case_or_blanks_is_doubtful(kind: str) -> None:
    parse, text = (parse_voc, voc) if kind == "voc" else (parse_labelme, labelme)
    classes = ("Dent", "dent", "dent ", "pit")
    found, problems = parse(text("Dent", "dent", "dent ", "dent "), SIZE_WH, classes, "a")
    assert len(found) == 4
    # Once per spelling, and not of the plain one.
    assert texts(problems) == [
        f"warning : label {label!r} differs from class 'dent' by case or blanks alone; they count as two classes; "
        "spell one way"
        for label in ("Dent", "dent ")
    ]
    assert parse(text("dent", "pit"), SIZE_WH, classes, "a")[1] == []


def test_class_number_of_thousands_of_digits_is_a_fault() -> None:
    rows = f"{LONG} 0.5 0.5 0.2 0.2\n99999999999 0.5 0.5 0.2 0.2\n1 0.2 0.5 0.1 0.2\n"
    found, problems = parse_yolo(rows, SIZE_WH, CLASSES, "a.txt")
    assert [mark.class_id for mark in found] == [1]
    assert [problem.where for problem in problems] == ["row 1", "row 2"]
    assert all(len(problem.reason) < 120 for problem in problems)
    assert num_classes_in([rows]) == 2


@pytest.fixture
def data_yaml(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set/data.yaml"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"names: {'[' * 3000}", f"cannot be read for the class names ({MANY_BRACKETS})"),
        (f"names: [pit]\nnc: {LONG}", "cannot be read for the class names ("),
        ("names: [pit]\nnc: 2024-99-99", "cannot be read for the class names ("),
        ("names: [pit, null]", "names: 1 must be a text, got None; put it in quotes"),
        ("names: {0: pit, 1: no}", "names: 1 must be a text, got False; put it in quotes"),
        ("names: {'0': pit, 0: dent}", "names: must be numbered from 0 without gaps"),
        ("names: {'1': pit, '2': dent}", "names: must be numbered from 0 without gaps"),
    ],
)
def test_data_yaml_that_cannot_be_right_is_refused(data_yaml: Path, text: str, reason: str) -> None:
    data_yaml.write_text(text)
    assert refused(names_in, data_yaml).startswith(reason)
    assert refused(faults_in_data_yaml, data_yaml).startswith(reason)


def test_list_that_grows_in_memory_is_told_by_its_kind(data_yaml: Path) -> None:
    bomb = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])
    data_yaml.write_text(f"{bomb}\nnames: *a11\n")
    assert refused(names_in, data_yaml).startswith("names: 0 must be a text, got a list")
    data_yaml.write_text(f"{bomb}\nnames: [pit]\nnc: *a11\ntrain: *a11\n")
    told = texts(faults_in_data_yaml(data_yaml))
    assert "error nc: is a list, but names has 1" in told[0] and "warning train: there is no a list" in told[1]


def test_names_may_be_numbered_by_text(data_yaml: Path) -> None:
    data_yaml.write_text("names: {'1': pit, '0': dent}\n")
    assert names_in(data_yaml) == ["dent", "pit"]


def test_path_that_trainers_take_from_elsewhere_is_doubtful(data_yaml: Path) -> None:
    (data_yaml.parent / "parts").mkdir()
    for line, doubtful in (
        ("path: parts", True),
        ("path: ../set", True),
        ("path: .", False),
        ("path: ./", False),
        (f"path: {data_yaml.parent}", False),
        ("", False),
    ):
        data_yaml.write_text(f"names: [pit]\n{line}\n")
        told = texts(faults_in_data_yaml(data_yaml))
        assert len(told) == doubtful, (line, told)
        if told:
            assert told[0].startswith("warning path: '") and "Ultralytics looks in the working directory" in told[0]


def mask_file(folder: Path, *values: int) -> Path:
    mask = np.zeros((20, 40), np.uint8)
    for at, value in enumerate(values):
        mask[4:9, 8 * at + 1 : 8 * at + 6] = value
    path = folder / "mask.png"
    path.write_bytes(encode_image(mask, "png"))
    return path


def test_black_mask_of_a_defective_part_is_doubtful(tmp_path: Path) -> None:
    found, problems = read_mask(mask_file(tmp_path), SIZE_WH, CLASSES, folder="pit")
    assert found == [] and texts(problems) == [
        "warning : is all black, but of an image in 'pit'; draw it, or move the image to good"
    ]
    assert read_mask(mask_file(tmp_path), SIZE_WH, CLASSES, folder="") == ([], [])
    assert read_mask(mask_file(tmp_path, 255), SIZE_WH, CLASSES, folder="pit")[1] == []


def test_mask_of_several_values_for_one_class_is_doubtful_once(tmp_path: Path) -> None:
    found, problems = read_mask(mask_file(tmp_path, 1, 2, 1), SIZE_WH, ["defect"], folder="")
    assert len(found) == 3 and len(problems) == 1
    assert problems[0].severity == "warning"
    assert problems[0].reason == "has 2 values beside black (1, 2), but there is one class"
    many = str(read_mask(mask_file(tmp_path, 1, 2, 3, 4), SIZE_WH, ["defect"], folder="")[1][0])
    assert "has 4 values beside black (1, 2, 3, ...)" in many
    assert read_mask(mask_file(tmp_path, 255, 255), SIZE_WH, ["defect"], folder="")[1] == []


def test_tilted_yolo_box_at_the_edge_is_cut_there() -> None:
    # 20 x 6 px about (4, 10), turned by 45 degrees: one end lies left of the image.
    corners = cv2.boxPoints(((4, 10), (20, 6), 45)) / np.array(SIZE_WH)
    row = " ".join(f"{value:.6f}" for value in corners.ravel())
    (found,), problems = parse_yolo(f"0 {row}\n", SIZE_WH, CLASSES, "a.txt")
    assert problems == [] and found.polygon is not None
    assert found.xyxy[0] == 0 and min(x for x, _ in found.polygon) == 0
    right = max(x for x, _ in corners * np.array(SIZE_WH))
    assert found.xyxy[2] == pytest.approx(right, abs=0.01)
    # No rectangle, or one with its centre outside, is a slip.
    for slip in (f"0 {row.rsplit(' ', 2)[0]} 0.9 0.1", "0 -0.5 0.1 0.1 0.1 0.1 0.3 -0.5 0.3"):
        found, problems = parse_yolo(f"{slip}\n", SIZE_WH, CLASSES, "a.txt")
        assert len(found) == 0 and "outside the image" in problems[0].reason
