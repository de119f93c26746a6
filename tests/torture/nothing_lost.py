"""Stages as they run in a process of their own, to be killed, starved of disk, or started four at a time."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from defectgen.errors import DefectgenError
from defectgen.recipe import Recipe

# Its children have everything imported and nothing computed, so that they start in milliseconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    # With what is imported when it is first needed: diffusers' models take a second, half of a stage's time here.
    [
        "nothing_lost",
        "defectgen.data.demo",
        "defectgen.diffusion.train",
        "defectgen.diffusion.twins",
        "defectgen.yolo.arms",
        "defectgen.export",
        "cv2",
    ]
)

DONE, REFUSED, CRASHED = 0, 7, 1


def silent(*report: Any) -> None:
    """No progress."""


def _tell(out: Path, message: str) -> None:
    # Not by Path.write_text, which may be made to fail.
    with out.with_suffix(".txt").open("w") as file:
        file.write(message)


def run_stage(stage: str, recipe: Recipe, out: Path, spoil: Callable[[], None] | None = None) -> None:
    """The body of a child: exit code DONE, REFUSED with the message in `out`.txt, or CRASHED with a traceback there."""
    import traceback

    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    import defectgen.dataset.screen
    import defectgen.run as running
    import defectgen.studio

    # As in the tests' own process: seconds instead of half a minute.
    defectgen.dataset.screen.TRAINING_STEPS = 4
    defectgen.studio.NUM_CLEAN_CROPS = 60

    def in_this_process(job: Any, indexes: list[int], workers: int) -> Iterator[Any]:
        return (job.make(index) for index in indexes)

    running._in_workers = in_this_process
    try:
        if spoil is not None:
            spoil()
        if stage == "fit":
            running.run_fit(recipe, out, progress=silent)
        elif stage == "synth":
            running.run_synth(recipe, out, workers=1, progress=silent)
        elif stage == "review":
            running.run_synth(recipe, out, workers=1, progress=silent, reviews=[out / "review.json"])
        else:
            from defectgen.export import export

            export(running.read_sources(recipe, out), out / "exported", "coco", progress=silent, overwrite=True)
    except (DefectgenError, OSError) as error:
        # What the command line makes one message of.
        _tell(out, str(error))
        raise SystemExit(REFUSED) from None
    except BaseException:
        _tell(out, traceback.format_exc())
        raise SystemExit(CRASHED) from None


def start(stage: str, recipe: Recipe, out: Path, spoil: Callable[[], None] | None = None) -> BaseProcess:
    process = context.Process(target=run_stage, args=(stage, recipe, out, spoil))
    process.start()
    return process


def finish(stage: str, recipe: Recipe, out: Path) -> float:
    """Runs it to its end; seconds.

    Raises:
        AssertionError: it did not end well.
    """
    began = time.monotonic()
    process = start(stage, recipe, out)
    process.join()
    message = out.with_suffix(".txt")
    assert process.exitcode == DONE, message.read_text() if message.exists() else process.exitcode
    return time.monotonic() - began


class Killer:
    """Kills a stage at shares of its time.

    Attributes:
        seconds: that it takes: as timed, and less where the machine was busy then and the stage ended before its share.
        killed: how often it was still at work.
    """

    def __init__(self, stage: str, recipe: Recipe, seconds: float) -> None:
        self.stage, self.recipe, self.seconds, self.killed = stage, recipe, seconds, 0

    def kill(self, out: Path, share: float, *, goes_on: bool) -> None:
        """`goes_on`: after it was killed before, so that it tells nothing of how long the whole takes."""
        began = time.monotonic()
        process = start(self.stage, self.recipe, out)
        process.join(share * self.seconds)
        took = time.monotonic() - began
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            self.killed += 1
        elif not goes_on:
            self.seconds = took


class FailingWrites:
    """From the `first` write or move on, every `every`th fails as a dying disk does."""

    def __init__(self, first: int, every: int) -> None:
        self.first, self.every = first, every

    def __call__(self) -> None:
        count = 0

        def strike(path: Any) -> None:
            nonlocal count
            count += 1
            if count >= self.first and (count - self.first) % self.every == 0:
                raise OSError(errno.EIO, "Input/output error", str(path))

        def failing(plain: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *arguments: Any, **options: Any) -> Any:
                strike(path)
                return plain(path, *arguments, **options)

            return call

        for owner, names in ((Path, ("write_bytes", "write_text", "replace", "rename")), (shutil, ("copyfile",))):
            for name in names:
                setattr(owner, name, failing(getattr(owner, name)))


class KilledBeforeMove:
    """Killed when what a file is to hold is written beside it, and not yet moved in place for the `move`th time."""

    def __init__(self, move: int) -> None:
        self.move = move

    def __call__(self) -> None:
        count, plain = 0, Path.replace

        def replace(path: Path, target: Any) -> Path:
            nonlocal count
            count += 1
            if count == self.move:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(path, target)

        Path.replace = replace  # type: ignore[method-assign]


def shares(count: int, seed: int) -> list[float]:
    """When to kill, as shares of a stage's time."""
    return [random.Random(f"{seed} {number}").random() for number in range(count)]
