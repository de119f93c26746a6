from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import defectgen.diffusion.train as training
from defectgen.device import best_device
from defectgen.diffusion.pipelines import DefectPatchPipeline
from defectgen.diffusion.train import FitLog, FitProgress, train_generator
from defectgen.errors import RunError
from defectgen.recipe import Generator

TINY = Generator(window_px=32, channels=[16, 32], fold=4, steps=6, batch=4, check_every=2, learning_rate=3e-3)
Weights = dict[str, torch.Tensor]


class KilledAt:
    """Stands in for a function; the process "is killed" at its nth call."""

    def __init__(self, function: Callable[..., Any], call: int) -> None:
        self.function, self.remaining = function, call

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.remaining -= 1
        if self.remaining == 0:
            raise KeyboardInterrupt
        return self.function(*args, **options)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same bytes are promised on a CPU alone."""
    monkeypatch.setattr(training, "best_device", lambda: torch.device("cpu"))


@pytest.fixture
def train(tmp_path: Path, toys: Any) -> Callable[..., tuple[Weights, FitLog]]:
    def run(
        config: Generator = TINY,
        *,
        state: str = "state.pt",
        defects: Any = None,
        seed: int = 0,
        progress: Callable[[FitProgress], None] = lambda state: None,
        show: Callable[[DefectPatchPipeline, int], None] | None = None,
    ) -> tuple[Weights, FitLog]:
        pipeline, log = train_generator(
            defects if defects is not None else toys.crops(6, num_held_out=2),
            toys.clean(5),
            class_names=("dark", "bright"),
            config=config,
            flip=True,
            quarter_turns=False,
            seed=seed,
            state_path=tmp_path / state,
            progress=progress,
            show=show,
        )
        assert not pipeline.unet.training and pipeline.device == torch.device("cpu")
        return pipeline.unet.state_dict(), log

    return run


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_loss_falls_on_defects_seen_and_held_out(train: Any) -> None:
    learns = {"fold": 2, "channels": [32, 32], "learning_rate": 1e-2, "ema_decay": 0.9}
    config = TINY.model_copy(update={"steps": 60, "check_every": 20} | learns)
    _, log = train(config)
    assert [step for step, _, _ in log.checks] == [20, 40, 60]
    (_, first, first_held_out), *_, (_, last, last_held_out) = log.checks
    assert last < 0.8 * first
    assert last_held_out < 0.9 * first_held_out
    assert log.steps == log.best_step == 60 and not log.stopped_early


def test_same_seed_gives_the_same_weights_and_another_others(train: Any) -> None:
    one, _ = train(state="one.pt")
    same_seed, _ = train(state="two.pt")
    other_seed, _ = train(state="three.pt", seed=1)
    assert same(one, same_seed) and not same(one, other_seed)


def test_weights_do_not_depend_on_the_global_generator(train: Any) -> None:
    torch.manual_seed(1)
    one, _ = train(state="one.pt")
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 - the very thing that must not matter
    other, _ = train(state="other.pt")
    assert same(one, other)


def test_showing_what_it_draws_changes_no_bit_and_shows_the_averaged_weights(train: Any, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"steps": 12, "check_every": 4})
    without, log = train(config, state="without.pt")
    shown: dict[int, tuple[bool, Weights]] = {}
    globals_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002

    def show(pipeline: DefectPatchPipeline, step: int) -> None:
        images = pipeline([0, 1], seeds=[3, 4], num_steps=3).images
        assert images.shape == (2, 32, 32, 3)
        weights = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
        shown[step] = pipeline.unet.training, weights

    with_sheets, log_with = train(config, state="with.pt", show=show)
    assert same(with_sheets, without)
    states = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("without", "with")]
    assert same(states[0]["unet"], states[1]["unet"]) and log_with.checks == log.checks
    for one, other in zip(states[0]["ema"]["shadow_params"], states[1]["ema"]["shadow_params"], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), globals_before[0])
    assert np.random.get_state()[1].tolist() == globals_before[1]  # type: ignore[index]  # noqa: NPY002
    # A fifth of twelve steps each, rounded up.
    assert list(shown) == [3, 5, 8, 10, 12]
    training_mode, last = shown[12]
    averaged = states[1]["ema"]["shadow_params"]
    assert not training_mode and all(torch.equal(a, b) for a, b in zip(last.values(), averaged, strict=True))
    assert not same(last, states[1]["unet"])


# Steps 2 and 4 are written: a kill at step 1 finds no state, one at step 4 loses step 3, one at step 5 loses none.
@pytest.mark.parametrize("killed_at", [1, 4, 5])
def test_killed_and_continued_training_equals_an_unbroken_one(
    train: Any, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    unbroken, log = train(state="unbroken.pt")
    with monkeypatch.context() as patched:
        # Three calls are for the held-out batches.
        patched.setattr(training, "to_batch", KilledAt(training.to_batch, 3 + killed_at))
        with pytest.raises(KeyboardInterrupt):
            train()
    continued, continued_log = train()
    assert same(continued, unbroken)
    assert [(step, held_out) for step, _, held_out in continued_log.checks] == [
        (step, held_out) for step, _, held_out in log.checks
    ]
    assert (continued_log.steps, continued_log.best_step) == (log.steps, log.best_step)


def test_ended_training_is_not_repeated(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, log = train()
    monkeypatch.setattr(training, "_loss", None)
    again, log_again = train()
    assert same(again, weights) and log_again == log


def test_kill_while_the_state_is_written_leaves_the_one_before(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, _ = train(state="unbroken.pt")
    save = torch.save

    def save_half(state: Any, path: Path) -> None:
        save(state, path)
        if state["log"]["steps"] == 4:
            path.write_bytes(path.read_bytes()[:1000])
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_half)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["log"]["steps"] == 2
    continued, _ = train()
    assert same(continued, unbroken)


@pytest.mark.parametrize("left", [0, 1000])
def test_damaged_state_is_one_clear_error(train: Any, tmp_path: Path, left: int) -> None:
    train()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:left])
    with pytest.raises(RunError, match=r"state\.pt: the checkpoint is damaged \(.+\); delete it, and the training"):
        train()


def test_training_stops_where_the_held_out_loss_falls_no_more(train: Any) -> None:
    # Weights that do not move cannot improve.
    config = TINY.model_copy(update={"steps": 1000, "learning_rate": 1e-30, "patience": 3})
    reports: list[FitProgress] = []
    _, log = train(config, progress=reports.append)
    assert log.stopped_early and log.best_step == 2
    # 2 steps to the best check, then 3 checks of 2 steps without a better one.
    assert log.steps == 8 and len(log.checks) == 4
    assert reports[-1].step == 8 and reports[-1].num_steps == 1000


def test_weights_are_those_of_the_best_check_not_the_last(train: Any, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"steps": 40, "learning_rate": 0.05, "patience": 2, "ema_decay": 0})
    weights, log = train(config)
    held_out = {step: loss for step, _, loss in log.checks}
    assert log.best_step == min(held_out, key=held_out.__getitem__) < log.steps
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert same(weights, state["best"]) and not same(weights, state["unet"])


def test_held_out_defects_do_not_train(train: Any, toys: Any) -> None:
    config = TINY.model_copy(update={"check_every": 6})
    crops = toys.crops(6, num_held_out=2)
    others = [replace(crop, image=255 - crop.image) if crop.is_held_out else crop for crop in crops]
    assert sum(crop.is_held_out for crop in crops) == 4
    one, log = train(config, state="one.pt", defects=crops)
    other, other_log = train(config, state="other.pt", defects=others)
    assert same(one, other)
    assert log.checks[0][1] == other_log.checks[0][1] and log.checks[0][2] != other_log.checks[0][2]


def test_without_held_out_defects_the_last_weights_are_taken(train: Any, toys: Any) -> None:
    reports: list[FitProgress] = []
    _, log = train(defects=toys.crops(3), progress=reports.append)
    assert [held_out for *_, held_out in log.checks] == [None] * 3
    assert log.best_step == log.steps == 6
    assert reports[-1].held_out_loss is None and reports[-1].seconds_per_step > 0


def test_checkpoint_that_does_not_fit_on_the_disk_is_one_clear_error(train: Any, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of files as POSIX does")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(RunError, match=r"state\.pt: the checkpoint cannot be written \(.*\); free some space"):
            train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_diverged_training_names_the_rate_to_lower(train: Any, toys: Any) -> None:
    config = TINY.model_copy(update={"steps": 300, "learning_rate": 1e30})
    with pytest.raises(
        RunError, match=r"generator\.learning_rate: the loss is (nan|inf) at step \d+, got 1e\+30; lower it"
    ):
        train(config, defects=toys.crops(3))


def test_best_device_computes() -> None:
    assert math.isclose(torch.ones(2, device=best_device()).sum().item(), 2)
