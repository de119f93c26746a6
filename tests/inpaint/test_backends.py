from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectgen.inpaint.backends import composite, scaled_region, two_levels
from defectgen.recipe import Backend
from defectgen.windows import Window, crop_window, resize

BACKENDS: list[Backend] = ["paste", "poisson", "diffusion"]


def textured(seed: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(95, 106, (height, width, 3)).astype(np.uint8)


def square(side: int, x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def blended(image: np.ndarray, window: Window, drawn: np.ndarray, region: np.ndarray, backend: Backend, **options):
    outline = options.pop("outline", region)
    feather_px = options.pop("feather_px", 2)
    return composite(
        image,
        window,
        drawn,
        outline=np.where(outline, 255, 0).astype(np.uint8),
        region=region,
        backend=backend,
        feather_px=feather_px,
        **options,
    )


def on_image(region: np.ndarray, window: Window, shape: tuple[int, ...]) -> np.ndarray:
    """bool (H, W): the pixels of the image that the region covers, one by one."""
    scaled = scaled_region(region, window.side)
    covered = np.zeros(shape[:2], bool)
    for y in range(window.side):
        for x in range(window.side):
            if scaled[y, x] and 0 <= y + window.y < shape[0] and 0 <= x + window.x < shape[1]:
                covered[y + window.y, x + window.x] = True
    return covered


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(BACKENDS), st.data())
def test_outside_the_region_every_pixel_stays_bit_identical(backend: Backend, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(10, 50)), data.draw(st.integers(10, 50))
    window = Window(data.draw(st.integers(-40, 40)), data.draw(st.integers(-40, 40)), data.draw(st.integers(8, 60)))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    grain = data.draw(st.sampled_from([16, 32]))
    drawn = rng.integers(0, 256, (grain, grain, 3)).astype(np.uint8)
    region = np.zeros((grain, grain), bool)
    for _ in range(data.draw(st.integers(0, 2))):
        x, y = rng.integers(0, grain, 2)
        region[y : y + rng.integers(1, grain), x : x + rng.integers(1, grain)] = True
    outline = region & (rng.random((grain, grain)) < data.draw(st.sampled_from([0.0, 0.05, 1.0])))
    feather_px = data.draw(st.integers(0, 5))
    before = [array.copy() for array in (image, drawn, region)]

    out = blended(image, window, drawn, region, backend, outline=outline, feather_px=feather_px)

    assert out.shape == image.shape and out.dtype == np.uint8 and not np.shares_memory(out, image)
    for array, was in zip((image, drawn, region), before, strict=True):
        np.testing.assert_array_equal(array, was)
    outside = ~on_image(region, window, image.shape)
    np.testing.assert_array_equal(out[outside], image[outside])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [Window(10, 8, 32), Window(-10, -6, 40), Window(40, 30, 48)])
def test_defect_appears_inside_the_region(backend: Backend, window: Window) -> None:
    image = textured(0, 64, 56)
    drawn = resize(crop_window(image, window), 32)
    outline, region = square(32, 12, 12, 10, 8), square(32, 8, 8, 18, 16)
    drawn[outline] = 20
    out = blended(image, window, drawn, region, backend, outline=outline, feather_px=1)
    change = np.abs(out.astype(int) - image).max(axis=2)
    defect = on_image(square(32, 14, 14, 6, 4), window, image.shape)
    assert defect.sum() > 10
    # The defect is 75 to 85 grey levels darker than the product.
    assert np.median(change[defect]) > 55
    assert not change[~on_image(region, window, image.shape)].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_beside_the_image_changes_nothing(backend: Backend) -> None:
    image = textured(0, 40, 40)
    drawn = np.zeros((32, 32, 3), np.uint8)
    out = blended(image, Window(60, 0, 32), drawn, np.ones((32, 32), bool), backend)
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_drawn_like_the_image_leaves_it_as_it_is(backend: Backend) -> None:
    image = textured(0, 64, 64)
    window, region = Window(8, 8, 32), square(32, 6, 6, 20, 20)
    out = blended(image, window, crop_window(image, window), region, backend)
    # seamlessClone solves in floating point and rounds down.
    assert np.abs(out.astype(int) - image).max() <= (1 if backend == "poisson" else 0)


def test_diffusion_leaves_the_image_where_its_own_view_of_it_was_drawn() -> None:
    image = textured(0, 100, 100)
    window = Window(5, 5, 80)
    out = blended(image, window, resize(crop_window(image, window), 32), np.ones((32, 32), bool), "diffusion")
    np.testing.assert_array_equal(out, image)


def test_diffusion_drops_a_change_too_faint_to_be_a_defect() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    region = square(32, 4, 4, 24, 24)
    faint = blended(image, Window(0, 0, 64), np.full((32, 32, 3), 104, np.uint8), region, "diffusion")
    strong = blended(image, Window(0, 0, 64), np.full((32, 32, 3), 160, np.uint8), region, "diffusion")
    np.testing.assert_array_equal(faint, image)
    assert (strong[32, 32] == 160).all()


def striped_with(shade: int, backend: Backend) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a defect drawn on stripes of single pixels, and the stripes: 90 and 110, at the generator's 1:4 an
    even grey of 100."""
    image = np.full((128, 128, 3), 90, np.uint8)
    image[:, ::2] = 110
    drawn = resize(image, 32)
    assert (drawn == 100).all()
    drawn[10:22, 10:22] = shade
    out = blended(image, Window(0, 0, 128), drawn, square(32, 6, 6, 20, 20), backend)
    middle = np.s_[52:76, 52:76]
    return out[middle].astype(int), image[middle].astype(int)


def test_fine_texture_of_the_product_survives_under_a_diffused_defect() -> None:
    out, clean = striped_with(130, "diffusion")
    assert (out - clean == 30).all()
    pasted, _ = striped_with(130, "paste")
    assert (pasted == 130).all()


def test_fine_texture_of_a_copy_survives_what_is_drawn_over_it() -> None:
    clean = np.full((128, 128, 3), 100, np.uint8)
    copy = clean.copy()
    copy[40:88, 40:88:2] = 60
    copy[40:88, 41:88:2] = 40
    drawn = resize(copy, 32)
    drawn[8:24, 8:24] += np.uint8(30)
    region = square(32, 6, 6, 20, 20)
    out = composite(
        clean,
        Window(0, 0, 128),
        drawn,
        outline=region.astype(np.uint8) * 255,
        region=region,
        backend="diffusion",
        feather_px=2,
        start=copy,
    )
    middle = np.s_[52:76, 52:76]
    assert (out[middle].astype(int) - copy[middle] == 30).all()
    outside = ~scaled_region(region, 128)
    assert (out[outside] == 100).all()


def test_defect_that_hides_the_product_shows_none_of_its_texture() -> None:
    out, _ = striped_with(250, "diffusion")
    assert (out == 250).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_binarised_image_stays_binary(backend: Backend) -> None:
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, 40:] = 255
    image[10, 10] = 4  # what a lossy file leaves
    drawn = np.full((32, 32, 3), 90, np.uint8)
    drawn[10:22, 10:22] = np.arange(0, 240, 20, dtype=np.uint8)[:, None, None]
    out = blended(image, Window(32, 32, 32), drawn, square(32, 6, 6, 20, 20), backend)
    assert (out != image).any()
    assert set(np.unique(out[out != image])) <= {0, 255}


def binarised_with(moved_by: float, faint: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A black block of 36 px, drawn with an edge `moved_by` px of the image further right, in windows of a third."""
    image = np.full((160, 160, 3), 255, np.uint8)
    image[5, 5] = 0
    image[60:100, 20:30] = 255 - faint
    start = np.full((96, 96, 3), 255, np.uint8)
    start[30:66, 30:66] = 0
    drawn = np.full((96, 96, 3), 255.0)
    drawn[30:66, 30:66] = 0
    whole, part = int(moved_by), moved_by % 1
    drawn[30:66, 66 : 66 + whole] = 0
    drawn[30:66, 66 + whole] = 255 * (1 - part)
    small = np.round(resize(drawn.astype(np.float32), 32)).astype(np.uint8)
    region = np.zeros((32, 32), bool)
    region[4:28, 4:28] = True
    out = composite(
        image,
        Window(0, 0, 96),
        small,
        outline=np.zeros((32, 32), np.uint8),
        region=region,
        backend="diffusion",
        feather_px=2,
        start=start,
    )
    copied = image.copy()
    copied[:96, :96][start[..., 0] == 0] = 0
    return image, copied, out


def test_drawn_edge_of_a_binarised_image_moves_by_part_of_the_generators_pixel() -> None:
    # One of the image's is a third of it, or 85 grey levels, which switch no pixel of the sharp start.
    for pixels in (1, 2):
        _, copied, out = binarised_with(pixels)
        edge = (out != copied).any(axis=2)[34:62]
        assert edge[:, 66 : 66 + pixels].all() and not edge[:, 66 + pixels :].any() and not edge[:, :66].any()
    _, copied, out = binarised_with(0)
    assert np.array_equal(out, copied)


def test_what_keeps_its_level_in_a_binarised_image_keeps_its_faint_noise() -> None:
    image, _, out = binarised_with(2, faint=6)
    same = (out < 128) == (image < 128)
    assert (out != image).any() and np.array_equal(out[same], image[same])
    assert (out[60:90, 20:30] == 249).any()


@pytest.mark.parametrize("backend", ["paste", "poisson", "diffusion"])
def test_grey_image_stays_grey(backend: Backend) -> None:
    drawn = np.full((16, 16, 3), 120, np.uint8)
    drawn[4:12, 4:12] = (250, 60, 30)
    outline = np.zeros((16, 16), np.uint8)
    outline[4:12, 4:12] = 255
    image = np.tile(np.linspace(90, 150, 64).astype(np.uint8)[:, None, None], (1, 64, 3))
    whole = np.ones((16, 16), bool)
    out = composite(image, Window(16, 16, 32), drawn, outline=outline, region=whole, backend=backend, feather_px=2)
    assert (out == out[..., :1]).all() and (out != image).sum() > 300


@pytest.mark.parametrize("backend", BACKENDS)
def test_coloured_defect_stays_coloured_on_a_colour_cameras_white(backend: Backend) -> None:
    image = np.full((64, 64, 3), 255, np.uint8)
    image[40:, :, 2] = 180
    drawn = np.full((16, 16, 3), 255, np.uint8)
    drawn[4:12, 4:12] = (220, 30, 30)
    window = Window(8, 8, 16)
    assert (crop_window(image, window) == 255).all()
    red, green, _ = blended(image, window, drawn, square(16, 3, 3, 10, 10), backend)[16, 16].astype(int)
    assert red - green > 100


def test_defect_at_an_edge_is_blended_without_its_other_mirror_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    clone = cv2.seamlessClone

    def measured(source: np.ndarray, target: np.ndarray, mask: np.ndarray, *rest: Any) -> np.ndarray:
        sizes.append(cv2.boundingRect(mask)[2:])
        blended: np.ndarray = clone(source, target, mask, *rest)
        return blended

    monkeypatch.setattr(cv2, "seamlessClone", measured)
    image = textured(1, 80, 80)
    window = Window(0, 20, 40)
    outline = square(40, 0, 15, 10, 10)
    drawn = crop_window(image, window).copy()
    drawn[outline] = 20
    after = blended(image, window, drawn, square(40, 0, 10, 20, 20), "poisson", outline=outline)
    # As wide again beyond the edge, and grown by 4 px on each side.
    assert sizes == [(2 * 10 - 1 + 8, 10 + 8)]
    assert after[35:45, 0:8].mean() < 40


def test_pure_colours_are_not_taken_for_binarised() -> None:
    red = np.zeros((20, 20, 3), np.uint8)
    red[5:15, 5:15, 0] = 255
    assert two_levels(red) is None
    assert two_levels(np.repeat(red[..., :1], 3, axis=2)) == (0, 255)


def test_image_with_a_few_bright_pixels_is_not_taken_for_binarised() -> None:
    dark_field = np.random.default_rng(0).integers(0, 20, (100, 100, 3)).astype(np.uint8)
    dark_field[50, 40:60] = 255
    assert two_levels(dark_field) is None
    assert two_levels(np.full((10, 10, 3), 128, np.uint8)) is None
    grey = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert two_levels(grey) is None
    printed = np.where(np.arange(100)[:, None, None] < 20, np.uint8(12), np.full((100, 100, 3), 240, np.uint8))
    assert two_levels(printed) == (12, 240)
    assert two_levels(np.full((10, 10, 3), 255, np.uint8)) == (0, 255)


def test_feather_fades_a_change_towards_the_border_of_the_region_alone() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    drawn = np.full((64, 64, 3), 180, np.uint8)
    region = square(64, 10, 10, 30, 30)
    hard = blended(image, Window(0, 0, 64), drawn, region, "diffusion", feather_px=0)[25, 8:20, 0].tolist()
    assert hard == [100] * 2 + [180] * 10
    # A quarter of the change more with every pixel.
    soft = blended(image, Window(0, 0, 64), drawn, region, "diffusion", feather_px=3)[25, 8:20, 0].tolist()
    assert soft == [100, 100, 120, 140, 160] + [180] * 7


@pytest.mark.parametrize("window", [Window(0, 0, 64), Window(-8, 0, 64), Window(0, 15, 40)])
def test_defect_at_the_edge_of_the_image_is_not_faded_there(window: Window) -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    drawn = np.full((64, 64, 3), 180, np.uint8)
    out = blended(image, window, drawn, square(64, 0, 20, 30, 30), "diffusion", feather_px=3)
    assert (out[35, :10] == 180).all()


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_feather_does_not_dim_a_defect_of_a_few_pixels(size: int) -> None:
    image = np.full((64, 64, 3), 120, np.uint8)
    copy = image.copy()
    copy[30 : 30 + size, 30 : 30 + size] = 40
    # As for such a defect: two of the generator's pixels for one of the image, and two of them around it.
    region = square(128, 58, 58, 4 + 2 * size, 4 + 2 * size)
    drawn = resize(copy, 128)
    out = blended(image, Window(0, 0, 64), drawn, region, "diffusion", feather_px=3, start=copy)
    kept = (120 - out[30 : 30 + size, 30 : 30 + size].astype(float)).mean() / 80
    assert kept > 0.75


def test_defect_at_the_edge_of_a_window_inside_the_image_is_faded_there() -> None:
    image = np.full((100, 100, 3), 100, np.uint8)
    drawn = np.full((64, 64, 3), 180, np.uint8)
    out = blended(image, Window(20, 20, 64), drawn, square(64, 0, 20, 30, 30), "diffusion", feather_px=3)
    assert out[55, 18:26, 0].tolist() == [100, 100, 120, 140, 160, 180, 180, 180]


CORNERS = [(0, 0), (30, 0), (63, 63), (0, 40), (28, 30)]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("corner", CORNERS)
def test_poisson_blends_a_defect_of_a_few_pixels_anywhere(size: int, corner: tuple[int, int]) -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    outline = square(64, *corner, size, size)
    drawn = image.copy()
    drawn[outline] = 20
    out = blended(image, Window(0, 0, 64), drawn, np.ones((64, 64), bool), "poisson", outline=outline)
    assert out[outline].mean() < 60
    assert np.abs(out[~outline].astype(int) - 100).max() <= 3


@pytest.mark.parametrize("size", [7, 8, 20])
def test_poisson_keeps_the_contrast_of_a_closely_outlined_defect_in_its_place(size: int) -> None:
    image = textured(0, 64, 64)
    outline = square(64, 20, 24, size, size)
    drawn = np.full((64, 64, 3), 140, np.uint8)  # taken from brighter product
    drawn[outline] = 60
    out = blended(image, Window(0, 0, 64), drawn, np.ones((64, 64), bool), "poisson", outline=outline).astype(int)
    assert out[outline].mean() == pytest.approx(100 - 80, abs=8)
    changed = np.abs(out - image).max(axis=2) > 40
    np.testing.assert_array_equal(changed, outline)


def test_region_is_scaled_without_shades() -> None:
    region = np.array([[True, False], [False, False]])
    expected = np.zeros((4, 4), bool)
    expected[:2, :2] = True
    np.testing.assert_array_equal(scaled_region(region, 4), expected)


@pytest.mark.parametrize("side", [150, 200, 300])
def test_region_is_scaled_about_its_middle(side: int) -> None:
    region = np.zeros((64, 64), bool)
    region[20:44, 20:44] = True
    columns = np.flatnonzero(scaled_region(region, side).any(axis=0))
    ends = np.array([columns[0], columns[-1] + 1])
    # Half a pixel at most, and not all to one side: the plain nearest pixel is up to one too far to the right.
    assert np.abs(ends - np.array([20, 44]) * side / 64).max() <= 0.5


def test_pasted_hair_line_is_not_dimmed() -> None:
    image, drawn = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64, 3), np.uint8)
    outline = np.zeros((64, 64), np.uint8)
    outline[31:33, 10:54] = 255
    options: dict[str, Any] = {"region": np.ones((64, 64), bool), "outline": outline, "feather_px": 4}
    out = composite(image, Window(0, 0, 64), drawn, backend="paste", **options)
    # Three quarters of the contrast, as the feather of a narrow region leaves.
    assert out.min() <= 60
