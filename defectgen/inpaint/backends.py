"""A drawn defect into the clean image. Back-ends differ in how pixels are blended, in nothing else.

Outside the region the image stays bit-identical, whatever the back-end.
"""

from __future__ import annotations

import cv2
import numpy as np

from defectgen.recipe import Backend
from defectgen.windows import Window, crop_window, resize, window_inside

# A change of fewer grey levels (of 255) is the generator's own grain, not a defect, and is not pasted; one of more is
# pasted in full. Between the two it fades in.
GRAIN, CERTAIN = 8.0, 20.0
# Binarised: more than this share of the image lies within so many grey levels of its darkest or its brightest pixel,
# and these are so far apart.
BINARY_SHARE, SLACK_LEVELS, LEVELS_APART = 0.98, 8, 128
# Through a change of fewer grey levels the product's texture shows in full; one of more hides it.
SHINES_THROUGH, HIDES = 40.0, 100.0


def composite(
    image: np.ndarray,
    window: Window,
    drawn: np.ndarray,
    *,
    outline: np.ndarray,
    region: np.ndarray,
    backend: Backend,
    feather_px: int,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """`image` with the drawn defect in it.

    Args:
        image: uint8 (H, W, 3), the clean image; not written to.
        window: the place.
        drawn: uint8 (P, P, 3), the window with the defect, at any resolution.
        outline: uint8 (p, p), 255 on the defect itself (paste and poisson blend along it).
        region: bool (p, p), the only place where pixels may change.
        feather_px: width of the soft edge inside the region, in image pixels.
        start: uint8 (side, side, 3), what was drawn over, where that is not the clean window itself: its fine texture
            shows through what was drawn.

    Returns:
        uint8 (H, W, 3), equal to `image` wherever `region` (scaled to the window) does not lie.
    """
    size_wh = (image.shape[1], image.shape[0])
    clean = crop_window(image, window)
    inside = scaled_region(region, window.side) & window_inside(window, size_wh)
    if not inside.any():
        return image.copy()
    levels = two_levels(image)
    if backend == "diffusion":
        begun = clean if start is None else start
        weight = _feather(inside, window, size_wh, feather_px)
        if levels is None:
            changed = _paste_change(clean, begun, drawn, weight, grey=_is_grey(image))
        else:
            changed = _paste_switched(clean, begun, drawn, weight, levels)
    else:
        native = resize(drawn, window.side)
        if _is_grey(image):
            native = np.round(_grey(native.astype(np.float32))).astype(np.uint8)
        # Not cut at the edge of the image: a defect there neither fades nor ends.
        shape = (resize(outline, window.side) >= 128) & scaled_region(region, window.side)
        blend = _poisson if backend == "poisson" else _paste
        changed = blend(clean, native, shape if shape.any() else inside, feather_px)
    if levels is not None:
        dark = _is_dark(changed, levels)
        # What keeps its level keeps its pixels: the faint noise of a binarised photograph is missed where it lacks.
        binary = np.where(dark, *levels).astype(np.uint8)
        changed = np.where(dark == _is_dark(clean, levels), clean, binary)
    out = image.copy()
    ys, xs = np.nonzero(inside)
    out[ys + window.y, xs + window.x] = changed[ys, xs]
    return out


def two_levels(image: np.ndarray) -> tuple[int, int] | None:
    """The two grey levels of a binarised image; None for any other.

    Such an image stays binary: a grey pixel in it would tell a detector where a defect was drawn.
    """
    low, high = int(image.min()), int(image.max())
    if low == high and low in (0, 255):  # a blank part of one
        return (0, 255)
    if high - low < LEVELS_APART:
        return None
    near_low, near_high = (image <= low + SLACK_LEVELS).mean(), (image >= high - SLACK_LEVELS).mean()
    # Pure colours are as far apart.
    red, green, blue = cv2.split(image)
    tint = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    if (tint > SLACK_LEVELS).mean() > 1 - BINARY_SHARE:
        return None
    # A camera's black is never without noise: a dark field with a few bright spots is not binarised.
    both = min(near_low, near_high) > 1 - BINARY_SHARE
    return (low, high) if near_low + near_high > (BINARY_SHARE if both else 0.9999) else None


def _is_grey(image: np.ndarray) -> bool:
    """A grey camera's image stays grey: a tint would tell a detector where a defect was drawn. The whole image: a
    colour camera's white is without colour, too."""
    return bool((image == image[..., :1]).all())


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)


def scaled_region(region: np.ndarray, side: int) -> np.ndarray:
    """bool (side, side) from bool (p, p)."""
    # The exact one takes pixels by their centres, as outlines and images are resized.
    return cv2.resize(region.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


def _paste_change(
    clean: np.ndarray, start: np.ndarray, drawn: np.ndarray, weight: np.ndarray, *, grey: bool
) -> np.ndarray:
    """start + upsampled(drawn - downsampled start), by `weight`: the fine texture of what was drawn over survives.

    Where the change is so strong that it hides what was there, the drawn pixels themselves: a sharp edge of the start
    would leave its ghost, since a change at the generator's scale cannot cancel it.
    """
    grain = drawn.shape[0]
    change = drawn.astype(np.float32) - resize(start, grain).astype(np.float32)
    pixels = drawn.astype(np.float32)
    if grey:
        change, pixels = _grey(change), _grey(pixels)
    strongest = cv2.GaussianBlur(np.abs(change).max(axis=2), (0, 0), 1.0)
    sure = np.clip((strongest - GRAIN) / (CERTAIN - GRAIN), 0, 1)
    side = len(clean)
    hides = resize(np.clip((strongest - SHINES_THROUGH) / (HIDES - SHINES_THROUGH), 0, 1), side)[..., None]
    added = start + resize(change * sure[..., None], side)
    drawn_in = added * (1 - hides) + resize(pixels, side) * hides
    share = weight[..., None]
    return np.clip(np.round(clean * (1 - share) + drawn_in * share), 0, 255).astype(np.uint8)


def _paste_switched(
    clean: np.ndarray, start: np.ndarray, drawn: np.ndarray, weight: np.ndarray, levels: tuple[int, int]
) -> np.ndarray:
    """`start` with those pixels on the other level that drawing has moved there, of a binarised image.

    Both at the generator's scale and enlarged alike, since an edge that moves by part of a pixel changes by a fraction
    of what lies between the levels: added to `start`, which is sharp, it would move none.
    """
    side = len(clean)
    rendered = resize(start, drawn.shape[0]).astype(np.float32)
    change = drawn.astype(np.float32) - rendered
    strongest = cv2.GaussianBlur(np.abs(change).max(axis=2), (0, 0), 1.0)
    sure = np.clip((strongest - GRAIN) / (CERTAIN - GRAIN), 0, 1)[..., None]
    was, now = (_is_dark(resize(pixels, side), levels) for pixels in (rendered, rendered + change * sure))
    dark = np.where(was == now, _is_dark(start, levels), now)
    return np.where(weight[..., None] < 0.5, clean, np.where(dark, *levels)).astype(np.uint8)


def _is_dark(pixels: np.ndarray, levels: tuple[int, int]) -> np.ndarray:
    """bool (H, W, 1): which pixels of a binarised image are on the lower of its levels."""
    dark: np.ndarray = pixels.mean(axis=2, keepdims=True) < np.mean(levels)
    return dark


def _feather(inside: np.ndarray, window: Window, size_wh: tuple[int, int], feather_px: int) -> np.ndarray:
    """float32 (S, S): 0 outside, rising to 1 over `feather_px`; no fading towards the edge of the image.

    A narrow region has a narrower edge, a third of what it offers: a defect of a few pixels would be dimmed.
    """
    if feather_px == 0:
        return inside.astype(np.float32)
    beyond = ~window_inside(window, size_wh)
    distance = cv2.distanceTransform(np.pad(inside | beyond, 1, constant_values=False).astype(np.uint8), cv2.DIST_L2, 5)
    # A window's own edge is an edge of the region, unless the image ends there.
    ends_at = (window.y <= 0, window.x <= 0)
    if any(ends_at) or window.y + window.side >= size_wh[1] or window.x + window.side >= size_wh[0]:
        open_edges = np.pad(inside | beyond, 1, constant_values=False)
        if ends_at[0]:
            open_edges[0] = open_edges[1]
        if window.y + window.side >= size_wh[1]:
            open_edges[-1] = open_edges[-2]
        if ends_at[1]:
            open_edges[:, 0] = open_edges[:, 1]
        if window.x + window.side >= size_wh[0]:
            open_edges[:, -1] = open_edges[:, -2]
        distance = cv2.distanceTransform(open_edges.astype(np.uint8), cv2.DIST_L2, 5)
    inner = distance[1:-1, 1:-1] * inside
    soft = min(feather_px, float(inner.max()) / 3)
    return np.clip(inner / (soft + 1), 0, 1)


def _paste(clean: np.ndarray, drawn: np.ndarray, shape: np.ndarray, feather_px: int) -> np.ndarray:
    distance = cv2.distanceTransform(np.pad(shape, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    # Soft over a third of a narrow shape's width at most: a hair line would be hardly there.
    soft = min(feather_px, 2, float(distance.max()) / 3)
    weight = np.clip(distance / (soft + 1), 0, 1)[..., None]
    return np.round(weight * drawn + (1 - weight) * clean).astype(np.uint8)


def _poisson(clean: np.ndarray, drawn: np.ndarray, shape: np.ndarray, feather_px: int) -> np.ndarray:
    """Poisson blending (Perez et al. 2003). Padded and copied: `seamlessClone` centres on the mask's bounding box,
    writes into it and fails near edges. It takes the gradient from the mask eroded by 3 px, so the mask is grown by 4:
    without the gradient across its outline, a defect fades into its surroundings. A defect at an edge goes on beyond
    it as its mirror image, for the same reason."""
    at_edge = shape[[0, -1]].any() or shape[:, [0, -1]].any()
    pad = shape.shape[0] - 1 if at_edge else 8
    padded = np.pad(shape, pad, mode="reflect" if at_edge else "constant").astype(np.uint8)
    mask = cv2.dilate(padded * np.uint8(255), np.ones((3, 3), np.uint8), iterations=4)
    mask[:2] = mask[-2:] = mask[:, :2] = mask[:, -2:] = 0
    # Of the mirror images those that the defect goes on as: all nine tiles at once would be dear.
    _, pieces = cv2.connectedComponents(mask, connectivity=8)
    mask[~np.isin(pieces, np.unique(pieces[pad:-pad, pad:-pad][mask[pad:-pad, pad:-pad] > 0]))] = 0
    edges = ((pad, pad), (pad, pad), (0, 0))
    source, target = np.pad(drawn, edges, mode="reflect"), np.pad(clean, edges, mode="reflect")
    x, y, width, height = cv2.boundingRect(mask)
    middle = (x + width // 2, y + height // 2)
    blended = cv2.seamlessClone(source, target, mask.copy(), middle, cv2.NORMAL_CLONE)
    return blended[pad:-pad, pad:-pad]
