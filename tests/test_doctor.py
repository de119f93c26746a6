from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from defectgen.doctor import GIB, OPTIONAL, PACKAGES, THIS_COMPUTER, Memory, examine, installed_version, memory

GOOD = replace(
    THIS_COMPUTER,
    environment={},
    cores=lambda: 4,
    gpus=lambda: [],
    memory=lambda: Memory(16 * GIB, 12 * GIB),
    free_disk=lambda folder: 50 * GIB,
)


def versions(**others: str | None) -> Callable[[str], str | None]:
    """Installed versions, some of them others than they are."""
    changed = {name.replace("_", "-"): version for name, version in others.items()}
    return lambda name: changed[name] if name in changed else installed_version(name)


def loading(**others: Any) -> Callable[[str], Any]:
    """Imports; of `others` the error or the module given."""

    def load(name: str) -> Any:
        found = others[name] if name in others else import_module(name)
        if isinstance(found, Exception):
            raise found
        return found

    return load


def cv2_of(package: str, version: str) -> SimpleNamespace:
    made = SimpleNamespace(contrib="contrib" in package, headless="headless" in package, opencv_version=version)
    return SimpleNamespace(version=made)


def only_opencv(**installed: str) -> Callable[[str], str | None]:
    none = {"opencv_python": None, "opencv_python_headless": None, "opencv_contrib_python": None}
    return versions(**(none | {"opencv_contrib_python_headless": None} | installed))


def test_facts_name_versions_device_threads_memory_and_disk() -> None:
    facts, _ = examine()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {*PACKAGES, *OPTIONAL, "opencv-python-headless"} <= facts.keys()
    assert facts["torch"] == metadata.version("torch")
    assert facts["device"] and int(facts["torch threads"]) >= 1
    assert int(facts["cores"]) >= int(facts["cores available"]) >= 1
    for name in ("memory", "memory available", "free disk here", "free disk for temporary files"):
        assert float(facts[name].removesuffix(" GiB")) > 0
    assert facts["cv2 is from"].startswith("opencv-")
    assert "AGPL-3.0" in facts["licence"] and facts["weights"].startswith("none needed")
    assert all(isinstance(value, str) for value in facts.values())


def test_good_computer_has_no_problem() -> None:
    assert examine(GOOD)[1] == []


def test_missing_package_is_a_problem_with_its_remedy() -> None:
    facts, problems = examine(replace(GOOD, version=versions(diffusers=None)))
    assert facts["diffusers"] == "not installed"
    assert problems == ["diffusers is not installed; run: pip install --upgrade defectgen"]


def test_missing_tracker_is_optional_and_either_package_of_mlflow_will_do() -> None:
    facts, problems = examine(replace(GOOD, version=versions(tensorboard=None, mlflow=None, mlflow_skinny="3.1")))
    assert facts["tensorboard"] == (
        "not installed; optional, for --tracker tensorboard: pip install 'defectgen[tensorboard]'"
    )
    assert facts["mlflow"] == "3.1 (mlflow-skinny)"
    assert problems == []


def test_doubled_opencv_of_one_version_is_told_and_no_problem() -> None:
    computer = replace(
        GOOD,
        version=only_opencv(opencv_python="4.12.0", opencv_python_headless="4.12.0"),
        load=loading(cv2=cv2_of("opencv-python-headless", "4.12.0")),
    )
    facts, problems = examine(computer)
    assert facts["cv2 is from"] == "opencv-python-headless 4.12.0"
    assert problems == []


def test_opencv_of_several_versions_in_one_folder_is_a_problem() -> None:
    computer = replace(
        GOOD,
        version=only_opencv(opencv_python="4.10.0", opencv_python_headless="4.12.0", opencv_contrib_python="4.10.0"),
        load=loading(cv2=cv2_of("opencv-python-headless", "4.12.0")),
    )
    facts, (problem,) = examine(computer)
    assert facts["cv2 is from"] == "opencv-python-headless 4.12.0"
    assert problem == (
        "opencv-python 4.10.0 and opencv-python-headless 4.12.0 and opencv-contrib-python 4.10.0 write the same files; "
        "run: pip install --force-reinstall --no-deps opencv-python==4.10.0 opencv-python-headless==4.10.0 "
        "opencv-contrib-python==4.10.0"
    )


def test_files_that_an_uninstalled_opencv_left_behind_are_a_problem() -> None:
    computer = replace(
        GOOD, version=only_opencv(opencv_python="4.12.0"), load=loading(cv2=cv2_of("opencv-contrib-python", "4.8.1"))
    )
    assert examine(computer)[1] == [
        "cv2/ is from opencv-contrib-python 4.8.1, which is not what is installed; run: pip install --force-reinstall "
        "--no-deps opencv-python==4.12.0"
    ]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            "libGL.so.1: cannot open shared object file: No such file or directory",
            "run: apt-get install libgl1 libglib2.0-0 (or your system's packages of these libraries)",
        ),
        ("No module named 'cv2'", "run: pip install --force-reinstall --no-deps opencv-python==4.12.0"),
    ],
)
def test_opencv_that_cannot_be_imported_says_what_is_missing(error: str, remedy: str) -> None:
    computer = replace(GOOD, version=only_opencv(opencv_python="4.12.0"), load=loading(cv2=ImportError(error)))
    facts, problems = examine(computer)
    assert problems == [f"OpenCV cannot be imported ({error}); {remedy}"]
    assert facts["cv2 is from"] == "nothing that can be imported"


def broken_nms(*args: Any) -> Any:
    raise RuntimeError("Couldn't load custom C++ ops.\nThis can happen if your PyTorch and torchvision versions differ")


@pytest.mark.parametrize(
    ("torchvision", "reason"),
    [
        (RuntimeError("operator torchvision::nms does not exist"), "operator torchvision::nms does not exist"),
        (SimpleNamespace(ops=SimpleNamespace(nms=broken_nms)), "Couldn't load custom C++ ops. This can happen"),
        (ImportError("No module named 'torchvision'"), "No module named 'torchvision'"),
    ],
)
def test_torchvision_of_another_build_is_a_problem(torchvision: Any, reason: str) -> None:
    facts, (problem,) = examine(replace(GOOD, load=loading(torchvision=torchvision)))
    assert problem.startswith(f"torch and torchvision do not fit together ({reason}")
    assert problem.endswith("run: pip install --force-reinstall torch torchvision, both from one index")
    assert "device" not in facts and "memory" in facts


@pytest.mark.parametrize(
    ("built", "remedy"),
    [
        (None, "torch is a CPU build; run: pip install --force-reinstall torch torchvision, from a CUDA index"),
        (
            "12.8",
            "torch, built for CUDA 12.8, cannot use it; update the NVIDIA driver, or look at CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_gpu_that_torch_does_not_use_is_a_problem(built: str | None, remedy: str) -> None:
    without_gpu = SimpleNamespace(
        zeros=torch.zeros,
        get_num_threads=torch.get_num_threads,
        cuda=SimpleNamespace(is_available=lambda: False, get_device_name=lambda: "unused"),
        version=SimpleNamespace(cuda=built),
    )
    computer = replace(GOOD, gpus=lambda: ["NVIDIA H200"], load=loading(torch=without_gpu))
    assert examine(computer)[1] == [f"there is a GPU (NVIDIA H200), but {remedy}"]


def test_more_threads_than_cores_are_a_problem() -> None:
    facts, problems = examine(replace(GOOD, environment={"OMP_NUM_THREADS": "8"}))
    assert (facts["cores available"], facts["OMP_NUM_THREADS"]) == ("4", "8")
    assert problems == [
        "OMP_NUM_THREADS is 8, but 4 cores are available; threads that wait for each other are many times slower: set "
        "it to 4, or not at all"
    ]
    assert examine(replace(GOOD, environment={"OMP_NUM_THREADS": "4"}))[1] == []
    assert examine(GOOD)[0]["OMP_NUM_THREADS"] == "not set: all available cores compute"


def test_without_psutil_the_rest_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    facts, problems = examine(replace(GOOD, memory=memory))
    assert facts["memory"] == "unknown" and "free disk here" in facts
    assert problems == ["psutil is not installed: memory cannot be asked; run: pip install psutil"]


def test_little_memory_is_a_problem_of_the_machine_or_of_other_programs() -> None:
    facts, problems = examine(replace(GOOD, memory=lambda: Memory(16 * GIB, GIB)))
    assert (facts["memory"], facts["memory available"]) == ("16.0 GiB", "1.0 GiB")
    assert problems == ["of 16.0 GiB memory 1.0 are available; training needs about 4: close other programs"]
    (problem,) = examine(replace(GOOD, memory=lambda: Memory(2 * GIB, GIB)))[1]
    assert problem.startswith("memory is 2.0 GiB; training needs about 4: give the container")


def test_memory_is_that_of_the_container_where_it_is_limited(tmp_path: Path) -> None:
    machine = memory(tmp_path)
    assert 0 < machine.available <= machine.total
    (tmp_path / "memory.max").write_text("max\n")
    assert memory(tmp_path).total == machine.total
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nactive_file 7\ninactive_file 400000\n")
    assert memory(tmp_path) == Memory(3_000_000, 900_000)


def test_limit_of_an_older_container_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("3000000\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("1000000\n")
    assert memory(tmp_path) == Memory(3_000_000, 2_000_000)


def test_full_disk_is_a_problem_here_or_where_temporary_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    facts, problems = examine(replace(GOOD, free_disk=lambda folder: GIB if folder == tmp_path else 50 * GIB))
    assert (facts["free disk here"], facts["free disk for temporary files"]) == ("1.0 GiB", "50.0 GiB")
    assert problems == [f"free disk here is 1.0 GiB in {tmp_path}; a run needs about 2: make room or work elsewhere"]
    (problem,) = examine(replace(GOOD, free_disk=lambda folder: 50 * GIB if folder == tmp_path else GIB))[1]
    assert problem.startswith("free disk for temporary files is 1.0 GiB in ") and "set TMPDIR" in problem
