"""Which kinds of bad input defectgen reports and which ultralytics does, as a Markdown table.

Run: python tests/torture/table.py

Reported by ultralytics means that reading the set as for training ends with an error, or logs a line that names the
file at fault. What it says of each kind goes to stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bad_input import KINDS, VICTIM, Kind, write_good_set

from defectgen.yolo.environment import worker_environment


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, kind in enumerate(KINDS):
            rows.append((kind.name, by_defectgen(kind, Path(scratch) / f"a{number}")))
        told = by_ultralytics(Path(scratch))
    write = sys.stdout.write
    write("| kind | defectgen check | ultralytics |\n|---|---|---|\n")
    for name, own in rows:
        write(f"| {name} | {'yes' if own else 'no'} | {'yes' if told[name] else 'no'} |\n")
    write(f"| all {len(rows)} | {sum(own for _, own in rows)} | {sum(told.values())} |\n")


def by_defectgen(kind: Kind, root: Path) -> bool:
    write_good_set(root)
    kind.spoil(root, VICTIM)
    command = [sys.executable, "-m", "defectgen", "check", str(root), "--format", "yolo", "--strict"]
    return subprocess.run(command, capture_output=True).returncode != 0


def by_ultralytics(scratch: Path) -> dict[str, bool]:
    """Asked in a process of its own, as importing it changes Pillow, OpenCV and torch."""
    command = [sys.executable, __file__, "--ultralytics", str(scratch)]
    environment = worker_environment(scratch / "settings", os.environ)
    (scratch / "settings").mkdir()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    told: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return told


def ask_ultralytics(scratch: Path) -> None:
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils import LOGGER

    told = {}
    for number, kind in enumerate(KINDS):
        root = scratch / f"u{number}"
        write_good_set(root)
        at_fault = Path(kind.spoil(root, VICTIM)).name
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        LOGGER.addHandler(handler)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                data = check_det_dataset(str(root / "data.yaml"))
                for split in ("train", "val"):
                    dataset = YOLODataset(data[split], data=data, task="detect", augment=False, imgsz=64)
                    for index in range(len(dataset)):
                        dataset[index]
        except Exception as error:
            said.write(f"{at_fault}: {type(error).__name__}: {error}")
        LOGGER.removeHandler(handler)
        told[kind.name] = any(Path(at_fault).stem in line for line in said.getvalue().splitlines())
        sys.stderr.write(f"== {kind.name}: {told[kind.name]}\n{said.getvalue()}\n")
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    if "--ultralytics" in sys.argv:
        ask_ultralytics(Path(sys.argv[sys.argv.index("--ultralytics") + 1]))
    else:
        main()
