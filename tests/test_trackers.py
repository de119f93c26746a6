"""Curves read back with the trackers' own readers, and trainings that go on whatever becomes of a tracker."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import defectgen.trackers as trackers
from defectgen.cli import app
from defectgen.errors import RunError, UsageError
from defectgen.progress import silent
from defectgen.run import run_fit
from defectgen.trackers import installed_trackers, tracked

Curves = dict[str, list[tuple[int, float]]]


def events_in(folder: Path) -> Curves:
    """TensorBoard's scalars, as (step, value)."""
    pytest.importorskip("tensorboard", reason="the extra defectgen[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.fixture
def mlflow_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow as it is where nobody has set anything up; what it sets is forgotten afterwards."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    pytest.importorskip("mlflow", reason="the extra defectgen[mlflow] is not installed")


def curves_in(runs: Path) -> dict[str, tuple[str, Curves]]:
    """(status, curves) of each of MLflow's runs by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(runs.absolute().as_uri())
    found = {}
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
        curves = {
            name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        found[run.info.run_name] = (run.info.status, curves)
    return found


def refused(message: str) -> None:
    raise AssertionError(message)


def test_tensorboard_gets_the_loss_of_the_log_and_a_fit_the_same_bytes(
    fitted: Any, toys: Any, tmp_path: Path, short_fitting: None
) -> None:
    pytest.importorskip("tensorboard", reason="the extra defectgen[tensorboard] is not installed")
    facts = run_fit(fitted.recipe, tmp_path / "run", progress=silent, trackers=["tensorboard"])
    curves = events_in(tmp_path / "run/logs/fit")
    checks = {step: (loss, held_out) for step, loss, held_out in facts["log"]["checks"]}
    logged = {step: loss for step, loss in curves["loss"]}
    assert set(checks) == {2, 4} and set(checks) <= set(logged)
    assert [logged[step] for step in checks] == pytest.approx([loss for loss, _ in checks.values()])
    if any(held_out is not None for _, held_out in checks.values()):
        assert dict(curves["held_out_loss"])[4] == pytest.approx(checks[4][1])
    assert all(seconds > 0 for _, seconds in curves["seconds_per_step"])
    made, without = (toys.read_tree(folder / "generator") for folder in (tmp_path / "run", fitted.out))
    assert made.keys() == without.keys()
    assert [name for name in made if made[name] != without[name]] in ([], ["fit.json"])
    plain, alike = json.loads(made["fit.json"]), json.loads(without["fit.json"])
    assert plain["log"].pop("seconds") > 0 and alike["log"].pop("seconds") > 0
    assert plain == alike


def test_mlflow_gets_the_same_in_the_run_folder_alone(
    fitted: Any, tmp_path: Path, short_fitting: None, mlflow_logs: None
) -> None:
    facts = run_fit(fitted.recipe, tmp_path / "run", progress=silent, trackers=["mlflow"])
    ((name, (status, curves)),) = curves_in(tmp_path / "run/logs/mlruns").items()
    assert (name, status) == ("fit", "FINISHED")
    assert curves["loss"][-1] == pytest.approx((4, facts["log"]["checks"][-1][1]))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_training_that_goes_on_hides_what_it_logs_anew(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra defectgen[tensorboard] is not installed")
    for first, value in ((0, 1.0), (2, 5.0)):
        with tracked(["tensorboard"], tmp_path, "fit", warn=refused) as log:
            for step in range(first, first + 3):
                log({"loss": value}, step)
    assert events_in(tmp_path / "fit") == {"loss": [(0, 1.0), (1, 1.0), (2, 5.0), (3, 5.0), (4, 5.0)]}


def test_failed_training_is_a_failed_run(tmp_path: Path, mlflow_logs: None) -> None:
    with pytest.raises(RunError), tracked(["mlflow"], tmp_path, "fit", warn=refused) as log:
        log({"loss": 2.0}, 1)
        raise RunError("the training diverged")
    assert curves_in(tmp_path / "mlruns") == {"fit": ("FAILED", {"loss": [(1, 2.0)]})}


class Short:
    """A tracker whose disk is full after a few figures."""

    def __init__(self, folder: Path, name: str) -> None:
        self.room = 2

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError("No space left on device")

    def close(self, succeeded: bool) -> None:
        raise OSError("cannot be closed")


class Listening:
    steps: tuple[int, ...] = ()

    def __init__(self, folder: Path, name: str) -> None:
        Listening.steps = ()

    def log(self, figures: Mapping[str, float], step: int) -> None:
        Listening.steps += (step,)

    def close(self, succeeded: bool) -> None:
        assert succeeded


def test_tracker_that_fails_is_given_up_with_one_warning_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {"short": Short, "listening": Listening})
    warnings: list[str] = []
    with tracked(["short", "listening"], tmp_path, "fit", warn=warnings.append) as log:
        for step in range(5):
            log({"loss": 1.0}, step)
    assert warnings == ["short has failed and gets no more figures (OSError: No space left on device)"]
    assert Listening.steps == (0, 1, 2, 3, 4)
    with tracked(["short"], tmp_path, "fit", warn=warnings.append) as log:
        log({"loss": 1.0}, 1)
    assert warnings[1:] == ["short has failed and gets no more figures (OSError: cannot be closed)"]


def test_tracker_that_cannot_be_opened_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(folder: Path, name: str) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(trackers, "TRACKERS", {"mlflow": gone})
    message = r"^--tracker mlflow: cannot be opened \(no route to host\); mend it, or do without$"
    with pytest.raises(RunError, match=message), tracked(["mlflow"], tmp_path, "fit", warn=refused):
        raise AssertionError("nothing starts")


def test_without_a_tracker_nothing_is_written(tmp_path: Path) -> None:
    with tracked([], tmp_path, "fit", warn=refused) as log:
        log({"loss": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []


def test_unknown_tracker_is_refused_and_each_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^--tracker: must be of tensorboard, mlflow, got 'wandb'$"):
        installed_trackers(["wandb"])
    monkeypatch.setattr(trackers, "TRACKERS", {"json": Listening, "csv": Listening})
    assert installed_trackers(["json", "csv", "json"]) == ("json", "csv")
    assert installed_trackers(None) == ()


@pytest.mark.parametrize("command", ["fit", "synth", "train-yolo", "bench"])
def test_missing_package_is_one_error_before_anything_starts(
    command: str, toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(toys.recipe().to_yaml())
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    args = [command, str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"), "--tracker", "tensorboard"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert result.stderr == (
        "error: --tracker: tensorboard is not installed; run: pip install 'defectgen[tensorboard]'\n"
    )
