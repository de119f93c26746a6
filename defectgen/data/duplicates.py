"""Pictures that are held out and trained on at once: leaks that neither names nor bytes show."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import imagehash
import numpy as np
from PIL import Image

from defectgen.images import read_rgb
from defectgen.progress import Progress, silent
from defectgen.records import LabelledImage, Problem, Sources

# Differing bits of 64 below which two pictures are compared closely. Turned copies are found by turning.
CANDIDATE_BITS = 12
# Compared small, then large, by the block that differs most: a defect more is another picture, a re-encoding is not.
SMALL_PX, BLOCK_PX, SAME_LEVELS = 256, 8, 6.0


def find_near_duplicates(sources: Sources, progress: Progress = silent) -> list[Problem]:
    """A warning for each defective test image whose picture a training image shows, too: re-encoded, resized, brighter,
    turned or mirrored. Clean pictures of a camera that does not move are alike by nature, and are not compared.
    """
    train, test = [image for image in sources.train_pool if image.annotations], list(sources.test)
    if not train or not test:
        return []
    pictures, total = [], len(train) + len(test)
    for image in train:
        pictures.append(_small(_grey(image)))
        progress("compare pictures", len(pictures), total, "")
    hashes = np.stack([_bits(picture) for picture in pictures])
    problems = []
    for number, image in enumerate(test, len(train) + 1):
        twin = _twin(image, train, pictures, hashes)
        progress("compare pictures", number, total, "")
        if twin is not None:
            problems.append(
                Problem(
                    "warning",
                    str(image.path),
                    "",
                    f"is held out, but shows the same picture as the training image {twin.path}",
                    "keep them on one side of the split, by data.group_pattern or folder",
                )
            )
    return problems


def _twin(
    image: LabelledImage, train: Sequence[LabelledImage], pictures: Sequence[np.ndarray], hashes: np.ndarray
) -> LabelledImage | None:
    grey = _grey(image)
    for turned in (np.rot90(flipped, quarter) for flipped in (grey, grey[:, ::-1]) for quarter in range(4)):
        small = _small(turned)
        distances = (_bits(small)[None] != hashes).sum(axis=1)
        for index in np.argsort(distances, kind="stable"):
            if distances[index] > CANDIDATE_BITS:
                break
            if _same(small, pictures[index]) and _same(*_at_one_size(turned, _grey(train[index]))):
                return train[index]
    return None


def _grey(image: LabelledImage) -> np.ndarray:
    return cv2.cvtColor(read_rgb(image.path), cv2.COLOR_RGB2GRAY)


def _small(grey: np.ndarray) -> np.ndarray:
    return cv2.resize(grey, (SMALL_PX, SMALL_PX), interpolation=cv2.INTER_AREA)


def _at_one_size(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as large as the smaller one, cut to whole blocks."""
    height, width = (min(sides) for sides in zip(one.shape, other.shape, strict=True))
    size = (max(width // BLOCK_PX, 1) * BLOCK_PX, max(height // BLOCK_PX, 1) * BLOCK_PX)
    return cv2.resize(one, size, interpolation=cv2.INTER_AREA), cv2.resize(other, size, interpolation=cv2.INTER_AREA)


def _bits(picture: np.ndarray) -> np.ndarray:
    """bool (64,): perceptual hash of the low frequencies."""
    return np.asarray(imagehash.phash(Image.fromarray(picture)).hash).ravel()


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether no block of the pictures differs, but for brightness and contrast; both (H, W), whole blocks."""
    a, b = one.astype(np.float32), other.astype(np.float32)
    spread = float(b.std())
    if spread < 1:
        return bool(a.std() < 1)
    a = (a - a.mean()) * (spread / max(float(a.std()), 1e-6)) + b.mean()
    rows, columns = (side // BLOCK_PX for side in a.shape)
    blocks = (a - b).reshape(rows, BLOCK_PX, columns, BLOCK_PX).mean(axis=(1, 3))
    return float(np.abs(blocks).max()) < SAME_LEVELS
