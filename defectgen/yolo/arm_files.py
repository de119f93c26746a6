"""The arms' and the test set's folders: tiles, labels, the list of one epoch, and samples.json to audit them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from defectgen.images import encode_image, read_rgb, write_bytes_atomic
from defectgen.progress import Progress
from defectgen.yolo.arms import ArmPlan, Plan, Sample
from defectgen.yolo.tiles import cut_crop, cut_tile, label_text


def write_test(plan: Plan, out: Path, progress: Progress) -> str:
    """Write out/test where it is missing or other than planned; a hash of its content."""
    counts = [(sample, 1) for sample in plan.test]
    digest = plan.digest(counts)
    folder = out / "test"
    if written_digest(folder / "samples.json") != digest:
        _write_images(plan, counts, folder, partial(progress, "write the test set"))
        content = {"digest": digest, "files": plan.entries(counts), "num_clean_images": plan.num_clean_images}
        write_bytes_atomic(folder / "samples.json", to_json(content))
    return digest


def write_arm(plan: Plan, arm: ArmPlan, out: Path, class_names: Sequence[str], progress: Progress) -> str:
    """Write the arm's images, train.txt, data.yaml and samples.json where they are other than planned; a hash."""
    digest = plan.digest(arm.counts)
    folder = out / arm.slug
    numbers = {origin: sum(n for s, n in arm.counts if s.origin == origin) for origin in ("real", "synthetic", "clean")}
    if written_digest(folder / "samples.json") != digest:
        unused = {
            origin: arm.available[origin] - sum(sample.origin == origin for sample, _ in arm.counts)
            for origin in numbers
            if numbers[origin]
        }
        for origin in ("real", "synthetic"):
            if unused.get(origin):
                found = f"{unused[origin]} {origin} images find no place in {arm.schedule.list_length} a round"
                progress(arm.name, 0, 0, found)
        (folder / "samples.json").unlink(missing_ok=True)
        _write_images(plan, arm.counts, folder / "train", partial(progress, f"write {arm.name}"))
        if plan.task == "classify":
            # ultralytics wants a `val` beside it, which nothing here looks at.
            _write_images(plan, arm.counts[:1], folder / "val", lambda done, total, note: None)
        else:
            listed = [f"./train/images/{sample.stem}.png" for sample, count in arm.counts for _ in range(count)]
            write_bytes_atomic(folder / "train.txt", ("\n".join(listed) + "\n").encode())
    # Names and iterations may have changed where the images have not.
    if plan.task != "classify":
        # JSON is YAML. Without `path` the root is this file's folder.
        data = {"train": "train.txt", "val": "../test/images", "names": list(class_names)}
        write_bytes_atomic(folder / "data.yaml", to_json(data))
    content = {
        "arm": arm.name,
        "digest": digest,
        "iterations": arm.schedule.iterations,
        "epochs": arm.schedule.epochs,
        "list_length": arm.schedule.list_length,
        "counts": numbers,
        "available": arm.available,
        "files": plan.entries(arm.counts),
    }
    # Last: it says that the rest is complete.
    write_bytes_atomic(folder / "samples.json", to_json(content))
    return digest


def _write_images(
    plan: Plan, counts: Sequence[tuple[Sample, int]], folder: Path, progress: Callable[[int, int, str], None]
) -> None:
    """Images and labels as `folder`, which appears whole or not at all; crops to classify in a folder per class, as
    often as they are to be seen, since no list says it.
    """
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    path, pixels = None, None
    for number, (sample, count) in enumerate(counts, 1):
        progress(number, len(counts), "")
        if path != sample.image.path:
            path, pixels = sample.image.path, read_rgb(sample.image.path)
        assert pixels is not None
        if plan.task == "classify":
            png = encode_image(cut_crop(pixels, sample.tile.xyxy), "png")
            of_class = beside / class_folder(sample, plan.num_classes)
            of_class.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (of_class / f"{sample.stem}-{number}.png").write_bytes(png)
            continue
        png = encode_image(cut_tile(pixels, sample.tile.xyxy), "png")
        for name in ("images", "labels"):
            (beside / name).mkdir(parents=True, exist_ok=True)
        (beside / "images" / f"{sample.stem}.png").write_bytes(png)
        (beside / "labels" / f"{sample.stem}.txt").write_text(label_text(sample.tile, plan.task))
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def class_folder(sample: Sample, num_classes: int) -> str:
    """By number, so that ultralytics, which sorts by name, keeps the order; clean product comes last."""
    return f"{sample.tile.labels[0].class_id if sample.tile.labels else num_classes:03d}"


def written_digest(path: Path) -> str | None:
    content = read_json(path)
    return None if content is None else content.get("digest")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at `path`; None where there is none, or one that a killed run left damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def to_json(value: Any) -> bytes:
    """Indented UTF-8, ready to be written."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
