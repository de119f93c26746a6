"""Is the defect there, and of the class it is labelled with? A small classifier of windows, cross-fitted.

The generator may copy a real crop. A classifier trained on that crop would wave the copy through, so each composite is
judged by the member that has not seen the real defect the composite's placement follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from defectgen.augment import WindowSampler
from defectgen.crops import Crop, centre, region_of
from defectgen.device import best_device
from defectgen.seeds import derive_seed

NUM_FOLDS = 3
INPUT_PX = 64
TRAINING_STEPS = 200
BATCH = 32
# No class is asked for more than this quantile of its real crops reaches; what follows one of those below it, for no
# more than this share of `screen.min_probability`: else one real defect in six would hardly ever be followed.
REAL_QUANTILE, UNKNOWN_SHARE = 0.2, 0.5


def _network(num_classes: int) -> nn.Sequential:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]

    return nn.Sequential(
        *block(4, 32),
        *block(32, 64),
        *block(64, 96),
        nn.Conv2d(96, 128, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(4 * 128, num_classes + 1),
    )


def _inputs(images: np.ndarray, regions: np.ndarray) -> torch.Tensor:
    """float32 (B, 4, INPUT_PX, INPUT_PX) from uint8 (B, H, W, 3) and bool (B, H, W)."""
    image = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    inputs = torch.cat([image, torch.from_numpy(regions)[:, None].float()], dim=1)
    return functional.interpolate(inputs, size=(INPUT_PX, INPUT_PX), mode="bilinear", antialias=True)


def _folds(crops: Sequence[Crop]) -> list[int]:
    """The fold of each real defect, evenly within each class: so no member is without a whole class, but where that
    has a single defect. A class's shots of one part are in one fold, where none then has more than half of the class:
    else the member without them would learn the class from too few.
    """
    folds = [0] * len(crops)
    for class_id in {crop.class_id for crop in crops}:
        parts: dict[str, list[int]] = {}
        for number, crop in enumerate(crops):
            if crop.class_id == class_id:
                parts.setdefault(crop.group, []).append(number)
        dealt = _dealt(list(parts.values()))
        numbers = [number for of_fold in dealt for number in of_fold]
        if len(parts) < NUM_FOLDS or 2 * max(map(len, dealt)) > len(numbers):
            dealt = _dealt([[number] for number in sorted(numbers)])
        for fold, of_fold in enumerate(dealt):
            for number in of_fold:
                folds[number] = fold
    return folds


def _dealt(parts: list[list[int]]) -> list[list[int]]:
    """The parts' defects in NUM_FOLDS folds, large parts first, each to the smallest fold."""
    dealt: list[list[int]] = [[] for _ in range(NUM_FOLDS)]
    for of_part in sorted(parts, key=len, reverse=True):
        min(dealt, key=len).extend(of_part)
    return dealt


@dataclass
class Screen:
    """The classifier's members and what they ask for.

    Attributes:
        members: member i was trained without the real defects of fold i.
        folds: of each real defect, in the order of the crops.
        real_probabilities: of its class, for each real defect, from the member that has not seen it.
        real_quantiles: per class, the REAL_QUANTILE of these.
        real_accuracy: share of real defects whose class that member finds.
    """

    members: list[nn.Sequential]
    folds: list[int]
    real_probabilities: list[float]
    real_quantiles: list[float]
    real_accuracy: float

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray, region: np.ndarray, *, model: int) -> np.ndarray:
        """float32 (num_classes + 1,): classes, then clean, for one window uint8 (H, W, 3) and region bool (H, W).

        Of the member that has not seen real defect number `model`.
        """
        logits = self.members[self.folds[model]](_inputs(image[None], region[None]))
        return functional.softmax(logits, dim=1)[0].numpy()

    @torch.inference_mode()
    def features(self, images: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """float32 (N, 512): what the first member sees in windows uint8 (N, H, W, 3) with regions bool (N, H, W)."""
        body = self.members[0][:-2]  # All but dropout and the last layer.
        parts = [body(_inputs(images[i : i + BATCH], regions[i : i + BATCH])) for i in range(0, len(images), BATCH)]
        return torch.cat(parts).numpy()

    def clean_probability(self, image: np.ndarray, region: np.ndarray, model: int) -> float:
        return float(self.probabilities(image, region, model=model)[-1])

    def threshold(self, class_id: int, min_probability: float, *, model: int) -> float:
        """Probability below which a composite that follows real defect number `model` is refused."""
        asked = min(min_probability, self.real_quantiles[class_id])
        known = self.real_probabilities[model] >= asked
        return asked if known else min(asked, UNKNOWN_SHARE * min_probability)

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the weights to `folder`; returns what else `load` needs, as JSON."""
        weights = {
            f"{fold}.{name}": value.contiguous()
            for fold, member in enumerate(self.members)
            for name, value in member.state_dict().items()
        }
        save_file(weights, folder / "screen.safetensors")
        names = ("real_accuracy", "real_quantiles", "real_probabilities", "folds")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any], *, num_classes: int) -> Screen:
        weights = load_file(folder / "screen.safetensors")
        members = []
        for fold in range(NUM_FOLDS):
            member = _network(num_classes)
            prefix = f"{fold}."
            member.load_state_dict(
                {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            )
            members.append(member.eval())
        reached = (facts["real_probabilities"], facts["real_quantiles"], facts["real_accuracy"])
        return cls(members, facts["folds"], *reached)


def train_screen(
    defects: Sequence[Crop],
    clean: Sequence[Crop],
    *,
    num_classes: int,
    window_px: int,
    flip: bool,
    quarter_turns: bool,
    seed: int,
    progress: Callable[[int, int], None],
) -> Screen:
    """The classifier, trained on real defect and clean windows. `progress(done, total)` counts steps."""
    device = best_device()
    members = []
    folds = _folds(defects)
    for fold in range(NUM_FOLDS):
        seen = [crop for crop, of_crop in zip(defects, folds, strict=True) if of_crop != fold]
        seen_classes = {crop.class_id for crop in seen}
        # A class with a single defect has no fold without it: judged by a member that knows it, or not at all.
        seen += [crop for crop in defects if crop.class_id not in seen_classes]
        sampler = WindowSampler(
            seen,
            clean,
            num_classes=num_classes,
            window_px=window_px,
            clean_share=1 / (num_classes + 1) if num_classes > 2 else 0.4,
            flip=flip,
            quarter_turns=quarter_turns,
            seed=derive_seed(seed, "screen", fold),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "screen weights", fold))
            member = _network(num_classes).to(device)
            optimizer = torch.optim.AdamW(member.parameters(), lr=2e-3, weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=TRAINING_STEPS)
            member.train()
            for step in range(TRAINING_STEPS):
                windows = sampler.draw(step, BATCH)
                inputs = _inputs(windows.images, windows.regions).to(device)
                logits = member(inputs)
                loss = functional.cross_entropy(
                    logits, torch.from_numpy(windows.class_ids).to(device), label_smoothing=0.05
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                progress(fold * TRAINING_STEPS + step + 1, NUM_FOLDS * TRAINING_STEPS)
        members.append(member.cpu().eval())
    screen = Screen(members, folds, [], [0.0] * num_classes, 0.0)
    found: list[list[float]] = [[] for _ in range(num_classes)]
    correct = []
    for index, crop in enumerate(defects):
        assert crop.class_id is not None
        region = region_of(centre(crop.mask, window_px), outlined=crop.outlined)
        probabilities = screen.probabilities(centre(crop.image, window_px), region, model=index)
        screen.real_probabilities.append(float(probabilities[crop.class_id]))
        found[crop.class_id].append(screen.real_probabilities[-1])
        correct.append(int(probabilities.argmax()) == crop.class_id)
    screen.real_quantiles = [float(np.quantile(values, REAL_QUANTILE)) if values else 0.0 for values in found]
    screen.real_accuracy = float(np.mean(correct))
    return screen
