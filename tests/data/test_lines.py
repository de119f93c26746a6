"""Lines whose course is known, on grain that is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectgen.boxes import mask_xyxy, yolo_from_xyxy
from defectgen.crops import annotation_mask, defect_crops
from defectgen.data.lines import with_lines
from defectgen.images import encode_image
from defectgen.recipe import Recipe
from defectgen.records import Annotation, LabelledImage
from defectgen.run import read_sources


def grain(size: int, seed: int) -> np.ndarray:
    """Grey product (H, W), float32, whose grain is a few pixels wide and 12 levels strong."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32), (0, 0), 1.2)
    return 140 + 12 * noise / noise.std()


def crack(size: int, seed: int, *, width: int = 3) -> np.ndarray:
    """bool (H, W): a wandering line across the middle three quarters of the image."""
    rng = np.random.default_rng(seed)
    ys = np.linspace(size / 8, 7 * size / 8, 14)
    xs = size / 2 + np.cumsum(rng.normal(0, size / 50, 14))
    mask = np.zeros((size, size), np.uint8)
    points = np.round(np.stack([xs, ys], axis=1)).astype(np.int32)
    cv2.polylines(mask, [points], False, 1, width)
    return mask.astype(bool)


def shot(folder: Path, seed: int, mask: np.ndarray, change: float, *, class_id: int = 0) -> LabelledImage:
    """The product with `mask` changed by `change` grey levels, boxed."""
    size = len(mask)
    grey = np.clip(grain(size, seed) + change * mask, 0, 255).astype(np.uint8)
    path = folder / f"wall{class_id}_{seed}.png"
    path.write_bytes(encode_image(np.repeat(grey[..., None], 3, axis=2), "png"))
    box = mask_xyxy(mask)
    assert box is not None
    return LabelledImage(path, path.name, (size, size), "wall", (Annotation(class_id, box),))


@pytest.mark.parametrize("change", [-60, 60])
def test_dark_and_bright_lines_are_followed_through_their_boxes(tmp_path: Path, change: float) -> None:
    masks = [crack(160, seed) for seed in range(6)]
    found = with_lines([shot(tmp_path, seed, mask, change) for seed, mask in enumerate(masks)])
    for image, mask in zip(found, masks, strict=True):
        (mark,) = image.annotations
        line = annotation_mask(mark, image.size_wh) > 0
        near = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
        assert (line & mask).sum() > 0.85 * mask.sum()
        assert (line & near).sum() > 0.85 * line.sum()
        assert mark.polygon is None and mark.xyxy == mask_xyxy(mask)


def test_line_longer_than_is_looked_at_is_found_in_image_pixels(tmp_path: Path) -> None:
    masks = [crack(900, seed, width=9) for seed in range(4)]
    found = with_lines([shot(tmp_path, seed, mask, -70) for seed, mask in enumerate(masks)])
    for image, mask in zip(found, masks, strict=True):
        line = annotation_mask(image.annotations[0], image.size_wh) > 0
        assert (line & mask).sum() > 0.85 * mask.sum()
        assert line.sum() < 4 * mask.sum()


def test_line_that_closes_a_loop_is_not_filled(tmp_path: Path) -> None:
    rings = [cv2.circle(np.zeros((160, 160), np.uint8), (80, 80), 45 + i, 1, 3).astype(bool) for i in range(5)]
    found = with_lines([shot(tmp_path, seed, ring, -70) for seed, ring in enumerate(rings)])
    for image, ring in zip(found, rings, strict=True):
        assert image.annotations[0].line
        line = annotation_mask(image.annotations[0], image.size_wh) > 0
        assert (line & ring).sum() > 0.7 * ring.sum() and line.sum() < 3 * ring.sum()


def test_flat_strips_are_no_fault(tmp_path: Path) -> None:
    for height in (3, 5, 7):
        path = tmp_path / f"strip{height}.png"
        path.write_bytes(encode_image(np.full((height, 2000, 3), 90, np.uint8), "png"))
        strip = LabelledImage(path, path.name, (2000, height), "strip", (Annotation(0, (10, 0, 1800, height)),))
        assert with_lines([strip]) == (strip,)


def test_boxes_of_grain_and_of_blobs_hold_no_line(tmp_path: Path) -> None:
    box = np.zeros((160, 160), bool)
    box[30:130, 40:110] = True
    blob = cv2.circle(np.zeros((160, 160), np.uint8), (80, 80), 40, 1, -1).astype(bool)
    images = [shot(tmp_path, seed, box, 0) for seed in range(6)]
    images += [shot(tmp_path, seed, blob, -60, class_id=1) for seed in range(6)]
    assert with_lines(images) == tuple(images)


def test_class_with_few_lines_is_none_of_lines(tmp_path: Path) -> None:
    blob = cv2.circle(np.zeros((160, 160), np.uint8), (80, 80), 40, 1, -1).astype(bool)
    lines = [shot(tmp_path, seed, crack(160, seed), -60) for seed in range(4)]
    blobs = [shot(tmp_path, seed, blob, -60) for seed in range(10, 16)]
    assert with_lines(lines + blobs) == tuple(lines + blobs)
    assert all(image.annotations[0].line for image in with_lines(lines))
    assert with_lines(lines[:3]) == tuple(lines[:3])


def test_outlines_of_annotators_and_short_boxes_are_left_alone(tmp_path: Path) -> None:
    images = []
    for seed in range(5):
        image = shot(tmp_path, seed, crack(160, seed), -60)
        mark = image.annotations[0]
        outlined = replace(mark, polygon=((10.0, 10.0), (90.0, 10.0), (50.0, 90.0)))
        images.append(replace(image, annotations=(outlined, replace(mark, xyxy=(60, 60, 90, 85)))))
    assert with_lines(images) == tuple(images)


def test_crop_of_a_line_has_its_outline_for_a_mask_and_its_slack(tmp_path: Path) -> None:
    mask = np.zeros((160, 160), bool)
    mask[20:140, 79:82] = True
    images = [shot(tmp_path, seed, mask, -60) for seed in range(4)]
    slack = [replace(i, annotations=(Annotation(0, (69, 20, 92, 140)),)) for i in images]
    crops = defect_crops(with_lines(slack), window_px=64, context_factor=2.0, hold_out=0, seed=0)
    boxed = defect_crops(slack, window_px=64, context_factor=2.0, hold_out=0, seed=0)
    for line, box in zip(crops, boxed, strict=True):
        assert line.outlined and not box.outlined and box.line_slack_px is None
        assert (line.mask > 127).sum() < 0.5 * (box.mask > 127).sum()
        assert line.line_slack_px == pytest.approx((10, 0, 10, 0), abs=4)


def test_run_follows_lines_in_training_images_and_leaves_test_images_as_marked(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        (tmp_path / folder / "images").mkdir(parents=True)
        (tmp_path / folder / "labels").mkdir()
        for seed in range(4):
            image = shot(tmp_path / folder / "images", seed + 10 * (folder == "test"), crack(160, seed), -60)
            row = yolo_from_xyxy(image.annotations[0].xyxy, image.size_wh)
            path = tmp_path / folder / "labels" / f"{image.path.stem}.txt"
            path.write_text(f"0 {' '.join(map(str, row))}\n")
    data = {
        "root": str(tmp_path),
        "classes": ["crack"],
        "train_images": "train/images",
        "train_labels": "train/labels",
        "test_images": "test/images",
        "test_labels": "test/labels",
        "base": "defective",
    }
    sources = read_sources(Recipe.model_validate({"name": "walls", "data": data}), tmp_path / "run")
    assert [len(image.annotations[0].line) > 0 for image in sources.train] == [True] * 4
    assert [image.annotations[0].line for image in sources.test] == [()] * 4
