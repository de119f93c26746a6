from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from defectgen.augment import Windows, WindowSampler
from defectgen.crops import Crop, crop_side
from defectgen.windows import Window

WINDOW_PX = 32
SIDE = crop_side(WINDOW_PX)


def defect(class_id: int, shade: int = 200, half: int = 5, *, outlined: bool = False) -> Crop:
    """A square in the middle of a crop that is dark on the left and grey on the right."""
    image = np.full((SIDE, SIDE, 3), 40, np.uint8)
    image[:, SIDE // 2 :] = 120
    mask = np.zeros((SIDE, SIDE), np.uint8)
    middle = slice(SIDE // 2 - half, SIDE // 2 + half)
    image[middle, middle], mask[middle, middle] = shade, 255
    return Crop(image, mask, class_id, "part.png", 0, Window(0, 0, 64), (22, 22, 42, 42), outlined)


def clean(shade: int = 90) -> Crop:
    image, mask = np.full((SIDE, SIDE, 3), shade, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    return Crop(image, mask, None, "clean.png", -1, Window(0, 0, 64), (0, 0, 64, 64))


def sampler(
    defects: list[Crop],
    cleans: list[Crop],
    *,
    num_classes: int = 2,
    clean_share: float = 0.4,
    flip: bool = True,
    quarter_turns: bool = False,
    seed=0,
) -> WindowSampler:
    return WindowSampler(
        defects,
        cleans,
        num_classes=num_classes,
        window_px=WINDOW_PX,
        clean_share=clean_share,
        flip=flip,
        quarter_turns=quarter_turns,
        seed=seed,
    )


def equal(a: Windows, b: Windows) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("images", "masks", "regions", "class_ids")
    )


def test_batch_depends_on_seed_and_step_alone() -> None:
    defects, cleans = [defect(0), defect(1, 255)], [clean()]
    one, other = sampler(defects, cleans), sampler(defects, cleans)
    in_order = {step: one.draw(step, 6) for step in (0, 1, 2, "held out")}
    for step in ("held out", 2, 0, 1):
        assert equal(other.draw(step, 6), in_order[step])
    assert not equal(in_order[0], in_order[1])
    assert not equal(sampler(defects, cleans, seed=1).draw(0, 6), in_order[0])


def test_batch_has_the_stated_shapes_and_types() -> None:
    batch = sampler([defect(0)], [clean()]).draw(0, 5)
    assert batch.images.shape == (5, WINDOW_PX, WINDOW_PX, 3) and batch.images.dtype == np.uint8
    assert batch.masks.shape == (5, WINDOW_PX, WINDOW_PX) and batch.masks.dtype == np.uint8
    assert batch.regions.shape == (5, WINDOW_PX, WINDOW_PX) and batch.regions.dtype == bool
    assert batch.class_ids.shape == (5,) and batch.class_ids.dtype == np.int64


def test_windows_are_mirrored_along_each_axis_by_itself() -> None:
    corner = defect(0)
    image = np.full_like(corner.image, 100)
    middle = len(image) // 2
    image[:middle, :middle] = 250
    image[:middle, middle:] = 180
    batch = sampler([replace(corner, image=image)], [], clean_share=0.0).draw(0, 64)
    quarters = [[window[y, x].mean() for y in (8, 24) for x in (8, 24)] for window in batch.images]
    brightest = [int(np.argmax(quarter)) for quarter in quarters]
    assert min(brightest.count(number) for number in range(4)) > 6


def test_classes_come_in_equal_shares_however_many_crops_each_has() -> None:
    defects = [defect(0), *[defect(2)] * 9]
    batch = sampler(defects, [clean()], num_classes=3, clean_share=0.4).draw(0, 500)
    shares = np.bincount(batch.class_ids, minlength=4) / 500
    # Class 1 has no crop; class 3 stands for clean. Five standard deviations are 0.1.
    assert shares == pytest.approx([0.3, 0, 0.3, 0.4], abs=0.1) and shares[1] == 0


def test_without_clean_crops_every_window_has_a_defect() -> None:
    batch = sampler([defect(0)], [], num_classes=1, clean_share=0.9).draw(0, 40)
    assert (batch.class_ids == 0).all() and batch.masks.reshape(40, -1).max(axis=1).min() == 255


def test_clean_windows_have_no_mask_but_the_region_of_a_defect() -> None:
    batch = sampler([defect(0)], [clean()], clean_share=0.5).draw(0, 60)
    is_clean = batch.class_ids == 2
    assert 10 < is_clean.sum() < 50
    assert not batch.masks[is_clean].any()
    assert batch.masks[~is_clean].any(axis=(1, 2)).all()
    sizes = batch.regions[is_clean].sum(axis=(1, 2))
    # The square has 100 px, scaled by 0.72 to 1.44 in surface, and a margin of 1 to 3 px.
    assert sizes.min() > 70 and sizes.max() < 600


def test_region_covers_the_mask_of_its_window() -> None:
    batch = sampler([defect(0), defect(1, half=2), defect(0, outlined=True)], [clean()]).draw(0, 80)
    assert batch.regions.any(axis=(1, 2)).all()
    assert not ((batch.masks >= 128) & ~batch.regions).any()
    assert not batch.regions.all(axis=(1, 2)).any()


def test_defect_of_a_pixel_never_loses_its_region() -> None:
    image, mask = np.full((SIDE, SIDE, 3), 90, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    mask[SIDE // 2, SIDE // 2] = 200
    pixel = Crop(image, mask, 0, "part.png", 0, Window(0, 0, 16), (7, 7, 8, 8))
    batch = sampler([pixel], [], num_classes=1).draw(0, 60)
    sizes = batch.regions.sum(axis=(1, 2))
    assert sizes.min() >= 1 and sizes.max() < 100


def test_mirror_images_are_drawn_only_where_flips_are_allowed() -> None:
    def brighter_on_the_right(flip: bool) -> np.ndarray:
        images = sampler([defect(0)], [], num_classes=1, flip=flip).draw(0, 60).images.astype(float)
        return images[:, :, 24:].mean(axis=(1, 2, 3)) > images[:, :, :8].mean(axis=(1, 2, 3)) + 20

    assert brighter_on_the_right(False).all()
    assert 5 < brighter_on_the_right(True).sum() < 45


@pytest.mark.parametrize("flip", [False, True])
def test_quarter_turns_are_drawn_only_where_they_are_allowed(flip: bool) -> None:
    def turned_on_its_side(quarter_turns: bool) -> np.ndarray:
        drawn = sampler([defect(0)], [], num_classes=1, flip=flip, quarter_turns=quarter_turns).draw(0, 60)
        images = drawn.images.astype(float)
        across = abs(images[:, :, 24:].mean(axis=(1, 2, 3)) - images[:, :, :8].mean(axis=(1, 2, 3)))
        return across < abs(images[:, 24:].mean(axis=(1, 2, 3)) - images[:, :8].mean(axis=(1, 2, 3)))

    assert not turned_on_its_side(False).any()
    assert 15 < turned_on_its_side(True).sum() < 45


def test_import_asks_no_server_for_a_newer_version() -> None:
    code = "import defectgen.augment, albumentations.check_version as c; assert c.opener is None"
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
