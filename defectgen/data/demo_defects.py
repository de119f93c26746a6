"""The demo product's four defects, as changes of its surface: what each does, and where on the part it occurs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from defectgen.data.demo_render import TURNED_RADIUS, TURNED_UV, Surface

CLASS_NAMES = ("scratch", "pit", "stain", "dent")


@dataclass(frozen=True)
class Relief:
    """What a defect does to the surface in its square window, at strength 1. Float32 maps, 0 where it does nothing.

    Attributes:
        slope_x, slope_y: (h, w), added.
        dulled: (h, w), share of the gloss that is lost; negative where it shines.
        absorbed: (h, w, 3), share of the light that is lost.
        drag_px: how far the brushing is pulled along per unit of slope.
    """

    slope_x: np.ndarray
    slope_y: np.ndarray
    dulled: np.ndarray
    absorbed: np.ndarray
    drag_px: float = 0.0


def crop_relief(relief: Relief, margin_px: int) -> tuple[Relief, np.ndarray]:
    """The relief and its footprint, bool (h, w), with `margin_px` of untouched surface around it."""
    touched = (relief.slope_x != 0) | (relief.slope_y != 0) | (relief.absorbed[:, :, 0] != 0)
    rows, columns = np.nonzero(touched.any(axis=1))[0], np.nonzero(touched.any(axis=0))[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    def cut(values: np.ndarray) -> np.ndarray:
        pad = [(margin_px, margin_px)] * 2 + [(0, 0)] * (values.ndim - 2)
        return np.pad(values[box], pad).astype(np.float32)

    slopes = cut(relief.slope_x), cut(relief.slope_y)
    return Relief(*slopes, cut(relief.dulled), cut(relief.absorbed), relief.drag_px), cut(touched) > 0


def apply_relief(relief: Relief, plain: Surface, strength: float) -> tuple[Surface, np.ndarray]:
    """The surface with the defect, and the share of light its film lets through, (h, w, 3)."""
    slope_x, slope_y = strength * relief.slope_x, strength * relief.slope_y
    rows, columns = np.indices(slope_x.shape, np.float32)
    from_x, from_y = columns + relief.drag_px * slope_x, rows + relief.drag_px * slope_y

    def dragged(values: np.ndarray) -> np.ndarray:
        return cv2.remap(values, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    marked = replace(
        plain,
        slope_x=dragged(plain.slope_x) + slope_x,
        slope_y=dragged(plain.slope_y) + slope_y,
        albedo=dragged(plain.albedo),
        gloss=dragged(plain.gloss) * np.clip(1 - strength * relief.dulled, 0.05, 2),
    )
    return marked, np.clip(1 - relief.absorbed, 0, 1) ** np.float32(strength)


def _scratch(rng: np.random.Generator, scale: float) -> Relief:
    """A groove with a burr on both sides, along the direction in which parts are handled."""
    length, angle = rng.uniform(30, 92) * scale, math.radians(rng.normal(-35, 10))
    t = np.linspace(0, 1, 20)
    bow = length * rng.uniform(-0.25, 0.25) * t * (1 - t)
    bow = bow + 0.5 * scale * np.sin(2 * math.pi * (rng.uniform(0.7, 2.5) * t + rng.random()))
    path_x = math.cos(angle) * (t - 0.5) * length - math.sin(angle) * bow
    path_y = math.sin(angle) * (t - 0.5) * length + math.cos(angle) * bow
    x, y = _window(0.62 * length + 6 * scale)
    nearest = np.full(x.shape, np.inf, np.float32)
    side, at, normal_x, normal_y = (np.zeros_like(x) for _ in range(4))
    for i in range(len(t) - 1):
        step_x, step_y = path_x[i + 1] - path_x[i], path_y[i + 1] - path_y[i]
        step = math.hypot(step_x, step_y)
        off_x, off_y = x - path_x[i], y - path_y[i]
        share = np.clip((off_x * step_x + off_y * step_y) / step**2, 0, 1)
        distance = np.hypot(off_x - share * step_x, off_y - share * step_y)
        closer = distance < nearest
        nearest = np.where(closer, distance, nearest)
        side = np.where(closer, np.sign(off_y * step_x - off_x * step_y), side)
        at = np.where(closer, (i + share) / (len(t) - 1), at)
        normal_x, normal_y = np.where(closer, -step_y / step, normal_x), np.where(closer, step_x / step, normal_y)
    pressure = np.interp(at, t, np.interp(t, t[::4], rng.uniform(0.6, 1, 5)))
    depth = pressure * np.clip(np.minimum(at / 0.1, (1 - at) / 0.3), 0, 1) ** 0.6
    q = side * nearest / max(rng.uniform(1.0, 1.6) * scale, 0.7)
    depth = depth * np.exp(-(q**2)) * (np.abs(q) < 3)
    slope = 0.95 * depth * q * (1.6 - 0.6 * q**2)
    core = np.clip(depth, 0, None)
    absorbed = rng.uniform(0, 0.18) * core[:, :, None] * np.ones(3)
    return Relief(slope * normal_x, slope * normal_y, rng.uniform(-0.5, 0.4) * core, absorbed)


def _pit(rng: np.random.Generator, scale: float) -> Relief:
    """A small corroded cavity with a raised rim."""
    radius = max(rng.uniform(2, 4.8) * scale, 1.8)
    x, y = _window(2.6 * radius)
    turn = rng.uniform(0, 2 * math.pi)
    beside = _ragged(rng, x - radius * math.cos(turn), y - radius * math.sin(turn), 0.7 * radius, roughness=0.3)
    q = np.minimum(_ragged(rng, x, y, radius, roughness=0.3), beside)
    hollow = np.clip(1 - q**3, 0, 1)
    lip = 0.05 * radius * (1 + np.cos(np.arctan2(y, x) - rng.uniform(0, 2 * math.pi)))
    height = -0.5 * radius * hollow**1.5 + lip * np.exp(-(((q - 1.2) / 0.25) ** 2))
    slope_y, slope_x = np.gradient(height)
    inside = np.sqrt(hollow)
    grit = 0.35 * inside * cv2.GaussianBlur(rng.standard_normal(x.shape).astype(np.float32), (0, 0), 0.8)
    reach = q < 1.8
    rust = rng.uniform(0.25, 0.5) * np.array([0.85, 1.0, 1.1])
    return Relief((slope_x + grit) * reach, (slope_y + grit) * reach, 0.8 * inside, inside[:, :, None] * rust)


def _stain(rng: np.random.Generator, scale: float) -> Relief:
    """A dried drop: a thin film, thickest at its drying edge, through which the brushing shows."""
    radius = rng.uniform(13, 29) * scale
    x, y = _window(1.7 * radius)
    q = _ragged(rng, x, y, radius, roughness=0.2, flatness=rng.uniform(0.6, 1))
    clouds, fringe = (
        cv2.resize(rng.standard_normal((n, n)).astype(np.float32), x.shape[::-1], interpolation=cv2.INTER_CUBIC)
        for n in (8, 22)
    )
    depth = 1 - q + 0.08 * clouds + 0.025 * fringe
    film = np.clip(depth / 0.14, 0, 1) * (1 + 0.18 * clouds)
    drying = np.exp(-(((depth - 0.1) / 0.06) ** 2)) * np.clip(0.8 + 0.5 * clouds, 0.1, 1.5)
    drying = drying + rng.uniform(0, 0.4) * np.exp(-(((depth - 0.4) / 0.06) ** 2))
    colour = np.array([0.75, 0.95, 1.3]) if rng.random() < 0.7 else np.array([0.95, 1.0, 1.1])
    thickness = (0.75 * film + 1.1 * drying) * (depth > 0)
    absorbed = rng.uniform(0.13, 0.22) * thickness[:, :, None] * colour
    return Relief(np.zeros_like(x), np.zeros_like(x), 0.2 * film * (depth > 0), absorbed)


def _dent(rng: np.random.Generator, scale: float) -> Relief:
    """A knock: a smooth hollow with a low rim, that pulls the brushing along."""
    radius = rng.uniform(10, 22) * scale
    x, y = _window(1.7 * radius)
    q = _ragged(rng, x, y, radius, roughness=0.12, flatness=rng.uniform(0.6, 1))
    height = -0.15 * radius * np.clip(1 - q**2, 0, 1) ** 2 + 0.02 * radius * np.exp(-(((q - 1.05) / 0.16) ** 2))
    slope_y, slope_x = np.gradient(height)
    reach = q < 1.45
    bruise = np.clip(1 - q / 0.4, 0, 1)
    nothing = np.zeros((*x.shape, 3), np.float32)
    return Relief(slope_x * reach, slope_y * reach, 0.2 * bruise, nothing, drag_px=9 * scale)


def _window(half_px: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a square window's pixels from its centre, in pixels, each float32 (h, w)."""
    reach = np.arange(-math.ceil(half_px), math.ceil(half_px) + 1, dtype=np.float32)
    x, y = np.meshgrid(reach, reach)
    return x, y


def _ragged(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float, *, roughness: float, flatness: float = 1.0
) -> np.ndarray:
    """Distance from the centre in units of an irregular ellipse's radius: 1 on its outline."""
    turn = rng.uniform(0, math.pi)
    along, across = math.cos(turn) * x + math.sin(turn) * y, (math.cos(turn) * y - math.sin(turn) * x) / flatness
    direction = np.arctan2(across, along)
    outline_radius = np.ones_like(x)
    for k in range(2, 9):
        outline_radius += roughness / k * rng.normal(0, 0.7) * np.cos(k * direction + rng.uniform(0, 2 * math.pi))
    outline_radius = np.maximum(outline_radius, 0.4)
    return np.hypot(along, across) / (radius * outline_radius)


def _around_turned_face(rng: np.random.Generator) -> tuple[float, float]:
    angle, radius = rng.uniform(0, 2 * math.pi), rng.normal(0.95 * TURNED_RADIUS, 0.05)
    return TURNED_UV[0] + radius * math.cos(angle), TURNED_UV[1] + radius * math.sin(angle)


def _anywhere(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0.06, 0.94), rng.uniform(0.06, 0.94)


def _lower_half(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0.08, 0.92), rng.uniform(0.55, 0.92)


# By class, in the order of CLASS_NAMES. Places are in part coordinates.
SHAPES: tuple[Callable[[np.random.Generator, float], Relief], ...] = (_scratch, _pit, _stain, _dent)
PLACES: tuple[Callable[[np.random.Generator], tuple[float, float]], ...] = (
    _anywhere,
    _around_turned_face,
    _lower_half,
    _anywhere,
)
