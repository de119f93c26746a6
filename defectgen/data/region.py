"""place.region_mask: where on an image defects may be."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np

from defectgen.errors import DataError
from defectgen.images import IMAGE_SUFFIXES, read_rgb, sha256_bytes, sha256_file, size_wh
from defectgen.recipe import Recipe
from defectgen.records import LabelledImage, Problem

# Of 255: as bright and brighter is allowed.
_ALLOWED = 128


def mask_of(recipe: Recipe, image: LabelledImage) -> Path:
    """The file that says it of `image`: place.region_mask, or the one of the image's name in that folder.

    Raises:
        DataError: it lies outside data.root, there is none, or it has another size than the image.
    """
    root = Path(recipe.data.root or ".").absolute()
    path = root / str(recipe.place.region_mask)
    if recipe.data.root is not None and not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root)):
        raise DataError(f"{path}: place.region_mask lies outside data.root ({root}); put it there")
    if path.is_dir():
        # Folders below it as those of the images, or none.
        name = PurePath(image.name)
        beside = [child for place in (path / name.parent, path) if place.is_dir() for child in sorted(place.iterdir())]
        found = [child for child in beside if child.stem == name.stem and child.suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise DataError(f"{path}: place.region_mask has no image named {name.stem}.*; add it")
        path = found[0]
    if not path.is_file():
        raise DataError(f"{path}: place.region_mask is not there; correct the name, or put the image there")
    width, height = size_wh(path)
    if (width, height) != image.size_wh:
        raise DataError(
            f"{path}: place.region_mask must have the size of {image.name}, {image.size_wh[0]}x{image.size_wh[1]}, got "
            f"{width}x{height}; resize it"
        )
    return path


def allowed_region(recipe: Recipe, image: LabelledImage) -> np.ndarray | None:
    """bool (H, W) where defects may be; None for everywhere.

    Raises:
        DataError: as `mask_of`, or the mask cannot be read.
    """
    if recipe.place.region_mask is None:
        return None
    allowed: np.ndarray = read_rgb(mask_of(recipe, image)).max(axis=2) >= _ALLOWED
    return allowed


def region_faults(recipe: Recipe, images: Iterable[LabelledImage]) -> list[Problem]:
    """What is wrong with the masks of `images`, each fault once."""
    found: dict[str, Problem] = {}
    looked_at: set[Path] = set()
    serves: dict[Path, str] = {}
    for image in images if recipe.place.region_mask is not None else ():
        try:
            path = mask_of(recipe, image)
            other = serves.setdefault(path, image.name)
            is_one_for_all = path == Path(recipe.data.root or ".").absolute() / str(recipe.place.region_mask)
            if not is_one_for_all and other != image.name:
                raise DataError(
                    f"{path}: place.region_mask is that of {other} and of {image.name}; put each into a folder named "
                    "like its image's"
                )
            if path not in looked_at and (brightest := int(read_rgb(path).max())) < _ALLOWED:
                raise DataError(
                    f"{path}: place.region_mask allows no pixel, its brightest has the value {brightest} of 255; make "
                    "white (255) where defects may be"
                )
            looked_at.add(path)
        except DataError as error:
            problem = Problem.of_error(error)
            # Of one mask of a wrong size the first image says enough.
            found.setdefault(problem.path if problem.remedy == "resize it" else problem.reason, problem)
    return list(found.values())


def regions_sha256(recipe: Recipe, images: Iterable[LabelledImage]) -> str | None:
    """A hash of the masks of `images`; None where defects may be anywhere."""
    if recipe.place.region_mask is None:
        return None
    digests = [sha256_file(path) for path in sorted({mask_of(recipe, image) for image in images})]
    return sha256_bytes("".join(digests).encode())
