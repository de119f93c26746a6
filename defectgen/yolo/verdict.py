"""Whether the synthetic data helps, by how much and with what certainty, from trainings over several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy import stats

from defectgen.recipe import Arm

OWN_ARM = "real+defectgen"
REAL_ARM, COPIES_ARM = "real", "real+copy-paste"
# What more real data would give: no rival, since a user who had it would need no synthetic data.
CEILING = "full-real"
FEWEST_SEEDS = 2
# Of so few test groups (parts, boards, positions), or fewer, a verdict names them: no interval covers other ones.
FEW_GROUPS = 5
CONFIDENCE = 0.95

Finding = Literal["helps", "no difference shown", "hurts"]


@dataclass(frozen=True)
class Difference:
    """`real+defectgen` minus an arm, in percentage points, paired by seed.

    Attributes:
        low, high: the interval of the mean at that `confidence` (Student's t over the seeds).
    """

    against: str
    mean: float
    low: float
    high: float
    num_seeds: int
    confidence: float = CONFIDENCE

    @property
    def has_spread(self) -> bool:
        """Whether there is any, or more than two seeds: in two, accuracies on a few crops often differ by the same (of
        equally good detectors in one of 20 trials with 10 to 20 crops), and an interval of no width tells nothing.
        """
        return self.num_seeds > FEWEST_SEEDS or self.high - self.low > 1e-9

    def phrase(self, more: str = "") -> str:
        if self.mean and not self.has_spread:
            return f"{self.mean:+.1f} points against {self.against} (the same in both seeds, so without interval{more})"
        interval = f"{100 * self.confidence:.3g} % interval {self.low:+.1f} to {self.high:+.1f}"
        return f"{self.mean:+.1f} points against {self.against} ({interval}{more})"


@dataclass(frozen=True)
class Verdict:
    """Of `real+defectgen` against all other arms.

    Attributes:
        finding: `helps` where the interval against every rival lies above 0; `hurts` where one of them, at a confidence
            corrected for their number (Bonferroni), lies below.
        decided_by: the difference that decides: the smallest, or the one that keeps from `helps`.
        over_real: the difference over `real`, where that arm was compared and is not the one that decides.
        left_out: arms with fewer than two seeds in common.
        untried: arms without any seed, that may do as well.
        alone: whether the arms have no real defects beside the others (`train_yolo.real_share: 0`).
    """

    finding: Finding
    decided_by: Difference
    over_real: Difference | None
    left_out: tuple[str, ...]
    untried: tuple[str, ...] = ()
    figure: str = "mAP50-95"
    alone: bool = False

    @property
    def over_rival_alone(self) -> str | None:
        """The arm that decides, where the finding says nothing of the gain over the real images."""
        rival = self.decided_by.against
        no_real = self.finding == "helps" and self.over_real is None
        return rival if rival != REAL_ARM and (no_real or self.finding == "hurts") else None

    def sentence(
        self,
        num_test_images: int,
        over: str = "trainings on the same real images",
        *,
        num_test_groups: int | None = None,
    ) -> str:
        """One sentence to forward; `over`: what the seeds differ in. Of few test groups it gives the number."""
        rival = self.decided_by.against
        doing = "training on the synthetic images alone" if self.alone else "adding the synthetic images"
        doing_so = doing[0].upper() + doing[1:]
        what = {
            "helps": f"{doing_so} helps",
            "no difference shown": f"No difference is shown by {doing}"
            + ("" if rival == REAL_ARM else f" instead of {rival.removeprefix('real+')} ones"),
            "hurts": f"{doing_so} hurts",
        }[self.finding]
        if self.over_rival_alone is not None:
            than = "better" if self.finding == "helps" else "worse"
            what = f"{doing_so} is {than} than {rival.removeprefix('real+')}"
        decided = self.decided_by.phrase(f", over {self.decided_by.num_seeds} {over}")
        images = f"{num_test_images} real held-out images"
        if num_test_groups is not None and num_test_groups <= FEW_GROUPS:
            images += f", with defects of {num_test_groups} group{'s' if num_test_groups > 1 else ''} alone,"
        line = f"{what}: on {images} {self.figure} changes by {decided}"
        if self.over_real is not None:
            line += f", and by {self.over_real.phrase()}"
        if self.left_out:
            line += f"; not compared for want of seeds: {', '.join(self.left_out)}"
        if self.finding == "helps" and self.untried:
            line += f"; not tried, and may do as well: {', '.join(self.untried)}"
        return line + "."

    def to_json(self, sentence: str) -> dict[str, Any]:
        """For results.json and bench.json, with its sentence."""
        return {
            **asdict(self),
            "left_out": list(self.left_out),
            "untried": list(self.untried),
            "over_rival_alone": self.over_rival_alone,
            "sentence": sentence,
        }


def judge(scores: dict[str, dict[int, float]], figure: str = "mAP50-95", *, alone: bool = False) -> Verdict | None:
    """The verdict from a `figure` (0 to 1) per arm and seed; None where OWN_ARM, a rival or a second seed is missing.

    `helps` asks for every interval to lie above 0, which needs no correction for their number (an intersection-union
    test: Berger, Technometrics 1982). The intervals cover what the seeds differ in: where all train on the same real
    images, not the draw of these. `alone`: see `Verdict`.
    """
    own = scores.get(OWN_ARM, {})
    rivals = {
        name: [100 * (own[seed] - value) for seed, value in sorted(arm.items()) if seed in own]
        for name, arm in scores.items()
        if name not in (OWN_ARM, CEILING)
    }
    left_out = tuple(name for name, values in rivals.items() if len(values) < FEWEST_SEEDS) if own else ()
    rivals = {name: values for name, values in rivals.items() if len(values) >= FEWEST_SEEDS}
    if not rivals:
        return None
    corrected = 1 - (1 - CONFIDENCE) / len(rivals)
    differences = {name: Difference(name, *paired_interval(values), len(values)) for name, values in rivals.items()}
    highest = {name: paired_interval(values, corrected)[2] for name, values in rivals.items()}
    worst = min(highest, key=lambda name: highest[name])
    undecided = [one for one in differences.values() if not (one.low > 0 and one.has_spread)]
    if not undecided:
        finding: Finding = "helps"
        deciding = min(differences.values(), key=lambda one: one.mean)
    elif highest[worst] < 0 and differences[worst].has_spread:
        finding, deciding = "hurts", differences[worst]
    else:
        finding = "no difference shown"
        deciding = min(undecided, key=lambda one: one.mean)
        if deciding.high < 0:
            # Below 0 by itself, not at the confidence that so many rivals ask for: that interval explains the finding.
            name, values = deciding.against, rivals[deciding.against]
            deciding = Difference(name, *paired_interval(values, corrected), len(values), corrected)
    over_real = None if deciding.against == REAL_ARM else differences.get(REAL_ARM)
    untried = tuple(arm for arm in get_args(Arm) if arm not in (*scores, OWN_ARM, CEILING))
    return Verdict(finding, deciding, over_real, left_out, untried, figure, alone)


def paired_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean, and the lower and upper end of its confidence interval (Student 1908), of at least two differences."""
    count = len(differences)
    mean = float(np.mean(differences))
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half
