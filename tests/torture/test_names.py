"""Whatever files and folders are called, they are read, and written for others."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from bad_input import ROWS, part, write_good_set

from defectgen.data.look import look
from defectgen.data.readers import read_labelled
from defectgen.draft import read_layout
from defectgen.export import FORMATS, export
from defectgen.images import encode_image, list_images

NAMES = {
    "space": "part 17 (copy).png",
    "umlaut": "Gehäuse_Größe.png",
    "Chinese": "缺陷_零件.png",
    "emoji": "🔩 bolt.png",
    "combining marks": unicodedata.normalize("NFD", "Gehäuse") + ".png",
    "240 characters": "p" * 236 + ".png",
    "capital suffix": "PART.PNG",
    "dots": "part.17.a.png",
    "percent and hash": "100%_#3.png",
    "quotes": 'it\'s a "part".png',
    "leading dash": "-part.png",
    "comma and bracket": "a,b[1].png",
}


def silent(*report: Any) -> None:
    """No progress."""


def with_name(root: Path, name: str) -> None:
    try:
        (root / "train/images/p2.png").rename(root / "train/images" / name)
        (root / "train/labels/p2.txt").rename((root / "train/labels" / name).with_suffix(".txt"))
    except OSError as error:
        pytest.skip(f"this file system refuses the name: {error.strerror}")


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_image_of_any_name_is_read_and_exported(tmp_path: Path, name: str) -> None:
    write_good_set(tmp_path / "data")
    with_name(tmp_path / "data", name)
    layout, *_ = look(tmp_path / "data")
    _, sources = read_layout(tmp_path / "data", layout)
    assert sources.problems == ()
    assert name in {image.name for image in sources.train_pool} and len(sources.train_pool) == 6
    for to in FORMATS:
        export(sources, tmp_path / to, to, progress=silent)
    layout, *_ = look(tmp_path / "yolo")
    _, back = read_layout(tmp_path / "yolo", layout)
    assert {image.name for image in back.train_pool} == {image.name for image in sources.train_pool}


@pytest.mark.parametrize("parent", ["images", "images/images", "labels", "my data/Größe 缺陷", "x" * 200])
def test_set_lies_in_a_folder_of_any_name(tmp_path: Path, parent: str) -> None:
    root = tmp_path / parent / "set"
    root.mkdir(parents=True)
    write_good_set(root)
    layout, *_ = look(root)
    _, sources = read_layout(root, layout)
    assert sources.problems == () and len(sources.train_pool) == len(sources.test) == 6


def test_two_names_that_look_alike_are_two_images(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Gehäuse") for form in ("NFC", "NFD"))
    for number, name in enumerate((composed, decomposed)):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_image(part(number), "png"))
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text(ROWS)
    if len(list((tmp_path / "images").iterdir())) < 2:
        pytest.skip("this file system takes both for one name")
    found, problems = read_labelled(tmp_path / "images", None, "yolo", ["scratch", "pit"])
    assert [len(image.annotations) for image in found] == [2, 2] and problems == []


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights on Windows")
def test_links_that_go_round_in_circles_end(tmp_path: Path) -> None:
    write_good_set(tmp_path)
    (tmp_path / "train/images/loop").symlink_to(tmp_path / "train", target_is_directory=True)
    (tmp_path / "train/images/self.png").symlink_to("self.png")
    assert len(list_images(tmp_path / "train/images")) == 6
    found, problems = read_labelled(tmp_path / "train/images", None, "yolo", ["scratch", "pit"])
    assert len(found) == 6 and problems == []
