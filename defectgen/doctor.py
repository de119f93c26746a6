"""What a support request would ask for: versions, pairing of packages, device, threads, memory, disk; what to mend."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from defectgen.yolo.environment import num_threads

PACKAGES = ("torch", "torchvision", "diffusers", "ultralytics", "opencv-python", "albumentations")
# Each of them writes the same folder cv2/.
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
# What is installed for each of the extras.
OPTIONAL = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "mlflow-skinny")}
NOT_INSTALLED = "not installed"
GIB = 2**30
LEAST_MEMORY_GIB, LEAST_DISK_GIB = 4, 2

Facts = dict[str, str]


@dataclass(frozen=True)
class Memory:
    """Bytes: of the machine or what a container may use of it, and of these what is free to be used now."""

    total: int
    available: int


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def nvidia_gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver sees, whatever torch was built for."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def memory(cgroups: Path = Path("/sys/fs/cgroup")) -> Memory | None:
    """The machine's, or the container's where that may use less; None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    machine = psutil.virtual_memory()
    limit = _number(cgroups / "memory.max") or _number(cgroups / "memory" / "memory.limit_in_bytes")
    if limit is None or limit >= machine.total:
        return Memory(machine.total, machine.available)
    used = _number(cgroups / "memory.current") or _number(cgroups / "memory" / "memory.usage_in_bytes") or 0
    # Counted as used, but given back when it is asked for.
    cached = _number(cgroups / "memory.stat", "inactive_file") or 0
    return Memory(limit, min(machine.available, max(limit - used + cached, 0)))


def _number(path: Path, key: str | None = None) -> int | None:
    """The whole number in a file, or behind `key` in its lines; None without one ("max": no limit)."""
    try:
        words = path.read_text().split()
        return int(words[0] if key is None else words[words.index(key) + 1])
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class Computer:
    """What is asked about the computer; a test answers otherwise.

    Attributes:
        version: of an installed package, None where it is not.
        load: imports a module by its name.
        free_disk: bytes, in the file system of a folder.
    """

    version: Callable[[str], str | None] = installed_version
    load: Callable[[str], Any] = import_module
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    cores: Callable[[], int] = lambda: num_threads({})
    gpus: Callable[[], list[str]] = nvidia_gpus
    memory: Callable[[], Memory | None] = memory
    free_disk: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free


THIS_COMPUTER = Computer()


def examine(computer: Computer = THIS_COMPUTER) -> tuple[Facts, list[str]]:
    """(facts by name, problems with their remedy)."""
    facts: Facts = {"python": platform.python_version(), "platform": platform.platform()}
    problems: list[str] = []
    for look in (_packages, _opencv, _torch, _threads, _memory, _disk):
        found, faults = look(computer)
        facts |= found
        problems += faults
    facts["weights"] = (
        "none needed, none fetched: yolo11n.yaml starts from random ones; a local yolo11n.pt may be named"
    )
    facts["licence"] = "defectgen is Apache-2.0; ultralytics (YOLO11) is AGPL-3.0 or a paid licence"
    return facts, problems


def _packages(computer: Computer) -> tuple[Facts, list[str]]:
    facts = {name: computer.version(name) or NOT_INSTALLED for name in PACKAGES}
    problems = [
        f"{name} is not installed; run: pip install --upgrade defectgen"
        for name, version in facts.items()
        if version == NOT_INSTALLED
    ]
    for extra, packages in OPTIONAL.items():
        versions = [f"{version} ({package})" for package in packages if (version := computer.version(package))]
        missing = f"{NOT_INSTALLED}; optional, for --tracker {extra}: pip install 'defectgen[{extra}]'"
        facts[extra] = ", ".join(versions) or missing
    return facts, problems


def _opencv(computer: Computer) -> tuple[Facts, list[str]]:
    """Which of several OpenCV packages, each of which writes cv2/, it is really from."""
    installed = {name: version for name in OPENCV if (version := computer.version(name))}
    facts = {name: installed.get(name, NOT_INSTALLED) for name in OPENCV[1:2]} | installed
    pinned = next(iter(installed.values()), "")
    # In one step, each at the same version: to uninstall one would take the others' files along.
    again = " ".join(f"{name}=={pinned}" for name in installed) or OPENCV[0]
    remedy = f"run: pip install --force-reinstall --no-deps {again}"
    problems = []
    if len(set(installed.values())) > 1:
        listed = " and ".join(f"{name} {version}" for name, version in installed.items())
        problems.append(f"{listed} write the same files; {remedy}")
    try:
        cv2 = computer.load("cv2")
    except ImportError as error:
        facts["cv2 is from"] = "nothing that can be imported"
        if "libGL" in str(error) or "libgthread" in str(error) or "libglib" in str(error):
            remedy = "run: apt-get install libgl1 libglib2.0-0 (or your system's packages of these libraries)"
        return facts, [*problems, f"OpenCV cannot be imported ({error}); {remedy}"]
    made = getattr(cv2, "version", None)
    if made is not None:
        contrib, headless = ("-contrib" if made.contrib else ""), ("-headless" if made.headless else "")
        source = f"opencv{contrib}-python{headless}"
        facts["cv2 is from"] = f"{source} {made.opencv_version}"
        if installed and not problems and installed.get(source) != made.opencv_version:
            problems.append(f"cv2/ is from {source} {made.opencv_version}, which is not what is installed; {remedy}")
    return facts, problems


def _torch(computer: Computer) -> tuple[Facts, list[str]]:
    """Whether torch and torchvision are of one build, and what they compute on."""
    try:
        torch = computer.load("torch")
        ops = computer.load("torchvision").ops
        # Of another build, torchvision fails here, if not before: what ultralytics needs of it is compiled.
        ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        return {}, [
            f"torch and torchvision do not fit together ({reason}); run: pip install --force-reinstall torch "
            "torchvision, both from one index"
        ]
    from defectgen.device import best_device, bf16_pays

    device = best_device()
    facts = {
        "device": f"cuda ({torch.cuda.get_device_name()})" if device.type == "cuda" else device.type,
        "bfloat16": "native" if bf16_pays(device) else "not native: float32 is used",
        "torch threads": str(torch.get_num_threads()),
    }
    gpus = computer.gpus()
    if not gpus or torch.cuda.is_available():
        return facts, []
    built = torch.version.cuda
    if built is None:
        why = "torch is a CPU build; run: pip install --force-reinstall torch torchvision, from a CUDA index"
    else:
        why = f"torch, built for CUDA {built}, cannot use it; update the NVIDIA driver, or look at CUDA_VISIBLE_DEVICES"
    return facts, [f"there is a GPU ({gpus[0]}), but {why}"]


def _threads(computer: Computer) -> tuple[Facts, list[str]]:
    cores, asked = computer.cores(), computer.environment.get("OMP_NUM_THREADS")
    facts = {
        "cores": str(os.cpu_count()),
        "cores available": str(cores),
        "OMP_NUM_THREADS": asked or "not set: all available cores compute",
    }
    if asked and asked.isdecimal() and int(asked) > cores:
        return facts, [
            f"OMP_NUM_THREADS is {asked}, but {cores} cores are available; threads that wait for each other are many "
            f"times slower: set it to {cores}, or not at all"
        ]
    return facts, []


def _memory(computer: Computer) -> tuple[Facts, list[str]]:
    found = computer.memory()
    if found is None:
        return {"memory": "unknown"}, ["psutil is not installed: memory cannot be asked; run: pip install psutil"]
    total, available = found.total / GIB, found.available / GIB
    facts = {"memory": f"{total:.1f} GiB", "memory available": f"{available:.1f} GiB"}
    if total < LEAST_MEMORY_GIB:
        return facts, [
            f"memory is {total:.1f} GiB; training needs about {LEAST_MEMORY_GIB}: give the container or "
            "machine more, or train smaller (train_yolo.batch, --workers 1)"
        ]
    if available < LEAST_MEMORY_GIB:
        return facts, [
            f"of {total:.1f} GiB memory {available:.1f} are available; training needs about {LEAST_MEMORY_GIB}: close "
            "other programs"
        ]
    return facts, []


def _disk(computer: Computer) -> tuple[Facts, list[str]]:
    facts, problems = {}, []
    for name, folder, remedy in (
        ("free disk here", Path.cwd(), "make room or work elsewhere"),
        ("free disk for temporary files", Path(tempfile.gettempdir()), "make room, or set TMPDIR to another folder"),
    ):
        free = computer.free_disk(folder) / GIB
        facts[name] = f"{free:.1f} GiB"
        if free < LEAST_DISK_GIB:
            problems.append(f"{name} is {free:.1f} GiB in {folder}; a run needs about {LEAST_DISK_GIB}: {remedy}")
    return facts, problems
