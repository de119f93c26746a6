"""Labels measured from what changed between a composite and its clean twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from defectgen.boxes import clip_xyxy, mask_outlines, mask_xyxy
from defectgen.crops import Crop, centre
from defectgen.records import XYXY, Polygon
from defectgen.windows import Window, crop_window, inside_at, resize

# Image pixels on the left, at the top, right and bottom.
Sides = tuple[float, float, float, float]

# Pieces smaller than this share of the largest changed piece are not part of the defect.
SMALL_PIECE = 0.08
# A change that meets the region's border along more of it than this was cut off.
CUT_BORDER = 0.4
# A composite fainter than this quantile of its class's real defects is no fair example of it.
FAINT_QUANTILE = 0.1
# Of drawn twins. Checked on DeepPCB, whose true ones are known: 8 to 11 px against 10 to 15; the median gave 1 to 9.
MARGIN_QUANTILE = 0.85
# A defect whose twin is drawn has at least this share of its class's margin on each side: the twin's errors look like
# more defect. On DeepPCB, photographed twins put aside, margins were 2.1 px off so, and 4.1 px, too tight, without.
LEAST_OWN_MARGIN = 0.75
# Where it has more than so often its class's margin (and two of the generator's pixels) on a side, a part of the defect
# was not seen there: a slit of a pixel whose thin end passes for a hair line.
MOST_OWN_MARGIN = 3.0


@dataclass(frozen=True)
class Measured:
    """What visibly changed.

    Attributes:
        mask: bool (H, W), in image pixels.
        xyxy: its tight box.
        polygons: its outlines, largest first.
    """

    mask: np.ndarray
    xyxy: XYXY
    polygons: tuple[Polygon, ...]


def visible_change(
    image: np.ndarray,
    clean: np.ndarray,
    *,
    min_change: int,
    grain_px: float = 1.0,
    weak_change: int | None = None,
    expected: np.ndarray | None = None,
) -> np.ndarray:
    """bool (H, W): where `image` differs from `clean` (both uint8 (H, W, 3)) by at least `min_change` in a channel.

    What is joined to such a place and differs by `weak_change` counts too: where a dark defect runs on over dark
    product, an annotator sees where it goes (hysteresis, as in Canny 1986).
    Hair lines no wider than two of the generator's pixels (`grain_px` image pixels each), as an edge of the product
    drawn beside its place leaves, do not count, unless most of the change is as thin (a scratch), or they lie where the
    defect is `expected`, bool (H, W): a thin end of it.
    """
    change = cv2.absdiff(image, clean).max(axis=2)
    changed = (change >= min_change).astype(np.uint8)
    if weak_change is not None and changed.any():
        _, joined = cv2.connectedComponents((change >= weak_change).astype(np.uint8), connectivity=8)
        changed = np.isin(joined, np.unique(joined[changed > 0])).astype(np.uint8)
    width = 2 * max(1, round(grain_px)) + 1
    # What the image's edge cuts goes on beyond it: the sliver of a broad defect is no hair line.
    beyond = cv2.copyMakeBorder(changed, width, width, width, width, cv2.BORDER_REPLICATE)
    opened = cv2.morphologyEx(beyond, cv2.MORPH_OPEN, np.ones((width, width), np.uint8))
    solid = opened[width:-width, width:-width]
    if solid.sum() >= 0.3 * changed.sum():
        near_solid = cv2.dilate(solid, np.ones((3, 3), np.uint8))
        changed &= near_solid if expected is None else cv2.max(near_solid, expected.astype(np.uint8))
    num, pieces, stats, _ = cv2.connectedComponentsWithStats(changed, connectivity=8)
    if num < 2:
        return changed.astype(bool)
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = np.flatnonzero(areas >= max(3, SMALL_PIECE * areas.max())) + 1
    return np.isin(pieces, kept)


def measure(
    image: np.ndarray,
    clean: np.ndarray,
    window: Window,
    *,
    min_change: int,
    window_px: int,
    weak_change: int | None,
    expected: np.ndarray | None = None,
) -> Measured | None:
    """The change within `window`, or None where nothing changed visibly (see `visible_change`).

    `expected`: bool (side, side) of the window, where the defect should be.
    """
    height, width = image.shape[:2]
    x1, y1 = max(window.x, 0), max(window.y, 0)
    x2, y2 = min(window.x + window.side, width), min(window.y + window.side, height)
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = visible_change(
        image[y1:y2, x1:x2],
        clean[y1:y2, x1:x2],
        min_change=min_change,
        grain_px=window.side / window_px,
        weak_change=weak_change,
        expected=None if expected is None else expected[y1 - window.y : y2 - window.y, x1 - window.x : x2 - window.x],
    )
    box = mask_xyxy(mask)
    if box is None:
        return None
    outlines = mask_outlines(mask[y1:y2, x1:x2])
    polygons = tuple(tuple((x + x1, y + y1) for x, y in outline) for outline in outlines)
    return Measured(mask, box, polygons)


def cut_off(drawn: np.ndarray, clean: np.ndarray, region: np.ndarray, *, min_change: int) -> float:
    """Share of the region's border along which the drawn window still differs from the clean one.

    All at the generator's scale: uint8 (H, W, 3) twice, bool (H, W). The edge of the window does not count.
    """
    eroded = cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(bool)
    border = region & ~eroded
    if not border.any():
        return 0.0
    differs = cv2.absdiff(drawn, clean).max(axis=2) >= 2 * min_change
    return float((differs & border).sum() / border.sum())


def visible_defect(crop: Crop, twin: np.ndarray, *, min_change: int) -> np.ndarray:
    """bool (H, W): where a real defect visibly differs from its clean twin (uint8 (H, W, 3)), not its mirror images."""
    seen = visible_part(centre(crop.image, twin.shape[0]), twin, min_change=min_change)
    if crop.size_wh is None:
        return seen
    return seen & inside_at(crop.window, crop.size_wh, len(twin))


def visible_part(image: np.ndarray, twin: np.ndarray, *, min_change: int) -> np.ndarray:
    """bool (H, W): where a window differs from its clean twin (both uint8 (H, W, 3)) by half the defect's contrast.

    A twin may be drawn, and its grain must not count as the defect.
    """
    strongest = float(np.quantile(cv2.absdiff(image, twin), 0.98))
    return visible_change(image, twin, min_change=max(2 * min_change, round(strongest / 2)))


def annotators_margin(
    crops: Sequence[Crop],
    twins: np.ndarray,
    *,
    photographed: Sequence[bool],
    num_classes: int,
    min_change: int,
) -> list[float]:
    """Per class, the image pixels annotators leave on each side of a visible defect.

    Measured on the real box-annotated defects against their clean twins: the median over those of a class whose twins
    are photographed; with fewer than 5 of these the upper quantile MARGIN_QUANTILE over all its twins (over all classes
    where it has fewer than 5), as the errors of a drawn twin look like more defect, never less. Of thin lines the
    median slack in their boxes. 0 where annotations are outlines. In pixels, as annotators' slack was found to grow far
    less than in proportion: on DeepPCB 10 to 15 px in every class, which is 36 to 68 % of the visible side.
    """
    window_px = twins.shape[1]
    exact: list[list[float]] = [[] for _ in range(num_classes)]
    line_slacks: list[list[float]] = [[] for _ in range(num_classes)]
    margins_px: list[list[float]] = [[] for _ in range(num_classes)]
    for crop, twin, is_photograph in zip(crops, twins, photographed, strict=True):
        if crop.class_id is None:
            continue
        if crop.line_slack_px is not None:
            # A line's faint end is missed as often as grain beside it is taken for more of it.
            line_slacks[crop.class_id].extend(crop.line_slack_px)
        if crop.outlined:
            continue
        seen = mask_xyxy(visible_defect(crop, twin, min_change=min_change))
        asked = crop.window.to_window(crop.xyxy, window_px)
        if seen is None:
            continue
        for low in (0, 1):
            slack = (asked[low + 2] - asked[low]) - (seen[low + 2] - seen[low])
            margin_px = slack / 2 * crop.window.side / window_px
            margins_px[crop.class_id].append(margin_px)
            if is_photograph:
                exact[crop.class_id].append(margin_px)
    together = [margin for of_class in margins_px for margin in of_class]
    margins = []
    for of_class, of_photographs, of_lines in zip(margins_px, exact, line_slacks, strict=True):
        if of_lines or len(of_photographs) >= 10:
            margins.append(max(float(np.median(of_lines or of_photographs)), 0.0))
            continue
        of_class = of_class if len(of_class) >= 10 else together
        margins.append(max(float(np.quantile(of_class, MARGIN_QUANTILE)), 0.0) if of_class else 0.0)
    return margins


def contrast(image: np.ndarray, clean: np.ndarray, *, min_change: int) -> float:
    """Change (0 to 255, strongest channel) that a quarter of the visibly changed pixels exceed; 0 where none changed.

    Not their mean: soft edges, of which a composite has more than a photograph, would decide.
    """
    change = cv2.absdiff(image, clean).max(axis=2)
    seen = visible_change(image, clean, min_change=min_change)
    return float(np.quantile(change[seen], 0.75)) if seen.any() else 0.0


def least_contrasts(crops: Sequence[Crop], twins: np.ndarray, *, num_classes: int, min_change: int) -> list[float]:
    """Per class, the contrast that all but the faintest of its real defects (FAINT_QUANTILE) have to their twins.

    Over all classes where a class has fewer than 5 defects.
    """
    window_px = twins.shape[1]
    found: list[list[float]] = [[] for _ in range(num_classes)]
    for crop, twin in zip(crops, twins, strict=True):
        if crop.class_id is not None:
            found[crop.class_id].append(contrast(centre(crop.image, window_px), twin, min_change=min_change))
    together = [value for of_class in found for value in of_class] or [0.0]
    return [float(np.quantile(of_class if len(of_class) >= 5 else together, FAINT_QUANTILE)) for of_class in found]


def own_margin(crop: Crop, twin: np.ndarray, *, min_change: int, at_least: float = 0.0) -> Sides | None:
    """The image pixels that a real defect's box leaves left, above, right and below of its `visible_part`.

    `at_least`, or 0, where the box is the tighter one. None where nothing is visible.
    """
    seen = mask_xyxy(visible_defect(crop, twin, min_change=min_change))
    if seen is None:
        return None
    box, to_image = crop.window.to_window(crop.xyxy, len(twin)), crop.window.side / len(twin)
    left, top, right, bottom = (
        max(sign * (inner - outer) * to_image, at_least)
        for sign, inner, outer in zip((1, 1, -1, -1), seen, box, strict=True)
    )
    return (left, top, right, bottom)


def even_margin(changed: XYXY, margin_px: float) -> Sides:
    """`margin_px` on each side, at most the changed box's own width or height: a scratch is not all margin."""
    x1, y1, x2, y2 = changed
    wide, high = min(margin_px, x2 - x1), min(margin_px, y2 - y1)
    return (wide, high, wide, high)


def label_box(changed: XYXY, margin: Sides, size_wh: tuple[int, int]) -> XYXY:
    """The changed box with the annotators' margin around it, within the image."""
    (x1, y1, x2, y2), (left, top, right, bottom) = changed, margin
    clipped = clip_xyxy((x1 - left, y1 - top, x2 + right, y2 + bottom), size_wh)
    return tuple(round(float(value), 3) for value in clipped)  # type: ignore[return-value]


def window_view(image: np.ndarray, window: Window, window_px: int) -> np.ndarray:
    """uint8 (window_px, window_px, 3): the window as generator and classifier see it."""
    return resize(crop_window(image, window), window_px)
