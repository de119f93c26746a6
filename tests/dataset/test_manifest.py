from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from defectgen.dataset.manifest import ManifestError, json_line, label_text, read_manifest, summarise
from defectgen.errors import DataError


def changed_lines(folder: Path, change: Callable[[list[str]], list[str]]) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    return path


def without(line: str, key: str) -> str:
    record = json.loads(line)
    del record[key]
    return json_line(record)


def with_value(line: str, key: str, value: object) -> str:
    return json_line({**json.loads(line), key: value})


def test_the_manifest_comes_back_as_written(small_set: Path) -> None:
    manifest = read_manifest(small_set / "manifest.jsonl")
    assert manifest.header["class_names"] == ["scratch", "pit"]
    assert [row["source"] for row in manifest.rows] == ["0.png", "1.png", "2.png", "3.png"]
    again = json_line(manifest.header) + "".join(json_line(row) for row in manifest.rows)
    assert again == (small_set / "manifest.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda lines: [], r"manifest\.jsonl: is empty; make the set again"),
        (lambda lines: lines[:-1], r"manifest\.jsonl: lists 3 images, its header says 4; make"),
        (lambda lines: [*lines[:-1], lines[-1][:50]], r"manifest\.jsonl: line 5: is torn: no end of line; make"),
        (lambda lines: [lines[0], "{\n", *lines[2:]], r"manifest\.jsonl: line 2: is no valid JSON \(.*\); make"),
        (lambda lines: lines[1:], r"line 1: .*; make"),
        (lambda lines: [lines[0], without(lines[1], "mask"), *lines[2:]], r"line 2: mask: field required; make"),
        (
            lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
            r"line 3: index 0 follows 1; indexes must rise; make",
        ),
        (
            lambda lines: [lines[0], with_value(lines[1], "image", "../../etc/passwd"), *lines[2:]],
            r"line 2: image: .*, got '\.\./\.\./etc/passwd'; make",
        ),
        (
            lambda lines: [with_value(lines[0], "rejected", []), *lines[1:]],
            r"line 1: rejected: list should have at least 1 item .*; make",
        ),
        (
            lambda lines: [with_value(lines[0], "rejected", ["2"]), *lines[1:]],
            r"line 1: rejected\.0: input should be a valid integer, got '2'; make",
        ),
        (
            lambda lines: [with_value(lines[0], "task", "classify"), *lines[1:]],
            r"line 1: task: .*'detect' or 'segment', got 'classify'; make",
        ),
    ],
)
def test_a_broken_manifest_is_refused(small_set: Path, change: Callable[[list[str]], list[str]], text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_manifest(changed_lines(small_set, change))


def test_a_missing_manifest_is_an_unfinished_set(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.jsonl: is missing: the set was never finished") as caught:
        read_manifest(tmp_path / "manifest.jsonl")
    assert caught.value.problem.severity == "error"


def test_label_text_has_six_decimals() -> None:
    assert label_text([(3, (0.5, 1.0, 0.25, 1 / 3))]) == "3 0.500000 1.000000 0.250000 0.333333\n"
    assert label_text([]) == ""


def test_summary_of_nothing_names_the_classes() -> None:
    assert summarise([], ["pit"]) == {
        "num_images": 0,
        "num_composites": 0,
        "num_kept_only": 0,
        "num_clean": 0,
        "num_rejected": 0,
        "classes": {"pit": {"num_placed": 0, "num_kept": 0, "num_images": 0, "longest_px": None}},
        "rejections": {},
    }
