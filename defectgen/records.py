"""The records in which the stages meet. Pixel frames are those of the upright image, x to the right, y down."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from defectgen.errors import DefectgenError

XYXY = tuple[float, float, float, float]
Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Annotation:
    """One marked real defect.

    Attributes:
        class_id: index into the data set's class names.
        xyxy: box in pixels, edges at pixel borders (x2 - x1 is the width), inside the image.
        polygon: outline in pixels where the annotation has one, else None.
        line: outlines in pixels, filled by the even-odd rule, of the thin line that a box was found to hold (see
            `defectgen.data.lines`).
    """

    class_id: int
    xyxy: XYXY
    polygon: Polygon | None = None
    line: tuple[Polygon, ...] = ()


@dataclass(frozen=True)
class LabelledImage:
    """A real image as its reader found it. No annotations: a clean image.

    Attributes:
        path: absolute.
        name: relative to the folder it was found in, with forward slashes; unique within a subset.
        size_wh: pixels after EXIF rotation.
        group: what must not be split between training and test (board, position, part).
        bits: of its values, 8, 12 or 16.
    """

    path: Path
    name: str
    size_wh: tuple[int, int]
    group: str
    annotations: tuple[Annotation, ...] = ()
    bits: int = 8


@dataclass(frozen=True)
class Problem:
    """Something wrong with the input: data, not an exception, so that all are reported at once.

    Attributes:
        path: the file or folder.
        where: row, field or shape within it; "" for the whole file.
        reason: what is wrong, with the value got.
        remedy: what to do.
    """

    severity: Literal["error", "warning"]
    path: str
    where: str
    reason: str
    remedy: str

    @classmethod
    def of_error(cls, error: DefectgenError) -> Problem:
        """The error, whose message is `place: reason; remedy`."""
        path, _, rest = str(error).partition(": ")
        reason, _, remedy = rest.rpartition("; ")
        return cls("error", path, "", reason, remedy)

    def __str__(self) -> str:
        place = f"{self.path}: {self.where}" if self.where else self.path
        return f"{place}: {self.reason}; {self.remedy}"


@dataclass(frozen=True)
class Sources:
    """The user's data, split by group and cut to the budget.

    Attributes:
        class_names: index = class_id.
        train: real defective images of the budget (what generator and every arm may see).
        train_pool: all real defective training images (`check`, ceilings; never read by `synth`).
        train_clean: clean product images for composites and background.
        test, test_clean: held-out groups, for the final evaluation alone.
    """

    class_names: tuple[str, ...]
    train: tuple[LabelledImage, ...]
    train_pool: tuple[LabelledImage, ...]
    train_clean: tuple[LabelledImage, ...]
    test: tuple[LabelledImage, ...]
    test_clean: tuple[LabelledImage, ...]
    problems: tuple[Problem, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class PlacedDefect:
    """A synthetic defect in a finished composite.

    Attributes:
        class_id: the class asked for, and confirmed by screening.
        label_xyxy: label box in image pixels, from what changed and the annotators' margin.
        changed_xyxy: tight box of the visibly changed pixels.
        polygons: outlines of the visibly changed pixels, largest first, in image pixels.
        asked_xyxy: the box placement asked for.
        placement: how it was placed, JSON values alone (real model, transform, place, scores), enough to repeat it
            with another back-end.
    """

    class_id: int
    label_xyxy: XYXY
    changed_xyxy: XYXY
    polygons: tuple[Polygon, ...]
    asked_xyxy: XYXY
    placement: dict[str, Any]


@dataclass(frozen=True)
class Rejection:
    """A placement that was tried and refused.

    Attributes:
        reason: a short fixed phrase, so that reasons can be counted.
        detail: the value that decided.
    """

    class_id: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Composite:
    """One image of the data set, complete.

    Attributes:
        index: its number in the set.
        image: uint8 (H, W, 3) RGB.
        mask: uint8 (H, W), 0 where nothing changed, class_id + 1 on the visibly changed pixels.
        source: the clean (or kept real) image it was made from; bit-equal to `image` where no region was.
        source_sha256: of that file's bytes.
        kept: real annotations of `source` that remain in the image (none on a clean one).
        placed: the synthetic defects; with none, and none kept, a clean image.
        rejected: what was tried and refused for this image.
    """

    index: int
    image: np.ndarray = field(compare=False)
    mask: np.ndarray = field(compare=False)
    source: LabelledImage
    source_sha256: str
    kept: tuple[Annotation, ...]
    placed: tuple[PlacedDefect, ...]
    rejected: tuple[Rejection, ...]
