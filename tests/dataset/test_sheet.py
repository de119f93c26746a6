from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.dataset.sheet import SheetRow, contact_sheet, write_contact_sheets
from defectgen.errors import DataError
from defectgen.images import encode_image, read_rgb

GREY = 128


def grey_row(*, box: tuple[float, float, float, float] = (40.0, 40.0, 60.0, 60.0)) -> SheetRow:
    clean = np.full((100, 100, 3), GREY, np.uint8)
    composite, mask = clean.copy(), np.zeros((100, 100), np.uint8)
    composite[45:55, 45:55] = 0
    mask[45:55, 45:55] = 1
    return SheetRow(clean, composite, mask, ((0, box),), "000000  a.png")


def sources(folder: Path, parts: Any) -> dict[str, Path]:
    folder.mkdir()
    paths = {f"{index}.png": folder / f"{index}.png" for index in range(4)}
    for index, path in enumerate(paths.values()):
        path.write_bytes(encode_image(parts.clean_image(index), "png"))
    return paths


def test_a_strip_shows_clean_composite_and_label() -> None:
    sheet = contact_sheet([grey_row()], ["pit"], height_px=100)
    # A title of 20 px, three images of 100 px, gaps of 6 px.
    assert sheet.shape == (120, 312, 3) and sheet.dtype == np.uint8
    clean, composite, label = sheet[20:, :100], sheet[20:, 106:206], sheet[20:, 212:]
    assert (clean == GREY).all()
    assert (composite == grey_row().composite).all()
    changed = (label != composite).any(axis=2)
    # Box edges, the mask's outline and the name above the box are drawn; the rest is the composite.
    assert changed[40, 45] and changed[50, 40] and changed[59, 50] and changed[45, 50]
    assert changed[20:38, 40:60].mean() > 0.5
    assert not changed[65:].any() and not changed[48:52, 48:52].any()


def test_titles_and_names_are_drawn_in_ascii() -> None:
    plain = contact_sheet([grey_row()], ["Grat"], height_px=100)
    assert (plain[:20] < 100).any()
    assert (contact_sheet([grey_row()], ["Grät"], height_px=100) == plain).all()
    assert (
        contact_sheet([grey_row()], ["划痕"], height_px=100) == contact_sheet([grey_row()], ["??"], height_px=100)
    ).all()


def test_a_sheet_has_at_most_the_images_asked_for() -> None:
    rows = [grey_row()] * 5
    assert contact_sheet(rows, ["pit"], height_px=50, num_columns=2).shape[0] == 3 * 70 + 2 * 6
    assert contact_sheet(rows, ["pit"], height_px=50, num_columns=2, num_images=2).shape[0] == 70


def test_a_box_at_the_edge_is_drawn_within_the_image() -> None:
    sheet = contact_sheet([grey_row(box=(90.0, 0.0, 100.0, 10.0))], ["a long class name"], height_px=100)
    assert sheet.shape == (120, 312, 3)
    assert (sheet[20:40, 212:] != GREY).any()


def test_a_name_without_room_above_stands_below_the_box() -> None:
    sheet = contact_sheet([grey_row(box=(40.0, 5.0, 60.0, 15.0))], ["pit"], height_px=100)
    label = sheet[20:, 212:]
    assert (label[18:34, 41:60] != GREY).any(axis=2).mean() > 0.5
    assert (label[7:13, 42:58] == GREY).all()


def test_sheets_are_written_for_the_set_and_each_class(tmp_path: Path, small_set: Path, parts: Any) -> None:
    lookup = sources(tmp_path / "clean", parts)
    paths = write_contact_sheets(small_set, lookup)
    names = ["composites.jpg", "class_scratch.jpg", "class_pit.jpg"]
    assert [path.relative_to(small_set).as_posix() for path in paths] == [f"sheets/{name}" for name in names]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_contact_sheets(small_set, lookup)] == before
    # Three pits (longest label 14 px): windows of 48 px at three times their size, three strips fit side by side.
    assert read_rgb(paths[2]).shape == (20 + 144, 3 * (3 * 144 + 2 * 6) + 2 * 6, 3)
    assert read_rgb(paths[0]).shape == (2 * 260 + 6, 2 * (3 * 320 + 2 * 6) + 6, 3)


def test_a_crop_shows_its_defect(tmp_path: Path, small_set: Path, parts: Any) -> None:
    write_contact_sheets(small_set, sources(tmp_path / "clean", parts))
    sheet = read_rgb(small_set / "sheets/class_pit.jpg")
    # The first pit, white at (50, 5, 56, 11), lies in the window (16, 0, 64, 48) at three times (34, 5, 40, 11).
    clean, composite = sheet[20:, :144], sheet[20:, 150:294]
    assert composite[18:30, 105:117].mean() > 240 > 200 > clean[18:30, 105:117].mean()


def test_a_source_that_is_not_there_is_named(tmp_path: Path, small_set: Path, parts: Any) -> None:
    lookup = sources(tmp_path / "clean", parts)
    del lookup["1.png"]
    with pytest.raises(
        DataError, match=r"manifest\.jsonl: image 1: its source '1\.png' is not among the data's images"
    ):
        write_contact_sheets(small_set, lookup)


def test_a_source_of_another_size_is_refused(tmp_path: Path, small_set: Path, parts: Any) -> None:
    lookup = sources(tmp_path / "clean", parts)
    lookup["0.png"].write_bytes(encode_image(parts.clean_image(0)[:20], "png"))
    with pytest.raises(DataError, match=r"000000\.png: does not fit its mask or its source .* in size"):
        write_contact_sheets(small_set, lookup)
