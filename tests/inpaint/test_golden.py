"""Boards whose clean layout is known, with defects drawn on shots of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from defectgen.crops import Crop, centre, defect_crops, region_of
from defectgen.images import encode_image
from defectgen.inpaint.golden import golden_windows
from defectgen.records import Annotation, LabelledImage

SIDE = 64


def board(seed: int) -> np.ndarray:
    """uint8 (240, 320, 3): tracks and pads that never repeat."""
    rng = np.random.default_rng(seed)
    image = np.full((240, 320, 3), 60, np.uint8)
    for _ in range(60):
        x, y = rng.integers(0, 300), rng.integers(0, 220)
        long, short = rng.integers(20, 90), rng.integers(4, 12)
        wide, high = (long, short) if rng.random() < 0.5 else (short, long)
        image[y : y + high, x : x + wide] = rng.integers(120, 220)
    return image


def shot(folder: Path, name: str, image: np.ndarray, *marks: Annotation) -> LabelledImage:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.png"
    path.write_bytes(encode_image(image, "png"))
    return LabelledImage(path, path.name, (320, 240), name, marks)


Defective = tuple[list[Crop], list[LabelledImage]]


def defective(folder: Path, image: np.ndarray, box: tuple[int, int, int, int]) -> Defective:
    """The crop of a spot in the middle of a box on the board, and the image it is of."""
    image = image.copy()
    x1, y1, x2, y2 = box
    image[y1 + 6 : y2 - 6, x1 + 6 : x2 - 6] = 255
    marked = shot(folder, "defective", image, Annotation(0, box))
    return defect_crops([marked], window_px=SIDE, context_factor=2.0, hold_out=0, seed=0), [marked]


def true_window(crop: Crop, image: np.ndarray) -> np.ndarray:
    from defectgen.windows import crop_window, resize

    return resize(crop_window(image, crop.window), SIDE)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (70, 45)])
@pytest.mark.parametrize("brighter", [0, 6])
def test_place_without_the_defect_is_found_wherever_a_clean_shot_shows_it(
    tmp_path: Path, shift: tuple[int, int], brighter: int
) -> None:
    image = board(0)
    crops, real = defective(tmp_path / "real", image, (150, 100, 182, 130))
    moved = np.roll(image, shift, axis=(1, 0)) + np.uint8(brighter)
    clean = [shot(tmp_path / "clean", "other", board(1)), shot(tmp_path / "clean", "same", moved)]
    (twin,) = golden_windows(crops, real, clean, window_px=SIDE)
    assert twin is not None
    region = region_of(centre(crops[0].mask, SIDE), outlined=False)
    expected = true_window(crops[0], image).astype(int)
    assert np.abs(twin.astype(int) - expected)[region].mean() < 4
    assert (twin[~region] == centre(crops[0].image, SIDE)[~region]).all()


def test_defects_of_all_sizes_are_found_in_one_search(tmp_path: Path) -> None:
    """An image is searched at a scale of its own for each size, and sizes fall between two scales."""
    image = board(0)
    real = []
    for number, side in enumerate((18, 30, 41, 77)):
        x1, y1 = 160 - side // 2, 120 - side // 2
        marred = image.copy()
        marred[y1 + 6 : y1 + side - 6, x1 + 6 : x1 + side - 6] = 255
        mark = Annotation(0, (x1, y1, x1 + side, y1 + side))
        real.append(shot(tmp_path / "real", f"defective{number}", marred, mark))
    crops = defect_crops(real, window_px=SIDE, context_factor=2.0, hold_out=0, seed=0)
    moved = np.roll(image, (9, -7), axis=(1, 0))
    twins = golden_windows(crops, real, [shot(tmp_path / "clean", "same", moved)], window_px=SIDE)
    assert len({crop.window.side for crop in crops}) == len(crops) == 4
    for crop, twin in zip(crops, twins, strict=True):
        assert twin is not None, crop.window
        region = region_of(centre(crop.mask, SIDE), outlined=False)
        assert np.abs(twin.astype(int) - true_window(crop, image))[region].mean() < 4, crop.window


def test_other_products_give_nothing(tmp_path: Path) -> None:
    crops, real = defective(tmp_path / "real", board(0), (150, 100, 182, 130))
    clean = [shot(tmp_path / "clean", f"other{seed}", board(seed)) for seed in range(1, 6)]
    assert golden_windows(crops, real, clean, window_px=SIDE) == [None]
    assert golden_windows(crops, real, [], window_px=SIDE) == [None]


def test_shot_that_shows_the_same_defect_unmarked_is_no_golden_one(tmp_path: Path) -> None:
    image = board(0)
    crops, real = defective(tmp_path / "real", image, (150, 100, 182, 130))
    unmarked = image.copy()
    unmarked[106:124, 156:176] = 255
    assert golden_windows(crops, real, [shot(tmp_path / "clean", "same", unmarked)], window_px=SIDE) == [None]


@pytest.mark.parametrize("half", [(0.5, 0.5), (0.5, 0), (0.3, 0.7)])
def test_nor_is_one_taken_a_fraction_of_a_pixel_beside_it(tmp_path: Path, half: tuple[float, float]) -> None:
    image = board(0)
    crops, real = defective(tmp_path / "real", image, (150, 100, 182, 130))
    image[106:124, 156:176] = 255
    matrix = np.array([[1, 0, half[0]], [0, 1, half[1]]], np.float32)
    moved = cv2.warpAffine(image, matrix, (320, 240), borderMode=cv2.BORDER_REPLICATE)
    assert golden_windows(crops, real, [shot(tmp_path / "clean", "same", moved)], window_px=SIDE) == [None]


def test_grain_that_never_repeats_has_no_golden_shot(tmp_path: Path) -> None:
    def grain(seed: int) -> np.ndarray:
        noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(240, 320, 1)), (0, 0), 1.5)[..., None]
        return np.repeat(np.clip(130 + 8 * noise / noise.std(), 0, 255), 3, axis=2).astype(np.uint8)

    crops, real = defective(tmp_path / "real", grain(0), (150, 100, 182, 130))
    others = [shot(tmp_path / "clean", f"other{seed}", grain(seed)) for seed in range(1, 5)]
    assert golden_windows(crops, real, others, window_px=SIDE) == [None]
    (twin,) = golden_windows(crops, real, [*others, shot(tmp_path / "clean", "same", grain(0))], window_px=SIDE)
    assert twin is not None


def test_what_a_smaller_clean_image_does_not_show_is_not_made_up(tmp_path: Path) -> None:
    image = board(0)
    crops, real = defective(tmp_path / "real", image, (200, 100, 232, 130))
    for width in range(198, 232, 4):
        path = tmp_path / f"narrow{width}.png"
        path.write_bytes(encode_image(image[:, :width], "png"))
        narrow = LabelledImage(path, path.name, (width, 240), "narrow")
        assert golden_windows(crops, real, [narrow], window_px=SIDE) == [None]


def test_blot_on_plain_product_gets_no_other_blot_for_a_twin(tmp_path: Path) -> None:
    """Plain surroundings are everywhere, and what looks most like a blot on them is another one."""
    plain = np.full((240, 320, 3), 60, np.uint8)
    crops, real = defective(tmp_path / "real", plain, (150, 100, 182, 130))
    clean = []
    for number in range(6):
        image = plain.copy()
        if number < 2:
            cv2.circle(image, (60 + 20 * number, 60), 8, (250, 250, 250), -1)
        clean.append(shot(tmp_path / "clean", f"plain{number}", image))
    (twin,) = golden_windows(crops, real, clean, window_px=SIDE)
    assert twin is not None
    assert (twin[region_of(centre(crops[0].mask, SIDE), outlined=False)] == 60).all()


def test_nor_where_every_clean_image_shows_a_blot_and_its_own_place_is_no_longer_there(tmp_path: Path) -> None:
    plain = np.full((240, 320, 3), 60, np.uint8)
    crops, real = defective(tmp_path / "real", plain, (150, 100, 182, 130))
    image = plain.copy()
    image[90:140, 140:190] = board(3)[90:140, 140:190]
    cv2.circle(image, (60, 60), 9, (250, 250, 250), -1)
    clean = [shot(tmp_path / "clean", f"plain{number}", image) for number in range(6)]
    (twin,) = golden_windows(crops, real, clean, window_px=SIDE)
    assert twin is not None
    assert (twin[region_of(centre(crops[0].mask, SIDE), outlined=False)] == 60).all()


def test_pad_on_plain_product_is_found_where_a_wide_view_is_the_same(tmp_path: Path) -> None:
    """Nothing near it tells the place from plain product; what lies farther off does."""
    image = board(0)
    image[70:160, 120:210] = 60
    image[104:126, 154:178] = 200
    crops, real = defective(tmp_path / "real", image, (150, 100, 182, 130))
    plain = [shot(tmp_path / "clean", f"plain{number}", np.full_like(image, 60)) for number in range(5)]
    (twin,) = golden_windows(crops, real, [*plain, shot(tmp_path / "clean", "same", image)], window_px=SIDE)
    assert twin is not None
    region = region_of(centre(crops[0].mask, SIDE), outlined=False)
    assert np.abs(twin.astype(int) - true_window(crops[0], image))[region].mean() < 2
    (plain_twin,) = golden_windows(crops, real, plain, window_px=SIDE)
    assert plain_twin is not None and (plain_twin[region] == 60).all()


@pytest.mark.parametrize("order", [1, -1])
def test_exact_shot_elsewhere_is_taken_before_a_noisy_one_in_place(tmp_path: Path, order: int) -> None:
    image = board(0)
    crops, real = defective(tmp_path / "real", image, (150, 100, 182, 130))
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    noisy = shot(tmp_path / "clean", "noisy", np.clip(image + noise, 0, 255).astype(np.uint8))
    moved = shot(tmp_path / "clean", "moved", np.roll(image, (37, 41), axis=(1, 0)))
    (twin,) = golden_windows(crops, real, [noisy, moved][::order], window_px=SIDE)
    assert twin is not None
    region = region_of(centre(crops[0].mask, SIDE), outlined=False)
    assert np.abs(twin.astype(int) - true_window(crops[0], image))[region].mean() < 2


def test_of_several_the_least_different_is_taken_and_progress_counts_images(tmp_path: Path) -> None:
    image = board(0)
    crops, real = defective(tmp_path / "real", image, (150, 100, 182, 130))
    # The same surroundings, but a pad that the real part has not.
    padded = image.copy()
    padded[101:129, 151:181] = 20
    shots = [shot(tmp_path / "clean", "padded", padded), shot(tmp_path / "clean", "same", image)]
    seen: list[tuple[int, int]] = []
    for clean in (shots, shots[::-1]):
        (twin,) = golden_windows(crops, real, clean, window_px=SIDE, progress=lambda *event: seen.append(event))
        assert twin is not None
        region = region_of(centre(crops[0].mask, SIDE), outlined=False)
        assert np.abs(twin.astype(int) - true_window(crops[0], image))[region].mean() < 2
    assert seen == [(1, 2), (2, 2)] * 2
