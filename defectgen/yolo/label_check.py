"""Ultralytics' own opinion of a data set: would it read every image and label? In a process and on a copy of its own.

`python -m defectgen.yolo.label_check COPY RESULT` is that process; it may rewrite images in COPY, as Ultralytics does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from defectgen.errors import DataError, RunError
from defectgen.images import list_images, sha256_file
from defectgen.yolo.environment import worker_environment

_PARTS = ("data.yaml", "images", "labels")


def ultralytics_label_check(folder: Path) -> dict[str, Any]:
    """What Ultralytics finds in the data set at `folder`, which it does not touch.

    Returns:
        num_images; num_missing (no label file), num_empty (clean), num_corrupt (images it would drop); messages: what
        it says of single files, their paths relative to the set; modified_files: files it changed, added or removed.

    Raises:
        DataError: data.yaml, images/ or labels/ is missing, or data.yaml names no classes.
        RunError: the checking process failed.
    """
    missing = [name for name in _PARTS if not (folder / name).exists()]
    if missing:
        raise DataError(f"{folder}: has no {', '.join(missing)}; name the folder of a finished data set")
    _num_classes(folder)
    with tempfile.TemporaryDirectory(prefix="defectgen-label-check-") as temporary:
        copy, result, config = (Path(temporary).resolve() / name for name in ("set", "result.json", "config"))
        copy.mkdir()
        config.mkdir()
        shutil.copy2(folder / "data.yaml", copy)
        for name in ("images", "labels"):
            shutil.copytree(folder / name, copy / name)
        before = _hashes(copy)
        process = subprocess.run(
            [sys.executable, "-m", "defectgen.yolo.label_check", str(copy), str(result)],
            env=worker_environment(config, os.environ),
            cwd=temporary,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode != 0 or not result.exists():
            last_words = " | ".join(process.stderr.strip().splitlines()[-3:])
            raise RunError(
                f"{folder}: Ultralytics' label check ended with {process.returncode} ({last_words}); "
                "check the installation with `python -c 'import ultralytics'`"
            )
        report = json.loads(result.read_text(encoding="utf-8"))
        after = _hashes(copy)
        report["messages"] = [message.replace(f"{copy}{os.sep}", "") for message in report["messages"]]
    report["modified_files"] = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    return report


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _num_classes(folder: Path) -> int:
    path = folder / "data.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make the set again") from None
    names = data.get("names") if isinstance(data, dict) else None
    if not isinstance(names, dict | list) or not names:
        raise DataError(f"{path}: names must list the classes, got {names!r}; make the set again")
    return len(names)


def _check(folder: Path) -> dict[str, Any]:
    """Ultralytics' findings; runs in the process of its own."""
    from ultralytics.data.utils import img2label_paths, verify_image_label

    images: list[str | Path] = [str(path) for path in list_images(folder / "images")]
    num_classes = _num_classes(folder)
    totals = {"num_missing": 0, "num_empty": 0, "num_corrupt": 0}
    messages: list[str] = []
    for image, label in zip(images, img2label_paths(images), strict=True):
        # After the prefix: keypoints wanted, number of classes, of keypoints, of their dimensions, single class.
        found = verify_image_label((image, label, "", False, num_classes, 0, 0, False))
        missing, _, empty, corrupt, message = found[-5:]
        totals["num_missing"] += missing
        totals["num_empty"] += empty
        totals["num_corrupt"] += corrupt
        if message:
            messages.append(message)
    return {"num_images": len(images), **totals, "messages": messages}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(_check(Path(sys.argv[1]))), encoding="utf-8")
