"""What the report says first: whether to train on the set, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectgen.dataset.manifest import MANIFEST_NAME
from defectgen.images import sha256_file
from defectgen.yolo.results import FIGURE_NAMES, SCORES, verdict_line
from defectgen.yolo.verdict import CEILING, OWN_ARM, Difference

# More of the defects tried than this refused is worth a word, and so is a larger share of copies.
_MANY_REFUSED, _MANY_COPIES = 0.8, 0.2

_HEADLINES = {
    "helps": "Use it: it helps",
    "no difference shown": "No gain shown: do not count on it",
    "hurts": "Do not use it: it hurts",
    "not proven": "Not proven either way",
    "not measured": "Not measured yet",
}


@dataclass(frozen=True)
class Answer:
    """What the page says first.

    Attributes:
        finding: a verdict's, or `not proven` (one training per arm), or `not measured`.
        sentences: why, and what to do next.
        where: what of several budgets the finding is of.
        rival: the arm that the finding is against, where it says nothing of the gain over the real images, or where
            these are beaten for certain.
    """

    finding: str
    sentences: tuple[str, ...]
    where: str = ""
    rival: str | None = None

    @property
    def headline(self) -> str:
        """Whether to use the set, in a few words."""
        words = _HEADLINES[self.finding]
        if self.rival is not None:
            rival = self.rival.removeprefix("real+")
            words = {
                "helps": f"Better than {rival}",
                "no difference shown": f"Better than the real images alone, no gain shown over {rival}",
                "hurts": f"Do not use it: {rival} does better",
            }[self.finding]
        return words + (f" ({self.where})" if self.where else "")


def answer_of(results: dict[str, Any] | None, figures: dict[str, Any] | None, dataset: Path | None) -> Answer:
    """Of a run.

    Args:
        results: results.json, where detectors were trained.
        figures: the set's diagnostics, where they could be measured.
        dataset: its folder, where it was made.
    """
    said: list[str] = []
    rival = None
    if results is not None and dataset is not None and is_stale(results, dataset):
        finding = "not measured"
        said.append(
            "The detectors below were trained on this set as it was before a review replaced some of its images: run "
            "`defectgen train-yolo` again."
        )
    elif results is None:
        finding = "not measured"
        said.append(
            "Whether these images make a better detector is not known until detectors were trained with and without "
            "them, and judged on real parts: `defectgen train-yolo` with the same recipe does that."
        )
    elif results["verdict"] is not None:
        finding, rival = results["verdict"]["finding"], rival_of(results["verdict"])
        said.append(results["verdict"]["sentence"])
    else:
        finding = "not proven" if OWN_ARM in results["arms"] else "not measured"
        score = SCORES[results["task"]]
        means = {arm: 100 * entry["mean"][score] for arm, entry in results["arms"].items()}
        listed = ", ".join(f"{arm} {mean:.1f}" for arm, mean in means.items())
        said.append(f"{FIGURE_NAMES[score]} on {results['test_images']} real held-out images: {listed}.")
        rivals = [mean for arm, mean in means.items() if arm not in (OWN_ARM, CEILING)]
        if OWN_ARM in means and rivals:
            gain = means[OWN_ARM] - max(rivals)
            said.append(f"That is {gain:+.1f} points over the best other arm, from one training each: chance, maybe.")
        said.append(verdict_line(results) + ".")
    if figures is not None:
        refused_share = sum(figures["refused"].values())
        if refused_share > _MANY_REFUSED:
            said.append(f"{refused_share:.0%} of the placements tried were refused: see the reasons below.")
        if figures["copies"] > _MANY_COPIES:
            said.append(
                f"{figures['copies']:.0%} of the synthetic defects are near copies of a real one: they add places, "
                "not kinds of defect."
            )
    if dataset is not None:
        said.append("Look at the gallery before you train on anything: reject what no part of yours would show.")
    return Answer(finding, tuple(said), rival=rival)


def rival_of(verdict: dict[str, Any]) -> str | None:
    """See `Answer.rival`."""
    over_real = verdict.get("over_real")
    if verdict["finding"] == "no difference shown" and over_real is not None:
        gain = Difference(**over_real)
        if gain.low > 0 and gain.has_spread:
            against: str = verdict["decided_by"]["against"]
            return against
    return verdict.get("over_rival_alone")


def is_stale(results: dict[str, Any], dataset: Path) -> bool:
    """Whether the detectors of `results` were trained on another set than lies in `dataset` now."""
    trained_on, manifest = results.get("sets_sha256", {}).get(OWN_ARM), dataset / MANIFEST_NAME
    return trained_on is not None and manifest.exists() and trained_on != sha256_file(manifest)
