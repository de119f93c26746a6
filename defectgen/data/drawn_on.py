"""Pictures that somebody drew into: boxes and names of defects, as a viewer saves them with the picture."""

from __future__ import annotations

import numpy as np

from defectgen.images import read_rgb
from defectgen.progress import Progress, silent
from defectgen.records import Problem, Sources

# Levels between the channels of a pixel from which it is coloured: what JPEG leaves of grey is far less.
COLOURED_LEVELS = 64
# Of an image's pixels: fewer are specks, more are a camera's own colour.
FEWEST_PIXELS, MOST_OF_IMAGE = 20, 0.3
# Among so many grey images, where at most this share of all has any.
FEWEST_GREY, RARE = 5, 0.1


def find_drawn_on(sources: Sources, progress: Progress = silent) -> list[Problem]:
    """A warning for each image with a little strong colour among images that are otherwise all grey.

    A detector learns such marks instead of the defects. In coloured images they cannot be told from product.
    """
    subsets = (sources.train_pool, sources.train_clean, sources.test, sources.test_clean)
    images = {image.path: image for subset in subsets for image in subset}
    with_colour = []
    for number, image in enumerate(images.values(), 1):
        pixels = read_rgb(image.path)
        coloured = int((np.ptp(pixels, axis=2) >= COLOURED_LEVELS).sum())
        if coloured >= FEWEST_PIXELS:
            with_colour.append((image, coloured, coloured / pixels[..., 0].size))
        progress("look for drawn marks", number, len(images), "")
        if len(with_colour) > max(RARE * len(images), 1):
            return []
    grey = len(images) - len(with_colour)
    if grey < FEWEST_GREY:
        return []
    return [
        Problem(
            "warning",
            str(image.path),
            "",
            f"has {coloured} pixels of strong colour, while {grey} of {len(images)} images are grey: drawn marks?",
            "a detector learns marks instead of defects: put the picture as the camera took it in its place, or name "
            "it in data.leave_out",
        )
        for image, coloured, share in with_colour
        if share <= MOST_OF_IMAGE
    ]
