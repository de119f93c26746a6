"""Training of the generator: flow matching on defect windows and clean windows, stopped before it memorises."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from defectgen.augment import WindowSampler
from defectgen.crops import Crop
from defectgen.device import autocast, best_device
from defectgen.diffusion.batches import Batch, to_batch
from defectgen.diffusion.pipelines import DefectInpaintPipeline, DefectPatchPipeline
from defectgen.diffusion.unet import build_unet, context_of, no_class, predict_clean
from defectgen.errors import RunError
from defectgen.recipe import Generator
from defectgen.seeds import numpy_rng, torch_rng

OUTSIDE_WEIGHT = 0.25
MASK_WEIGHT = 0.5
SIGMA_CENTRE, SIGMA_SPREAD = 0.6, 1.6
# Sampling spends more of its steps on high noise (Esser et al. 2024, Eq. 23).
SAMPLING_SHIFT = 3.0
LOSS_SMALLEST_SIGMA = 0.15
# So often, in even steps, a training shows what it draws.
NUM_SAMPLES = 5


@dataclass
class FitLog:
    """How the training went; `checks` holds (step, loss since the last check, held-out loss or None)."""

    steps: int = 0
    stopped_early: bool = False
    best_step: int = 0
    checks: list[tuple[int, float, float | None]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class FitProgress:
    step: int
    num_steps: int
    loss: float
    held_out_loss: float | None
    seconds_per_step: float


def train_generator(
    defects: Sequence[Crop],
    clean: Sequence[Crop],
    *,
    class_names: Sequence[str],
    config: Generator,
    flip: bool,
    quarter_turns: bool,
    seed: int,
    state_path: Path,
    progress: Callable[[FitProgress], None],
    show: Callable[[DefectPatchPipeline, int], None] | None = None,
) -> tuple[DefectInpaintPipeline, FitLog]:
    """The trained generator as a pipeline on the CPU, and its log.

    Training continues from `state_path` where that exists, and is written there at every check. Batches and noise
    depend on (seed, step) alone, so a continued training equals an unbroken one. `show` gets the averaged weights and
    the step, NUM_SAMPLES times; what it draws from seeds of its own changes nothing.

    Raises:
        RunError: the training diverged.
    """
    device = best_device()
    num_classes = len(class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_rng(seed, "weights").initial_seed())
        unet = build_unet(num_classes, window_px=config.window_px, channels=config.channels, fold=config.fold)
    unet = unet.to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=1e-2, betas=(0.9, 0.99))
    ema = EMAModel(unet.parameters(), decay=config.ema_decay)
    trained_on = [crop for crop in defects if not crop.is_held_out]
    sampler = WindowSampler(
        trained_on,
        clean,
        num_classes=num_classes,
        window_px=config.window_px,
        clean_share=config.clean_share,
        flip=flip,
        quarter_turns=quarter_turns,
        seed=seed,
    )
    held_out = _held_out_batches(defects, config=config, num_classes=num_classes, seed=seed)
    log = FitLog()
    best: dict[str, torch.Tensor] | None = None
    best_loss = math.inf
    if state_path.exists():
        try:
            state = torch.load(state_path, map_location=device, weights_only=True)
            unet.load_state_dict(state["unet"])
            optimizer.load_state_dict(state["optimizer"])
            ema.load_state_dict(state["ema"])
            best, best_loss = state["best"], state["best_loss"]
            log = FitLog(**{**state["log"], "checks": [tuple(check) for check in state["log"]["checks"]]})
        except (EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RunError(
                f"{state_path}: the checkpoint is damaged ({reason}); delete it, and the training starts anew"
            ) from None
    unet.train()
    losses: list[float] = []
    last_report = started = time.monotonic()
    while log.steps < config.steps and not log.stopped_early:
        step = log.steps
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config.steps)
        batch = to_batch(
            sampler.draw(step, config.batch),
            numpy_rng(seed, "dropout", step),
            no_class=no_class(num_classes),
            class_dropout=config.class_dropout,
            context_dropout=config.context_dropout,
        )
        loss = _loss(unet, batch, torch_rng(seed, "noise", step), config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.step(unet.parameters())
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RunError(
                f"generator.learning_rate: the loss is {losses[-1]} at step {step + 1}, got {config.learning_rate}; "
                "lower it"
            )
        log.steps += 1
        # Before the check, at which the state is written: what a kill loses is shown again.
        if show is not None and log.steps * NUM_SAMPLES // config.steps > (log.steps - 1) * NUM_SAMPLES // config.steps:
            with _average_in_place(unet, ema):
                unet.eval()
                scheduler = FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT)
                show(DefectPatchPipeline(unet, scheduler, class_names, config.window_px), log.steps)
        checked = log.steps % config.check_every == 0 or log.steps == config.steps
        if checked:
            held_out_loss = _held_out_loss(unet, ema, held_out, config=config, seed=seed)
            log.checks.append((log.steps, sum(losses) / len(losses), held_out_loss))
            losses = []
            if held_out_loss is None or held_out_loss < best_loss:
                best_loss = best_loss if held_out_loss is None else held_out_loss
                log.best_step = log.steps
                best = _averaged(unet, ema)
            elif log.steps - log.best_step >= config.patience * config.check_every:
                log.stopped_early = True
            log.seconds += time.monotonic() - started
            started = time.monotonic()
            _save_state(state_path, unet=unet, optimizer=optimizer, ema=ema, best=best, best_loss=best_loss, log=log)
        if checked or time.monotonic() - last_report > 0.5:
            last_report = time.monotonic()
            recent = log.checks[-1] if log.checks else (0, math.nan, None)
            current = sum(losses) / len(losses) if losses else recent[1]
            rate = (log.seconds + last_report - started) / max(log.steps, 1)
            progress(FitProgress(log.steps, config.steps, current, recent[2], rate))
    assert best is not None
    unet.load_state_dict(best)
    unet = unet.to("cpu").eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT)
    return DefectInpaintPipeline(unet, scheduler, class_names, config.window_px), log


def _rate(step: int, num_steps: int, warmup: int = 50) -> float:
    """Linear warm-up, then a cosine from 1 to 0.1."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(num_steps - warmup, 1)))


def _loss(unet: UNet2DModel, batch: Batch, rng: torch.Generator, config: Generator) -> torch.Tensor:
    """Weighted squared error of the velocity; sigma is logit-normal (Esser et al. 2024, Eq. 19).

    A fifth of it lies above 0.85, where a defect gets its layout (in a window of mostly flat product, layout is seen
    through the noise that far), and a quarter below 0.35, where it gets its texture. Both were found wanting before:
    unshifted, one window in 25 was above 0.85, and 1,600 steps drew clouds; centred on 0.75, one in nine was below
    0.35, and pits had no ragged inside.
    """
    device = unet.device
    # See `seeds.torch_rng`: in float32 they would differ from CPU to CPU.
    noise = torch.randn(batch.x_0.shape, generator=rng, dtype=torch.float64).float()
    spread = SIGMA_SPREAD * torch.randn(len(batch.x_0), generator=rng, dtype=torch.float64)
    sigma_B = torch.sigmoid(math.log(SIGMA_CENTRE / (1 - SIGMA_CENTRE)) + spread).float()
    x_0, region = batch.x_0.to(device), batch.region.to(device)
    noise, sigma_B = noise.to(device), sigma_B.to(device)
    has_context = batch.has_context.to(device)[:, None, None, None]
    shown = torch.where(has_context, region, torch.ones_like(region))
    sigma = sigma_B[:, None, None, None]
    x_t = (1 - sigma) * x_0 + sigma * noise
    with autocast(device):
        predicted = predict_clean(unet, x_t, context_of(x_0[:, :3], shown), sigma_B, batch.class_id.to(device))
    # The error of the velocity: that of x_0 over sigma.
    error = ((predicted - x_0) / sigma.clamp_min(LOSS_SMALLEST_SIGMA)) ** 2
    weight = torch.where(region > 0, config.inside_weight, torch.where(has_context, OUTSIDE_WEIGHT, 1.0))
    channels = torch.tensor([1, 1, 1, MASK_WEIGHT], device=device)[:, None, None]
    weight = weight * channels
    return (error * weight).sum() / weight.expand_as(error).sum()


def _held_out_batches(
    defects: Sequence[Crop], *, config: Generator, num_classes: int, seed: int, num_batches: int = 3
) -> list[Batch]:
    """Fixed windows of defects kept out of training, without dropout; empty where none was kept out."""
    kept_out = [crop for crop in defects if crop.is_held_out]
    if not kept_out:
        return []
    sampler = WindowSampler(
        kept_out,
        [],
        num_classes=num_classes,
        window_px=config.window_px,
        clean_share=0,
        flip=False,
        quarter_turns=False,
        seed=seed,
    )
    rng = numpy_rng(seed, "nothing dropped")
    return [
        to_batch(
            sampler.draw(f"held out {index}", 32),
            rng,
            no_class=no_class(num_classes),
            class_dropout=0,
            context_dropout=0,
        )
        for index in range(num_batches)
    ]


def _held_out_loss(
    unet: UNet2DModel, ema: EMAModel, batches: Sequence[Batch], *, config: Generator, seed: int
) -> float | None:
    """Loss of the averaged weights inside the region, on the same windows, noise and sigma every time."""
    if not batches:
        return None
    inside = config.model_copy(update={"inside_weight": 100.0})
    with _average_in_place(unet, ema), torch.inference_mode():
        total = sum(
            _loss(unet, batch, torch_rng(seed, "held-out noise", index), inside).item()
            for index, batch in enumerate(batches)
        )
    return total / len(batches)


def _averaged(unet: UNet2DModel, ema: EMAModel) -> dict[str, torch.Tensor]:
    with _average_in_place(unet, ema):
        return {name: value.detach().cpu().clone() for name, value in unet.state_dict().items()}


@contextmanager
def _average_in_place(unet: UNet2DModel, ema: EMAModel) -> Iterator[None]:
    """Within, `unet` has the averaged weights; after it, its own again, and its mode."""
    training = unet.training
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    try:
        yield
    finally:
        ema.restore(unet.parameters())
        unet.train(training)


def _save_state(path: Path, *, unet: UNet2DModel, optimizer: Any, ema: EMAModel, log: FitLog, **rest: Any) -> None:
    state = {
        "unet": unet.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict(),
        "log": asdict(log),
        **rest,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    try:
        torch.save(state, beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError where the disk is full.
        beside.unlink(missing_ok=True)
        raise RunError(
            f"{path}: the checkpoint cannot be written ({error}); free some space and run the same command to continue"
        ) from None
