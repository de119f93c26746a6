from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from defectgen.dataset.card import embedded_recipe, portable_recipe
from defectgen.dataset.manifest import read_manifest
from defectgen.dataset.write import completed, gather, recipe_sha256
from defectgen.errors import DataError, RunError
from defectgen.images import read_rgb, sha256_file
from defectgen.records import Annotation


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_composite_gives_image_label_mask_and_row(tmp_path: Path, parts: Any) -> None:
    row = parts.write(tmp_path, parts.composites()[3])
    assert sorted(tree(tmp_path)) == [
        "defect_masks/000003.png",
        "images/000003.png",
        "labels/000003.txt",
        "rows/000003.json",
    ]
    assert (read_rgb(tmp_path / "images/000003.png") == parts.composites()[3].image).all()
    mask = cv2.imread(str(tmp_path / "defect_masks/000003.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (48, 64) and mask.dtype == np.uint8
    assert (mask == parts.composites()[3].mask).all() and mask.max() == 2
    # Kept: (2, 2, 12.5, 8.25) of 64 x 48. Placed: (40, 30, 48, 40) and a margin of 2 px.
    assert (tmp_path / "labels/000003.txt").read_text() == (
        "0 0.113281 0.106771 0.164062 0.130208\n1 0.687500 0.729167 0.187500 0.291667\n"
    )
    assert row == json.loads((tmp_path / "rows/000003.json").read_text())
    assert row["image_sha256"] == sha256_file(tmp_path / "images/000003.png")
    assert row["placed"][0]["placement"] == {"model": "real/a.png#0", "scale": 0.333, "at": [40, 30], "flip": False}


def test_segment_rows_are_outlines_and_a_kept_box_becomes_four_corners(tmp_path: Path, parts: Any) -> None:
    parts.write(tmp_path, parts.composites()[3], "segment")
    assert (tmp_path / "labels/000003.txt").read_text() == (
        "0 0.031250 0.041667 0.195312 0.041667 0.195312 0.171875 0.031250 0.171875\n"
        "1 0.625000 0.625000 0.750000 0.625000 0.750000 0.833333 0.625000 0.833333\n"
    )


def test_label_boxes_are_clipped_to_the_image(tmp_path: Path, parts: Any) -> None:
    parts.write(tmp_path, parts.make_composite(0, ((0, (0, 0, 64, 10)),), margin_px=5))
    assert (tmp_path / "labels/000000.txt").read_text() == "0 0.500000 0.156250 1.000000 0.312500\n"


def test_the_same_label_twice_is_written_once(tmp_path: Path, parts: Any) -> None:
    twice = (Annotation(1, (0, 0, 32, 24)), Annotation(1, (0, 0, 32, 24)))
    parts.write(tmp_path, parts.make_composite(0, kept=twice))
    assert (tmp_path / "labels/000000.txt").read_text() == "1 0.250000 0.250000 0.500000 0.500000\n"


def test_a_label_outside_the_image_is_refused(tmp_path: Path, parts: Any) -> None:
    outside = parts.make_composite(7, kept=(Annotation(1, (70, 0, 80, 24)),))
    with pytest.raises(DataError, match=r"labels/000007\.txt: the box .* of class 1 has no area within 64x48"):
        parts.write(tmp_path, outside)
    assert not (tmp_path / "rows").exists()


def test_finish_leaves_a_data_set(small_set: Path) -> None:
    files = tree(small_set)
    assert len(files) == 3 + 4 * 3
    assert files["labels/000002.txt"] == b""
    assert not (small_set / "rows").exists()
    data = yaml.safe_load(files["data.yaml"])
    assert data == {"train": "images", "val": "images", "names": {0: "scratch", 1: "pit"}}
    assert b"held-out real images" in files["data.yaml"]
    header, *rows = [json.loads(line) for line in files["manifest.jsonl"].splitlines()]
    assert (header["task"], header["num_images"], header["generator_fingerprint"]) == ("detect", 4, "f00d")
    assert [row["index"] for row in rows] == [0, 1, 2, 3]


def test_card_counts_classes_and_refusals_and_tells_how_to_repeat(small_set: Path) -> None:
    card = (small_set / "README.md").read_text()
    assert "4 images: 3 composites with synthetic defects, 1 clean (empty labels)." in card
    # Longest sides of the labels, margins of 2 px on both sides: 24 and 40; 10, 11 and 14.
    assert "| 0 | scratch | 2 | 2 | 1 | 24 / 32 / 40 |" in card
    assert "| 1 | pit | 3 | 2 | 0 | 10 / 11 / 14 |" in card
    assert "| no visible change | 2 | 0 | 2 |" in card
    assert "| wrong class | 1 | 1 | 0 |" in card
    assert "defectgen synth recipe.yaml" in card and "defectgen verify" in card
    assert "inherits their licence" in card and "Parts of plant 7, internal." in card
    assert "  root: parts\n" in card


def test_no_host_path_is_in_the_set(small_set: Path) -> None:
    texts = [data for name, data in tree(small_set).items() if not name.endswith(".png")]
    assert len(texts) == 7
    assert not any(b"/home/someone" in text or b"/somewhere" in text for text in texts)


@pytest.mark.parametrize(
    ("root", "kept"), [("/a/b/parts", "parts"), ("C:\\data\\parts", "parts"), ("../parts/", "parts"), ("/", ".")]
)
def test_recipe_root_is_cut_to_its_last_folder(root: str, kept: str) -> None:
    text = yaml.safe_dump({"name": "x", "data": {"root": root, "train_images": "a"}}, sort_keys=False)
    assert yaml.safe_load(portable_recipe(text)) == {"name": "x", "data": {"root": kept, "train_images": "a"}}


def test_summary_counts_what_was_placed_kept_and_refused(tmp_path: Path, parts: Any) -> None:
    for composite in parts.composites():
        parts.write(tmp_path, composite)
    assert parts.finish_set(tmp_path) == {
        "num_images": 4,
        "num_composites": 3,
        "num_kept_only": 0,
        "num_clean": 1,
        "num_rejected": 3,
        "classes": {
            "scratch": {"num_placed": 2, "num_kept": 1, "num_images": 2, "longest_px": [24.0, 32.0, 40.0]},
            "pit": {"num_placed": 3, "num_kept": 0, "num_images": 2, "longest_px": [10.0, 11.0, 14.0]},
        },
        "rejections": {"no visible change": {"pit": 2}, "wrong class": {"scratch": 1}},
    }


def test_the_order_of_writing_and_a_repeated_finish_leave_no_trace(tmp_path: Path, small_set: Path, parts: Any) -> None:
    other = tmp_path / "elsewhere" / "other"
    for composite in reversed(parts.composites()):
        parts.write(other, composite)
    for killed in ("images/.000001.png.4711.tmp", ".README.md.4711.tmp"):
        (other / killed).write_bytes(b"torn")
    parts.finish_set(other)
    assert tree(other) == tree(small_set)
    parts.finish_set(other)
    assert tree(other) == tree(small_set)


@pytest.mark.parametrize("name", ["images/000001.png", "labels/000001.txt", "defect_masks/000001.png"])
def test_a_row_with_a_missing_or_torn_file_is_not_complete(tmp_path: Path, parts: Any, name: str) -> None:
    for composite in parts.composites():
        parts.write(tmp_path, composite)
    assert completed(tmp_path, "detect") == {0, 1, 2, 3}
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert completed(tmp_path, "detect") == {0, 2, 3}
    (tmp_path / name).unlink()
    assert completed(tmp_path, "detect") == {0, 2, 3}
    with pytest.raises(RunError, match=r"holds 3 complete images, 4 were asked for \(incomplete: 1\); run `defectgen"):
        parts.finish_set(tmp_path)
    assert not (tmp_path / "manifest.jsonl").exists()


def test_a_torn_row_is_not_complete_and_an_empty_folder_has_none(tmp_path: Path, parts: Any) -> None:
    assert completed(tmp_path, "detect") == set()
    parts.write(tmp_path, parts.composites()[0])
    row = tmp_path / "rows/000000.json"
    row.write_bytes(row.read_bytes()[:100])
    assert completed(tmp_path, "detect") == set()


def test_a_finished_set_is_complete_and_a_kill_while_rows_are_removed_loses_nothing(tmp_path: Path, parts: Any) -> None:
    for composite in parts.composites():
        parts.write(tmp_path, composite)
    rows = tree(tmp_path / "rows")
    parts.finish_set(tmp_path)
    finished = tree(tmp_path)
    assert completed(tmp_path, "detect") == {0, 1, 2, 3}
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/000003.json").write_bytes(rows["000003.json"])
    parts.finish_set(tmp_path)
    assert tree(tmp_path) == finished
    assert len(read_manifest(tmp_path / "manifest.jsonl").rows) == 4


def test_rejected_images_leave_gaps_and_stand_in_header_and_card(tmp_path: Path, parts: Any) -> None:
    for composite in parts.composites():
        parts.write(tmp_path, replace(composite, index=composite.index + (composite.index > 1)))
    for rejected in ((), (1,), (0, 2)):
        with pytest.raises(RunError, match=r"holds 4 complete images, 4 were asked for \(incomplete: [25]\); run"):
            parts.finish_set(tmp_path, rejected=rejected)
    parts.finish_set(tmp_path, rejected=(2,))
    manifest = read_manifest(tmp_path / "manifest.jsonl")
    assert [row["index"] for row in manifest.rows] == [0, 1, 3, 4] and manifest.header["rejected"] == [2]
    assert "rejected by a person, for which others stand: 1 (2)." in (tmp_path / "README.md").read_text()


def test_gathering_takes_what_is_asked_for_from_a_finished_set_and_drops_the_rest(
    tmp_path: Path, small_set: Path, parts: Any
) -> None:
    before = tree(small_set)
    partial = tmp_path / "partial"
    for index in (2, 7):
        parts.write(partial, parts.make_composite(index))
    mine = (partial / "images/000002.png").stat().st_ino
    assert gather(partial, [1, 2, 9], task="detect", finished=small_set) == {1, 2}
    assert completed(partial, "detect") == {1, 2} and {Path(name).stem for name in tree(partial)} == {
        "000001",
        "000002",
    }
    assert (partial / "images/000001.png").stat().st_ino == (small_set / "images/000001.png").stat().st_ino
    assert (partial / "images/000002.png").stat().st_ino == mine
    assert gather(partial, [1, 2, 9], task="detect", finished=small_set) == {1, 2} and tree(small_set) == before
    # Begun with boxes and gone on with outlines, a label is to be made again; a clean image has none.
    assert gather(partial, [1, 2], task="segment") == {2}
    assert gather(partial, [2], task="detect") == {2} and len(tree(partial)) == 4


def test_a_card_gives_its_recipe_back(small_set: Path) -> None:
    recipe = embedded_recipe((small_set / "README.md").read_text())
    assert recipe_sha256(recipe) == read_manifest(small_set / "manifest.jsonl").header["recipe_sha256"]
    assert recipe.startswith("name: small\n") and embedded_recipe("# Mine\n") == "# Mine\n"


def test_more_images_than_asked_for_are_refused(tmp_path: Path, parts: Any) -> None:
    for composite in parts.composites():
        parts.write(tmp_path, composite)
    with pytest.raises(RunError, match=r"holds 4 complete images, 3 were asked for; run"):
        parts.finish_set(tmp_path, num_images=3)
