"""Figures of a training, while it runs, for TensorBoard or MLflow. Trackers only watch: no result depends on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from defectgen.errors import RunError, UsageError

# Figures by name, and the step that they are of.
Log = Callable[[Mapping[str, float], int], None]


def installed_trackers(names: Sequence[str] | None) -> tuple[str, ...]:
    """`names`, each once.

    Raises:
        UsageError: there is no such tracker, or its package is not installed.
    """
    for name in names or ():
        if name not in TRACKERS:
            raise UsageError(f"--tracker: must be of {', '.join(TRACKERS)}, got {name!r}")
        if find_spec(name) is None:
            raise UsageError(f"--tracker: {name} is not installed; run: pip install 'defectgen[{name}]'")
    return tuple(dict.fromkeys(names or ()))


@contextmanager
def tracked(trackers: Sequence[str], folder: Path, name: str, *, warn: Callable[[str], None]) -> Iterator[Log]:
    """What logs to every one of `trackers`; where there is none, nothing.

    A tracker that fails later on (a full disk, a server that is gone) is given up with one warning: hours of training
    are worth more than their curve.

    Args:
        folder: the run's logs/. TensorBoard's events go to `folder`/`name`. MLflow's run is called `name`, and goes to
            `folder`/mlruns, unless the user's MLFLOW_TRACKING_URI says where.

    Raises:
        RunError: a tracker cannot be opened.
    """
    opened: dict[str, _Tracker] = {}

    def given_up(tracker: str, error: Exception) -> None:
        warn(f"{tracker} has failed and gets no more figures ({type(error).__name__}: {error})")

    def log(figures: Mapping[str, float], step: int) -> None:
        for tracker in list(opened):
            try:
                opened[tracker].log(figures, step)
            except Exception as error:  # Whatever a foreign library and its server come up with; so below.
                del opened[tracker]
                given_up(tracker, error)

    succeeded = False
    try:
        for tracker in trackers:
            try:
                opened[tracker] = TRACKERS[tracker](folder, name)
            except Exception as error:
                raise RunError(f"--tracker {tracker}: cannot be opened ({error}); mend it, or do without") from None
        yield log
        succeeded = True
    finally:
        for tracker, one in opened.items():
            try:
                one.close(succeeded)
            except Exception as error:
                given_up(tracker, error)


class _Tracker(Protocol):
    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def close(self, succeeded: bool) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = partial(SummaryWriter, str(folder / name))
        self._writer: SummaryWriter | None = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            # Where a training goes on from an earlier step, or begins again, what was logged from there on is hidden.
            self._writer = self._open(purge_step=step)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, succeeded: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class _MLflow:
    def __init__(self, folder: Path, name: str) -> None:
        # Read when it is imported: it would report its use to its makers.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Standard output is the result's.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow

        self._mlflow = mlflow
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            # The slim package has no database, and without this would refuse to write files.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((folder.absolute() / "mlruns").as_uri())
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "defectgen"))
        mlflow.start_run(run_name=name)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(figures), step=step)

    def close(self, succeeded: bool) -> None:
        self._mlflow.end_run("FINISHED" if succeeded else "FAILED")


TRACKERS: dict[str, Callable[[Path, str], _Tracker]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}
