"""Whether the synthetic data helps, by how much and with what certainty, from trainings over several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

OWN_ARM = "real+defectgen"
# What more real data would give: no rival, since a user who had it would need no synthetic data.
CEILING = "full-real"
FEWEST_SEEDS = 2
CONFIDENCE = 0.95

Finding = Literal["helps", "no difference shown", "hurts"]


@dataclass(frozen=True)
class Verdict:
    """Of `real+defectgen` against the best other arm; differences in percentage points of mAP50-95.

    Attributes:
        low, high: the 95 % interval of the mean paired difference (Student's t over the seeds).
    """

    finding: Finding
    against: str
    difference: float
    low: float
    high: float
    num_seeds: int

    def sentence(self, num_test_images: int, over: str = "trainings on the same real images") -> str:
        """One sentence to forward; `over`: what the seeds differ in."""
        what = {
            "helps": "Adding the synthetic images helps",
            "no difference shown": "No difference is shown by adding the synthetic images",
            "hurts": "Adding the synthetic images hurts",
        }[self.finding]
        return (
            f"{what}: on {num_test_images} real held-out images mAP50-95 changes by {self.difference:+.1f} points "
            f"against {self.against} (95 % interval {self.low:+.1f} to {self.high:+.1f}, over {self.num_seeds} {over})."
        )


def judge(scores: dict[str, dict[int, float]]) -> Verdict | None:
    """The verdict from mAP50-95 (0 to 1) per arm and seed; None where OWN_ARM, a rival or a second seed is missing.

    Differences are paired by seed. The rival is the arm with the highest mean: what a user would train on otherwise.
    The interval covers what the seeds differ in: where all train on the same real images, not the draw of these.
    """
    own = scores.get(OWN_ARM, {})
    rivals = {
        name: {seed: value for seed, value in arm.items() if seed in own}
        for name, arm in scores.items()
        if name not in (OWN_ARM, CEILING)
    }
    rivals = {name: arm for name, arm in rivals.items() if len(arm) >= FEWEST_SEEDS}
    if not rivals:
        return None
    against = max(rivals, key=lambda name: float(np.mean(list(rivals[name].values()))))
    differences = [100 * (own[seed] - value) for seed, value in sorted(rivals[against].items())]
    mean, low, high = paired_interval(differences)
    finding: Finding = "helps" if low > 0 else "hurts" if high < 0 else "no difference shown"
    return Verdict(finding, against, mean, low, high, len(differences))


def paired_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean, and the lower and upper end of its confidence interval (Student 1908), of at least two differences."""
    count = len(differences)
    mean = float(np.mean(differences))
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half
