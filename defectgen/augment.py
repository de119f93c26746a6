"""Augmented windows drawn from crops: what the generator and the screening classifier are trained on."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from defectgen.crops import Crop, centre, region_of
from defectgen.seeds import derive_seed, numpy_rng

# Without it, the import asks PyPI for a newer version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A


@dataclass(frozen=True)
class Windows:
    """A batch of windows.

    Attributes:
        images: uint8 (B, H, W, 3).
        masks: uint8 (B, H, W), 255 on the defect, all 0 on clean product.
        regions: bool (B, H, W), where a generator may draw; on clean product the shape of a defect elsewhere.
        class_ids: int64 (B,); the number of classes stands for clean.
    """

    images: np.ndarray
    masks: np.ndarray
    regions: np.ndarray
    class_ids: np.ndarray


class WindowSampler:
    """Draws windows from crops: classes in equal shares, `clean_share` of them clean product.

    A batch depends on (seed, step) alone. Mirror images and quarter turns are drawn where they are allowed.
    """

    def __init__(
        self,
        defects: Sequence[Crop],
        clean: Sequence[Crop],
        *,
        num_classes: int,
        window_px: int,
        clean_share: float,
        flip: bool,
        quarter_turns: bool,
        seed: int,
    ) -> None:
        self._by_class = {
            class_id: crops
            for class_id in range(num_classes)
            if (crops := [crop for crop in defects if crop.class_id == class_id])
        }
        self._defects = list(defects)
        self._clean = list(clean)
        self._num_classes = num_classes
        self._window_px = window_px
        self._clean_share = clean_share
        self._seed = seed
        self._augment = _augmentation(window_px, flip=flip, quarter_turns=quarter_turns)

    def draw(self, step: int | str, size: int) -> Windows:
        rng = numpy_rng(self._seed, "windows", step)
        seed_transforms(self._augment, derive_seed(self._seed, "augmentation", step))
        drawn = [self._draw_one(rng) for _ in range(size)]
        images, masks, regions, class_ids = zip(*drawn, strict=True)
        return Windows(np.stack(images), np.stack(masks), np.stack(regions), np.array(class_ids, np.int64))

    def _draw_one(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        if self._clean and rng.random() < self._clean_share:
            crop = self._clean[rng.integers(len(self._clean))]
            shape = self._defects[rng.integers(len(self._defects))]
            class_id = self._num_classes
        else:
            class_id = int(rng.choice(list(self._by_class)))
            crop = shape = self._by_class[class_id][rng.integers(len(self._by_class[class_id]))]
        for _ in range(8):
            out = self._augment(image=crop.image, masks=[crop.mask, shape.mask])
            image, (mask, outline) = out["image"], out["masks"]
            if outline.max() >= 128:
                break
        else:  # A defect of a pixel can fade in the resampling: take it as it is.
            image, mask, outline = (centre(array, self._window_px) for array in (crop.image, crop.mask, shape.mask))
        tight = shape.outlined and rng.random() < 0.75
        return image, mask, region_of(outline, outlined=tight, grow=rng.uniform(0.5, 1.5)), class_id


def seed_transforms(transforms: A.Compose, seed: int) -> None:
    """One stream of random numbers for all: `set_random_seed` starts each of them with the same one, so that an image
    is mirrored along both axes or none, and lit anew only when it is mirrored.
    """
    transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))


def _augmentation(window_px: int, *, flip: bool, quarter_turns: bool) -> A.Compose:
    turns: list[A.BasicTransform] = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)] if flip else []
    if quarter_turns:
        turns.append(A.RandomRotate90(p=1))
    return A.Compose(
        [
            *turns,
            A.Affine(
                scale=(0.85, 1.2),
                translate_percent=(-0.1, 0.1),
                rotate=(-10, 10),
                interpolation=cv2.INTER_CUBIC,  # Linear would blur what the generator shall learn to draw.
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.9,
            ),
            A.CenterCrop(window_px, window_px),
            A.RandomBrightnessContrast(brightness_limit=0.06, contrast_limit=0.06, p=0.5),
        ]
    )
