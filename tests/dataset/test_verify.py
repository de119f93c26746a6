from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.dataset.manifest import json_line, label_rows, label_text
from defectgen.dataset.verify import verify_dataset
from defectgen.images import encode_image, sha256_bytes
from defectgen.records import PlacedDefect


def the_problem(folder: Path) -> str:
    problems = verify_dataset(folder)
    assert len(problems) == 1, [str(problem) for problem in problems]
    assert problems[0].remedy
    return str(problems[0]).replace(f"{folder}/", "")


def edit_row(folder: Path, index: int, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[index + 1])
    change(row)
    lines[index + 1] = json_line(row)
    path.write_text("".join(lines))


def replace_file(folder: Path, name: str, data: bytes, hash_key: str) -> None:
    """New bytes, and the manifest's hash with them: what only a look at the content can find."""
    (folder / name).write_bytes(data)
    edit_row(folder, int(Path(name).stem), lambda row: row.__setitem__(hash_key, sha256_bytes(data)))


@pytest.mark.parametrize("task", ["detect", "segment"])
@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_a_written_set_is_sound(new_set: Callable[..., Path], task: str, image_format: str) -> None:
    folder = new_set("set", task=task, image_format=image_format)
    assert len(list((folder / "images").iterdir())) == 4
    assert verify_dataset(folder) == []


@pytest.mark.parametrize("position", [8, 60, -40])
def test_a_flipped_byte_in_an_image(small_set: Path, position: int) -> None:
    path = small_set / "images/000001.png"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert the_problem(small_set).startswith("images/000001.png: differs from the manifest: SHA-256 ")


@pytest.mark.parametrize("name", ["images/000002.png", "labels/000002.txt", "defect_masks/000002.png"])
def test_a_missing_file(small_set: Path, name: str) -> None:
    (small_set / name).unlink()
    assert the_problem(small_set) == f"{name}: is missing; make the set again with `defectgen synth RECIPE --overwrite`"


@pytest.mark.parametrize("name", ["images/000009.png", "labels/notes.txt", "defect_masks/deep/a.png"])
def test_an_extra_file(small_set: Path, name: str) -> None:
    (small_set / name).parent.mkdir(exist_ok=True)
    (small_set / name).write_bytes(b"x")
    assert the_problem(small_set) == f"{name}: is not in the manifest; remove it: training would read it"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 0.312500 0.250000 0.375000 0.166667\n\n", "row 2: must be a class id and numbers, got ''"),
        ("0 0.312502 0.250000 0.375000 0.166667\n", "row 1: differs from the manifest: expected 0.312500"),
        ("2 0.312500 0.250000 0.375000 0.166667\n", "row 1: class id must be within 0 to 1, got 2"),
        ("-1 0.312500 0.250000 0.375000 0.166667\n", "row 1: class id must be within 0 to 1, got -1"),
        ("1 0.312500 0.250000 0.375000 0.166667\n", "row 1: class id differs from the manifest: expected 0, got 1"),
        ("0 nan 0.250000 0.375000 0.166667\n", "row 1: must have finite numbers, got '0 nan"),
        ("0 0.900000 0.250000 0.375000 0.166667\n", "row 1: must lie within the image (0 to 1), got 1.087500"),
        ("0 0.100000 0.250000 0.375000 0.166667\n", "row 1: must lie within the image (0 to 1), got -0.087500"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2\n", "row 1: must have a class id and 4 numbers, got 6 numbers"),
        ("scratch 0.3 0.2 0.3 0.1\n", "row 1: must be a class id and numbers, got 'scratch"),
        ("", "has 0 rows, the manifest has 1 defects"),
        (
            "0 0.312500 0.250000 0.375000 0.166667\n1 0.5 0.5 0.1 0.1\n",
            "row 2: is not in the manifest",
        ),
        (
            "0 0.3125 0.25 0.375 0.166667\n",
            "differs from the manifest: its SHA-256 is another, though every row agrees",
        ),
    ],
)
def test_an_edited_label(small_set: Path, text: str, problem: str) -> None:
    assert (small_set / "labels/000000.txt").read_text() == "0 0.312500 0.250000 0.375000 0.166667\n"
    (small_set / "labels/000000.txt").write_text(text)
    assert the_problem(small_set).startswith(f"labels/000000.txt: {problem}")


def test_a_shifted_outline(new_set: Callable[..., Path]) -> None:
    folder = new_set("set", task="segment")
    path = folder / "labels/000000.txt"
    path.write_text(path.read_text().replace("0.468750", "0.478750"))
    assert the_problem(folder).startswith("labels/000000.txt: row 1: differs from the manifest: expected 0.156250")
    path.write_text("0 0.1 0.1 0.2 0.1\n")
    assert "row 1: must have a class id and 3 or more points, got 4 numbers" in the_problem(folder)


def test_an_edited_label_with_its_hash_edited_too(small_set: Path) -> None:
    replace_file(small_set, "labels/000000.txt", b"0 0.4 0.25 0.375 0.166667\n", "label_sha256")
    assert "labels/000000.txt: row 1: differs from the manifest" in the_problem(small_set)


def test_a_box_shifted_in_label_and_manifest_no_longer_holds_the_changed_pixels(small_set: Path) -> None:
    def shift(row: dict[str, Any]) -> None:
        row["placed"][0]["label_xyxy"] = [14.0, 8.0, 38.0, 16.0]
        label = label_text(label_rows(row, "detect")).encode()  # type: ignore[arg-type]
        (small_set / "labels/000000.txt").write_bytes(label)
        row["label_sha256"] = sha256_bytes(label)

    edit_row(small_set, 0, shift)
    assert the_problem(small_set).startswith(
        "manifest.jsonl: image 0, placed 1: the label box [14.0, 8.0, 38.0, 16.0] does not hold the changed pixels' box"
    )


def test_an_image_of_another_size(small_set: Path, parts: Any) -> None:
    data = encode_image(parts.clean_image(0)[:40], "png")
    replace_file(small_set, "images/000000.png", data, "image_sha256")
    assert the_problem(small_set).startswith("images/000000.png: is 64x40, the manifest says 64x48")


def test_an_image_that_does_not_decode(small_set: Path) -> None:
    replace_file(small_set, "images/000000.png", b"no image at all", "image_sha256")
    assert the_problem(small_set).startswith("images/000000.png: does not decode (cannot be decoded")


@pytest.mark.parametrize(
    ("paint", "problem"),
    [
        ((slice(10, 14), slice(10, 30), 0), "placed 1: has no pixel of class 0 in the changed box"),
        ((slice(10, 14), slice(10, 15), 0), "placed 1: the pixels of class 0 span [15.0, 10.0, 30.0, 14.0]"),
        ((slice(40, 43), slice(50, 52), 1), "has 6 pixels of value [1] outside every placed defect"),
        ((slice(40, 43), slice(50, 52), 9), "has 6 pixels of value [9] outside every placed defect"),
    ],
)
def test_a_mask_that_does_not_fit_its_boxes(
    small_set: Path, parts: Any, paint: tuple[slice, slice, int], problem: str
) -> None:
    mask = parts.composites()[0].mask.copy()
    mask[paint[0], paint[1]] = paint[2]
    replace_file(small_set, "defect_masks/000000.png", encode_image(mask, "png"), "mask_sha256")
    assert the_problem(small_set).startswith(f"defect_masks/000000.png: {problem}")


def test_a_mask_in_colour(small_set: Path, parts: Any) -> None:
    colour = np.repeat(parts.composites()[0].mask[..., None], 3, axis=2)
    replace_file(small_set, "defect_masks/000000.png", encode_image(colour, "png"), "mask_sha256")
    assert the_problem(small_set).startswith("defect_masks/000000.png: must be a grey 8-bit PNG")


def test_a_defect_drawn_over_one_of_another_class_is_sound(tmp_path: Path, parts: Any) -> None:
    # The pit covers the left half of the scratch: its pixels count for both boxes.
    composite = parts.make_composite(0, ((0, (10, 10, 30, 14)), (1, (8, 8, 20, 16))))
    assert isinstance(composite.placed[0], PlacedDefect)
    parts.write(tmp_path, composite)
    parts.finish_set(tmp_path, num_images=1)
    assert verify_dataset(tmp_path) == []


def test_images_that_the_header_does_not_ask_for(small_set: Path) -> None:
    path = small_set / "manifest.jsonl"
    header, *rows = path.read_text().splitlines(keepends=True)
    # The header of a set whose image 1 a person rejected; the rows are 0 to 3.
    path.write_text(json.dumps(json.loads(header) | {"rejected": [1]}) + "\n" + "".join(rows))
    assert [str(problem).removeprefix(f"{path}: ") for problem in verify_dataset(small_set)] == [
        "image 1: is listed, but a person rejected it; make the set again with `defectgen synth RECIPE --overwrite`",
        "image 4: is not listed; make the set again with `defectgen synth RECIPE --overwrite`",
    ]


def test_a_truncated_manifest(small_set: Path) -> None:
    path = small_set / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-200])
    assert the_problem(small_set).startswith("manifest.jsonl: line 5: is torn: no end of line")


def test_an_unfinished_set(tmp_path: Path, small_set: Path, parts: Any) -> None:
    parts.write(tmp_path / "begun", parts.composites()[0])
    assert "manifest.jsonl: is missing: the set was never finished" in the_problem(tmp_path / "begun")
    (small_set / "rows").mkdir()
    assert the_problem(small_set) == "rows: is left over: the set is not finished; run `defectgen synth` again"


def test_an_unknown_class_in_the_manifest(small_set: Path) -> None:
    edit_row(small_set, 3, lambda row: row["placed"][0].__setitem__("class_name", "dent"))
    assert the_problem(small_set).startswith("manifest.jsonl: image 3, placed 1: class 1 is 'pit', got 'dent'")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("train: images", "path: /data\ntrain: images", "path: ties the set to one folder, got '/data'"),
        ("train: images", "download: rm -rf /\ntrain: images", "download: Ultralytics executes this as code"),
        ("train: images", "train: masks", "train: must be images, got 'masks'"),
        ("val: images", "", "val: is required by Ultralytics"),
        ("1: pit", "1: dent", "names: must be {0: 'scratch', 1: 'pit'}, got {0: 'scratch', 1: 'dent'}"),
        ("names:", "names: [", "cannot be read"),
    ],
)
def test_an_edited_data_yaml(small_set: Path, old: str, new: str, problem: str) -> None:
    path = small_set / "data.yaml"
    text = path.read_text()
    assert f"\n{old}" in text or f"  {old}" in text
    path.write_text(text.replace(old, new))
    assert the_problem(small_set).startswith(f"data.yaml: {problem}")


def test_real_images_may_be_named_for_validation(small_set: Path) -> None:
    path = small_set / "data.yaml"
    path.write_text(path.read_text().replace("val: images", "val: /real/images"))
    assert verify_dataset(small_set) == []


def test_several_faults_are_reported_at_once(small_set: Path) -> None:
    (small_set / "labels/000000.txt").write_text("5 0.5 0.5 0.1 0.1\n")
    (small_set / "defect_masks/000001.png").unlink()
    (small_set / "data.yaml").unlink()
    assert len(verify_dataset(small_set)) == 3


def test_verifying_imports_neither_torch_nor_ultralytics() -> None:
    code = "import sys, defectgen.dataset.verify, defectgen.dataset.write, defectgen.dataset.sheet; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "defectgen.dataset.verify" in modules
    assert not {"torch", "ultralytics", "diffusers"} & set(modules)
