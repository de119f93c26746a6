"""Composites into a YOLO data set: one image at a time, in any order, resumable; then finished as a whole.

    data.yaml, README.md, manifest.jsonl
    images/000012.png, labels/000012.txt, defect_masks/000012.png
    rows/000012.json     while the set is being made: image 12 is complete

Nothing here depends on time, host or order: the same composites give the same bytes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import yaml

from defectgen import __version__
from defectgen.boxes import joined_outline
from defectgen.dataset.card import dataset_card, portable_recipe
from defectgen.dataset.manifest import (
    FOLDERS,
    MANIFEST_NAME,
    HeaderRow,
    ImageRow,
    Manifest,
    ManifestError,
    Task,
    json_line,
    label_rows,
    label_text,
    parse_image_row,
    read_manifest,
    set_indexes,
    summarise,
)
from defectgen.errors import DataError, RunError
from defectgen.images import encode_image, sha256_bytes, sha256_file, sweep, write_bytes_atomic
from defectgen.records import Annotation, Composite, PlacedDefect

ROWS_FOLDER = "rows"
_DECIMALS = 3


def write_composite(
    folder: Path,
    composite: Composite,
    *,
    image_format: Literal["png", "jpg"],
    task: Task,
    class_names: Sequence[str],
) -> ImageRow:
    """The manifest row of the image, after image, label, mask and, last, the row itself are in `folder`.

    Raises:
        DataError: a label has no area within the image.
    """
    height, width = composite.mask.shape
    assert composite.image.shape == (height, width, 3) and composite.source.size_wh == (width, height)
    assert composite.image.dtype == np.uint8 and composite.mask.dtype == np.uint8
    stem = f"{composite.index:06d}"
    image = encode_image(composite.image, image_format)
    mask = encode_image(composite.mask, "png")
    row = cast(
        ImageRow,
        _plain(
            {
                "kind": "image",
                "index": composite.index,
                "size_wh": [width, height],
                "image": f"images/{stem}.{image_format}",
                "image_sha256": sha256_bytes(image),
                "label": f"labels/{stem}.txt",
                "mask": f"defect_masks/{stem}.png",
                "mask_sha256": sha256_bytes(mask),
                "source": composite.source.name,
                "source_sha256": composite.source_sha256,
                "kept": [_kept_row(annotation, class_names) for annotation in composite.kept],
                "placed": [_placed_row(defect, class_names) for defect in composite.placed],
                "rejected": [
                    {
                        "class_id": refused.class_id,
                        "class_name": class_names[refused.class_id],
                        "reason": refused.reason,
                        "detail": refused.detail,
                    }
                    for refused in composite.rejected
                ],
            }
        ),
    )
    # From the row's rounded boxes, so that label and manifest agree to the last digit.
    label = label_text(label_rows(row, task)).encode()
    row["label_sha256"] = sha256_bytes(label)
    write_bytes_atomic(folder / row["image"], image, durable=False)
    write_bytes_atomic(folder / row["label"], label, durable=False)
    write_bytes_atomic(folder / row["mask"], mask, durable=False)
    _write_row(folder, row)
    return row


def _kept_row(annotation: Annotation, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "class_id": annotation.class_id,
        "class_name": class_names[annotation.class_id],
        "xyxy": annotation.xyxy,
        "polygon": annotation.polygon,
    }


def _placed_row(defect: PlacedDefect, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "class_id": defect.class_id,
        "class_name": class_names[defect.class_id],
        "label_xyxy": defect.label_xyxy,
        "changed_xyxy": defect.changed_xyxy,
        "asked_xyxy": defect.asked_xyxy,
        "polygon": joined_outline(defect.polygons) if defect.polygons else None,
        "placement": defect.placement,
    }


def _plain(value: Any) -> Any:
    """`value` in JSON's own types, floats rounded so that their text is short and stable."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        assert math.isfinite(value), "manifest rows hold finite numbers alone"
        # + 0.0 turns -0.0 into 0.0.
        return round(float(value), _DECIMALS) + 0.0
    assert value is None or isinstance(value, str), f"{type(value).__name__} is no JSON value"
    return value


def completed(folder: Path, task: Task) -> set[int]:
    """Indexes of the images that are wholly there: a row, and its three files with the hashes it names, labels being
    for `task`.
    """
    return {
        index
        for index, row in _complete_rows(folder).items()
        if sha256_bytes(label_text(label_rows(row, task)).encode()) == row["label_sha256"]
    }


def gather(folder: Path, indexes: Collection[int], *, task: Task, finished: Path | None = None) -> set[int]:
    """Indexes of the images that `folder` holds complete, with labels for `task`, after all others are gone from it.

    May be repeated after a kill at any point.

    Args:
        indexes: what the set is to hold.
        finished: a finished set of the same recipe, generator and task, left as it is: what it has of `indexes` is
            taken over without being made again.
    """
    wanted = frozenset(indexes)
    for name in (ROWS_FOLDER, *FOLDERS):
        for path in (folder / name).glob("[0-9]*"):
            if path.stem.isdecimal() and int(path.stem) not in wanted:
                path.unlink()
    done = completed(folder, task)
    if finished is not None:
        for index, row in _complete_rows(finished).items():
            if index in wanted and index not in done:
                for name in (row["image"], row["label"], row["mask"]):
                    _link(finished / name, folder / name)
                _write_row(folder, row)
                done.add(index)
    return done


def _link(source: Path, target: Path) -> None:
    """`target` is the same file as `source`, or a copy where the disk has no such links. Nothing writes into either."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        write_bytes_atomic(target, source.read_bytes())


def _write_row(folder: Path, row: ImageRow) -> None:
    """Marks the image as complete."""
    write_bytes_atomic(folder / ROWS_FOLDER / f"{row['index']:06d}.json", json_line(row).encode(), durable=False)


def _complete_rows(folder: Path) -> dict[int, ImageRow]:
    rows: dict[int, ImageRow] = {}
    # A set that was finished, or killed while its rows were being removed, has them in its manifest.
    if (folder / MANIFEST_NAME).exists():
        try:
            rows = {row["index"]: row for row in read_manifest(folder / MANIFEST_NAME).rows}
        except ManifestError:
            rows = {}
    for path in sorted((folder / ROWS_FOLDER).glob("*.json")):
        try:
            row = parse_image_row(path.read_text(encoding="utf-8"), path)
        except (ManifestError, OSError, UnicodeDecodeError):
            continue
        rows[row["index"]] = row
    return {index: rows[index] for index in sorted(rows) if _files_match(folder, rows[index])}


def missing_files(folder: Path, manifest: Manifest) -> list[Path]:
    """Files of the finished set in `folder`, as its `manifest` lists them, and data.yaml, that are not there."""
    files = [folder / row[name] for row in manifest.rows for name in ("image", "label", "mask")]
    return [path for path in (*files, folder / "data.yaml") if not path.exists()]


def changed_files(folder: Path) -> list[Path]:
    """Files of the finished set in `folder` that are there with other content than when they were made."""
    rows = read_manifest(folder / MANIFEST_NAME).rows
    files = [(row[name], row[f"{name}_sha256"]) for row in rows for name in ("image", "label", "mask")]  # type: ignore[literal-required]
    return [
        folder / name for name, digest in files if (folder / name).exists() and sha256_file(folder / name) != digest
    ]


def _files_match(folder: Path, row: ImageRow) -> bool:
    files = (
        (row["image"], row["image_sha256"]),
        (row["label"], row["label_sha256"]),
        (row["mask"], row["mask_sha256"]),
    )
    try:
        return all(sha256_file(folder / name) == digest for name, digest in files)
    except DataError:
        return False


def finish(
    folder: Path,
    *,
    recipe_yaml: str,
    class_names: Sequence[str],
    task: Task,
    num_images: int,
    fingerprint: str,
    rejected: Collection[int] = (),
    regions_sha256: str | None = None,
    licence_note: str | None = None,
) -> dict[str, Any]:
    """The set's summary (see `summarise`), after data.yaml, README.md and the manifest are in `folder`.

    `rejected`: indexes that a person rejected; others stand for them (see `set_indexes`). `regions_sha256`: see
    `HeaderRow`.

    May be repeated after a kill at any point. `recipe_yaml` is embedded with `data.root` cut to its last folder, so
    that the same set made elsewhere has the same bytes.

    Raises:
        RunError: fewer, more or other complete images than asked for.
    """
    rows = _complete_rows(folder)
    indexes = set_indexes(num_images, rejected)
    if list(rows) != indexes:
        missing = [str(index) for index in indexes if index not in rows]
        named = f" (incomplete: {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''})" if missing else ""
        raise RunError(
            f"{folder}: holds {len(rows)} complete images, {num_images} were asked for{named}; "
            "run `defectgen synth` again to make the missing ones, or choose an empty folder"
        )
    recipe = portable_recipe(recipe_yaml)
    header: HeaderRow = {
        "kind": "header",
        "version": __version__,
        "recipe_sha256": recipe_sha256(recipe),
        "generator_fingerprint": fingerprint,
        "class_names": list(class_names),
        "task": task,
        "num_images": num_images,
    }
    if rejected:
        header["rejected"] = sorted(rejected)
    if regions_sha256 is not None:
        header["regions_sha256"] = regions_sha256
    summary = summarise(rows.values(), class_names)
    card = dataset_card(summary, header=header, recipe_yaml=recipe, licence_note=licence_note)
    sweep(folder, "**/.*.tmp")
    write_bytes_atomic(folder / "data.yaml", data_yaml_text(class_names).encode())
    write_bytes_atomic(folder / "README.md", card.encode())
    manifest = json_line(header) + "".join(json_line(row) for row in rows.values())
    # The rows go after the manifest holds them: a kill in between loses nothing.
    write_bytes_atomic(folder / MANIFEST_NAME, manifest.encode())
    shutil.rmtree(folder / ROWS_FOLDER, ignore_errors=True)
    return summary


def recipe_sha256(recipe_yaml: str) -> str:
    """The hash by which a manifest's header names a recipe, wherever its data lies."""
    return sha256_bytes(portable_recipe(recipe_yaml).encode())


def data_yaml_text(class_names: Sequence[str]) -> str:
    """`data.yaml` for Ultralytics. Without `path`: then the root is the file's own folder, wherever it is moved."""
    names = dict(enumerate(class_names))
    body = yaml.safe_dump({"train": "images", "val": "images", "names": names}, sort_keys=False, allow_unicode=True)
    return (
        "# Made by defectgen. `val` repeats `train` because Ultralytics requires one: put held-out real images there.\n"
        "# Scores on synthetic images say nothing about real parts.\n" + body
    )
