"""Image files in and out: upright 8-bit RGB arrays, or a `DataError` that says what is wrong with the file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from defectgen.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
# Pillow refuses larger ones by itself; about 0.5 GB as RGB.
MAX_PIXELS = 178_000_000
JPEG_QUALITY = 95

# A folder with a recipe.yaml and one of these is a run, which may lie within the data.
_MADE_BY_A_RUN = ("generator", "generator.partial", "dataset/manifest.jsonl", "yolo/.ultralytics")

_ORIENTATION_TAG = 0x0112
_REMEDY = "export it again or remove it"


def list_images(folder: Path) -> list[Path]:
    """Every image file under `folder`, at any depth, sorted by its name relative to it; hidden files are left out, and
    so is what `outside_runs` leaves out.

    Links to folders are not followed. A link to an image that is gone is listed, so that reading it says so.

    Raises:
        DataError: the folder is missing or is no folder.
    """
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; check the path, or put the images there")
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file, not a folder of images; name the folder that holds it")
    named = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    found = [path for path in named if path.is_file() or _leads_nowhere(path)]
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(outside_runs(visible, folder), key=lambda path: path.relative_to(folder).as_posix())


def outside_runs(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Those of the `paths` below `folder` that lie in no run or bench of defectgen there: what was made is no data."""
    is_run = {folder: False}

    def within_run(place: Path) -> bool:
        if place not in is_run:
            by_run = (place / "recipe.yaml").is_file() and any((place / name).exists() for name in _MADE_BY_A_RUN)
            is_run[place] = by_run or (place / "bench.jsonl").is_file() or within_run(place.parent)
        return is_run[place]

    return [path for path in paths if not within_run(path.parent)]


def _leads_nowhere(path: Path) -> bool:
    """Whether the link's target is missing; one that goes round in circles is no image that was lost."""
    if not path.is_symlink():
        return False
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def read_rgb(path: Path, *, strict: bool = False) -> np.ndarray:
    """The image as uint8 (H, W, 3) RGB, turned upright by its EXIF orientation.

    Grey and palette images become RGB; alpha is dropped without compositing; of several pages the first is read.
    16-bit values are scaled from the full range (by 257); where none exceeds 4095, they count as 12-bit camera data.

    Args:
        strict: decode JPEG and TIFF a second time, by a decoder that does not mend what is damaged in silence.

    Raises:
        DataError: the file is missing, empty, no image, cut short, larger than MAX_PIXELS, or not 8- or 16-bit.
    """
    return read_with_bits(path, strict=strict)[0]


def read_with_bits(path: Path, *, strict: bool = False) -> tuple[np.ndarray, int]:
    """As `read_rgb`, and the bits that its values were taken to have: 8, 12 or 16."""
    data, orientation = _sound_bytes(path)
    if strict and (damage := _damage(data)):
        raise DataError(f"{path}: the image is damaged ({damage}); copy it again from its origin")
    pixels, bits = _to_8_bit(_decoded(data, path), path)
    return np.ascontiguousarray(_upright(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), orientation)), bits


def read_numbers(path: Path) -> np.ndarray:
    """The numbers in a mask's file, upright and unscaled: uint8 or uint16 (H, W), or (H, W, 3) where it has colours.

    Of a palette with colours, after black as the first, the indices.

    Raises:
        DataError: as for `read_rgb`.
    """
    data, orientation = _sound_bytes(path)
    numbers = _indices(data)
    if numbers is None:
        numbers = _decoded(data, path)
        if numbers.dtype not in (np.uint8, np.uint16):
            raise DataError(_of_other_depth(numbers, path))
        if (numbers == numbers[..., :1]).all():
            numbers = numbers[..., 0]
    return np.ascontiguousarray(_upright(numbers, orientation))


def _indices(data: bytes) -> np.ndarray | None:
    """uint8 (H, W), where the file has a palette of colours, black the first of them; else None."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            colours = np.reshape(file.getpalette() or [0, 0, 0], (-1, 3)) if file.mode == "P" else np.zeros((1, 3))
            return np.asarray(file) if not colours[0].any() and (colours != colours[:, :1]).any() else None
    # What Pillow cannot read has no palette.
    except (OSError, ValueError, SyntaxError, EOFError, ImportError):
        return None


def _sound_bytes(path: Path) -> tuple[bytes, int]:
    """The file's bytes, and the EXIF orientation to apply."""
    data = _read_bytes(path)
    _, orientation = _header(data, path)
    if _is_cut_short(data):
        raise DataError(f"{path}: the image is cut short after {len(data)} bytes; copy it again from its origin")
    return data, orientation


def _decoded(data: bytes, path: Path) -> np.ndarray:
    """(H, W, 3), blue first, as stored."""
    # Orientation is applied below, since which formats OpenCV turns by itself depends on its version.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded ({error.err}); {_REMEDY}") from None
    if bgr is None:
        raise DataError(f"{path}: cannot be decoded, it is damaged or no image; {_REMEDY}")
    return bgr


def size_wh(path: Path) -> tuple[int, int]:
    """Width and height in pixels after EXIF rotation, from the header where Pillow knows the format.

    Raises:
        DataError: as for `read_rgb`; a file whose header is sound but whose pixels are damaged passes.
    """
    size, orientation = _header(_read_bytes(path), path)
    if size is None:
        height, width = read_rgb(path).shape[:2]
        return width, height
    return (size[1], size[0]) if orientation >= 5 else size


def is_plain(path: Path) -> bool:
    """Whether any tool reads the file as `read_rgb` does: an 8-bit JPEG, PNG or BMP that is stored upright."""
    try:
        with Image.open(path) as header:
            upright = header.getexif().get(_ORIENTATION_TAG, 1) in (0, 1)
            return header.format in ("JPEG", "PNG", "BMP") and header.mode in ("L", "RGB", "P") and upright
    except (OSError, ValueError, SyntaxError, EOFError):
        return False


def encode_image(array: np.ndarray, format: Literal["png", "jpg"]) -> bytes:
    """The file's bytes for a uint8 (H, W, 3) RGB or (H, W) grey array; the same array gives the same bytes."""
    # PNG at OpenCV's default level: levels 1 and 6 were slower and no smaller.
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if format == "jpg" else []
    pixels = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if array.ndim == 3 else array
    done, encoded = cv2.imencode(f".{format}", pixels, options)
    assert done, f"cv2.imencode refused {array.shape} {array.dtype} as {format}"
    return encoded.tobytes()


def write_bytes_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` so that `path` holds all of it or is untouched, making its folder where needed.

    `durable`: after a loss of power, too, at the price of waiting for the disk; not needed where a hash tells.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sweep(folder: Path, pattern: str) -> None:
    """Removes what `write_bytes_atomic` or `data.demo.write_demo`, killed, left half-written in `folder`.

    `pattern`: of its name. Nobody else may be writing there.
    """
    for torn in list(folder.glob(pattern)):
        if torn.is_dir():
            shutil.rmtree(torn)
        else:
            torn.unlink()


def sha256_bytes(data: bytes) -> str:
    """Lower-case hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Lower-case hexadecimal SHA-256 of the file's bytes.

    Raises:
        DataError: the file cannot be read.
    """
    return sha256_bytes(_read_bytes(path, empty_is_fault=False))


def _read_bytes(path: Path, *, empty_is_fault: bool = True) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check that it exists") from None
    if empty_is_fault and not data:
        raise DataError(f"{path}: the file is empty (0 bytes); {_REMEDY}")
    return data


def _header(data: bytes, path: Path) -> tuple[tuple[int, int] | None, int]:
    """Stored (width, height) and the EXIF orientation to apply, 1 to 8; (None, 1) where only decoding can tell."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            size, kind, orientation = header.size, header.format, header.getexif().get(_ORIENTATION_TAG, 1)
    except Image.DecompressionBombError:
        raise DataError(f"{path}: has more than {MAX_PIXELS // 10**6} megapixels; cut it into tiles first") from None
    # ImportError: where ultralytics was imported, too, Pillow asks for a plugin for what it does not know.
    except (OSError, ValueError, SyntaxError, EOFError, ImportError):
        return None, 1
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"{path}: has {size[0]} x {size[1]} pixels, more than {MAX_PIXELS // 10**6} megapixels; "
            "cut it into tiles first"
        )
    # libtiff turns TIFFs upright whatever it is asked.
    if kind == "TIFF":
        return None, 1
    return size, orientation if orientation in range(1, 9) else 1


def _is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end: OpenCV fills the rest with grey and says nothing."""
    if data.startswith(b"\xff\xd8"):
        scan = _first_scan(data)
        return scan is not None and data.find(b"\xff\xd9", scan) < 0
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data.rfind(b"IEND") < 0
    return False


def _damage(data: bytes) -> str:
    """What a strict decoder says of a JPEG or TIFF whose damage OpenCV covers up; empty where it finds nothing."""
    if data.startswith(b"\xff\xd8"):
        try:
            simplejpeg.decode_jpeg(data)
        except ValueError as error:
            # A kind of JPEG that it cannot read at all is not damaged for that.
            with contextlib.suppress(ValueError):
                simplejpeg.decode_jpeg(data, strict=False)
                return str(error)
    if data.startswith((b"II*\0", b"MM\0*")):
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except (UnidentifiedImageError, ImportError):
            return ""
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            return str(error)
    return ""


def _first_scan(data: bytes) -> int | None:
    """Where the first scan of a JPEG starts; before it, a thumbnail may have an end marker of its own."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return position
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data) if position >= len(data) else None


def _to_8_bit(pixels: np.ndarray, path: Path) -> tuple[np.ndarray, int]:
    """uint8, and the bits that the values were taken to have."""
    if pixels.dtype == np.uint8:
        return pixels, 8
    if pixels.dtype != np.uint16:
        raise DataError(_of_other_depth(pixels, path))
    bits = 12 if int(pixels.max()) < 2**12 else 16
    return np.rint(pixels * (255 / (2**bits - 1))).astype(np.uint8), bits


def _of_other_depth(pixels: np.ndarray, path: Path) -> str:
    return f"{path}: has {pixels.dtype} pixels; export it with 8 or 16 bits per channel"


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` (H, W, 3) turned as EXIF orientation 1 to 8 asks (EXIF 2.32, tag 0x0112)."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return np.rot90(pixels, -1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(pixels)
        case _:
            return pixels
