"""Boards whose clean layout is known, with defects drawn on shots of them."""

from __future__ import annotations

from pathlib import Path

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


def defective(folder: Path, image: np.ndarray, box: tuple[int, int, int, int]) -> list[Crop]:
    """The crop of a spot in the middle of a box on the board."""
    image = image.copy()
    x1, y1, x2, y2 = box
    image[y1 + 6 : y2 - 6, x1 + 6 : x2 - 6] = 255
    marked = shot(folder, "defective", image, Annotation(0, box))
    return defect_crops([marked], window_px=SIDE, context_factor=2.0, hold_out=0, seed=0)


def true_window(crop: Crop, image: np.ndarray) -> np.ndarray:
    from defectgen.windows import crop_window, resize

    return resize(crop_window(image, crop.window), SIDE)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (70, 45)])
@pytest.mark.parametrize("brighter", [0, 6])
def test_place_without_the_defect_is_found_wherever_a_clean_shot_shows_it(
    tmp_path: Path, shift: tuple[int, int], brighter: int
) -> None:
    image = board(0)
    crops = defective(tmp_path / "real", image, (150, 100, 182, 130))
    moved = np.roll(image, shift, axis=(1, 0)) + np.uint8(brighter)
    clean = [shot(tmp_path / "clean", "other", board(1)), shot(tmp_path / "clean", "same", moved)]
    (twin,) = golden_windows(crops, clean, window_px=SIDE)
    assert twin is not None
    region = region_of(centre(crops[0].mask, SIDE), outlined=False)
    expected = true_window(crops[0], image).astype(int)
    assert np.abs(twin.astype(int) - expected)[region].mean() < 4
    assert (twin[~region] == centre(crops[0].image, SIDE)[~region]).all()


def test_other_products_give_nothing(tmp_path: Path) -> None:
    crops = defective(tmp_path / "real", board(0), (150, 100, 182, 130))
    clean = [shot(tmp_path / "clean", f"other{seed}", board(seed)) for seed in range(1, 6)]
    assert golden_windows(crops, clean, window_px=SIDE) == [None]
    assert golden_windows(crops, [], window_px=SIDE) == [None]


def test_shot_that_shows_the_same_defect_unmarked_is_no_golden_one(tmp_path: Path) -> None:
    image = board(0)
    crops = defective(tmp_path / "real", image, (150, 100, 182, 130))
    unmarked = image.copy()
    unmarked[106:124, 156:176] = 255
    assert golden_windows(crops, [shot(tmp_path / "clean", "same", unmarked)], window_px=SIDE) == [None]


def test_of_several_the_least_different_is_taken_and_progress_counts_images(tmp_path: Path) -> None:
    image = board(0)
    crops = defective(tmp_path / "real", image, (150, 100, 182, 130))
    # The same surroundings, but a pad that the real part has not.
    padded = image.copy()
    padded[101:129, 151:181] = 20
    shots = [shot(tmp_path / "clean", "padded", padded), shot(tmp_path / "clean", "same", image)]
    seen: list[tuple[int, int]] = []
    for clean in (shots, shots[::-1]):
        (twin,) = golden_windows(crops, clean, window_px=SIDE, progress=lambda *event: seen.append(event))
        assert twin is not None
        region = region_of(centre(crops[0].mask, SIDE), outlined=False)
        assert np.abs(twin.astype(int) - true_window(crops[0], image))[region].mean() < 2
    assert seen == [(1, 2), (2, 2)] * 2
