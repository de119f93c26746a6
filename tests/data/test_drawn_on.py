"""Marks drawn into pictures of a camera without colour, and pictures that have colour by nature."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from defectgen.data.drawn_on import find_drawn_on
from defectgen.images import encode_image
from defectgen.records import LabelledImage, Sources


def grey(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(60, 200, (64, 96, 1))
    return np.repeat(noise, 3, axis=2).astype(np.uint8)


def boxed(seed: int) -> np.ndarray:
    image = grey(seed)
    cv2.rectangle(image, (20, 20), (50, 40), (0, 255, 0), 2)
    return image


def found(folder: Path, images: list[np.ndarray], suffix: str = "jpg") -> list[str]:
    listed = []
    for number, pixels in enumerate(images):
        path = folder / f"{number}.{suffix}"
        path.write_bytes(encode_image(pixels, suffix))
        listed.append(LabelledImage(path, path.name, (96, 64), path.stem, ()))
    half = len(listed) // 2
    problems = find_drawn_on(Sources(("pit",), (), tuple(listed[:half]), tuple(listed[half:]), (), ()))
    assert all(problem.severity == "warning" for problem in problems)
    return [Path(problem.path).stem for problem in problems]


def test_the_few_with_drawn_marks_are_named(tmp_path: Path) -> None:
    images = [grey(seed) for seed in range(30)]
    images[4], images[21] = boxed(4), boxed(21)
    assert found(tmp_path, images) == ["4", "21"]


def test_grey_pictures_are_no_alarm(tmp_path: Path) -> None:
    assert found(tmp_path, [grey(seed) for seed in range(10)]) == []


def test_colour_that_many_have_is_the_products(tmp_path: Path) -> None:
    assert found(tmp_path, [boxed(seed) if seed % 5 == 0 else grey(seed) for seed in range(20)]) == []


def test_picture_of_another_camera_is_not_drawn_on(tmp_path: Path) -> None:
    coloured = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    assert found(tmp_path, [*(grey(seed) for seed in range(10)), coloured], "png") == []
    # Nor does it hide one that is.
    assert found(tmp_path, [*(grey(seed) for seed in range(20)), coloured, boxed(21)], "png") == ["21"]


def test_among_three_nobody_can_tell(tmp_path: Path) -> None:
    assert found(tmp_path, [grey(0), grey(1), boxed(2)]) == []
