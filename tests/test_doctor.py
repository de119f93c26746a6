from __future__ import annotations

import shutil
import sys
from importlib import metadata

import pytest

from defectgen.doctor import PACKAGES, examine


class Versions:
    """Installed versions, some of them others than they are."""

    def __init__(self, **others: str | None) -> None:
        self.others = {name.replace("_", "-"): version for name, version in others.items()}
        self.real = metadata.version

    def __call__(self, name: str) -> str:
        version = self.others.get(name, self.real(name) if name not in self.others else None)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version


def test_facts_name_versions_device_threads_memory_and_disk() -> None:
    facts, _ = examine()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(PACKAGES) <= facts.keys()
    assert facts["torch"] == metadata.version("torch")
    assert facts["device"] and int(facts["torch threads"]) >= 1 and int(facts["cores"]) >= 1
    assert facts["memory"].endswith(" GiB") and facts["free disk here"].endswith(" GiB")
    assert "AGPL-3.0" in facts["licence"]
    assert all(isinstance(value, str) for value in facts.values())


def test_missing_package_is_a_problem_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", Versions(diffusers=None))
    facts, problems = examine()
    assert facts["diffusers"] == "not installed"
    assert "diffusers is not installed; run: pip install --upgrade defectgen" in problems


def test_missing_headless_opencv_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", Versions(opencv_python_headless=None))
    assert not [problem for problem in examine()[1] if "opencv" in problem]


def test_opencv_of_two_versions_in_one_folder_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", Versions(opencv_python="4.10.0", opencv_python_headless="4.12.0"))
    (problem,) = [problem for problem in examine()[1] if "opencv" in problem]
    assert problem == (
        "opencv-python 4.10.0 and opencv-python-headless 4.12.0 write the same files; "
        "run: pip install opencv-python==4.10.0 opencv-python-headless==4.10.0"
    )


def test_torchvision_of_another_build_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (problem,) = [problem for problem in examine()[1] if "torchvision" in problem]
    assert problem.startswith("torch and torchvision do not fit together (")
    assert problem.endswith("run: pip install --force-reinstall torch torchvision")


def test_full_disk_is_a_problem_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    facts, problems = examine()
    assert facts["free disk here"] == "1.0 GiB"
    assert "free disk space is 1.0 GiB; a run needs about 2: make room or work elsewhere" in problems
