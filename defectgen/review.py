"""What a person said of a set's images, and how the set is replaced by one without those rejected.

An image is a pure function of (recipe, generator, index): a rejected index is never used again, and the set is the
first `synth.num_images` indexes that nobody rejected. So the others keep their bytes, and a set made anew with the same
reviews is the same.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from defectgen.dataset.manifest import FOLDERS, MANIFEST_NAME, set_indexes
from defectgen.dataset.sheet import SHEETS_FOLDER
from defectgen.dataset.write import ROWS_FOLDER
from defectgen.errors import UsageError

_EXPORT = "export it again from the report's gallery"
_OWN_NAMES = {*FOLDERS, ROWS_FOLDER, SHEETS_FOLDER, MANIFEST_NAME, "README.md"}
_Indexes = list[Annotated[int, Field(ge=0)]]


@with_config(ConfigDict(extra="forbid", strict=True))
class Review(TypedDict):
    """`review.json`, as the report's gallery exports it; the hashes are those of the reviewed set's manifest."""

    kind: Literal["defectgen review"]
    recipe_sha256: str
    generator_fingerprint: str
    accepted: _Indexes
    rejected: _Indexes


_REVIEW = TypeAdapter(Review)


def read_review(path: Path) -> Review:
    """The review at `path`.

    Raises:
        UsageError: it cannot be read, is no review, or contradicts itself; every fault, one per line.
    """
    try:
        review = _REVIEW.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); name a review.json of the report") from None
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            field = ".".join(str(part) for part in fault["loc"]) or "review"
            got = "" if fault["type"] in ("missing", "json_invalid") else f", got {str(fault['input'])[:60]!r}"
            faults.append(f"{path}: {field}: {fault['msg'].lower()}{got}; {_EXPORT}")
        raise UsageError("\n".join(faults)) from None
    twice = [
        f"{path}: {field}: image {index} is listed {times} times; list it once"
        for field, indexes in (("accepted", review["accepted"]), ("rejected", review["rejected"]))
        for index, times in sorted(Counter(indexes).items())
        if times > 1
    ]
    both = [
        f"{path}: rejected: image {index} is accepted, too; leave it in one list"
        for index in sorted({*review["accepted"]} & {*review["rejected"]})
    ]
    if twice or both:
        raise UsageError("\n".join([*twice, *both]))
    return review


def rejected_indexes(
    paths: Sequence[Path],
    *,
    recipe_sha256: str,
    fingerprint: str,
    num_images: int,
    clean: Collection[int],
    earlier: Sequence[int] = (),
) -> list[int]:
    """Indexes that stay out of a set, rising: those `earlier` reviews rejected, and those of the reviews at `paths`.

    What was accepted changes nothing: a later review may reject it.

    Args:
        paths: in the order the reviews were made.
        recipe_sha256, fingerprint, num_images: those of the set's manifest.
        clean: indexes of the images without a defect.

    Raises:
        UsageError: a review is faulty (see `read_review`), of another set, or rejects what cannot be; every fault.
    """
    out = set(earlier)
    faults: list[str] = []
    for path in paths:
        review = read_review(path)
        foreign = _foreign(path, review, recipe_sha256, fingerprint)
        faults += foreign or _faults(path, review, out, num_images, clean)
        out |= set(review["rejected"])
    if faults:
        raise UsageError("\n".join(faults))
    return sorted(out)


def _foreign(path: Path, review: Review, recipe_sha256: str, fingerprint: str) -> list[str]:
    """What shows that the review is of another set."""
    faults = []
    if review["recipe_sha256"] != recipe_sha256:
        faults.append(
            f"{path}: recipe_sha256: is of a set of another recipe, got {review['recipe_sha256'][:12]!r}, this one is "
            f"{recipe_sha256[:12]!r}; give the recipe that the reviewed set was made by, field by field (--set and "
            "--arms change it, too), or review this set"
        )
    if review["generator_fingerprint"] != fingerprint:
        faults.append(
            f"{path}: generator_fingerprint: is of a set of another generator, got "
            f"{review['generator_fingerprint'][:12]!r}, this one is {fingerprint[:12]!r}; fit on the same images and "
            "labels with the same version of defectgen, or review this set"
        )
    return faults


def _faults(path: Path, review: Review, out: set[int], num_images: int, clean: Collection[int]) -> list[str]:
    """What the review says of images that it cannot say; `out` were rejected before it."""
    indexes = set_indexes(num_images, out)
    known = {*indexes, *out}
    faults = [
        f"{path}: {field}: image {index} is not in the set, whose last is {indexes[-1]}; take it out, and give several "
        "reviews in the order they were made"
        for field, named in (("accepted", review["accepted"]), ("rejected", review["rejected"]))
        for index in sorted(named)
        if index not in known
    ]
    faults += [
        f"{path}: rejected: image {index} is a clean one, nothing was drawn in it; take it out"
        for index in sorted(review["rejected"])
        if index in clean
    ]
    composites = {index for index in indexes if index not in clean}
    if composites <= {*review["rejected"]}:
        faults.append(
            f"{path}: rejected: are all {len(composites)} composites of the set, and others would be no better; "
            "change the recipe (generator.steps, inpaint.strength, screen), or reject fewer"
        )
    return faults


def put_in_place(partial: Path, folder: Path) -> None:
    """Moves the complete set `partial` to `folder`, where an older one may be, which goes last.

    After a kill at any point `settle` ends what was begun.
    """
    if folder.exists():
        folder.rename(_replaced(folder))
    partial.rename(folder)
    settle(folder, partial)


def settle(folder: Path, partial: Path) -> None:
    """Ends a replacement of `folder` by `partial` that was killed; does nothing where there was none.

    What the user put into the older set (`val` in data.yaml, files of their own) goes along.
    """
    replaced = _replaced(folder)
    if not replaced.exists():
        return
    if not folder.exists():
        # Only a complete set begins to replace another.
        (partial if (partial / MANIFEST_NAME).exists() else replaced).rename(folder)
        return settle(folder, partial)
    for path in sorted(replaced.iterdir()):
        # Caches are of the older images.
        if path.name not in _OWN_NAMES and path.suffix != ".cache":
            path.replace(folder / path.name)
    for path in sorted(child for name in FOLDERS for child in (replaced / name).rglob("*")):
        target = folder / path.relative_to(replaced)
        own = (path.parent.parent == replaced and path.stem.isdecimal()) or path.suffix == ".cache"
        if path.is_file() and not own and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    shutil.rmtree(replaced)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.replaced")
