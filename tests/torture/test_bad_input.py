"""Every kind of bad input is reported, with its file and a remedy; nothing is touched, and good files raise nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bad_input import KINDS, VICTIM, Kind, write_good_set

from defectgen.data.aside import with_aside
from defectgen.data.check import look_closely
from defectgen.data.look import look
from defectgen.draft import read_layout
from defectgen.errors import DataError


def reports(root: Path) -> list[str]:
    """What `check FOLDER` says: a line per problem, or the one message with which it ends."""
    try:
        layout, *_ = look(root, "yolo")
        _, sources = read_layout(root, layout)
        sources = with_aside(sources, root, layout)
    except DataError as error:
        return [str(error)]
    return [str(problem) for problem in look_closely(sources).problems]


def test_good_set_raises_no_alarm(tmp_path: Path) -> None:
    write_good_set(tmp_path)
    assert reports(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kind_is_reported_with_its_file_and_a_remedy(kind: Kind, tmp_path: Path, toys: Any) -> None:
    write_good_set(tmp_path)
    at_fault = kind.spoil(tmp_path, VICTIM)
    before = toys.read_tree(tmp_path)
    found = reports(tmp_path)
    # A file at fault is named; what a whole set lacks is said of the set.
    assert found and (not kind.of_a_file or any(f"/{Path(at_fault).name}" in line for line in found)), found
    assert len(found) <= 3 and all("; " in line for line in found)
    assert toys.read_tree(tmp_path) == before


@pytest.mark.torture
def test_ten_files_of_each_kind_among_a_thousand_good_ones(tmp_path: Path, toys: Any) -> None:
    kinds = [kind for kind in KINDS if kind.of_a_file]
    assert len(kinds) >= 40
    num_bad = 10 * len(kinds)
    write_good_set(tmp_path, num_train=1000 + num_bad, num_test=50)
    at_fault = {
        Path(kind.spoil(tmp_path, f"p{10 * number + again}")).stem
        for number, kind in enumerate(kinds)
        for again in range(10)
    }
    before = toys.read_tree(tmp_path)
    found = reports(tmp_path)
    named = {stem for stem in at_fault if any(f"/{stem}." in line for line in found)}
    assert named == at_fault and len(at_fault) == num_bad
    # No other file is named as faulty.
    others = {Path(line.partition(": ")[0]).stem for line in found} - at_fault
    assert others <= {"data"}, sorted(others)
    assert toys.read_tree(tmp_path) == before


def test_there_are_kinds_enough_and_none_twice() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 50
