from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen.data.load import _misweighted, load_sources, require_usable
from defectgen.data.region import mask_of, region_faults
from defectgen.errors import DataError, UsageError
from defectgen.images import encode_image, write_bytes_atomic
from defectgen.recipe import Place, Recipe
from defectgen.records import LabelledImage, Problem, Sources

ROW = "0.5 0.5 0.2 0.2\n"


def _write_images(folder: Path, *names: str) -> None:
    for name in names:
        write_bytes_atomic(folder / f"{name}.png", encode_image(np.full((60, 80, 3), 90, np.uint8), "png"))


def _write_product(root: Path) -> Path:
    """Four parts with a pit and a scratch each, an unmarked one, and clean images of two of them and of a sixth."""
    _write_images(root / "images", *(f"p{part}_a" for part in range(5)))
    (root / "labels").mkdir()
    for part in range(4):
        (root / "labels" / f"p{part}_a.txt").write_text(f"0 {ROW}1 0.2 0.2 0.2 0.2\n")
    (root / "labels" / "p4_a.txt").touch()
    _write_images(root / "clean", "p0_a", "p1_b", "p5_a")
    (root / "data.yaml").write_text("names: [pit, scratch]\n")
    return root


def _recipe(root: Path, **data: Any) -> Recipe:
    fields = {
        "root": str(root),
        "train_images": "images",
        "train_clean": "clean",
        "group_pattern": r"^(p\d+)_",
        "test_groups": ["p1"],
        **data,
    }
    return Recipe.model_validate({"name": "test", "data": fields})


def _write_mask(path: Path, size_wh: tuple[int, int] = (80, 60)) -> None:
    write_bytes_atomic(path, encode_image(np.full((size_wh[1], size_wh[0], 3), 255, np.uint8), "png"))


def _names(sources: Sources) -> dict[str, list[str]]:
    subsets = ("train", "train_pool", "train_clean", "test", "test_clean")
    return {subset: [image.name for image in getattr(sources, subset)] for subset in subsets}


def _errors(sources: Sources) -> list[str]:
    return [str(problem) for problem in sources.problems if problem.severity == "error"]


def test_what_is_left_out_is_nowhere(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    sources = load_sources(_recipe(root, leave_out=["images/p2_a.png", "**/p0_*", "labels/p3*"]))
    assert sources.problems == ()
    assert _names(sources) == {
        "train": ["p3_a.png"],
        "train_pool": ["p3_a.png"],
        "train_clean": ["p4_a.png", "p5_a.png"],
        "test": ["p1_a.png"],
        "test_clean": ["p1_b.png"],
    }
    (nothing_left,) = _errors(load_sources(_recipe(root, leave_out=["clean"], test_groups=["p1"])))[:1]
    assert nothing_left.startswith(f"{root / 'clean'}: holds no image")
    with pytest.raises(DataError, match=r"data.leave_out: nothing below .* is called 'images/p9\*'; correct it, or"):
        load_sources(_recipe(root, leave_out=["images/p9*"]))
    for outside in ("../other", str(root), ""):
        with pytest.raises(ValueError, match="needs paths below root"):
            _recipe(root, leave_out=[outside])


def test_sources_are_split_by_group_and_cut_to_the_budget(tmp_path: Path) -> None:
    sources = load_sources(_recipe(_write_product(tmp_path), max_images=2))
    assert sources.problems == ()
    assert sources.class_names == ("pit", "scratch")
    names = _names(sources)
    assert len(names["train"]) == 2 and set(names["train"]) < set(names["train_pool"])
    del names["train"]
    assert names == {
        "train_pool": ["p0_a.png", "p2_a.png", "p3_a.png"],
        "train_clean": ["p0_a.png", "p4_a.png", "p5_a.png"],
        "test": ["p1_a.png"],
        "test_clean": ["p1_b.png"],
    }
    require_usable(sources)


def test_named_test_folders_are_read_and_nothing_is_split(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    _write_images(root / "held" / "images", "p8_a", "p9_a")
    (root / "held" / "labels").mkdir()
    (root / "held" / "labels" / "p8_a.txt").write_text(f"0 {ROW}")
    (root / "held" / "labels" / "p9_a.txt").touch()
    _write_images(root / "held" / "clean", "p9_a")
    sources = load_sources(_recipe(root, test_groups=[], test_images="held/images", test_clean="held/clean"))
    names = _names(sources)
    assert sources.problems == ()
    assert len(names["train_pool"]) == 4 and len(names["train_clean"]) == 4
    assert names["test"] == ["p8_a.png"]
    # Two files of one name stay apart.
    assert names["test_clean"] == ["clean/p9_a.png", "images/p9_a.png"]


def test_test_images_of_a_training_group_are_a_leak(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    _write_images(root / "held" / "images", "p3_b")
    write_bytes_atomic(root / "held" / "labels" / "p3_b.txt", f"0 {ROW}".encode())
    sources = load_sources(_recipe(root, test_groups=[], test_images="held/images"))
    assert _errors(sources) == [
        "data.test_images: group 'p3': leaks: 1 for training, 1 held out; "
        "move them to one side: a detector is not tested on what it was trained on"
    ]


def test_every_missing_folder_is_named_with_its_field_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_sources(_recipe(_write_product(tmp_path), train_images="imgs", test_clean="gone"))
    assert str(caught.value) == (
        f"data.train_images: no such folder {tmp_path}/imgs; correct the name, or put the data there\n"
        f"data.test_clean: no such folder {tmp_path}/gone; correct the name, or put the data there"
    )
    with pytest.raises(DataError, match=r"data\.root: no such folder .*/nowhere; correct it, or put the data there"):
        load_sources(_recipe(tmp_path / "nowhere"))


def test_unknown_test_group_reaches_the_user_as_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image is of the group 'p7'; known are p0, p1, p2, p3, p4, p5"):
        load_sources(_recipe(_write_product(tmp_path), test_groups=["p7"]))


def test_faults_of_files_are_collected_and_raised_together(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    (root / "labels" / "p0_a.txt").write_text(f"7 {ROW}")
    (root / "clean" / "p5_a.png").write_bytes(b"")
    sources = load_sources(_recipe(root))
    with pytest.raises(DataError) as caught:
        require_usable(sources)
    assert str(caught.value).split("\n") == [
        f"{root}/labels/p0_a.txt: row 1: class 7 is not one of 0 to 1; correct it, or add the class to the class names",
        f"{root}/clean/p5_a.png: the file is empty (0 bytes); export it again or remove it",
    ]


def test_class_that_nothing_is_marked_with_is_a_warning_since_its_number_cannot_go(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    for label in (root / "labels").glob("*.txt"):
        label.write_text(label.read_text().replace("\n1 ", "\n2 "))
    (root / "data.yaml").write_text("names: [pit, dent, scratch]\n")
    sources = load_sources(_recipe(root))
    assert _errors(sources) == []
    assert [str(problem) for problem in sources.problems] == [
        "data.train_images: class 1 'dent': has no marked defect; none will be made and no detector will know it; mark "
        "some if that is not meant"
    ]
    assert {mark.class_id for image in sources.train for mark in image.annotations} == {0, 2}


def test_class_lost_to_the_budget_is_told_from_one_never_marked(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    for part, class_id in ((0, 0), (2, 1), (3, 1)):
        (root / "labels" / f"p{part}_a.txt").write_text(f"{class_id} {ROW}")
    assert _errors(load_sources(_recipe(root, max_images=1))) == [
        "data.train_images: class 1 'scratch': has no marked defect in the budget of images (1), but 2 outside it; "
        "raise data.max_images"
    ]


def test_class_whose_defects_are_all_held_out_is_told_so(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    for part in (0, 2, 3):
        (root / "labels" / f"p{part}_a.txt").write_text(f"0 {ROW}")
    assert _errors(load_sources(_recipe(root))) == [
        "data.train_images: class 1 'scratch': has no marked defect for training: all 1 are held out; "
        "mark more, or hold out other groups in data.test_groups"
    ]


def test_folder_that_another_field_names_is_left_out(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    (root / "clean").rename(root / "images" / "clean")
    _write_images(root / "images" / "held", "p9_a")
    write_bytes_atomic(root / "labels" / "held" / "p9_a.txt", f"0 {ROW}".encode())
    fields = {"train_clean": "images/clean", "test_images": "images/held", "test_groups": []}
    sources = load_sources(_recipe(root, **fields))
    assert sources.problems == ()
    assert _names(sources)["train_pool"] == ["p0_a.png", "p1_a.png", "p2_a.png", "p3_a.png"]
    assert _names(sources)["test"] == ["p9_a.png"] and len(_names(sources)["train_clean"]) == 4


def test_no_training_image_and_no_clean_image_are_errors(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    sources = load_sources(_recipe(root, test_groups=["p0", "p1", "p2", "p3", "p4", "p5"]))
    assert _errors(sources) == [
        "data.train_images: no image with a marked defect is left for training, got 0; "
        "mark some, or hold out fewer groups",
        "data.train_clean: no clean image is left for training, got 0; add some, or set data.base: defective",
    ]


def test_base_defective_needs_no_clean_image(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    (root / "images" / "p4_a.png").unlink()
    (root / "labels" / "p4_a.txt").unlink()
    sources = load_sources(_recipe(root, base="defective", train_clean=None))
    assert sources.problems == () and sources.train_clean == ()


def test_marked_image_among_the_clean_ones_is_an_error(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    sources = load_sources(_recipe(root, train_clean="images"))
    assert len(_errors(sources)) == 4
    assert _errors(sources)[0] == (
        f"{root}/images/p0_a.png: is named as clean, but has 2 marked defects; "
        "keep clean images in a folder of their own"
    )
    # The unmarked image was found twice and is there once.
    assert _names(sources)["train_clean"].count("p4_a.png") == 1


def test_long_list_of_errors_is_cut_with_its_count(tmp_path: Path) -> None:
    problems = tuple(Problem("error", f"{index}.txt", "", "is wrong", "fix it") for index in range(23))
    sources = replace(load_sources(_recipe(_write_product(tmp_path))), problems=problems)
    with pytest.raises(DataError) as caught:
        require_usable(sources)
    lines = str(caught.value).split("\n")
    assert len(lines) == 21
    assert lines[19:] == ["19.txt: is wrong; fix it", "... and 3 more errors, 23 in all"]


def test_demo_is_written_once_and_read_like_other_data(tmp_path: Path) -> None:
    demo = {"defects_per_class": 1, "clean_parts": 2, "test_parts": 2, "size_px": 128}
    recipe = Recipe.model_validate({"name": "demo", "data": {"demo": demo}})
    sources = load_sources(recipe, tmp_path / "demo")
    require_usable(sources)
    assert len(sources.train_clean) == 2
    assert len(sources.test) == len(sources.test_clean) == 1
    assert {mark.class_id for image in sources.train for mark in image.annotations} == set(
        range(len(sources.class_names))
    )
    # Read again: what lies there is used as it is.
    (tmp_path / "demo" / "train" / "clean" / sources.train_clean[0].name).unlink()
    assert len(load_sources(recipe, tmp_path / "demo").train_clean) == 1


@pytest.mark.shared_data
def test_real_set_with_twins_and_a_budget_is_usable() -> None:
    root = os.environ.get("DEFECTGEN_DATA")
    if not root or not (Path(root) / "deeppcb").is_dir():
        pytest.skip("DEFECTGEN_DATA names no folder with deeppcb: the real inspection sets are absent")
    recipe = _recipe(
        Path(root) / "deeppcb",
        train_images="train/images",
        train_clean="train/clean",
        test_images="test/images",
        test_clean="test/clean",
        test_groups=[],
        group_pattern=r"^(\d+)_",
        per_class=20,
    )
    sources = load_sources(recipe)
    assert sources.problems == ()
    assert (len(sources.train_pool), len(sources.train_clean)) == (327, 327)
    assert (len(sources.test), len(sources.test_clean)) == (74, 74)
    for class_id in range(6):
        drawn = [mark for image in sources.train for mark in image.annotations if mark.class_id == class_id]
        assert len(drawn) >= 20
    assert len(sources.train) < 60


def test_mask_of_where_defects_may_be_is_checked_before_anything_is_fitted(tmp_path: Path) -> None:
    root = _write_product(tmp_path / "set")

    def faults(mask: str) -> list[str]:
        recipe = _recipe(root)
        return _errors(load_sources(recipe.model_copy(update={"place": Place(region_mask=mask)})))

    missing = "place.region_mask is not there; correct the name, or put the image there"
    assert faults("mask.png") == [f"{root}/mask.png: {missing}"]
    _write_mask(root / "mask.png")
    assert faults("mask.png") == []
    _write_mask(root / "small.png", (40, 60))
    (small,) = faults("small.png")
    assert small.startswith(f"{root}/small.png: place.region_mask must have the size of ")
    assert small.endswith(", 80x60, got 40x60; resize it")
    # A folder: one of each clean image's name, but for those held out.
    _write_mask(root / "masks/p4_a.png")
    assert faults("masks") == [
        f"{root}/masks: place.region_mask has no image named {name}.*; add it" for name in ("p0_a", "p5_a")
    ]
    for name in ("p0_a", "p5_a"):
        _write_mask(root / f"masks/{name}.png")
    assert faults("masks") == []
    # What lies beside a mask under its name is none, and in a folder like that of its image it is meant for that one.
    (root / "masks/p0_a.json").write_text("{}")
    recipe = _recipe(root).model_copy(update={"place": Place(region_mask="masks")})
    of_line = LabelledImage(root / "line2/p0_a.png", "line2/p0_a.png", (80, 60), "", ())
    assert mask_of(recipe, of_line) == root / "masks/p0_a.png"
    both = [replace(of_line, name="p0_a.png"), of_line]
    (shared,) = region_faults(recipe, both)
    assert "is that of p0_a.png and of line2/p0_a.png; put each into a folder" in str(shared)
    _write_mask(root / "masks/line2/p0_a.png")
    assert mask_of(recipe, of_line) == root / "masks/line2/p0_a.png" and region_faults(recipe, both) == []
    _write_mask(tmp_path / "mask.png")
    (outside,) = faults("../mask.png")
    assert "place.region_mask lies outside data.root" in outside
    # As tools save masks of two values.
    write_bytes_atomic(root / "ones.png", encode_image(np.ones((60, 80), np.uint8), "png"))
    reason = "place.region_mask allows no pixel, its brightest has the value 1 of 255"
    assert faults("ones.png") == [f"{root}/ones.png: {reason}; make white (255) where defects may be"]


def test_images_of_one_camera_are_scaled_alike_or_not_at_all(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    deep = np.full((60, 80), 1000, np.uint16)
    for name in ("images/p0_a", "images/p1_a", "images/p2_a"):
        cv2.imwrite(str(root / f"{name}.png"), deep)
    assert _errors(load_sources(_recipe(root))) == []
    deep[5, 5] = 4100
    cv2.imwrite(str(root / "images/p3_a.png"), deep)
    assert _errors(load_sources(_recipe(root))) == [
        f"{root}/images/p3_a.png: has 16-bit values above 4095 (1 of 4 such images) and would be scaled from 16 bits, "
        "the others from 12; the same grey would be 16 times as bright in one as in the other: convert all to 8 bits "
        "by one scale"
    ]


def test_clean_images_with_marked_label_files_are_warned_of(tmp_path: Path) -> None:
    root = _write_product(tmp_path / "product")

    def warnings() -> list[str]:
        recipe = _recipe(root, train_clean="ok/images")
        return [str(problem) for problem in load_sources(recipe).problems if "named as clean" in problem.reason]

    _write_images(root / "ok/images", "p0_a", "p5_a")
    # The labels of images/, some of which are called like clean ones, are not theirs.
    assert [problem for problem in load_sources(_recipe(root)).problems if "named as clean" in problem.reason] == []
    (root / "ok/labels").mkdir()
    (root / "ok/labels/p5_a.txt").touch()
    assert warnings() == []
    (root / "ok/labels/p5_a.txt").write_text(f"0 {ROW}")
    reason = f"is named as clean, but 1 of its images are marked (p5_a.txt in {root}/ok/labels)"
    remedy = "they are taken for clean; name a folder without them, or remove the label files"
    assert warnings() == [f"{root}/ok/images: {reason}; {remedy}"]


def test_weights_of_classes_without_a_defect_do_not_count() -> None:
    # Of `scratch` nothing is marked, so nothing can be drawn.
    (fault,) = _misweighted({"pit": 0}, ["pit", "scratch"], {0})
    assert fault.reason == "every class with a defect (pit) has weight 0"
    assert not _misweighted({"pit": 0}, ["pit", "scratch"], {0, 1})


def test_names_that_begin_alike_on_both_sides_of_the_split_are_warned_of(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    for part in range(4):
        _write_images(root / "images", f"p{part}_b")
        write_bytes_atomic(root / "labels" / f"p{part}_b.txt", f"0 {ROW}".encode())
    alone = load_sources(_recipe(root, group_pattern=None, test_groups=[]))
    (problem,) = (one for one in alone.problems if one.path == "data.group_pattern")
    assert problem.severity == "warning" and problem.reason.endswith("stand on both sides of the split")
    assert "set it to ^(.+?)[_-][^_-]*$" in problem.remedy
    # With a pattern, or by numbers behind one word, nothing tells.
    assert not [one for one in load_sources(_recipe(root, test_groups=[])).problems if one.path == "data.group_pattern"]
    for path in sorted((root / "images").glob("*.png")):
        path.rename(path.with_name(f"shot_{path.stem.replace('_', '')}.png"))
    for path in sorted((root / "labels").glob("*.txt")):
        path.rename(path.with_name(f"shot_{path.stem.replace('_', '')}.txt"))
    numbered = load_sources(_recipe(root, group_pattern=None, test_groups=[]))
    assert not [one for one in numbered.problems if one.path == "data.group_pattern"]


def test_class_names_in_another_order_than_data_yaml_has_them_are_errors(tmp_path: Path) -> None:
    root = _write_product(tmp_path)
    (root / "data.yaml").write_text("names: [scratch, dent]\n")
    assert _errors(load_sources(_recipe(root, classes=["dent", "scratch"]))) == [
        f"data.classes: class {number} {name!r}: is number {1 - number} in {root}/data.yaml; "
        "labels give numbers alone: correct the order of data.classes, or leave it out"
        for number, name in enumerate(("dent", "scratch"))
    ]
    # Other names are a choice.
    assert not _errors(load_sources(_recipe(root, classes=["kratzer", "beule"])))
