"""The demo product before its camera: a brushed plate with a turned face, holes and markings, lit from the side.

Lengths are fractions of the image side unless a name says `_px`. *Part* coordinates (u, v) move with the plate, *image*
coordinates (x, y) do not. The surface is kept as slopes and reflectances, so that a defect is a change of the surface
and every picture of it obeys the light.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import cv2
import numpy as np


class _Hole(NamedTuple):
    """A hole, by the radius of its bore and the width of its chamfer; one without a floor goes through."""

    centre_uv: tuple[float, float]
    radius: float
    chamfer: float
    has_floor: bool


TURNED_UV = (0.60, 0.36)
TURNED_RADIUS = 0.215
_HOLES = (
    _Hole(TURNED_UV, 0.085, 0.012, False),
    *(_Hole((u, v), 0.030, 0.011, False) for u in (0.13, 0.87) for v in (0.13, 0.87)),
    *(_Hole(centre_uv, 0.017, 0.006, True) for centre_uv in ((0.33, 0.145), (0.87, 0.60))),
)
_PLATE_MARGIN = 0.035
_PLATE_CORNER = 0.06


@dataclass(frozen=True)
class Pose:
    """How the plate lies in its fixture: turned about the image centre, then shifted."""

    angle_rad: float
    shift_x: float
    shift_y: float

    def to_image(self, u: float, v: float) -> tuple[float, float]:
        cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
        u, v = u - 0.5, v - 0.5
        return 0.5 + cos * u - sin * v + self.shift_x, 0.5 + sin * u + cos * v + self.shift_y

    def to_part(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
        x, y = x - (0.5 + self.shift_x), y - (0.5 + self.shift_y)
        return 0.5 + cos * x + sin * y, 0.5 - sin * x + cos * y


@dataclass(frozen=True)
class Surface:
    """What the camera sees, before light. All maps float32 (H, W), `metal` bool.

    Attributes:
        x, y: image coordinates of the pixel centres.
        slope_x, slope_y: dz/dx and dz/dy, z towards the camera.
        albedo: diffuse reflectance.
        gloss: strength of the mirror-like part.
        grain_x, grain_y: unit vector along the brushing or turning marks.
        metal: True where a defect may lie: on the plate, off holes, chamfers and edges.
    """

    x: np.ndarray
    y: np.ndarray
    slope_x: np.ndarray
    slope_y: np.ndarray
    albedo: np.ndarray
    gloss: np.ndarray
    grain_x: np.ndarray
    grain_y: np.ndarray
    metal: np.ndarray

    def window(self, rows: slice, columns: slice) -> Surface:
        return Surface(**{field.name: getattr(self, field.name)[rows, columns] for field in fields(self)})


@dataclass(frozen=True)
class Shot:
    """Light and camera of one picture.

    Attributes:
        light_xyz: the lamp, in image coordinates, z above the plate.
        gain_rgb: exposure and white balance.
        psf_sigma_px: blur of the lens.
        noise: float32 (H, W, 3), grey levels.
    """

    light_xyz: tuple[float, float, float]
    gain_rgb: tuple[float, float, float]
    psf_sigma_px: float
    noise: np.ndarray


def draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(math.radians(rng.normal(0, 0.9)), rng.uniform(-0.012, 0.012), rng.uniform(-0.012, 0.012))


def draw_shots(rng: np.random.Generator, size_px: int, *, num_shots: int) -> list[Shot]:
    """Pictures of one part within a few seconds: the lamp stays, but for a little, and the noise is new."""
    lamp = np.array([rng.uniform(0.15, 0.75), rng.uniform(-0.75, -0.45), rng.uniform(1.25, 1.6)])
    exposure, warmth = rng.uniform(0.9, 1.08), rng.normal(0, 0.012)
    shots = []
    for _ in range(num_shots):
        x, y, z = (lamp + rng.normal(0, 0.04, 3)).tolist()
        gain = exposure * rng.uniform(0.97, 1.03) * np.array([1.0 + warmth, 1.0, 1.015 - warmth])
        luma = rng.standard_normal((size_px, size_px, 1), np.float32) * np.float32(rng.uniform(1.0, 2.0))
        chroma = cv2.blur(rng.standard_normal((size_px, size_px, 3), np.float32), (3, 3))
        psf_sigma_px = rng.uniform(0.5, 0.75) * math.sqrt(size_px / 320)
        shots.append(Shot((x, y, z), (gain[0], gain[1], gain[2]), psf_sigma_px, luma + 1.5 * chroma))
    return shots


def expose(
    surface: Surface, shot: Shot, rows: slice, columns: slice, *, passed: np.ndarray | None = None
) -> np.ndarray:
    """The picture of a window of the plate: uint8 (h, w, 3) RGB.

    `surface` is the window's own; `rows` and `columns` say where it lies in the image. `passed`, (h, w, 3) in [0, 1],
    is the share of light that a film on the metal lets through. Pixels nearer than `psf_reach_px` to a window edge
    that is not the image's are wrong, since the lens blur lacks their neighbours.
    """
    to_x, to_y = shot.light_xyz[0] - surface.x, shot.light_xyz[1] - surface.y
    distance = np.sqrt(to_x**2 + to_y**2 + shot.light_xyz[2] ** 2)
    light_x, light_y, light_z = to_x / distance, to_y / distance, shot.light_xyz[2] / distance
    steepness = np.sqrt(1 + surface.slope_x**2 + surface.slope_y**2)
    facing = np.maximum((light_z - surface.slope_x * light_x - surface.slope_y * light_y) / steepness, 0)
    # Ward 1992: an elliptical Gaussian lobe about the half vector, narrow along the grain and wide across it.
    off_x = light_x / (1 + light_z) + surface.slope_x
    off_y = light_y / (1 + light_z) + surface.slope_y
    along = (off_x * surface.grain_x + off_y * surface.grain_y) ** 2
    across = (off_y * surface.grain_x - off_x * surface.grain_y) ** 2
    sharp = np.exp(-along / 0.15**2 - across / 0.55**2)
    broad = np.exp(-along / 0.55**2 - across / 0.75**2)
    vignette = 1 - 0.22 * ((surface.x - 0.5) ** 2 + (surface.y - 0.5) ** 2)
    grey = vignette * (surface.albedo * (0.22 + 0.62 * facing) + surface.gloss * (0.26 * sharp + 0.24 * broad))
    image = grey[:, :, None] * np.asarray(shot.gain_rgb, np.float32)
    if passed is not None:
        image = image * passed
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), shot.psf_sigma_px)
    # The sensor's shoulder: highlights roll off before 255.
    bright = image > 0.7
    image[bright] = 0.7 + 0.28 * np.tanh((image[bright] - 0.7) / 0.28)
    return np.clip(np.rint(255 * image + shot.noise[rows, columns]), 0, 255).astype(np.uint8)


def psf_reach_px(shot: Shot) -> int:
    return math.ceil(4 * shot.psf_sigma_px) + 1


def build_surface(rng: np.random.Generator, pose: Pose, size_px: int, *, serial: int) -> Surface:
    """The plate without a defect; `serial` is engraved on it and coded beside."""
    centres = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    x, y = (np.ascontiguousarray(grid, np.float32) for grid in np.meshgrid(centres, centres))
    u, v = pose.to_part(x, y)
    grain = math.cos(pose.angle_rad), math.sin(pose.angle_rad)
    brushed, tone = _brushing(rng, pose, size_px), _mottling(rng, size_px)

    to_x, to_y, radius = _polar(u, v, TURNED_UV, pose)
    turned = _inside(TURNED_RADIUS - radius, size_px)
    feed = _turning(rng, radius, size_px)
    across = 0.06 * brushed * (1 - turned)
    slope_x = -grain[1] * across + turned * feed * to_x
    slope_y = grain[0] * across + turned * feed * to_y
    # The turned face lies a little deeper: a narrow step around it.
    step = np.exp(-(((radius - TURNED_RADIUS) / 0.006) ** 2))
    slope_x, slope_y = slope_x + 0.4 * step * to_x, slope_y + 0.4 * step * to_y
    albedo = 0.4 * (1 + 0.035 * tone + 0.03 * brushed * (1 - turned)) * (1 + 0.06 * turned)
    gloss = (1 + 0.03 * tone) * (1 + 0.15 * turned)
    grain_x = grain[0] + turned * (-to_y - grain[0])
    grain_y = grain[1] + turned * (to_x - grain[1])

    depth, ink = _markings(pose, size_px, rng, serial)
    slope_x = slope_x - 1.5 * cv2.Sobel(depth, cv2.CV_32F, 1, 0) / 8
    slope_y = slope_y - 1.5 * cv2.Sobel(depth, cv2.CV_32F, 0, 1) / 8
    albedo = albedo * (1 - 0.35 * depth) * (1 - 0.45 * ink)
    gloss = gloss * (1 - 0.35 * depth) * (1 - 0.7 * ink)

    surface = Surface(x, y, slope_x, slope_y, albedo, gloss, grain_x, grain_y, np.ones_like(x, bool))
    for hole in _HOLES:
        centre, reach = pose.to_image(*hole.centre_uv), hole.radius + hole.chamfer + 0.02
        columns, rows = (slice(int((c - reach) * size_px), math.ceil((c + reach) * size_px)) for c in centre)
        drilled = _drilled(surface.window(rows, columns), hole, u[rows, columns], v[rows, columns], pose, size_px)
        for field in fields(Surface):
            getattr(surface, field.name)[rows, columns] = getattr(drilled, field.name)
    return _cut_out(surface, u, v, pose, rng)


def _drilled(around: Surface, hole: _Hole, u: np.ndarray, v: np.ndarray, pose: Pose, size_px: int) -> Surface:
    """The window `around` with the hole in it; the chamfer's own grain and slope replace the brushing."""
    to_x, to_y, radius = _polar(u, v, hole.centre_uv, pose)
    ring, bottom = (_inside(outer - radius, size_px) for outer in (hole.radius + hole.chamfer, hole.radius))
    # The wall towards the lamp shadows the floor.
    _, _, from_lit = _polar(u, v, (hole.centre_uv[0], hole.centre_uv[1] + 0.6 * hole.radius), pose)
    floor = 0.03 + 0.25 * hole.has_floor * _inside(hole.radius - from_lit, size_px)
    return replace(
        around,
        slope_x=around.slope_x * (1 - ring) + 0.42 * ring * to_x,
        slope_y=around.slope_y * (1 - ring) + 0.42 * ring * to_y,
        albedo=around.albedo * (1 - bottom) + floor * bottom,
        gloss=around.gloss * (1 - bottom),
        grain_x=around.grain_x + ring * (-to_y - around.grain_x),
        grain_y=around.grain_y + ring * (to_x - around.grain_y),
        metal=around.metal & (radius > hole.radius + hole.chamfer + 0.012),
    )


def _cut_out(surface: Surface, u: np.ndarray, v: np.ndarray, pose: Pose, rng: np.random.Generator) -> Surface:
    """The plate with its bevelled edge on the dark, dull mat of the fixture."""
    size_px = surface.x.shape[0]
    half = 0.5 - _PLATE_MARGIN - _PLATE_CORNER
    over_u, over_v = np.abs(u - 0.5) - half, np.abs(v - 0.5) - half
    outside = np.hypot(np.maximum(over_u, 0), np.maximum(over_v, 0)) + np.minimum(np.maximum(over_u, over_v), 0)
    edge = _PLATE_CORNER - outside
    plate, bevel = _inside(edge, size_px), _inside(0.009 - edge, size_px)
    inward_y, inward_x = np.gradient(edge, 1 / size_px)
    slope_x = surface.slope_x * (1 - bevel) + 0.45 * bevel * inward_x
    slope_y = surface.slope_y * (1 - bevel) + 0.45 * bevel * inward_y
    felt = cv2.GaussianBlur(rng.standard_normal(edge.shape, np.float32), (0, 0), 0.8 * size_px / 320)
    # The lamp stands above the image, so the plate's shadow falls below it.
    shadow = np.clip(-edge / 0.03, 0.25, 1) * np.where(v > 0.5, 1, 1.25)
    mat = 0.1 * (1 + 0.35 * felt) * shadow
    return Surface(
        surface.x,
        surface.y,
        (slope_x * plate).astype(np.float32),
        (slope_y * plate).astype(np.float32),
        (surface.albedo * plate + mat * (1 - plate)).astype(np.float32),
        (surface.gloss * plate).astype(np.float32),
        surface.grain_x.astype(np.float32),
        surface.grain_y.astype(np.float32),
        surface.metal & (edge > 0.022),
    )


def _inside(depth: np.ndarray, size_px: int) -> np.ndarray:
    """Share of the pixel inside a border, from the signed distance to it."""
    return np.clip(depth * size_px + 0.5, 0, 1).astype(np.float32)


def _polar(
    u: np.ndarray, v: np.ndarray, centre_uv: tuple[float, float], pose: Pose
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vector away from a point of the part, in image directions, and the distance to it."""
    from_u, from_v = u - centre_uv[0], v - centre_uv[1]
    radius = np.sqrt(from_u**2 + from_v**2) + np.float32(1e-6)
    cos, sin = math.cos(pose.angle_rad), math.sin(pose.angle_rad)
    return (cos * from_u - sin * from_v) / radius, (sin * from_u + cos * from_v) / radius, radius


def _brushing(rng: np.random.Generator, pose: Pose, size_px: int) -> np.ndarray:
    """Streaks along the plate, about unit variance, heavy-tailed: a few strokes cut deeper than the rest."""
    scale = size_px / 320
    total = np.zeros((size_px, size_px), np.float32)
    for length_px, weight in ((130, 0.6), (45, 0.6), (12, 0.5)):
        length, width = round(length_px * scale), max(1, round(scale))
        noise = rng.standard_normal((size_px, size_px), np.float32)
        total += weight * math.sqrt(length * width) * cv2.blur(noise, (length, width))
    total += 0.12 * total * total * total
    turn = cv2.getRotationMatrix2D((size_px / 2, size_px / 2), -math.degrees(pose.angle_rad), 1.0)
    return cv2.warpAffine(total, turn, (size_px, size_px), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def _mottling(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Slow changes of tone over the plate, about unit variance."""
    coarse = rng.standard_normal((9, 9)).astype(np.float32)
    return cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)


def _turning(rng: np.random.Generator, radius: np.ndarray, size_px: int) -> np.ndarray:
    """Radial slope of the turning marks: the tool's feed and its chatter."""
    pitch = 4.2 / 320
    rings = cv2.GaussianBlur(rng.standard_normal((1, 2 * size_px)).astype(np.float32), (0, 0), 0.8)[0]
    chatter = np.interp(radius * 2 * size_px, np.arange(2 * size_px), rings)
    return (0.07 * np.sin(2 * math.pi * radius / pitch + rng.uniform(0, 6.3)) + 0.09 * chatter).astype(np.float32)


def _markings(pose: Pose, size_px: int, rng: np.random.Generator, serial: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth of the engraved text and ink of the laser code, each float32 (H, W) in [0, 1]."""
    scale = 3
    text = np.zeros((64 * scale, 92 * scale), np.uint8)
    for line, (words, height) in enumerate((("DG-4170", 0.62), (f"SN {serial:05d}", 0.5))):
        at = (2 * scale, (20 + 22 * line) * scale)
        cv2.putText(text, words, at, cv2.FONT_HERSHEY_SIMPLEX, height * scale, 255, round(1.6 * scale), cv2.LINE_AA)
    modules = rng.random((14, 14)) < 0.5
    # The frame of a data matrix: two solid sides, two dotted ones.
    modules[:, 0] = modules[-1, :] = True
    modules[0, ::2], modules[0, 1::2], modules[1::2, -1], modules[::2, -1] = True, False, True, False
    code = np.kron(modules, np.ones((8, 8))).astype(np.uint8) * 255
    depth = _printed(text, pose, size_px, at_uv=(0.085, 0.235), height=0.2)
    return depth, _printed(code, pose, size_px, at_uv=(0.10, 0.42), height=0.105)


def _printed(stamp: np.ndarray, pose: Pose, size_px: int, *, at_uv: tuple[float, float], height: float) -> np.ndarray:
    """The stamp, upper left corner at `at_uv`, in the image."""
    pixel = height / stamp.shape[0]
    corners = [(0, 0), (stamp.shape[1], 0), (0, stamp.shape[0])]
    seen = [pose.to_image(at_uv[0] + a * pixel, at_uv[1] + b * pixel) for a, b in corners]
    affine = cv2.getAffineTransform(np.array(corners, np.float32), np.array(seen, np.float32) * size_px)
    soft = cv2.GaussianBlur(stamp, (0, 0), max(0.35 / (pixel * size_px), 0.3))
    return cv2.warpAffine(soft, affine, (size_px, size_px)).astype(np.float32) / 255
