"""A tiny recipe of the demo product, its sources, a generator fitted on them, and toy crops. Each is made once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import defectgen.dataset.screen
import defectgen.studio
from defectgen.crops import Crop, crop_side
from defectgen.data.load import load_sources
from defectgen.recipe import Recipe
from defectgen.records import Sources
from defectgen.windows import Window

WINDOW_PX = 32
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"demo": {"defects_per_class": 3, "clean_parts": 6, "test_parts": 4, "size_px": 128}},
    "generator": {
        "window_px": WINDOW_PX,
        "channels": [16, 32],
        "fold": 4,
        "steps": 4,
        "batch": 4,
        "check_every": 2,
    },
    # What an untrained generator draws is cut off by its region; a pasted patch is accepted.
    "inpaint": {"num_steps": 2, "backend": "paste"},
    "labels": {"min_area_fraction": 0},
    "screen": {"classifier": False, "min_contrast": 0},
    "synth": {"num_images": 4},
    "train_yolo": {"imgsz": 64, "iterations": 4, "batch": 4},
}


def pytest_configure(config: pytest.Config) -> None:
    """Of processes beside each other (`-n 2`) each takes one thread, and so do those that it starts."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        cv2.setNumThreads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first, or one of two processes (`-n 2`) ends long after the other."""
    slow = {item.path for item in items if {"torture", "long"} & {mark.name for mark in item.iter_markers()}}
    items.sort(key=lambda item: item.path not in slow)


def tiny_recipe(**sections: Any) -> Recipe:
    """The tiny recipe; fields of sections are merged over its own."""
    merged = {
        name: TINY.get(name, {}) | value if isinstance(value, dict) else value for name, value in sections.items()
    }
    return Recipe.model_validate(TINY | merged)


def toy_crops(per_class: int, *, num_classes: int = 2, num_held_out: int = 0, seed: int = 0) -> list[Crop]:
    """Grey windows with a block in the middle, the darker the lower its class; of each class the last held out."""
    rng = np.random.default_rng(seed)
    side = crop_side(WINDOW_PX)
    crops = []
    for number in range(per_class * num_classes):
        class_id, rank = number % num_classes, number // num_classes
        image = rng.integers(110, 130, (side, side, 3)).astype(np.uint8)
        mask = np.zeros((side, side), np.uint8)
        block = (slice(side // 2 - 5, side // 2 + 5),) * 2
        image[block] = 20 + 215 * class_id // max(num_classes - 1, 1)
        mask[block] = 255
        crops.append(
            Crop(
                image,
                mask,
                class_id,
                source=f"{number}.png",
                annotation=0,
                window=Window(0, 0, WINDOW_PX),
                xyxy=(11, 11, 21, 21),
                is_held_out=rank >= per_class - num_held_out,
            )
        )
    return crops


def toy_clean(count: int, *, seed: int = 1) -> list[Crop]:
    rng = np.random.default_rng(seed)
    side = crop_side(WINDOW_PX)
    window = Window(0, 0, WINDOW_PX)
    return [
        Crop(
            rng.integers(110, 130, (side, side, 3)).astype(np.uint8),
            np.zeros((side, side), np.uint8),
            None,
            f"clean{number}.png",
            -1,
            window,
            window.xyxy,
        )
        for number in range(count)
    ]


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shorten_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds instead of half a minute; what the class check is worth is tested in test_screen.py."""
    monkeypatch.setattr(defectgen.dataset.screen, "TRAINING_STEPS", 4)
    monkeypatch.setattr(defectgen.studio, "NUM_CLEAN_CROPS", 60)


class Later:
    """A call that is made when its result is asked for."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def result(self) -> Any:
        return self.function(*self.args)


class InThisProcess:
    """An executor of one worker without a process: the same functions, started in an eighth of the time."""

    def __init__(self, workers: int, *, mp_context: Any, initializer: Any, initargs: tuple[Any, ...]) -> None:
        initializer(*initargs)

    def submit(self, function: Any, *args: Any) -> Later:
        return Later(function, *args)

    def shutdown(self, *, cancel_futures: bool) -> None:
        assert cancel_futures


@dataclass(frozen=True)
class Toys:
    """The makers above, for tests, which cannot import a conftest."""

    recipe: Callable[..., Recipe] = tiny_recipe
    crops: Callable[..., list[Crop]] = toy_crops
    clean: Callable[..., list[Crop]] = toy_clean
    read_tree: Callable[[Path], dict[str, bytes]] = read_tree


@dataclass(frozen=True)
class Fitted:
    """A run folder in which `fit` has ended: not to be written to, copy it."""

    recipe: Recipe
    out: Path
    sources: Sources


@pytest.fixture(scope="session")
def toys() -> Toys:
    return Toys()


@pytest.fixture
def short_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_fitting(monkeypatch)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are made in the tests' own process."""
    import torch

    import defectgen.run as running

    monkeypatch.setattr(running, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(running, "as_completed", list)
    monkeypatch.setattr(running, "_worker_job", None)
    # A worker ignores Ctrl-C and takes one thread; the tests' own process does not.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


@pytest.fixture(scope="session")
def demo_sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return load_sources(tiny_recipe(), tmp_path_factory.mktemp("sources") / "demo")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitted]:
    from defectgen.run import read_sources, run_fit

    out = tmp_path_factory.mktemp("fitted") / "run"
    recipe = tiny_recipe()
    with pytest.MonkeyPatch.context() as monkeypatch:
        shorten_fitting(monkeypatch)
        run_fit(recipe, out, progress=lambda *_: None)
    before = read_tree(out)
    yield Fitted(recipe, out, read_sources(recipe, out))
    assert read_tree(out) == before, "a test wrote into the shared run folder"
