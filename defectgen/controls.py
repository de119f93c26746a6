"""The control arms' images: what a user could add to the real ones without a generator.

Each stands at an image of the synthetic set: the same clean image, places and sizes, other pixels. Real images under
strong augmentation alone have no place to follow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import cv2
import numpy as np

from defectgen.augment import seed_transforms
from defectgen.boxes import area, clip_polygon, mask_outlines, mask_xyxy, polygon_xyxy
from defectgen.copies import copied_in
from defectgen.dataset.labels import contrast, even_margin, label_box, measure, own_margin, window_view
from defectgen.errors import RunError
from defectgen.images import read_rgb, sha256_file
from defectgen.inpaint.backends import two_levels
from defectgen.inpaint.placement import Turn, annotated_box
from defectgen.recipe import Recipe
from defectgen.records import XYXY, Annotation, Composite, PlacedDefect, Polygon, Rejection, Sources
from defectgen.seeds import derive_seed, numpy_rng
from defectgen.studio import Studio
from defectgen.windows import Window
from defectgen.yolo.tiles import PADDING_GREY

# Without it, the import asks PyPI for a newer version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A

# A defect of which less than this share stays in an augmented image is not labelled, as in YOLO's own augmentation; an
# image that keeps none is drawn anew, so often at most.
LEFT_OF_DEFECT, MAX_DRAWS = 0.1, 50
# Where the recipe lets a detector's training change sizes by so much (`train_yolo.scale_jitter`, its default), or more,
# augmented images are scaled and turned in full; with less jitter, by the same share of it.
STRONG_JITTER = 0.5

# image, the row's placed defect, its number in the image -> the image with the defect, its label box, and where it is,
# bool (H, W); None: wherever the image changed in the box
_Painter = Callable[[np.ndarray, dict[str, Any], int], tuple[np.ndarray, XYXY, np.ndarray | None]]


def compose_copy_paste(recipe: Recipe, sources: Sources, studio: Studio, row: dict[str, Any]) -> Composite:
    """The image of a manifest row again, with the real defects that its placements follow, Poisson-blended.

    They are not bent, so that the boxes and outlines of the real annotations, moved along, are right labels. Of a box
    the outline is measured.
    """
    min_change = recipe.labels.min_change

    def paint(image: np.ndarray, placed: dict[str, Any], number: int) -> tuple[np.ndarray, XYXY, np.ndarray | None]:
        placement = placed["placement"]
        turn, window = replace(Turn.of_json(placement), warp=0.0), Window(*placement["window"])
        after, shape = copied_in(recipe, sources, studio, placement["model"], turn, window, image)
        model, size_wh = studio.models[placement["model"]], image.shape[1::-1]
        box = annotated_box(model, turn, window, size_wh)
        if model.crop.outlined:
            return after, box, _in_image(shape, window, size_wh)
        measured = measure(after, image, window, min_change=min_change, window_px=window.side, weak_change=None)
        seen = None if measured is None else measured.mask
        margin = own_margin(model.crop, model.twin, min_change=min_change)
        if margin is None:
            return after, box, seen
        # Annotators leave as many pixels around a small defect as around a large one (see `annotators_margin`).
        too_small = 1 - window.side / model.crop.window.side
        left, top, right, bottom = (side * too_small for side in turn.sides(margin))
        return after, label_box(box, (left, top, right, bottom), size_wh), seen

    return _painted(recipe, sources, studio, row, paint, backend="poisson")


def compose_procedural(recipe: Recipe, sources: Sources, studio: Studio, row: dict[str, Any]) -> Composite:
    """The image of a manifest row again, with a scratch or a blot of noise drawn in each of its boxes.

    Blots are thresholded gradient noise, as in DRAEM (Zavrtanik et al. 2021), scratches wandering lines. Labels are
    measured as those of generated defects are.
    """

    def paint(image: np.ndarray, placed: dict[str, Any], number: int) -> tuple[np.ndarray, XYXY, None]:
        asked = placed["asked_xyxy"]
        margin_px = studio.margins[placed["class_id"]] if recipe.labels.margin == "auto" else 0.0
        crop = studio.models[placed["placement"]["model"]].crop
        # The box asked for is the model's, scaled with its margin, where that of a label is the same at any size. What
        # was asked for of an outlined defect has none.
        asked_margin_px = 0.0 if crop.outlined else margin_px * placed["placement"]["window"][2] / crop.window.side
        rng = numpy_rng(recipe.seed, "procedural", int(row["index"]), number)
        after, box = _drawn(image, asked, asked_margin_px, rng, two_levels(image))
        seen = mask_xyxy(_differs(after, image, box, recipe.labels.min_change))
        if seen is None:
            return after, asked, None
        x, y = box[0], box[1]
        changed = (seen[0] + x, seen[1] + y, seen[2] + x, seen[3] + y)
        return after, label_box(changed, even_margin(changed, margin_px), image.shape[1::-1]), None

    return _painted(recipe, sources, studio, row, paint, backend="procedural")


def compose_augmented(recipe: Recipe, sources: Sources, index: int) -> Composite:
    """A real image of the budget, turned, scaled, lit and blurred anew; all are used equally often."""
    lap, position = divmod(index, len(sources.train))
    real = sources.train[int(numpy_rng(recipe.seed, "augmented", lap).permutation(len(sources.train))[position])]
    pixels = read_rgb(real.path)
    transform = _strong(recipe.place.flip, recipe.place.quarter_turns, recipe.train_yolo.scale_jitter)
    seed_transforms(transform, derive_seed(recipe.seed, "augmented image", index))
    outlines = [mark.polygon or _ellipse(mark.xyxy) for mark in real.annotations]
    # Albumentations counts from pixel centres, boxes from pixel borders.
    points = np.array([point for outline in outlines for point in outline], np.float32) - 0.5
    for _ in range(MAX_DRAWS):
        out = transform(image=pixels, keypoints=points)
        moved = _marks(real.annotations, outlines, out["keypoints"] + 0.5, out["image"].shape[1::-1])
        if moved:
            image, kept = _as_the_camera(out["image"], pixels), moved
            break
    else:
        raise RunError(
            f"{real.path}: no augmentation keeps a defect in view in {MAX_DRAWS} draws; leave out arm real+aug"
        )
    base = replace(real, size_wh=(image.shape[1], image.shape[0]))
    return Composite(index, image, np.zeros(image.shape[:2], np.uint8), base, sha256_file(real.path), kept, (), ())


def _as_the_camera(image: np.ndarray, real: np.ndarray) -> np.ndarray:
    """`image` grey where `real` is grey, binary where that is binarised: anything else no camera would show."""
    levels = two_levels(real)
    if levels is not None:
        # Between the levels as they are after light and contrast have changed, or the darker image would be all black.
        grey = image.mean(axis=2, keepdims=True)
        binary = np.where(grey < (grey.min() + grey.max()) / 2, *levels)
        return np.repeat(binary.astype(np.uint8), 3, axis=2)
    if (real == real[..., :1]).all():
        return np.repeat(np.round(image.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
    return image


def _painted(
    recipe: Recipe, sources: Sources, studio: Studio, row: dict[str, Any], paint: _Painter, *, backend: str
) -> Composite:
    """The image of a manifest row with each of its defects painted by `paint`.

    What blends in until it is fainter than real defects is left out, as among generated ones: its label would be wrong.
    """
    # A clean image may have the name of a defective one.
    bases = sources.train_clean if recipe.data.base == "clean" else sources.train
    base = next(image for image in bases if image.name == row["source"])
    image = read_rgb(base.path)
    mask = np.zeros(image.shape[:2], np.uint8)
    painted, rejected = [], []
    for number, placed in enumerate(row["placed"]):
        before = image
        after, box, defect = paint(before, placed, number)
        refused = _too_faint(recipe, studio, placed, after, before)
        if refused is not None:
            rejected.append(refused)
            continue
        image = after
        if area(box) == 0:
            # The model's own box, where its outline is a generator's pixel wider: see `Turn.bend`, `annotated_box`.
            box = tuple(placed["asked_xyxy"])
        if defect is None or not defect.any():
            x1, y1, x2, y2 = whole = (int(box[0]), int(box[1]), math.ceil(box[2]), math.ceil(box[3]))
            defect = np.zeros(mask.shape, bool)
            defect[y1:y2, x1:x2] = _differs(image, before, whole, recipe.labels.min_change)
        mask[defect] = placed["class_id"] + 1
        outlines = mask_outlines(defect)
        placement = placed["placement"] | {"backend": backend}
        painted.append(PlacedDefect(placed["class_id"], box, box, outlines or (_corners(box),), box, placement))
    found = (tuple(painted), tuple(rejected))
    return Composite(int(row["index"]), image, mask, base, sha256_file(base.path), base.annotations, *found)


def _too_faint(
    recipe: Recipe, studio: Studio, placed: dict[str, Any], after: np.ndarray, before: np.ndarray
) -> Rejection | None:
    window = Window(*placed["placement"]["window"])
    views = (window_view(image, window, recipe.generator.window_px) for image in (after, before))
    seen = contrast(*views, min_change=recipe.labels.min_change)
    least = recipe.screen.min_contrast * studio.least_contrasts[placed["class_id"]]
    if seen > 0 and seen >= least:
        return None
    detail = f"contrast {seen:.0f} grey levels, at least {least:.0f}"
    return Rejection(placed["class_id"], "fainter than real ones", detail)


def _in_image(shape: np.ndarray, window: Window, size_wh: tuple[int, int]) -> np.ndarray:
    """bool (H, W) of the image: where `shape`, bool (side, side) of the window, lies in it."""
    whole = np.zeros(size_wh[::-1], bool)
    x1, y1 = max(window.x, 0), max(window.y, 0)
    x2, y2 = min(window.x + window.side, size_wh[0]), min(window.y + window.side, size_wh[1])
    whole[y1:y2, x1:x2] = shape[y1 - window.y : y2 - window.y, x1 - window.x : x2 - window.x]
    return whole


def _corners(box: XYXY) -> Polygon:
    x1, y1, x2, y2 = box
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _ellipse(box: XYXY, num_points: int = 24) -> Polygon:
    """The ellipse in a box: turned, it keeps to a defect of which the box alone is known, where corners stick out."""
    x1, y1, x2, y2 = box
    turns = [2 * math.pi * number / num_points for number in range(num_points)]
    return tuple(
        ((x1 + x2 + (x2 - x1) * math.cos(turn)) / 2, (y1 + y2 + (y2 - y1) * math.sin(turn)) / 2) for turn in turns
    )


def _differs(after: np.ndarray, before: np.ndarray, box: tuple[int, int, int, int], min_change: int) -> np.ndarray:
    """bool (H, W) of the box: where the images differ visibly."""
    x1, y1, x2, y2 = box
    change: np.ndarray = cv2.absdiff(after[y1:y2, x1:x2], before[y1:y2, x1:x2]).max(axis=2) >= min_change
    return change


def _drawn(
    image: np.ndarray, asked: XYXY, margin_px: float, rng: np.random.Generator, levels: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """`image` with a drawn defect in the box asked for, less `margin_px`; and the box of pixels drawn in.

    `levels`: the two of a binarised image.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = asked
    wide, high = (min(margin_px, (length - 3) / 2) if length > 3 else 0.0 for length in (x2 - x1, y2 - y1))
    left, top = max(int(x1 + wide), 0), max(int(y1 + high), 0)
    right, bottom = min(int(np.ceil(x2 - wide)), width), min(int(np.ceil(y2 - high)), height)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    shape = (_scratch if rng.random() < 0.5 else _blot)((right - left, bottom - top), rng)
    weight = (rng.uniform(0.7, 1.0) * shape)[..., None]
    place = np.s_[top:bottom, left:right]
    here = image[place].astype(np.float32)
    around = here.mean(axis=(0, 1))
    out = image.copy()
    if levels is not None:
        other = levels[1] if around.mean() < np.mean(levels) else levels[0]
        out[place] = np.where(weight > 0.35, np.uint8(other), image[place])
        return out, (left, top, right, bottom)
    # Away from the nearer end of the scale, so that it shows.
    sign = rng.choice([-1.0, 1.0]) if 80 < around.mean() < 175 else (1.0 if around.mean() <= 80 else -1.0)
    tint = 0.0 if (here == here[..., :1]).all() else rng.normal(0, 12, 3)
    grain = cv2.GaussianBlur(rng.normal(0, 1, here.shape[:2]).astype(np.float32), (0, 0), 1.0)[..., None]
    paint = around + sign * rng.uniform(50, 130) + tint + 20 * grain
    out[place] = np.clip(np.round(here * (1 - weight) + paint * weight), 0, 255).astype(np.uint8)
    return out, (left, top, right, bottom)


def _scratch(size_wh: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """float32 (H, W), 0 to 1: a line that wanders from one end of the box to the other."""
    width, height = size_wh
    along = np.linspace(0, 1, 9)
    wander = np.cumsum(rng.normal(0, 0.08, 9))
    across = np.clip((along if rng.random() < 0.5 else 1 - along) + wander - wander.mean(), 0, 1)
    xs, ys = (along, across) if width >= height else (across, along)
    points = np.round(np.stack([xs * (width - 1), ys * (height - 1)], axis=1) * 16).astype(np.int32)
    thick = max(1, round(rng.uniform(0.05, 0.2) * min(size_wh)))
    mask = np.zeros((height, width), np.uint8)
    cv2.polylines(mask, [points], False, 255, thick, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _blot(size_wh: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """float32 (H, W), 0 to 1: an ellipse with a ragged edge."""
    width, height = size_wh
    noise = np.zeros((height, width), np.float32)
    for octave in (2, 4, 8):
        grid = rng.normal(0, 1 / octave, (octave + 1, octave + 1)).astype(np.float32)
        noise += cv2.resize(grid, size_wh, interpolation=cv2.INTER_CUBIC)
    ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    shape = (1.0 - xs**2 - ys**2 + 0.6 * noise > 0.15).astype(np.float32)
    shape[height // 2, width // 2] = 1
    return cv2.GaussianBlur(shape, (0, 0), 0.7) if min(size_wh) >= 6 else shape


@cache
def _strong(flip: bool, quarter_turns: bool, scale_jitter: float) -> A.Compose:
    # A camera that never moves, of which the recipe says so, shows no part larger or askew.
    share = min(scale_jitter / STRONG_JITTER, 1.0)
    turns: list[A.BasicTransform] = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)] if flip else []
    if quarter_turns:
        turns.append(A.RandomRotate90(p=1))
    return A.Compose(
        [
            *turns,
            A.Affine(
                scale=(1 - 0.3 * share, 1 + 0.4 * share),
                keep_ratio=True,
                translate_percent=(-0.15, 0.15),
                rotate=(-12 * share, 12 * share),
                shear=(-6 * share, 6 * share),
                fill=PADDING_GREY,
                p=0.9,
            ),
            A.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.25, p=0.8),
            A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=25, val_shift_limit=0, p=0.5),
            A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.Sharpen()], p=0.3),
            A.GaussNoise(std_range=(0.01, 0.05), p=0.4),
        ],
        keypoint_params=A.KeypointParams(format="xy", remove_invisible=False),
    )


def _marks(
    marks: tuple[Annotation, ...], outlines: list[Polygon], points: np.ndarray, size_wh: tuple[int, int]
) -> tuple[Annotation, ...]:
    """The annotations at their moved points, clipped to the image; without those of which too little is left in it."""
    moved = []
    first = 0
    for mark, outline in zip(marks, outlines, strict=True):
        whole: Polygon = tuple((float(x), float(y)) for x, y in points[first : first + len(outline)])
        first += len(outline)
        left = clip_polygon(whole, (0.0, 0.0, float(size_wh[0]), float(size_wh[1])))
        if not left:
            continue
        box = polygon_xyxy(left)
        if area(box) < LEFT_OF_DEFECT * area(polygon_xyxy(whole)) or min(box[2] - box[0], box[3] - box[1]) < 1:
            continue
        moved.append(Annotation(mark.class_id, box, left if mark.polygon is not None else None))
    return tuple(moved)
