"""One picture in many guises on both sides of the split, and other pictures of the same camera."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from defectgen.data.duplicates import find_near_duplicates
from defectgen.images import encode_image
from defectgen.records import Annotation, LabelledImage, Sources


def part(seed: int) -> np.ndarray:
    """A part under a camera that does not move: the same product, noise of its own and a defect of its own."""
    base = cv2.GaussianBlur(np.random.default_rng(99).integers(0, 255, (240, 320, 3)).astype(np.float32), (0, 0), 9)
    base = (base - base.mean()) * 12 + 128
    rng = np.random.default_rng(seed)
    image = base + rng.normal(0, 3, base.shape)
    x, y = rng.integers(20, 200, 2)
    image[y : y + 12, x : x + 18] -= 70
    return np.clip(image, 0, 255).astype(np.uint8)


def listed(folder: Path, name: str, image: np.ndarray, *, defective: bool = True) -> LabelledImage:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(encode_image(np.ascontiguousarray(image), "jpg" if name.endswith("jpg") else "png"))
    marks = (Annotation(0, (5.0, 5.0, 20.0, 20.0)),) if defective else ()
    return LabelledImage(path, name, image.shape[1::-1], name, marks)


def found(train: list[LabelledImage], test: list[LabelledImage]) -> list[tuple[str, str]]:
    sources = Sources(("pit",), tuple(train), tuple(train), (), tuple(test), ())
    problems = find_near_duplicates(sources)
    assert all(problem.severity == "warning" for problem in problems)
    return [(Path(problem.path).name, Path(problem.reason.rpartition(" ")[2]).name) for problem in problems]


def test_other_shots_of_the_same_product_are_no_duplicates(tmp_path: Path) -> None:
    train = [listed(tmp_path / "train", f"{seed}.png", part(seed)) for seed in range(6)]
    test = [listed(tmp_path / "test", f"{seed}.png", part(seed)) for seed in range(6, 12)]
    assert found(train, test) == []


@pytest.mark.parametrize(
    "guise",
    [
        lambda image: image,
        lambda image: image[:, ::-1],
        lambda image: np.rot90(image, 3),
        lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda image: np.clip(image.astype(float) * 0.85 + 12, 0, 255).astype(np.uint8),
        lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR),
    ],
    ids=["as it is", "mirrored", "turned", "smaller", "darker", "re-encoded"],
)
def test_the_same_shot_is_found_in_every_guise(tmp_path: Path, guise: object) -> None:
    train = [listed(tmp_path / "train", f"{seed}.png", part(seed)) for seed in range(4)]
    test = [listed(tmp_path / "test", "a.png", guise(part(2))), listed(tmp_path / "test", "b.png", part(7))]
    assert found(train, test) == [("a.png", "2.png")]


def test_clean_pictures_are_not_compared(tmp_path: Path) -> None:
    train = [listed(tmp_path / "train", "0.png", part(0), defective=False)]
    test = [listed(tmp_path / "test", "1.png", part(0))]
    assert found(train, test) == []
