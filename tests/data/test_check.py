from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from defectgen.data.check import render, summarise
from defectgen.records import Annotation, LabelledImage, Problem, Sources


def _image(name: str, group: str, *marks: tuple[int, float, float]) -> LabelledImage:
    annotations = tuple(Annotation(class_id, (0, 0, width, height)) for class_id, width, height in marks)
    return LabelledImage(Path("/data") / name, name, (640, 480), group, annotations)


def _sources(*problems: Problem) -> Sources:
    pool = (_image("a", "p1", (0, 10, 4), (0, 2, 20)), _image("b", "p1", (0, 30, 3)), _image("c", "p2", (0, 90, 9)))
    return Sources(
        class_names=("pit", "scratch [deep]"),
        train=pool[:2],
        train_pool=pool,
        train_clean=tuple(_image(f"clean{index:02d}", f"g{index}") for index in range(21)),
        test=(_image("t", "p3", (1, 5, 5)),),
        test_clean=(),
        problems=problems,
    )


def test_summary_counts_images_defects_sizes_and_groups() -> None:
    summary = summarise(_sources())
    assert summary["images"] == {"train": 2, "train_pool": 3, "train_clean": 21, "test": 1, "test_clean": 0}
    # The budget's images are in the pool too and count once.
    assert summary["image_sizes"] == {"640 x 480": 25}
    pit, scratch = summary["classes"]
    # Longest sides 10, 20, 30.
    quartiles = {"min": 10.0, "q25": 15.0, "median": 20.0, "q75": 25.0, "max": 30.0}
    assert pit == {
        "class_id": 0,
        "name": "pit",
        "train": 3,
        "train_pool": 4,
        "test": 0,
        "longest_side_px": quartiles,
        "lines": 0,
    }
    assert scratch["longest_side_px"] is None and scratch["test"] == 1
    assert summary["groups"]["train_pool"] == {"num": 2, "images": {"p1": 2, "p2": 1}}
    assert summary["groups"]["train_clean"] == {"num": 21, "images": {}}


def test_summary_is_json_with_every_problem() -> None:
    problem = Problem("warning", "a.txt", "row 2", "repeats row 1", "remove it")
    summary = summarise(_sources(problem))
    assert json.loads(json.dumps(summary)) == summary
    assert summary["problems"] == [
        {"severity": "warning", "path": "a.txt", "where": "row 2", "reason": "repeats row 1", "remedy": "remove it"}
    ]


def _printed(sources: Sources) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(summarise(sources)))
    return capture.get()


def test_tables_show_counts_brackets_and_errors_before_warnings() -> None:
    text = _printed(
        _sources(
            Problem("warning", "a.txt", "row 2", "repeats row 1", "remove it"),
            Problem("error", "b.png", "", "the file is empty", "export it again"),
        )
    )
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "train_pool 3 2: p1 (2), p2 (1)" in lines
    assert "train_clean 21 21" in lines
    assert "0 pit 3 4 0 10 to 30, half 15 to 25" in lines
    assert "1 scratch [deep] 0 0 1 -" in lines
    assert lines[-4:] == [
        "Image sizes: 640 x 480 (25)",
        "Errors: 1, warnings: 1",
        "error: b.png: the file is empty; export it again",
        "warning: a.txt: row 2: repeats row 1; remove it",
    ]


def test_long_list_of_problems_is_cut_with_its_count() -> None:
    problems = [Problem("warning", f"{index}.txt", "", "is odd", "look") for index in range(53)]
    text = _printed(_sources(*problems))
    assert "Errors: 0, warnings: 53" in text
    assert text.count("is odd; look") == 50
    assert text.splitlines()[-1] == "... and 3 more"


def test_thin_lines_have_a_column_where_there_are_any() -> None:
    summary = summarise(_sources())
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(summary))
    assert "thin lines" not in capture.get()
    summary["classes"][0]["lines"] = 17
    with console.capture() as capture:
        console.print(render(summary))
    assert "thin lines" in capture.get() and "17" in capture.get()
