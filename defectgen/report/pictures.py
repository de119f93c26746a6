"""Pictures as text that stands in the page itself."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from defectgen.windows import Window, crop_window


def data_uri(image: np.ndarray, *, quality: int = 82) -> str:
    """`image`, uint8 (H, W, 3) RGB, as a WebP data URI; quality above 100 is lossless."""
    done, encoded = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done, "OpenCV cannot write WebP"
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """`image` with its longer side at most `side` px; never enlarged."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def window_uri(image: np.ndarray, window: Window, *, side: int = 160) -> str:
    """What `image` shows in `window`, at most `side` px wide."""
    return data_uri(fitted(crop_window(image, window), side))
