from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.dataset.sheet import SheetRow, contact_sheet, sample_sheet, write_contact_sheets
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


def test_a_strip_shows_clean_composite_label_and_patch() -> None:
    sheet = contact_sheet([grey_row()], ["pit"], height_px=100)
    # A title of 20 px, four images of 100 px, gaps of 6 px.
    assert sheet.shape == (120, 418, 3) and sheet.dtype == np.uint8
    clean, composite, label = sheet[20:, :100], sheet[20:, 106:206], sheet[20:, 212:312]
    assert (clean == GREY).all()
    assert (composite == grey_row().composite).all()
    changed = (label != composite).any(axis=2)
    # Box edges, the mask's outline and the name above the box are drawn; the rest is the composite.
    assert changed[40, 45] and changed[50, 40] and changed[59, 50] and changed[45, 50]
    assert changed[20:38, 40:60].mean() > 0.5
    assert not changed[65:].any() and not changed[48:52, 48:52].any()


def patch_of(row: SheetRow) -> np.ndarray:
    return contact_sheet([row], ["pit"], height_px=100)[20:, 318:]


def test_the_patch_is_what_changed_and_two_pixels_around_it_on_grey() -> None:
    row = grey_row()
    # Product that is not as grey as the ground.
    row.clean[:], row.composite[:44] = 200, 200
    row.composite[44:] = np.where(row.mask[44:, :, None] > 0, 0, 200)
    patch = patch_of(row)
    assert (patch[45:55, 45:55] == 0).all()
    # The corners of the square belong to the rim.
    rim = np.zeros((100, 100), bool)
    rim[43:57, 43:57] = True
    rim[45:55, 45:55] = False
    assert (patch[rim] == 200).all()
    rim[45:55, 45:55] = True
    assert (patch[~rim] == GREY).all()


def test_the_patch_of_a_whole_image_is_enlarged() -> None:
    # 10 px and a quarter more are 13; at least 16 px are shown, the defect in the middle: 10 / 16 of the height.
    patch = patch_of(replace(grey_row(), patch_xyxy=(45.0, 45.0, 55.0, 55.0)))
    is_defect = (patch < GREY // 2).all(axis=2)
    assert patch.shape == (100, 100, 3)
    assert abs(is_defect[50].sum() - 62.5) < 2 and abs(is_defect[:, 50].sum() - 62.5) < 2


def test_a_patch_at_the_edge_is_shown_whole() -> None:
    row = grey_row()
    row.composite[:], row.mask[:] = GREY, 0
    row.composite[:8, 92:], row.mask[:8, 92:] = 0, 1
    patch = patch_of(replace(row, patch_xyxy=(92.0, 0.0, 100.0, 8.0)))
    # 16 px from the corner, of which the defect is half.
    assert (patch[:45, 55:] == 0).all() and (patch[70:] == GREY).all() and (patch[:, :30] == GREY).all()


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


def test_a_sheet_of_strips_from_a_line_camera_can_be_written() -> None:
    image = np.zeros((64, 8192, 3), np.uint8)
    row = SheetRow(image, image, image[..., 0], ((0, (5.0, 5.0, 40.0, 40.0)),), "000000  strip.png")
    sheet = contact_sheet([row, row], ["pit"])
    assert sheet.shape[1] < 20_000
    assert encode_image(sheet, "jpg")


def test_a_box_at_the_edge_is_drawn_within_the_image() -> None:
    sheet = contact_sheet([grey_row(box=(90.0, 0.0, 100.0, 10.0))], ["a long class name"], height_px=100)
    assert sheet.shape == (120, 418, 3)
    assert (sheet[20:40, 212:312] != GREY).any()


def test_a_name_without_room_above_stands_below_the_box() -> None:
    sheet = contact_sheet([grey_row(box=(40.0, 5.0, 60.0, 15.0))], ["pit"], height_px=100)
    label = sheet[20:, 212:312]
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
    assert read_rgb(paths[2]).shape == (20 + 144, 3 * (4 * 144 + 3 * 6) + 2 * 6, 3)
    # The patch's picture is square.
    assert read_rgb(paths[0]).shape == (2 * 260 + 6, 2 * (3 * 320 + 240 + 3 * 6) + 6, 3)


def test_sheets_of_before_are_gone(tmp_path: Path, small_set: Path, parts: Any) -> None:
    lookup = sources(tmp_path / "clean", parts)
    (small_set / "sheets").mkdir()
    (small_set / "sheets/class_dent.jpg").write_bytes(b"old")
    paths = write_contact_sheets(small_set, lookup)
    assert sorted((small_set / "sheets").iterdir()) == sorted(paths)


def test_the_patch_of_an_image_is_its_largest_defect(tmp_path: Path, small_set: Path, parts: Any) -> None:
    write_contact_sheets(small_set, sources(tmp_path / "clean", parts))
    sheet = read_rgb(small_set / "sheets/composites.jpg")
    # The second image has two white pits of 6 px and, the largest, a black scratch at (4, 30, 40, 34): the window of
    # 45 px around it is (0, 3, 45, 48), so that it is at (21, 144, 213, 165) of 240 px. A pit is at its upper edge.
    second = 3 * 320 + 240 + 3 * 6 + 6
    patch = sheet[20:260, second + 3 * 326 : second + 3 * 326 + 240]
    assert patch[149:160, 26:208].mean() < 20
    assert abs(patch[185:].astype(int) - GREY).max() < 10 and abs(patch[80:125].astype(int) - GREY).max() < 10


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


def test_a_sample_sheet_has_a_heading_and_a_named_line_of_pictures_per_row() -> None:
    pictures = [np.full((32, 32, 3), grey, np.uint8) for grey in (0, 60, 120, 180, 240)]
    sheet = sample_sheet([("pit", pictures), ("dent", pictures[:2])], "step 400", side_px=64)
    # A heading of 20 px and a gap; two lines of a name and pictures of 64 px.
    assert sheet.shape == (26 + 2 * 84, 5 * 64 + 4 * 6, 3)
    for top in (0, 26, 26 + 84):
        assert (sheet[top : top + 20, :100] < 100).any() and (sheet[top : top + 20, 200:] == 255).all()
    for place, picture in enumerate(pictures):
        assert (sheet[46:110, place * 70 : place * 70 + 64] == picture[0, 0]).all()
    assert (sheet[130:, 70:134] == 60).all() and (sheet[130:, 134:] == 255).all()
