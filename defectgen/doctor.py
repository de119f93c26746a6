"""What a support request would ask for: versions, pairing of packages, device, threads, memory, disk."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "ultralytics",
    "opencv-python",
    "opencv-python-headless",
    "albumentations",
)


def examine() -> tuple[dict[str, str], list[str]]:
    """(facts by name, problems with their remedy)."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    problems = []
    for name in PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
            if name != "opencv-python-headless":
                problems.append(f"{name} is not installed; run: pip install --upgrade defectgen")
    with_windows, headless = facts["opencv-python"], facts["opencv-python-headless"]
    if "not installed" not in (with_windows, headless) and with_windows != headless:
        problems.append(
            f"opencv-python {with_windows} and opencv-python-headless {headless} write the same files; "
            f"run: pip install opencv-python=={with_windows} opencv-python-headless=={with_windows}"
        )
    try:
        import torch
        import torchvision  # noqa: F401 - fails where it comes from another build than torch

        from defectgen.device import best_device, bf16_pays

        device = best_device()
        facts["device"] = torch.cuda.get_device_name() if device.type == "cuda" else device.type
        facts["bfloat16"] = "native" if bf16_pays(device) else "not native: float32 is used"
        facts["torch threads"] = str(torch.get_num_threads())
    except (ImportError, RuntimeError, OSError) as error:
        problems.append(
            f"torch and torchvision do not fit together ({error}); run: pip install --force-reinstall torch torchvision"
        )
    facts["cores"] = str(os.cpu_count())
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        facts["memory"] = f"{gib:.1f} GiB"
        if gib < 4:
            problems.append(f"memory is {gib:.1f} GiB; training needs about 4: close other programs")
    free = shutil.disk_usage(".").free / 2**30
    facts["free disk here"] = f"{free:.1f} GiB"
    if free < 2:
        problems.append(f"free disk space is {free:.1f} GiB; a run needs about 2: make room or work elsewhere")
    facts["licence"] = "defectgen is Apache-2.0; ultralytics (YOLO11) is AGPL-3.0 or a paid licence"
    return facts, problems
