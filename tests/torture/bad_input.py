"""The ways in which a data set arrives damaged, each made by code in a small YOLO set that is good otherwise."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from defectgen.images import encode_image

CLASSES = ("scratch", "pit")
ROWS = "0 0.25 0.3 0.1 0.12\n1 0.7 0.6 0.08 0.1\n"
HEIGHT, WIDTH = 96, 128
# The file that most kinds damage; the others of the set stay good.
VICTIM = "p2"
SPLITS = "train: train/images\nval: test/images\n"
NAMES = f"names: [{', '.join(CLASSES)}]\n"


@dataclass(frozen=True)
class Kind:
    """A kind of bad input.

    Attributes:
        spoil: changes the set in a folder, of training images the one of that name; the file at fault, relative to it.
        of_a_file: whether it is a fault of one image or label, and not of the whole set.
    """

    name: str
    spoil: Callable[[Path, str], str]
    of_a_file: bool = True


def part(seed: int) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3): a product with noise and two defects."""
    base = cv2.GaussianBlur(np.random.default_rng(7).normal(0, 1, (HEIGHT, WIDTH, 3)), (0, 0), 6) * 400 + 120
    rng = np.random.default_rng(seed)
    image = base + rng.normal(0, 3, base.shape)
    for x, y in ((0.25, 0.3), (0.7, 0.6)):
        centre = int(x * WIDTH) + int(rng.integers(-3, 4)), int(y * HEIGHT) + int(rng.integers(-2, 3))
        shade = int(rng.integers(0, 60))
        cv2.ellipse(image, centre, (5, int(rng.integers(2, 6))), 30 * seed, 0, 360, (shade, shade, 200), -1)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_good_set(root: Path, num_train: int = 6, num_test: int = 6) -> None:
    """Training and test images of 128 x 96 px with two defects each, and data.yaml."""
    for split, numbers in (("train", range(num_train)), ("test", range(num_train, num_train + num_test))):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for number in numbers:
            (root / split / "images" / f"p{number}.png").write_bytes(encode_image(part(number), "png"))
            (root / split / "labels" / f"p{number}.txt").write_text(ROWS)
    (root / "data.yaml").write_text(f"{SPLITS}{NAMES}")


def _text(content: str | bytes) -> Callable[[Path, str], str]:
    def spoil(root: Path, victim: str) -> str:
        path = root / "train/labels" / f"{victim}.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path.relative_to(root).as_posix()

    return spoil


def _row(row: str) -> Callable[[Path, str], str]:
    return _text(f"{ROWS}{row}\n")


def _image(data: bytes, suffix: str = ".png") -> Callable[[Path, str], str]:
    def spoil(root: Path, victim: str) -> str:
        (root / "train/images" / f"{victim}.png").unlink()
        path = root / "train/images" / f"{victim}{suffix}"
        path.write_bytes(data)
        return path.relative_to(root).as_posix()

    return spoil


def _of_the_set(name: str, data_yaml: str) -> Kind:
    def spoil(root: Path, victim: str) -> str:
        (root / "data.yaml").write_text(data_yaml)
        return "data.yaml"

    return Kind(name, spoil, of_a_file=False)


def _in_test(change: Callable[[np.ndarray], np.ndarray], suffix: str = "png") -> Callable[[Path, str], str]:
    """The picture of a training image once more among the test images."""

    def spoil(root: Path, victim: str) -> str:
        path = root / "test/images" / f"again_{victim}.{suffix}"
        ok, data = cv2.imencode(f".{suffix}", np.ascontiguousarray(change(part(int(victim[1:]))))[..., ::-1])
        assert ok
        path.write_bytes(data.tobytes())
        (root / "test/labels" / f"again_{victim}.txt").write_text(ROWS)
        return path.relative_to(root).as_posix()

    return spoil


def _in_validation(root: Path, victim: str) -> str:
    """One more split, with a good image and one cut short."""
    for name, data in (("good", encode_image(part(90_000), "png")), (victim, encode_image(part(90_001), "png")[:-700])):
        for path, content in ((f"images/v_{name}.png", data), (f"labels/v_{name}.txt", ROWS.encode())):
            (root / "val" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "val" / path).write_bytes(content)
    (root / "data.yaml").write_text(f"{SPLITS.replace('test', 'val')}test: test/images\n{NAMES}")
    return f"val/images/v_{victim}.png"


def _drawn_on(root: Path, victim: str) -> str:
    """A box drawn into one picture of a camera without colour."""
    for path in root.glob("*/images/*.png"):
        grey = np.repeat(part(int(path.stem[1:])).min(axis=2, keepdims=True), 3, axis=2)
        if path.stem == victim:
            cv2.rectangle(grey, (20, 20), (40, 36), (0, 255, 0), 1)
        path.write_bytes(encode_image(grey, "png"))
    return f"train/images/{victim}.png"


def _missing_label(root: Path, victim: str) -> str:
    path = root / "train/labels" / f"{victim}.txt"
    path.unlink()
    return path.relative_to(root).as_posix()


def _label_folder(root: Path, victim: str) -> str:
    name = _missing_label(root, victim)
    (root / name).mkdir()
    return name


def _label_without_image(root: Path, victim: str) -> str:
    (root / "train/images" / f"{victim}.png").unlink()
    return f"train/labels/{victim}.txt"


def _shared_label(root: Path, victim: str) -> str:
    (root / "train/images" / f"{victim}.jpg").write_bytes(encode_image(part(9), "jpg"))
    return f"train/labels/{victim}.txt"


def _jpeg() -> bytes:
    return encode_image(np.kron(part(2), np.ones((3, 3, 1), np.uint8)), "jpg")


def _zeroed(data: bytes) -> bytes:
    """A sector of a failing disk."""
    middle = len(data) // 2
    return data[:middle] + bytes(512) + data[middle + 512 :]


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def _bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    png = encode_image(part(2), "png")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def _tiff(array: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".tiff", array)
    assert ok
    return bytes(data.tobytes())


PNG = encode_image(part(2), "png")
KINDS = (
    Kind("row of four values", _row("0 0.5 0.5 0.1")),
    Kind("row of six values", _row("0 0.5 0.5 0.1 0.1 0.9")),
    Kind("row with a word", _row("0 0.5 0.5 0.1 wide")),
    Kind("class name instead of its number", _row("pit 0.5 0.5 0.1 0.1")),
    Kind("values separated by commas", _row("0,0.5,0.5,0.1,0.1")),
    Kind("decimal commas", _row("0 0,5 0,5 0,1 0,1")),
    Kind("NaN", _row("0 nan 0.5 0.1 0.1")),
    Kind("infinity", _row("0 0.5 0.5 inf 0.1")),
    Kind("negative class", _row("-1 0.5 0.5 0.1 0.1")),
    Kind("class beyond the names", _row("2 0.5 0.5 0.1 0.1")),
    Kind("fractional class", _row("0.5 0.5 0.5 0.1 0.1")),
    Kind("box of no width", _row("0 0.5 0.5 0 0.1")),
    Kind("box of no height", _row("0 0.5 0.5 0.1 0")),
    Kind("negative width", _row("0 0.5 0.5 -0.1 0.1")),
    Kind("box past the edge", _row("0 0.95 0.5 0.2 0.1")),
    Kind("centre just outside, 1.009", _row("0 1.009 0.5 0.1 0.1")),
    Kind("centre just outside, -0.005", _row("0 -0.005 0.5 0.1 0.1")),
    Kind("pixels instead of fractions", _row("0 64 48 12 10")),
    Kind("box of less than a pixel", _row("0 0.5 0.5 0.004 0.1")),
    Kind("box of one pixel, a stray click", _row("0 0.5 0.5 0.009 0.012")),
    Kind("repeated row", _row("0 0.25 0.3 0.1 0.12")),
    Kind("nearly repeated row", _row("0 0.251 0.3 0.1 0.12")),
    Kind("one box, two classes", _row("1 0.25 0.3 0.1 0.12")),
    Kind("outline of an odd number of values", _row("0 0.1 0.1 0.2 0.1 0.2 0.4 0.3")),
    Kind("outline on one line", _row("0 0.1 0.1 0.2 0.2 0.3 0.3")),
    Kind("boxes and outlines in one file", _row("0 0.1 0.1 0.2 0.1 0.2 0.4")),
    Kind("label in UTF-16", _text(ROWS.encode("utf-16"))),
    Kind("label of binary junk", _text(bytes(range(128, 256)))),
    Kind("label of another tool (XML)", _text("<annotation><object/></annotation>\n")),
    Kind("missing label", _missing_label),
    Kind("folder named like the label", _label_folder),
    Kind("label without an image", _label_without_image),
    Kind("two images of one label file", _shared_label),
    Kind("empty image file", _image(b"")),
    Kind("image cut short (PNG)", _image(PNG[: len(PNG) // 2])),
    Kind("image cut short (JPEG)", _image(_jpeg()[:-2000], ".jpg")),
    Kind("image with a zeroed sector (JPEG)", _image(_zeroed(_jpeg()), ".jpg")),
    Kind("image with a flipped bit (PNG)", _image(_flipped(PNG, len(PNG) // 2))),
    Kind("image with a zeroed sector (TIFF)", _image(_zeroed(_tiff(part(2))), ".tiff")),
    Kind("error page saved as an image", _image(b"<!DOCTYPE html><title>404 Not Found</title>", ".jpg")),
    Kind("32-bit floating-point image", _image(_tiff(part(2).astype(np.float32)), ".tiff")),
    Kind("decompression bomb", _image(_bomb())),
    Kind("damaged image in a validation folder beside a test folder", _in_validation),
    Kind("training image among the test images", _in_test(lambda image: image)),
    Kind("training image re-encoded among the test images", _in_test(lambda image: image, "jpg")),
    Kind("training image mirrored among the test images", _in_test(lambda image: image[:, ::-1])),
    Kind("box drawn into a grey picture", _drawn_on, of_a_file=False),
    _of_the_set("data.yaml is no YAML", "names: [scratch, pit\ntrain: : x"),
    _of_the_set("data.yaml without names", "train: train/images\nval: test/images\n"),
    _of_the_set("class names numbered with a gap", f"{SPLITS}names: {{0: scratch, 2: pit}}\n"),
    _of_the_set("nc of data.yaml other than its names", f"{SPLITS}nc: 3\n{NAMES}"),
    _of_the_set(
        "data.yaml with a folder that is not there", f"{SPLITS}test: tset/images\nnames: [{', '.join(CLASSES)}]\n"
    ),
    _of_the_set(
        "data.yaml with a path of another machine", f"path: /content/parts\n{SPLITS}names: [{', '.join(CLASSES)}]\n"
    ),
    _of_the_set("data.yaml with a download", f"{SPLITS}{NAMES}download: exit(1)\n"),
    _of_the_set("class name twice", f"{SPLITS}names: [pit, pit]\n"),
    _of_the_set("class without a defect", f"{SPLITS}names: [{', '.join(CLASSES)}, stain]\n"),
    _of_the_set("data.yaml with a Python object", f"{SPLITS}names: !!python/tuple [a, b]\n"),
)
