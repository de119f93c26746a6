"""Defect crops and clean crops: what the generator and the screening classifier learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from defectgen.boxes import polygon_mask, polygon_xyxy
from defectgen.images import read_rgb
from defectgen.records import XYXY, Annotation, LabelledImage, Polygon
from defectgen.seeds import numpy_rng
from defectgen.windows import Window, crop_window, resize, window_at, window_side

# A crop is this much wider than its window, so that shifts and rotations find real pixels, not mirrored ones.
CROP_OVER_WINDOW = 1.5


@dataclass(frozen=True)
class Crop:
    """A window of a real image with some surroundings, at the generator's scale.

    Attributes:
        image: uint8 (S, S, 3), S = round(window_px * CROP_OVER_WINDOW); its centre window_px are the window.
        mask: uint8 (S, S), 255 on the defect (its polygon, or its box where no outline is known); all 0 if clean.
        class_id: the defect's class; None on clean product.
        source: name of the image; `annotation` is the index of the defect in it (-1 if clean).
        window: in image pixels, without the surroundings.
        xyxy: the defect's annotated box in image pixels.
        outlined: whether the mask is an outline (of the annotation, or of the line in its box) rather than a box.
        touches: which edges of the image the defect touches (left, top, right, bottom).
        line_slack_px: image pixels between the box and the thin line found in it, on each side that is not an edge of
            the image; None where no line was found.
        is_held_out: kept from training, to watch for memorising.
        size_wh: of the image, beyond which a window is mirrored; None where it lies within.
        group: of the image: what is not independent, such as shots of one part.
    """

    image: np.ndarray
    mask: np.ndarray
    class_id: int | None
    source: str
    annotation: int
    window: Window
    xyxy: XYXY
    outlined: bool = False
    touches: tuple[bool, bool, bool, bool] = (False, False, False, False)
    line_slack_px: tuple[float, ...] | None = None
    is_held_out: bool = False
    size_wh: tuple[int, int] | None = None
    group: str = ""


def centre(array: np.ndarray, side: int) -> np.ndarray:
    """The middle (side, side) of (S, S, ...): the window of a crop."""
    start = (array.shape[0] - side) // 2
    return array[start : start + side, start : start + side]


def crop_side(window_px: int) -> int:
    return round(window_px * CROP_OVER_WINDOW)


def defect_crops(
    images: Sequence[LabelledImage], *, window_px: int, context_factor: float, hold_out: float, seed: int
) -> list[Crop]:
    """One crop per marked defect, in the order of the images.

    `hold_out` is the share of each class kept from training; a class keeps at least four defects to train on. Kept out
    are defects that no other crop shows and of whose part there are the fewest others, as far as there are any.
    """
    windows: dict[tuple[str, int], Window] = {}
    for item in images:
        for index, annotation in enumerate(item.annotations):
            side = window_side(annotation.xyxy, item.size_wh, window_px=window_px, context_factor=context_factor)
            x1, y1, x2, y2 = annotation.xyxy
            windows[item.name, index] = window_at(((x1 + x2) / 2, (y1 + y2) / 2), side, item.size_wh)
    around = {key: with_surroundings(window, window_px) for key, window in windows.items()}
    held_out = _held_out(images, around, hold_out, seed)
    crops = []
    for item in images:
        image = read_rgb(item.path)
        for index, annotation in enumerate(item.annotations):
            window = windows[item.name, index]
            crops.append(
                Crop(
                    image=_scaled(image, window, window_px),
                    mask=_scaled(
                        _thickened(annotation_mask(annotation, item.size_wh), window.side / window_px),
                        window,
                        window_px,
                    ),
                    class_id=annotation.class_id,
                    source=item.name,
                    annotation=index,
                    window=window,
                    xyxy=annotation.xyxy,
                    outlined=bool(_outlines(annotation)),
                    touches=_touches(annotation.xyxy, item.size_wh),
                    line_slack_px=_line_slack(annotation, item.size_wh),
                    is_held_out=(item.name, index) in held_out,
                    size_wh=item.size_wh,
                    group=item.group,
                )
            )
    return crops


def clean_crops(
    images: Sequence[LabelledImage], defects: Sequence[Crop], *, window_px: int, num_crops: int, seed: int
) -> list[Crop]:
    """Windows of clean product, as large as those of the defects and at random places.

    On images that carry defects, windows that touch one are left out; surroundings that do are mirrored instead.
    """
    crops: list[Crop] = []
    rng = numpy_rng(seed, "clean crops")
    per_image = -(-num_crops // max(len(images), 1))
    for item in images:
        image = read_rgb(item.path)
        width, height = item.size_wh
        for _ in range(per_image):
            side = defects[int(rng.integers(len(defects)))].window.side
            center = (rng.uniform(0, width), rng.uniform(0, height))
            window = window_at(center, min(side, width, height), item.size_wh)
            around = with_surroundings(window, window_px)
            if any(_intersects(window.xyxy, annotation.xyxy) for annotation in item.annotations):
                continue
            if any(_intersects(around.xyxy, annotation.xyxy) for annotation in item.annotations):
                pad = window.x - around.x
                pixels = crop_window(crop_window(image, window), Window(-pad, -pad, around.side))
            else:
                pixels = crop_window(image, around)
            scaled = resize(pixels, crop_side(window_px))
            crops.append(Crop(scaled, np.zeros(scaled.shape[:2], np.uint8), None, item.name, -1, window, window.xyxy))
    return crops


def annotation_mask(annotation: Annotation, size_wh: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W), 255 within the annotation's polygon or the line in its box; within the box where it has neither."""
    mask = np.zeros((size_wh[1], size_wh[0]), np.uint8)
    if outlines := _outlines(annotation):
        inside = np.logical_xor.reduce([polygon_mask(outline, size_wh) for outline in outlines])
        # OpenCV fills to a pixel beyond the border, which keeps what is too thin to hold the centre of a pixel.
        corners = [np.round((np.asarray(outline) - 0.5) * 16).astype(np.int32) for outline in outlines]
        cv2.fillPoly(mask, corners, 255, shift=4)
        around = np.ones((3, 3), np.uint8)
        solid = cv2.dilate(cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_OPEN, around), around) > 0
        mask[solid & ~inside] = 0
    else:
        x1, y1, x2, y2 = (round(value) for value in annotation.xyxy)
        mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 255
    return mask


def _outlines(annotation: Annotation) -> tuple[Polygon, ...]:
    return annotation.line if annotation.polygon is None else (annotation.polygon,)


def _line_slack(annotation: Annotation, size_wh: tuple[int, int]) -> tuple[float, ...] | None:
    if not annotation.line:
        return None
    x1, y1, x2, y2 = polygon_xyxy(tuple(point for outline in annotation.line for point in outline))
    asked = annotation.xyxy
    slacks = (x1 - asked[0], y1 - asked[1], asked[2] - x2, asked[3] - y2)
    at_edge = _touches(asked, size_wh)
    return tuple(slack for slack, touches in zip(slacks, at_edge, strict=True) if not touches)


def with_surroundings(window: Window, window_px: int) -> Window:
    """The window of a whole crop, from the window of its defect."""
    side = round(window.side * crop_side(window_px) / window_px)
    pad = (side - window.side) // 2
    return Window(window.x - pad, window.y - pad, side)


def own_mask(crop: Crop, window_px: int) -> np.ndarray:
    """The crop's mask without the defect's mirror images beyond the edges of its image."""
    side = crop_side(window_px)
    x1, y1, x2, y2 = with_surroundings(crop.window, window_px).to_window(crop.xyxy, side)
    own = np.zeros_like(crop.mask)
    box = np.s_[max(int(y1), 0) : int(np.ceil(y2)), max(int(x1), 0) : int(np.ceil(x2))]
    own[box] = crop.mask[box]
    return own


def _scaled(image: np.ndarray, window: Window, window_px: int) -> np.ndarray:
    return resize(crop_window(image, with_surroundings(window, window_px)), crop_side(window_px))


def _thickened(mask: np.ndarray, grain_px: float) -> np.ndarray:
    """`mask` with what is thinner than a pixel of the generator widened to one, so that no crack fades when scaled."""
    side = int(np.ceil(grain_px))
    kernel = np.ones((side, side), np.uint8)
    # By hand: with an even kernel, which has no middle, OpenCV's opening moves all by a pixel.
    opened = cv2.dilate(cv2.erode(mask, kernel), kernel, anchor=((side - 1) // 2,) * 2)
    thin = cv2.subtract(mask, opened)
    return cv2.max(mask, cv2.dilate(thin, kernel))


def _held_out(
    images: Sequence[LabelledImage], around: dict[tuple[str, int], Window], share: float, seed: int
) -> set[tuple[str, int]]:
    by_class: dict[int, list[tuple[str, int]]] = {}
    in_others = set()
    groups = {item.name: item.group for item in images}
    shots = Counter(item.group for item in images for _ in item.annotations)
    for item in images:
        for index, annotation in enumerate(item.annotations):
            by_class.setdefault(annotation.class_id, []).append((item.name, index))
            others = (around[item.name, other] for other in range(len(item.annotations)) if other != index)
            if any(_intersects(other.xyxy, annotation.xyxy) for other in others):
                in_others.add((item.name, index))
    held_out: set[tuple[str, int]] = set()
    for class_id, keys in sorted(by_class.items()):
        count = max(0, min(round(share * len(keys)), len(keys) - 4))
        order = [keys[i] for i in numpy_rng(seed, "held out", class_id).permutation(len(keys))]
        of_group = [groups[name] for name, _ in order]
        ranks = []
        for place, (key, group) in enumerate(zip(order, of_group, strict=True)):
            # Whole parts first: with other shots of its part to train on, a defect is hardly an unseen one.
            large = shots[group] > count
            ranks.append((key in in_others, large, place if large else of_group.index(group), key))
        held_out.update(key for *_, key in sorted(ranks)[:count])
    return held_out


def _touches(xyxy: XYXY, size_wh: tuple[int, int], slack_px: float = 1.5) -> tuple[bool, bool, bool, bool]:
    x1, y1, x2, y2 = xyxy
    width, height = size_wh
    return (x1 <= slack_px, y1 <= slack_px, x2 >= width - slack_px, y2 >= height - slack_px)


def _intersects(a: XYXY, b: XYXY) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def shown(mask: np.ndarray) -> np.ndarray:
    """bool (H, W): where a mask (uint8) is at least half as strong as it can be; as it is, where it has faded: a line
    thinner than a pixel, turned.
    """
    strongest = int(mask.max())
    return mask >= (128 if strongest >= 128 else max(strongest / 2, 1))


def region_of(mask: np.ndarray, *, outlined: bool, grow: float = 1.0) -> np.ndarray:
    """bool (H, W): the pixels the generator may draw on for a defect `mask` (uint8 (H, W) in window pixels).

    An outline is grown by a tenth of its longest side, a box likewise on each side, by 2 to 6 px at `grow` 1: room for
    the annotators' slack and for a soft edge. A thin outline is grown by its width at most.
    """
    ys, xs = np.nonzero(shown(mask) if mask.any() else mask == 0)
    x1, y1, x2, y2 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    most = 6.0
    if outlined:
        grown = np.zeros(mask.shape, np.uint8)
        grown[ys, xs] = 1
        most = min(most, max(2 * float(cv2.distanceTransform(np.pad(grown, 1), cv2.DIST_L2, 5).max()), 2.0))
    margin = round(grow * min(max(0.1 * max(x2 - x1, y2 - y1), 2), most))
    if outlined:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
        return cv2.dilate(grown, kernel).astype(bool)
    region = np.zeros(mask.shape, bool)
    region[max(y1 - margin, 0) : y2 + margin, max(x1 - margin, 0) : x2 + margin] = True
    return region
