"""Contact sheets for the eye: clean image, composite, label and patch side by side. Not part of the set's manifest."""

from __future__ import annotations

import math
import re
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from defectgen.boxes import area
from defectgen.dataset.manifest import MANIFEST_NAME, ImageRow, read_manifest
from defectgen.errors import DataError
from defectgen.images import encode_image, read_rgb, write_bytes_atomic
from defectgen.records import XYXY

SHEETS_FOLDER = "sheets"
_ZOOM = 3
_SURROUNDINGS = 2.0
_MIN_CROP_PX, _MAX_CROP_PX = 48, 160
# Shown around the changed pixels of a patch; what is shown of one is so much longer than it, and at least so long.
_RIM_PX = 2
_PATCH_SURROUNDINGS, _MIN_PATCH_PX = 1.25, 16
_GAP_PX = 6
_TEXT_PX = 16
_SHEET_WIDTH_PX, _STRIP_PICTURES = 1800, 4
_WIDEST_PX = 2400
_GROUND = 128
_PAPER = (255, 255, 255)
_INK = (20, 20, 20)
# Distinct in hue and lightness (Okabe and Ito 2008), legible on grey and green products.
_COLOURS = ((213, 94, 0), (86, 180, 233), (240, 228, 66), (204, 121, 167), (0, 158, 115), (230, 159, 0), (0, 114, 178))


@dataclass(frozen=True)
class SheetRow:
    """One strip of a sheet.

    Attributes:
        clean, composite: uint8 (H, W, 3) RGB of the same size.
        mask: uint8 (H, W), class_id + 1 on changed pixels.
        boxes: class_id and box in pixels of the composite.
        title: printed above the strip.
        patch_xyxy: the defect whose surroundings alone are the patch's picture, enlarged; None: all of the strip's.
    """

    clean: np.ndarray
    composite: np.ndarray
    mask: np.ndarray
    boxes: tuple[tuple[int, XYXY], ...]
    title: str = ""
    patch_xyxy: XYXY | None = None


def contact_sheet(
    rows: Iterable[SheetRow],
    class_names: Sequence[str],
    *,
    height_px: int = 240,
    num_columns: int = 2,
    num_images: int = 12,
) -> np.ndarray:
    """uint8 (H, W, 3) RGB: per row a strip clean | composite | label | patch under its title.

    The patch is what was put in: the changed pixels, on a grey ground.

    Args:
        rows: at least one, taken one at a time; those after the first `num_images` are left out.
        height_px: every image is scaled to this height.
        num_columns: strips side by side.
    """
    strips = [_strip(row, class_names, height_px) for row in islice(rows, num_images)]
    assert strips, "a sheet needs a row"
    cell_width = max(strip.shape[1] for strip in strips)
    padded = [_pad(strip, strip.shape[0], cell_width) for strip in strips]
    num_columns = min(num_columns, len(padded))
    lines = [_beside(padded[start : start + num_columns]) for start in range(0, len(padded), num_columns)]
    width = max(line.shape[1] for line in lines)
    parts: list[np.ndarray] = []
    for line in lines:
        parts += [_pad(line, line.shape[0], width), _paper(_GAP_PX, width)]
    return np.concatenate(parts[:-1], axis=0)


def sample_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], heading: str, *, side_px: int = 128) -> np.ndarray:
    """uint8 (H, W, 3) RGB: under `heading` a line per row, its square pictures side by side under its name.

    Args:
        rows: name, and uint8 (S, S, 3) pictures, each scaled to `side_px`.
    """
    parts = [(heading, _paper(_GAP_PX, 4 * side_px))]
    for name, pictures in rows:
        scaled = [_scaled(picture, (side_px, side_px)) for picture in pictures]
        parts.append((name, _beside(scaled)))
    width = max(picture.shape[1] for _, picture in parts)
    lines = [_titled(title, _pad(picture, picture.shape[0], width)) for title, picture in parts]
    return np.concatenate(lines, axis=0)


def write_contact_sheets(folder: Path, sources_lookup: Mapping[str, Path], num_images: int = 12) -> list[Path]:
    """The files written: `sheets/composites.jpg`, and per class with a placed defect `sheets/class_<name>.jpg`.

    They replace those of before.

    Args:
        folder: a finished data set.
        sources_lookup: file of each source image by the name the manifest gives it.
        num_images: strips per sheet; the first ones by index are shown.

    Raises:
        DataError: the manifest or an image cannot be read, or a source is not in `sources_lookup`.
    """
    manifest = read_manifest(folder / MANIFEST_NAME)
    class_names = manifest.header["class_names"]
    placed = [row for row in manifest.rows if row["placed"]]
    sheets: dict[str, np.ndarray] = {}
    if placed:
        # One after the other: a dozen large images at once would not fit into memory.
        rows = (_read_row(folder, row, sources_lookup) for row in placed[:num_images])
        sheets["composites"] = contact_sheet(rows, class_names, num_images=num_images)
    for class_id, name in enumerate(class_names):
        crops = _class_crops(folder, placed, class_id, sources_lookup, num_images)
        if crops:
            stem = f"class_{_file_stem(name)}"
            stem = f"{stem}_{class_id}" if stem in sheets else stem
            height_px = crops[0].composite.shape[0] * _ZOOM
            columns = max(_SHEET_WIDTH_PX // (_STRIP_PICTURES * height_px), 1)
            sheets[stem] = contact_sheet(
                crops, class_names, height_px=height_px, num_columns=columns, num_images=num_images
            )
    shutil.rmtree(folder / SHEETS_FOLDER, ignore_errors=True)
    paths = []
    for stem, sheet in sheets.items():
        path = folder / SHEETS_FOLDER / f"{stem}.jpg"
        write_bytes_atomic(path, encode_image(sheet, "jpg"))
        paths.append(path)
    return paths


def _read_row(folder: Path, row: ImageRow, sources_lookup: Mapping[str, Path]) -> SheetRow:
    source = sources_lookup.get(row["source"])
    if source is None:
        raise DataError(
            f"{folder / MANIFEST_NAME}: image {row['index']}: its source {row['source']!r} is not among the data's "
            "images; use the recipe this set was made with"
        )
    composite, clean = read_rgb(folder / row["image"]), read_rgb(source)
    mask = cv2.imdecode(np.fromfile(folder / row["mask"], np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None or clean.shape != composite.shape or mask.shape != composite.shape[:2]:
        raise DataError(
            f"{folder / row['image']}: does not fit its mask or its source {source} in size; "
            "check the set with `defectgen verify`"
        )
    boxes = [(kept["class_id"], _xyxy(kept["xyxy"])) for kept in row["kept"]]
    boxes += [(defect["class_id"], _xyxy(defect["label_xyxy"])) for defect in row["placed"]]
    changed = [_xyxy(defect["changed_xyxy"]) for defect in row["placed"]]
    largest = max(changed, key=area, default=None)
    return SheetRow(clean, composite, mask, tuple(boxes), f"{row['index']:06d}  {row['source']}", largest)


def _class_crops(
    folder: Path, placed: Sequence[ImageRow], class_id: int, sources_lookup: Mapping[str, Path], num_images: int
) -> list[SheetRow]:
    """Windows of one size around the first placed defects of a class; what exceeds `_MAX_CROP_PX` is cut off."""
    found = [
        (row, _xyxy(defect["label_xyxy"]))
        for row in placed
        for defect in row["placed"]
        if defect["class_id"] == class_id
    ][:num_images]
    if not found:
        return []
    longest = max(max(x2 - x1, y2 - y1) for _, (x1, y1, x2, y2) in found)
    smallest_image = min(min(row["size_wh"]) for row, _ in found)
    side = min(max(round(longest * _SURROUNDINGS), _MIN_CROP_PX), _MAX_CROP_PX, smallest_image)
    crops = []
    for row, (x1, y1, x2, y2) in found:
        whole = _read_row(folder, row, sources_lookup)
        window, left, top = _window((x1, y1, x2, y2), side, whole.mask.shape)
        boxes = tuple((other, (a - left, b - top, c - left, d - top)) for other, (a, b, c, d) in whole.boxes)
        seen = tuple((other, box) for other, box in boxes if min(box[2:]) > 0 and max(box[:2]) < side)
        title = f"{row['index']:06d}  at {round(x1)}, {round(y1)}"
        # Copies: a view would keep the whole image.
        clean, composite, mask = (picture[window].copy() for picture in (whole.clean, whole.composite, whole.mask))
        crops.append(SheetRow(clean, composite, mask, seen, title))
    return crops


def _window(around: XYXY, side: int, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], int, int]:
    """The square of `side` pixels around a box, moved into an image of this `shape`; and its left and top edge."""
    x1, y1, x2, y2 = around
    left = min(max(round((x1 + x2 - side) / 2), 0), shape[1] - side)
    top = min(max(round((y1 + y2 - side) / 2), 0), shape[0] - side)
    return (slice(top, top + side), slice(left, left + side)), left, top


def _xyxy(numbers: Sequence[float]) -> XYXY:
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2)


def _strip(row: SheetRow, class_names: Sequence[str], height_px: int) -> np.ndarray:
    assert row.clean.shape == row.composite.shape and row.mask.shape == row.composite.shape[:2]
    scale = _scale_to(row.composite, height_px)
    size = _times(row.composite, scale)
    clean, composite = _scaled(row.clean, size), _scaled(row.composite, size)
    mask = cv2.resize(row.mask, size, interpolation=cv2.INTER_NEAREST)
    label = _drawn_label(composite, mask, row.boxes, class_names, scale)
    patch = _patch(row)
    enlarged = _scaled(patch, _times(patch, _scale_to(patch, height_px)))
    return _titled(row.title, _beside([clean, composite, label, enlarged]))


def _scale_to(image: np.ndarray, height_px: int) -> float:
    """To that height; of a strip from a line camera, to the width that a sheet has room for."""
    return min(height_px / image.shape[0], _WIDEST_PX / image.shape[1])


def _times(image: np.ndarray, scale: float) -> tuple[int, int]:
    """Width and height of `image`, scaled."""
    return max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)


def _patch(row: SheetRow) -> np.ndarray:
    """uint8 (H, W, 3): the changed pixels and a rim around them, the rest grey; as far as `patch_xyxy` says."""
    kernel = np.ones((2 * _RIM_PX + 1,) * 2, np.uint8)
    is_shown = cv2.dilate((row.mask > 0).astype(np.uint8), kernel)[..., None] > 0
    patch = np.where(is_shown, row.composite, np.uint8(_GROUND))
    if row.patch_xyxy is None:
        return patch
    x1, y1, x2, y2 = row.patch_xyxy
    side = max(math.ceil(_PATCH_SURROUNDINGS * max(x2 - x1, y2 - y1)), _MIN_PATCH_PX)
    window, _, _ = _window(row.patch_xyxy, min(side, *row.mask.shape), row.mask.shape)
    return patch[window]


def _titled(title: str, picture: np.ndarray) -> np.ndarray:
    line = _paper(_TEXT_PX + 4, picture.shape[1])
    _put_text(line, title, (2, _TEXT_PX), _INK)
    return np.concatenate([line, picture], axis=0)


def _scaled(image: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    # Cubic would ring at the crisp edges one looks for; area averages where it shrinks.
    how = cv2.INTER_AREA if size_wh[1] < image.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(image, size_wh, interpolation=how)


def _drawn_label(
    image: np.ndarray,
    mask: np.ndarray,
    boxes: Sequence[tuple[int, XYXY]],
    class_names: Sequence[str],
    scale: float,
) -> np.ndarray:
    """`image` with the mask's outline and, in the same colour per class, boxes (in pixels before `scale`) and names."""
    drawn = image.copy()
    for value in np.unique(mask[mask > 0]):
        outlines, _ = cv2.findContours((mask == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, _colour(int(value) - 1), 1)
    for class_id, box in boxes:
        left, top, right, bottom = (round(edge * scale) for edge in box)
        colour = _colour(class_id)
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour, 2)
        name = _ascii(class_names[class_id])
        (width, _), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, _TEXT_PX / 32, 1)
        # Above the box where there is room, else below, else within it; never beyond the right edge.
        room = _TEXT_PX + 4
        above, below, within = top - 5, bottom + _TEXT_PX - 1, top + _TEXT_PX
        base = above if top > room else below if bottom + room < drawn.shape[0] else within
        start = max(min(left, drawn.shape[1] - width - 4), 0)
        cv2.rectangle(drawn, (start, base - _TEXT_PX + 2), (start + width + 4, base + 4), colour, cv2.FILLED)
        _put_text(drawn, name, (start + 2, base), _INK if sum(colour) > 380 else _PAPER)
    return drawn


def _colour(class_id: int) -> tuple[int, int, int]:
    return _COLOURS[class_id % len(_COLOURS)]


def _put_text(image: np.ndarray, text: str, base_xy: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Draws into `image`."""
    cv2.putText(image, _ascii(text), base_xy, cv2.FONT_HERSHEY_SIMPLEX, _TEXT_PX / 32, colour, 1, cv2.LINE_AA)


def _ascii(text: str) -> str:
    """`text` as OpenCV's fonts can draw it: accents dropped, other letters as ?."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).encode("ascii", "replace").decode()


def _file_stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _PAPER, dtype=np.uint8)


def _pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    page = _paper(height, width)
    page[: image.shape[0], : image.shape[1]] = image
    return page


def _beside(images: Sequence[np.ndarray]) -> np.ndarray:
    height = max(image.shape[0] for image in images)
    parts: list[np.ndarray] = []
    for image in images:
        parts += [_pad(image, height, image.shape[1]), _paper(height, _GAP_PX)]
    return np.concatenate(parts[:-1], axis=1)
