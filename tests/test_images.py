from __future__ import annotations

import io
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from defectgen import images
from defectgen.errors import DataError
from defectgen.images import encode_image, list_images, read_rgb, sha256_bytes, sha256_file, size_wh, write_bytes_atomic

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def _png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_images_are_listed_at_any_depth_sorted_by_name_whatever_their_suffix_case(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a.Tiff", "notes.txt", ".hidden.png", ".cache/c.png", "a/y.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert listed == ["a.Tiff", "a/y.webp", "a/z.png", "b.JPG"]


def test_what_a_run_or_a_bench_made_is_not_listed(tmp_path: Path) -> None:
    for name in ("a.png", "parts/b.png", "parts/recipe.yaml", "parts/generator/samples/c.png", "all/bench.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "all/small").mkdir()
    (tmp_path / "all/small/d.png").touch()
    assert list_images(tmp_path) == [tmp_path / "a.png"]
    # Named itself, a run's folder is what is meant.
    assert [path.name for path in list_images(tmp_path / "parts")] == ["b.png", "c.png"]
    # A recipe beside images makes no run.
    shutil.rmtree(tmp_path / "parts/generator")
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "parts/b.png"]


def test_listing_a_missing_folder_or_a_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such folder; check the path"):
        list_images(tmp_path / "gone")
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a\.png: is a file, not a folder of images; name the folder"):
        list_images(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_turned_upright_by_its_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"part.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(PIXELS).save(path, exif=exif, **options)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    rgb = read_rgb(path)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    assert rgb.shape == upright.shape == ((30, 20, 3) if orientation >= 5 else (20, 30, 3))
    # Pillow and OpenCV may decode JPEG by different versions of libjpeg.
    assert np.abs(rgb - upright).max() <= (3 if suffix == "jpg" else 0)
    assert size_wh(path) == (rgb.shape[1], rgb.shape[0])


def test_grey_palette_bilevel_and_alpha_become_rgb(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    palette = Image.fromarray(PIXELS).quantize(16)
    cases = {
        "grey": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "bilevel": (Image.fromarray(grey > 128), np.dstack([(grey > 128) * np.uint8(255)] * 3)),
        "alpha": (Image.fromarray(np.dstack([PIXELS, grey])), PIXELS),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_rgb(tmp_path / f"{name}.png"), expected, err_msg=name)


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_rgb(tmp_path / "a.jpg").astype(int) - flat).max() <= 3


@pytest.mark.parametrize(("top", "expected"), [(65535, [0, 128, 255]), (4095, [0, 128, 255])])
def test_16_bit_is_scaled_from_the_full_or_the_12_bit_range(tmp_path: Path, top: int, expected: list[int]) -> None:
    row = np.array([[0, (top + 1) // 2, top]], dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", row)[1].tobytes())
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png")[0, :, 0], expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.4, 0.97])
def test_image_cut_short_is_an_error_and_not_grey_pixels(tmp_path: Path, suffix: str, share: float) -> None:
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    Image.fromarray(PIXELS).save(buffer, kind)
    data = buffer.getvalue()
    path = tmp_path / f"part.{suffix}"
    path.write_bytes(data)
    assert read_rgb(path).shape == (20, 30, 3)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=rf"part\.{suffix}: .*(cut short after \d+ bytes|cannot be decoded).*; "):
        read_rgb(path)


def test_thumbnail_in_a_cut_jpeg_does_not_pass_for_its_end(tmp_path: Path) -> None:
    data = encode_image(PIXELS, "jpg")
    thumbnail = b"Exif\0\0" + encode_image(PIXELS[:4, :4], "jpg")
    whole = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    path = tmp_path / "a.jpg"
    path.write_bytes(whole + b"padding after the end")
    np.testing.assert_array_equal(read_rgb(path).shape, PIXELS.shape)
    path.write_bytes(whole[:-40])
    with pytest.raises(DataError, match="cut short"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"the file is empty \(0 bytes\); export it again or remove it"),
        (b"not an image", "cannot be decoded, it is damaged or no image; export it again or remove it"),
        (_png_of_size(18_000, 10_000), "megapixels; cut it into tiles first"),
        (_png_of_size(60_000, 60_000), "has more than 178 megapixels; cut it into tiles first"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_file_names_path_reason_and_remedy(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "part.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"part\.png: .*{message}"):
        read_rgb(path)


def test_missing_file_and_float_pixels_are_errors(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gone\.png: cannot be read \(No such file or directory\); check that it exists"
    ):
        read_rgb(tmp_path / "gone.png")
    path = tmp_path / "heat.tif"
    path.write_bytes(cv2.imencode(".tif", PIXELS.astype(np.float32))[1].tobytes())
    with pytest.raises(DataError, match=r"heat\.tif: has float32 pixels; export it with 8 or 16 bits per channel"):
        read_rgb(path)


def test_png_round_trip_is_lossless_under_a_name_that_is_not_ascii(tmp_path: Path) -> None:
    path = tmp_path / "Prüfteil 部品.png"
    write_bytes_atomic(path, encode_image(PIXELS, "png"))
    np.testing.assert_array_equal(read_rgb(path), PIXELS)
    grey = PIXELS[..., 1]
    write_bytes_atomic(path, encode_image(grey, "png"))
    np.testing.assert_array_equal(read_rgb(path)[..., 2], grey)


def test_jpg_is_near_the_array_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(PIXELS, (0, 0), 4)
    data = encode_image(smooth, "jpg")
    (tmp_path / "a.jpg").write_bytes(data)
    assert np.abs(read_rgb(tmp_path / "a.jpg").astype(int) - smooth).max() < 12
    assert encode_image(smooth, "jpg") == data


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.bin"
    write_bytes_atomic(path, b"old")
    write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [found.name for found in path.parent.iterdir()] == ["a.bin"]


def test_failed_atomic_write_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    taken = tmp_path / "folder"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_bytes_atomic(taken, b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


def test_sha256_is_that_of_the_standard(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "abc") == digest
    with pytest.raises(DataError, match="gone: cannot be read"):
        sha256_file(tmp_path / "gone")


def test_file_that_is_no_image_is_said_to_be_none_beside_ultralytics_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks_for_a_plugin(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'pi_heif'")

    (tmp_path / "a.png").write_bytes(b"II*\0 no picture")
    monkeypatch.setattr(images.Image, "open", asks_for_a_plugin)
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded, it is damaged or no image"):
        images.read_rgb(tmp_path / "a.png", strict=True)
