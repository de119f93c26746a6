"""Whatever a reader or the recipe parser is given, it answers with annotations or with faults, never with a crash."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defectgen.data.annotations import Parsed
from defectgen.data.formats.coco import read_coco
from defectgen.data.formats.cvat import read_cvat
from defectgen.data.formats.labelme import parse_labelme
from defectgen.data.formats.voc import parse_voc
from defectgen.data.formats.yolo import num_classes_in, parse_yolo
from defectgen.errors import DataError, UsageError
from defectgen.recipe import load_recipe

CLASSES = ("scratch", "pit")
SIZE_WH = (200, 100)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
# Of each of six properties: 10,200 in all.
MANY = settings(FEW, max_examples=1700)

GOOD: dict[str, str] = {
    "yolo": "0 0.5 0.5 0.1 0.2\n1 0.1 0.1 0.2 0.1 0.2 0.4\n",
    "labelme": json.dumps(
        {
            "imageWidth": 200,
            "imageHeight": 100,
            "shapes": [
                {"label": "pit", "shape_type": "polygon", "points": [[1, 2], [30, 4], [10, 20]]},
                {"label": "scratch", "shape_type": "rectangle", "points": [[1, 2], [30, 44]]},
            ],
        }
    ),
    "voc": "<annotation><size><width>200</width><height>100</height></size><object><name>pit</name><bndbox>"
    "<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>44</ymax></bndbox></object></annotation>",
    "coco": json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
            "categories": [{"id": 3, "name": "pit"}, {"id": 4, "name": "scratch"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 29, 42]},
                {"id": 2, "image_id": 1, "category_id": 4, "segmentation": [[1, 2, 30, 4, 10, 20]]},
                {
                    "id": 3,
                    "image_id": 1,
                    "category_id": 4,
                    "segmentation": {"size": [100, 200], "counts": [10, 5, 19985]},
                },
            ],
        }
    ),
    "cvat": '<annotations><meta><task><labels><label><name>pit</name></label></labels></task></meta><image id="0" '
    'name="a.png" width="200" height="100"><box label="pit" xtl="1" ytl="2" xbr="30" ybr="44"/><polygon label="pit" '
    'points="1,2;30,4;10,20"/></image></annotations>',
    "recipe": "name: x\nseed: 3\ndata:\n  demo: {}\nplace:\n  per_image: [1, 3]\ntrain_yolo:\n  iterations: 5\n",
}
PIECES = st.sampled_from(
    [
        "nan",
        "-1",
        "1e999",
        "0",
        "",
        "null",
        "[]",
        "{}",
        '"',
        "<",
        ">",
        "\0",
        "\n",
        " ",
        ",",
        ".",
        "é",
        "𝔘",
        "9" * 400,
        "true",
        "-",
    ]
) | st.text(max_size=6)


@st.composite
def spoiled(draw: Callable[..., Any], text: str) -> str:
    """`text` with up to four pieces taken out, put in or doubled; or any text at all."""
    if draw(st.integers(0, 9)) == 0:
        return str(draw(st.text(max_size=80)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(start + draw(st.integers(0, 12)), len(text))
        text = text[:start] + draw(PIECES) + text[stop:]
    return text


def check(answer: Parsed) -> None:
    annotations, problems = answer
    for annotation in annotations:
        x1, y1, x2, y2 = annotation.xyxy
        assert all(map(math.isfinite, annotation.xyxy))
        assert 0 <= x1 < x2 <= SIZE_WH[0] and 0 <= y1 < y2 <= SIZE_WH[1]
        assert 0 <= annotation.class_id < len(CLASSES)
        for x, y in annotation.polygon or ():
            assert 0 <= x <= SIZE_WH[0] and 0 <= y <= SIZE_WH[1]
    for problem in problems:
        assert problem.reason and problem.remedy and problem.path


def read_file(name: str, text: str) -> None:
    parse = {"yolo": parse_yolo, "labelme": parse_labelme, "voc": parse_voc}[name]
    check(parse(text, SIZE_WH, CLASSES, "a.txt"))
    if name == "yolo":
        assert num_classes_in(text) >= 0


def read_set(name: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "marks"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            marked = {"coco": read_coco, "cvat": read_cvat}[name](path)
        except DataError as error:
            assert str(path) in str(error) and "; " in str(error)
            return
        for entry in marked.of_file:
            check(marked.read(entry, SIZE_WH, CLASSES))


def read_recipe(name: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            recipe = load_recipe(path)
        except UsageError as error:
            assert str(error).startswith(str(path))
            return
        # What is accepted is the same when written and read again.
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(path) == recipe
        yaml.safe_load(recipe.to_yaml())


READERS = {name: read_file for name in ("yolo", "labelme", "voc")} | {"coco": read_set, "cvat": read_set}
READERS["recipe"] = read_recipe


@pytest.mark.parametrize("name", READERS)
def test_good_text_gives_annotations(name: str) -> None:
    READERS[name](name, GOOD[name])


@pytest.mark.parametrize("name", READERS)
def test_spoiled_text_never_crashes_a_reader(name: str) -> None:
    FEW(given(spoiled(GOOD[name]))(lambda text: READERS[name](name, text)))()


@pytest.mark.torture
@pytest.mark.parametrize("name", READERS)
def test_spoiled_text_never_crashes_a_reader_in_thousands_of_ways(name: str) -> None:
    MANY(given(spoiled(GOOD[name]))(lambda text: READERS[name](name, text)))()
