"""Whatever a reader or the recipe parser is given, it answers with annotations or with faults, never with a crash."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defectgen.boxes import mask_xyxy, yolo_from_xyxy
from defectgen.data.annotations import Parsed
from defectgen.data.class_names import num_classes_in
from defectgen.data.formats.coco import read_coco
from defectgen.data.formats.cvat import read_cvat
from defectgen.data.formats.labelme import parse_labelme
from defectgen.data.formats.voc import parse_voc
from defectgen.data.formats.yolo import parse_yolo
from defectgen.dataset.labels import even_margin, label_box, measure
from defectgen.errors import DataError, UsageError
from defectgen.inpaint.backends import composite
from defectgen.recipe import Backend, load_recipe
from defectgen.windows import Window, crop_window

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
        assert num_classes_in([text]) >= 0


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


def labels_are_those_of_what_changed(
    seed: int, backend: Backend, at: tuple[float, float], radii: tuple[int, int]
) -> None:
    """A solid defect put into a noisy image: what is measured of it, and what its YOLO row gives back."""
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(40, 100, 2))
    clean = rng.integers(100, 110, (height, width, 3)).astype(np.uint8)
    side = int(rng.integers(36, 64))
    window = Window(
        int(rng.integers(-8, max(width - side, 0) + 8)), int(rng.integers(-8, max(height - side, 0) + 8)), side
    )
    blob = np.zeros((side, side), np.uint8)
    centre = tuple(round(radius + 2 + share * (side - 2 * radius - 5)) for share, radius in zip(at, radii, strict=True))
    cv2.ellipse(blob, centre, radii, 0, 0, 360, 255, -1)
    region = cv2.dilate(blob, np.ones((3, 3), np.uint8)).astype(bool)
    drawn = crop_window(clean, window)
    drawn[blob > 0] = rng.integers(0, 40, 3)
    image = composite(clean, window, drawn, outline=blob, region=region, backend=backend, feather_px=1)

    changed = cv2.absdiff(image, clean).max(axis=2)
    outside = np.ones((height, width), bool)
    x1, y1 = max(window.x, 0), max(window.y, 0)
    x2, y2 = min(window.x + side, width), min(window.y + side, height)
    outside[y1:y2, x1:x2] = ~region[y1 - window.y : y2 - window.y, x1 - window.x : x2 - window.x]
    assert not changed[outside].any()
    found = measure(image, clean, window, min_change=14, window_px=side, weak_change=None)
    truth = mask_xyxy(changed >= 14)
    if found is None or truth is None:
        # What hardly reaches into the image.
        assert (changed >= 14).sum() < 12
        return
    assert np.abs(np.subtract(found.xyxy, truth)).max() <= 1 or (changed >= 14).sum() < 12
    assert not (found.mask & (changed < 14)).any()
    label = label_box(found.xyxy, even_margin(found.xyxy, float(rng.uniform(0, 4))), (width, height))
    assert all(math.isfinite(edge) for edge in label)
    assert 0 <= label[0] < label[2] <= width and 0 <= label[1] < label[3] <= height
    assert all(found.xyxy[0] - 1 <= x <= found.xyxy[2] + 1 for polygon in found.polygons for x, _ in polygon)
    row = " ".join(f"{value:.6f}" for value in yolo_from_xyxy(label, (width, height)))
    annotations, problems = parse_yolo(f"0 {row}\n", (width, height), ["pit"], "a.txt")
    # A sliver at the image's edge may be too small for a detector.
    assert all(problem.severity == "warning" for problem in problems)
    assert np.abs(np.subtract(annotations[0].xyxy, label)).max() < 0.5


WAYS_IN = given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["diffusion", "paste"]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.integers(4, 12), st.integers(4, 12)),
)


def test_labels_are_those_of_what_changed() -> None:
    FEW(WAYS_IN(labels_are_those_of_what_changed))()


@pytest.mark.torture
def test_labels_are_those_of_what_changed_in_ten_thousand_ways() -> None:
    settings(FEW, max_examples=10_000)(WAYS_IN(labels_are_those_of_what_changed))()
