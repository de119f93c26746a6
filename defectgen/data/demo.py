"""The embedded demo product: a plate with rare defects, written as files that are then read like anyone's data."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from defectgen.data.demo_defects import CLASS_NAMES, PLACES, SHAPES, apply_relief, crop_relief
from defectgen.data.demo_render import Pose, Shot, Surface, build_surface, draw_pose, draw_shots, expose, psf_reach_px
from defectgen.errors import RunError
from defectgen.recipe import DemoData
from defectgen.records import Polygon
from defectgen.seeds import numpy_rng

# A change of so many grey levels in any colour counts as visible; a tenth of a defect's visible pixels reach the other.
VISIBLE_LEVELS = 10
CLEAR_LEVELS = 32


@dataclass(frozen=True)
class DemoPicture:
    """One picture of a part.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        clean: the same picture of the part without its defects; bit-equal away from them.
        class_ids: one per defect.
        masks: bool (H, W), one per defect: its visible pixels as one filled outline.
        polygons: that outline, in pixels.
    """

    image: np.ndarray
    clean: np.ndarray
    class_ids: tuple[int, ...]
    masks: tuple[np.ndarray, ...]
    polygons: tuple[Polygon, ...]


def render_part(
    seed: int, part_number: int, size_px: int, *, class_ids: tuple[int, ...], num_shots: int
) -> list[DemoPicture]:
    """`num_shots` pictures of one part with a defect of each of `class_ids`.

    Raises:
        RunError: a defect found no place where it shows.
    """
    rng = numpy_rng(seed, "demo", part_number, "surface")
    pose = draw_pose(rng)
    surface = build_surface(rng, pose, size_px, serial=part_number)
    shots = draw_shots(numpy_rng(seed, "demo", part_number, "shots"), size_px, num_shots=num_shots)
    everywhere = slice(0, size_px)
    clean = [expose(surface, shot, everywhere, everywhere) for shot in shots]
    images = [image.copy() for image in clean]
    masks: list[list[np.ndarray]] = [[] for _ in shots]
    polygons: list[list[Polygon]] = [[] for _ in shots]
    free = surface.metal.copy()
    for index, class_id in enumerate(class_ids):
        rng = numpy_rng(seed, "demo", part_number, "defect", index)
        rows, columns, pictured = _add_defect(rng, class_id, surface, pose, shots, free)
        free[rows, columns] = False
        for i, (pixels, change) in enumerate(pictured):
            images[i][rows, columns][change > 0] = pixels[change > 0]
            visible = np.zeros(free.shape, bool)
            visible[rows, columns] = change >= VISIBLE_LEVELS
            mask, polygon = outline(visible)
            masks[i].append(mask)
            polygons[i].append(polygon)
    return [DemoPicture(images[i], clean[i], class_ids, tuple(masks[i]), tuple(polygons[i])) for i in range(num_shots)]


def outline(visible: np.ndarray) -> tuple[np.ndarray, Polygon]:
    """One filled outline of a defect's visible pixels: bool (H, W), and its polygon in pixels, at least 4 points.

    `visible` must have a True pixel. Its parts (a dent's two flanks) are bridged; far specks are left out.
    """
    left, top, width, height = cv2.boundingRect(visible.astype(np.uint8))
    # At four times the size the outline runs along pixel borders instead of pixel centres.
    fine: np.ndarray = np.kron(visible[top : top + height, left : left + width], np.ones((4, 4), np.uint8))
    fine = fine.astype(np.uint8)
    for bridge_px in (1, 2, 4, 8, 16, 32, 64, 128):
        border = 4 * bridge_px
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * border + 1, 2 * border + 1))
        closed = cv2.morphologyEx(np.pad(fine, border), cv2.MORPH_CLOSE, kernel)[border:-border, border:-border]
        contours, _ = cv2.findContours(closed.copy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        largest = max(contours, key=cv2.contourArea)
        filled = cv2.drawContours(np.zeros(fine.shape, np.uint8), [largest], -1, 1.0, cv2.FILLED)
        if (filled & fine).sum() >= 0.9 * fine.sum():
            break
    smooth = cv2.approxPolyDP(largest, 1.5, True)
    points = (smooth if len(smooth) >= 4 else largest)[:, 0, :]
    polygon = tuple((left + (float(x) + 0.5) / 4, top + (float(y) + 0.5) / 4) for x, y in points)
    mask = np.zeros(visible.shape, bool)
    mask[top : top + height, left : left + width] = filled[2::4, 2::4] > 0
    return mask, polygon


def _add_defect(
    rng: np.random.Generator, class_id: int, surface: Surface, pose: Pose, shots: list[Shot], free: np.ndarray
) -> tuple[slice, slice, list[tuple[np.ndarray, np.ndarray]]]:
    """The rows and columns a defect went to, and per shot its pixels there and their change in grey levels."""
    size_px = free.shape[0]
    margin_px = 2 * max(psf_reach_px(shot) for shot in shots)
    for attempt in range(60):
        relief, footprint = crop_relief(SHAPES[class_id](rng, size_px / 320 * (1 - attempt / 100)), margin_px)
        height, width = footprint.shape
        x, y = pose.to_image(*PLACES[class_id](rng))
        left, top = round(x * size_px - width / 2), round(y * size_px - height / 2)
        if left < 0 or top < 0 or left + width > size_px or top + height > size_px:
            continue
        rows, columns = slice(top, top + height), slice(left, left + width)
        if not free[rows, columns][footprint].all():
            continue
        plain = surface.window(rows, columns)
        bare = [expose(plain, shot, rows, columns) for shot in shots]
        strength = rng.uniform(0.9, 1.3)
        for _ in range(6):
            marked, passed = apply_relief(relief, plain, strength)
            pixels = [expose(marked, shot, rows, columns, passed=passed) for shot in shots]
            # Both windows lack the same neighbours, so what the blur gets wrong at their edges cancels.
            changes = [np.abs(p.astype(np.int16) - b).max(axis=2) for p, b in zip(pixels, bare, strict=True)]
            if all(_is_clear(change, footprint) for change in changes):
                return rows, columns, list(zip(pixels, changes, strict=True))
            strength *= 1.3
    raise RunError(
        f"demo product: no place found for a {CLASS_NAMES[class_id]} on a part of {size_px} px; "
        "use another data.demo.seed"
    )


def _is_clear(change: np.ndarray, footprint: np.ndarray) -> bool:
    """Whether a careful inspector would see the defect, over most of its length."""
    visible = change >= VISIBLE_LEVELS
    if visible.sum() < 6 or np.percentile(change[visible], 90) < CLEAR_LEVELS:
        return False
    length_px, full_px = (max(np.ptp(axis) for axis in np.nonzero(where)) for where in (visible, footprint))
    return bool(length_px >= 0.6 * full_px)


def plan_training(rng: np.random.Generator, defects_per_class: int) -> list[tuple[tuple[int, ...], int]]:
    """Per part its defects' classes and its number of shots, 1 or 2 each; every class is pictured exactly so often."""
    in_two_shots = defects_per_class // 4
    parts = []
    for num_shots, each in ((2, in_two_shots), (1, defects_per_class - 2 * in_two_shots)):
        queue = [int(class_id) for class_id in rng.permutation(np.repeat(np.arange(len(CLASS_NAMES)), each))]
        while queue:
            taken = int(rng.integers(1, 3))
            parts.append((tuple(queue[:taken]), num_shots))
            queue = queue[taken:]
    return [parts[index] for index in rng.permutation(len(parts))]


def plan_test(rng: np.random.Generator, num_parts: int) -> list[tuple[int, ...]]:
    """Per held-out defective part its defects' classes (1 or 2), the classes in equal numbers wherever they can be."""
    total = min(4 * math.ceil(0.35 * num_parts), 2 * num_parts)
    queue = [int(class_id) for class_id in rng.permutation(np.arange(total) % len(CLASS_NAMES))]
    doubles = total - num_parts
    parts = [tuple(queue[2 * i : 2 * i + 2]) for i in range(doubles)] + [
        (class_id,) for class_id in queue[2 * doubles :]
    ]
    return [parts[index] for index in rng.permutation(len(parts))]


def write_demo(config: DemoData, folder: Path) -> None:
    """Writes the demo product into `folder`: data.yaml, train/ and test/, each with images/, labels/ and clean/.

    The folder is complete or absent. File names are part<number>_<shot>; a part is in one subset alone.

    Raises:
        RunError: `folder` exists already.
    """
    if folder.exists():
        raise RunError(f"{folder}: the folder exists already; remove it or choose another one for the demo product")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    # What a killed run with the same process number left behind.
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for subset in ("train", "test"):
            for kind in ("images", "labels", "clean"):
                (unfinished / subset / kind).mkdir(parents=True)
        for subset, part_number, class_ids, num_shots in _parts(config):
            pictures = render_part(config.seed, part_number, config.size_px, class_ids=class_ids, num_shots=num_shots)
            for shot, picture in zip("ab", pictures, strict=False):
                _write_picture(picture, unfinished / subset, f"part{part_number:04d}_{shot}")
        names = dict(enumerate(CLASS_NAMES))
        described = {"train": "train/images", "val": "train/images", "names": names}
        (unfinished / "data.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _parts(config: DemoData) -> Iterator[tuple[str, int, tuple[int, ...], int]]:
    """Subset, part number, classes and shots. Numbers interleave, so that no subset moves with another's size."""
    num_defective = config.test_parts // 2
    training = plan_training(numpy_rng(config.seed, "demo", "plan", "train"), config.defects_per_class)
    held_out = plan_test(numpy_rng(config.seed, "demo", "plan", "test"), num_defective)
    subsets: list[tuple[str, list[tuple[tuple[int, ...], int]]]] = [
        ("train", training),
        ("train", [((), 1)] * config.clean_parts),
        ("test", [(class_ids, 1) for class_ids in held_out]),
        ("test", [((), 1)] * (config.test_parts - num_defective)),
    ]
    for offset, (subset, parts) in enumerate(subsets, start=1):
        for index, (class_ids, num_shots) in enumerate(parts):
            yield subset, len(subsets) * index + offset, class_ids, num_shots


def _write_picture(picture: DemoPicture, folder: Path, stem: str) -> None:
    kind = "images" if picture.class_ids else "clean"
    encoded, data = cv2.imencode(".png", cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise RunError(
            f"{folder / kind / stem}.png: the image could not be encoded as PNG; check the OpenCV installation"
        )
    (folder / kind / f"{stem}.png").write_bytes(data.tobytes())
    if picture.class_ids:
        height, width = picture.image.shape[:2]
        rows = []
        for class_id, polygon in zip(picture.class_ids, picture.polygons, strict=True):
            rows.append(" ".join([str(class_id), *(f"{x / width:.6f} {y / height:.6f}" for x, y in polygon)]))
        (folder / "labels" / f"{stem}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
