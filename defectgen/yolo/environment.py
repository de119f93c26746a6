"""The environment of the process that trains: ultralytics kept offline, quiet, and away from the user's settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# Set by launchers such as torchrun; ultralytics would take itself for one rank of several.
_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def num_threads(environment: Mapping[str, str]) -> int:
    """Threads to compute with: OMP_NUM_THREADS where it is set, else every core this process may use.

    More threads than free cores are much slower than fewer: oneDNN's bf16 gradients wait for each other spinning.
    """
    asked = environment.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores, _container_cores(Path("/sys/fs/cgroup/cpu.max"))), 1)


def _container_cores(limit: Path) -> int:
    """Cores that a container's quota (cgroup v2, "quota period" in microseconds) amounts to; many without one."""
    try:
        quota, period = (int(field) for field in limit.read_text().split())
    except (OSError, ValueError):
        return sys.maxsize
    return quota // period


def worker_environment(config_dir: Path, base: Mapping[str, str]) -> dict[str, str]:
    """`base` with what must be set before ultralytics is imported; its settings file goes to `config_dir`."""
    environment = {name: value for name, value in base.items() if name not in _LAUNCHER_VARIABLES}
    return environment | {
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(config_dir),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
        "MPLBACKEND": "Agg",
        # ultralytics sets 1 where it is unset.
        "OMP_NUM_THREADS": str(num_threads(base)),
        # Waiting threads sleep: beside another busy process, training was three times as fast as with spinning ones.
        "OMP_WAIT_POLICY": base.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONUNBUFFERED": "1",
    }
