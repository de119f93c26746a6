"""A data set as other trainers and tools read it: images, and labels in their format, split as the source is."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import filelock
import numpy as np

from defectgen.boxes import polygon_mask
from defectgen.data.formats.text import is_utf8
from defectgen.errors import DataError, RunError, UsageError
from defectgen.images import encode_image, is_plain, read_rgb
from defectgen.progress import Progress
from defectgen.records import Annotation, LabelledImage, Polygon, Sources
from defectgen.seeds import numpy_rng
from defectgen.yolo.tiles import CROP_PX, Task, crop_side, crop_tiles, cut_crop, cut_tiles, label_text, square

CLEAN_CLASS = "clean"
# In every folder that export writes: no other is ever replaced.
MARK = ".defectgen-export"
# Where a problem is of the recipe's section, and of no file.
_FIELD = re.compile(r"(data|place)\.\w+")


@dataclass(frozen=True)
class _Item:
    """An image to write: `name` is that of its file, unique in its split even without the suffix."""

    image: LabelledImage
    name: str

    @property
    def stem(self) -> str:
        return Path(self.name).stem


@dataclass(frozen=True)
class _Split:
    """One side of the split: training, validation or test."""

    name: str
    items: tuple[_Item, ...]
    class_names: tuple[str, ...]


# Writes one split into the folder of the whole set.
_Writer = Callable[[_Split, Path, Progress], None]


def export(
    sources: Sources,
    out: Path,
    to: str,
    *,
    progress: Progress,
    overwrite: bool = False,
    validation: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write every image of `sources` (the whole pool, not the budget alone) to `out`; it appears whole or not at all.

    Images that any tool reads alike are copied byte for byte; others (turned by EXIF, 16 bits, TIFF) become upright
    8-bit PNG, as labels are in the upright frame. Boxes without an outline are written as rectangles where the format
    takes outlines; their number is in the result.

    Args:
        to: one of FORMATS.
        validation: folders whose held-out images are a split of their own, `val`.

    Returns:
        format, folder, images and defects per split, boxes_as_outlines.

    Raises:
        UsageError: `out` is there, and `overwrite` is false or it is none of export's.
        RunError: another process is writing it.
        DataError: a file of the source is faulty or missing, or the format cannot hold the classes or a file's name.
    """
    _require_whole(sources)
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: is there already; name another --out, or --overwrite to replace it")
    if out.exists() and not (out / MARK).is_file():
        raise UsageError(
            f"{out}: was not written by export (it has no {MARK}), and is not replaced; name another --out"
        )
    splits = _splits(sources, validation)
    listed = {_listed_folder(item.image) for split in splits for item in split.items}
    place = Path(os.path.normpath(out.absolute()))
    within = next((folder for folder in sorted(listed) if place.is_relative_to(folder)), None)
    if within is not None:
        raise UsageError(
            f"{out}: lies among the images it is made of ({within}), and would be read as such; name another"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunError(f"{out}: another process is writing it; wait for it, or choose another --out") from None
    try:
        partial = out.with_name(f".{out.name}.partial")
        try:
            _write(splits, partial, to, progress)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        lock.release()
    marks = [mark for split in splits for item in split.items for mark in item.image.annotations]
    takes_outlines = to in ("yolo-seg", "yolo-obb", "masks")
    return {
        "format": to,
        "folder": str(out),
        "images": {split.name: len(split.items) for split in splits},
        "defects": {split.name: sum(len(item.image.annotations) for item in split.items) for split in splits},
        "boxes_as_outlines": sum(mark.polygon is None for mark in marks) if takes_outlines else 0,
    }


def _require_whole(sources: Sources) -> None:
    """Nothing, where every image was read with its labels, and every name can be written as text."""
    lines = [
        str(problem)
        for problem in sources.problems
        if problem.severity == "error" and not _FIELD.fullmatch(problem.path)
    ]
    images = [*sources.train_pool, *sources.train_clean, *sources.test, *sources.test_clean]
    lines += [
        f"{str(image.path)!r}: the file's name is not UTF-8, as names in labels must be; rename it"
        for image in images
        if not is_utf8(image.name)
    ]
    lines += [
        f"export: the name of class {name!r} is no UTF-8; correct it in data.classes"
        for name in sources.class_names
        if not is_utf8(name)
    ]
    if lines:
        more = f"\n... and {len(lines) - 1} more; see `defectgen check`" if len(lines) > 1 else ""
        raise DataError(f"{lines[0]}{more}")


def _listed_folder(image: LabelledImage) -> Path:
    """The folder that was listed to find the image, which may be in a folder below."""
    path, below = image.path.absolute(), PurePosixPath(image.name).parts
    # Two images of a name have been named apart.
    return path.parents[len(below) - 1] if path.parts[-len(below) :] == below else path.parent


def _splits(sources: Sources, validation: Sequence[Path]) -> list[_Split]:
    folders = [folder.absolute() for folder in validation]
    held_out: dict[str, list[LabelledImage]] = {"val": [], "test": []}
    for image in (*sources.test, *sources.test_clean):
        held_out["val" if any(folder in image.path.parents for folder in folders) else "test"].append(image)
    splits = [
        _Split(name, _items(images), sources.class_names)
        for name, images in {"train": [*sources.train_pool, *sources.train_clean], **held_out}.items()
        if images
    ]
    if not splits:
        raise DataError("export: the source holds no image")
    return splits


def _write(splits: Sequence[_Split], out: Path, to: str, progress: Progress) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for split in splits:
        FORMATS[to](split, out, progress)
    if to.startswith("yolo") and to != "yolo-cls":
        _write_data_yaml(splits, out)
    (out / MARK).write_text(f"{to}\n")


def _items(images: Sequence[LabelledImage]) -> tuple[_Item, ...]:
    """Without folders in their names, which few tools look into; told apart by a number where they would be one."""
    items: list[_Item] = []
    taken: set[str] = set()
    for image in images:
        name = Path(image.name.replace("/", "_"))
        suffix = name.suffix if is_plain(image.path) else ".png"
        stem, number = name.stem, 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{name.stem}_{number}"
        taken.add(stem.casefold())
        items.append(_Item(image, f"{stem}{suffix}"))
    return tuple(items)


def _each(split: _Split, progress: Progress) -> Iterator[_Item]:
    for number, item in enumerate(split.items, 1):
        yield item
        progress(f"export {split.name}", number, len(split.items), "")


def _write_image(item: _Item, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / item.name
    if is_plain(item.image.path):
        shutil.copyfile(item.image.path, target)
    else:
        target.write_bytes(encode_image(read_rgb(item.image.path), "png"))


def _yolo(task: Task) -> _Writer:
    def write(split: _Split, out: Path, progress: Progress) -> None:
        labels = out / split.name / "labels"
        labels.mkdir(parents=True)
        for item in _each(split, progress):
            _write_image(item, out / split.name / "images")
            (tile,) = cut_tiles(item.image.annotations, item.image.size_wh, None)
            (labels / f"{item.stem}.txt").write_text(label_text(tile, task), encoding="utf-8")

    return write


def _write_data_yaml(splits: Sequence[_Split], out: Path) -> None:
    # Without `path`, ultralytics takes this file's folder as the root. It asks for `val`.
    folders = {split.name: f"{split.name}/images" for split in splits}
    held_out = folders.get("val", folders.get("test", "train/images"))
    data = {"train": folders.get("train", held_out), "val": held_out}
    if {"val", "test"} <= folders.keys():
        data["test"] = folders["test"]
    names = dict(enumerate(splits[0].class_names))
    lines = [f"{key}: {value}" for key, value in data.items()]
    lines += ["names:", *(f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in names.items())]
    (out / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _classify(split: _Split, out: Path, progress: Progress) -> None:
    """A folder per class with a square crop per defect, and `clean` with one per clean image, of the median size."""
    sides = [crop_side(mark) for item in split.items for mark in item.image.annotations]
    median = int(np.median(sides)) if sides else CROP_PX
    if CLEAN_CLASS in split.class_names:
        raise DataError(f"export: a class is called {CLEAN_CLASS!r}, as crops of clean product are; rename it")
    for name in (*split.class_names, CLEAN_CLASS):
        if "/" in name or "\\" in name or name in (".", ".."):
            raise DataError(f"export: class {name!r} cannot be the name of a folder; rename it")
        (out / split.name / name).mkdir(parents=True)
    for item in _each(split, progress):
        pixels = read_rgb(item.image.path)
        crops = [
            (split.class_names[tile.labels[0].class_id], tile.xyxy)
            for tile in crop_tiles(item.image.annotations, item.image.size_wh)
        ]
        if not crops:
            x, y = numpy_rng(0, "export", item.name).uniform(0, item.image.size_wh)
            crops.append((CLEAN_CLASS, square(float(x), float(y), median, item.image.size_wh)))
        for number, (folder, xyxy) in enumerate(crops):
            png = encode_image(cut_crop(pixels, xyxy), "png")
            (out / split.name / folder / f"{item.stem}_{number}.png").write_bytes(png)


def _coco(split: _Split, out: Path, progress: Progress) -> None:
    """_annotations.coco.json beside the images: categories from 1, boxes as x, y, width, height, outlines if known."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for item in _each(split, progress):
        _write_image(item, out / split.name)
        width, height = item.image.size_wh
        images.append({"id": len(images) + 1, "file_name": item.name, "width": width, "height": height})
        for mark in item.image.annotations:
            x1, y1, x2, y2 = mark.xyxy
            outline = np.array(mark.polygon, np.float32) if mark.polygon else None
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": mark.class_id + 1,
                    "bbox": _rounded((x1, y1, x2 - x1, y2 - y1)),
                    "area": round((x2 - x1) * (y2 - y1) if outline is None else float(cv2.contourArea(outline)), 2),
                    "segmentation": [] if mark.polygon is None else [_rounded(sum(mark.polygon, ()))],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(split.class_names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / split.name / "_annotations.coco.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _masks(split: _Split, out: Path, progress: Progress) -> None:
    """A PNG per image, 0 where it is clean and 1 for the first class; of overlapping defects the later one is seen."""
    if len(split.class_names) > 255:
        raise DataError(f"export: a mask holds 255 classes at most, got {len(split.class_names)}; export to coco")
    folder = out / split.name / "masks"
    folder.mkdir(parents=True)
    for item in _each(split, progress):
        _write_image(item, out / split.name / "images")
        width, height = item.image.size_wh
        mask = np.zeros((height, width), np.uint8)
        for mark in item.image.annotations:
            mask[_drawn(_outline(mark), item.image.size_wh)] = mark.class_id + 1
        (folder / f"{item.stem}.png").write_bytes(encode_image(mask, "png"))


def _drawn(outline: Polygon, size_wh: tuple[int, int]) -> np.ndarray:
    """Bool (H, W): pixels whose centres lie inside, and so many at its outermost points that its box is kept to half a
    pixel: a spike may end between centres.
    """
    mask = polygon_mask(outline, size_wh)
    points = np.array(outline)
    pixels = np.clip(points.astype(int), 0, np.array(size_wh) - 1)
    if not mask.any():
        mask[pixels[:, 1], pixels[:, 0]] = True
    for axis in (0, 1):
        covered = np.flatnonzero(mask.any(axis=axis))
        first, stop = round(float(points[:, axis].min())), round(float(points[:, axis].max()))
        for outermost, missing in (
            (points[:, axis].argmin(), np.arange(first, covered[0])),
            (points[:, axis].argmax(), np.arange(covered[-1] + 1, stop)),
        ):
            other = pixels[outermost, 1 - axis]
            mask[(other, missing) if axis == 0 else (missing, other)] = True
    return mask


def _hugging_face(split: _Split, out: Path, progress: Progress) -> None:
    """An ImageFolder: metadata.jsonl beside the images; boxes are x, y, width, height in pixels."""
    rows = []
    for item in _each(split, progress):
        _write_image(item, out / split.name)
        boxes = [_rounded((x1, y1, x2 - x1, y2 - y1)) for x1, y1, x2, y2 in (m.xyxy for m in item.image.annotations)]
        ids = [mark.class_id for mark in item.image.annotations]
        names = [split.class_names[class_id] for class_id in ids]
        rows.append({"file_name": item.name, "objects": {"bbox": boxes, "categories": ids, "names": names}})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / split.name / "metadata.jsonl").write_text(text, encoding="utf-8")


def _outline(mark: Annotation) -> Polygon:
    x1, y1, x2, y2 = mark.xyxy
    return mark.polygon or ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in values]


FORMATS: dict[str, _Writer] = {
    "yolo": _yolo("detect"),
    "yolo-seg": _yolo("segment"),
    "yolo-obb": _yolo("obb"),
    "yolo-cls": _classify,
    "coco": _coco,
    "masks": _masks,
    "huggingface": _hugging_face,
}
