"""A set of copies, and one of other defects, told apart."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import made_set, make_studio

from defectgen.boxes import mask_xyxy
from defectgen.compose import compose
from defectgen.controls import compose_copy_paste
from defectgen.copies import copied_in
from defectgen.dataset.manifest import read_manifest
from defectgen.diagnostics import COPY, _squared_mmd, diagnose, likeness
from defectgen.images import read_rgb
from defectgen.inpaint.placement import Turn
from defectgen.records import Composite, PlacedDefect, Rejection, Sources
from defectgen.windows import Window


class Pixels:
    """Sees the windows themselves, four by four."""

    def features(self, images: np.ndarray, regions: np.ndarray) -> np.ndarray:
        count, side = len(images), images.shape[1]
        inside = np.where(regions[..., None], images, 0).astype(np.float32)
        return inside.reshape(count, side // 4, 4, side // 4, 4, 3).mean(axis=(2, 4)).reshape(count, -1) / 255


def test_set_is_told_by_its_distance_to_the_real_defects(toys: Any, demo_sources: Sources, tmp_path: Path) -> None:
    recipe = toys.recipe(
        inpaint={"backend": "diffusion", "start": "place"}, synth={"num_images": 6, "clean_share": 0}, place={"warp": 0}
    )
    studio = replace(make_studio(recipe, demo_sources), screen=Pixels())  # type: ignore[arg-type]
    blobs = [compose(recipe, demo_sources, studio, index) for index in range(6)]
    drawn = made_set(tmp_path / "drawn", recipe, demo_sources, blobs)
    rows = [dict(row) for row in read_manifest(drawn / "manifest.jsonl").rows]
    copies = [compose_copy_paste(recipe, demo_sources, studio, row) for row in rows]
    copied = made_set(tmp_path / "copied", recipe, demo_sources, copies)
    of_blobs, of_copies = (diagnose(recipe, demo_sources, studio, folder) for folder in (drawn, copied))
    assert of_copies["nearest_real"] < of_blobs["nearest_real"]
    assert of_blobs["likeness"] < 0.8 and of_blobs["copies"] == 0
    assert of_copies["likeness"] > 0.99 and of_copies["copies"] == 1
    assert np.isfinite([of_copies["kid"], of_blobs["kid"]]).all()
    assert sum(boxes["synthetic"]["count"] for boxes in of_blobs["boxes"].values() if boxes["synthetic"]) == sum(
        len(blob.placed) for blob in blobs
    )
    assert {name: boxes["real"]["count"] for name, boxes in of_blobs["boxes"].items()} == {
        "scratch": 3,
        "pit": 3,
        "stain": 3,
        "dent": 3,
    }


def test_change_is_like_that_of_a_pasted_copy_however_it_was_bent_and_however_strong_it_is(
    toys: Any, demo_sources: Sources
) -> None:
    recipe = toys.recipe()
    studio = make_studio(recipe, demo_sources)
    base = read_rgb(demo_sources.train_clean[0].path)
    bent = Turn(angle_deg=90, warp=0.08, warp_seed=5)
    window = Window(30, 40, studio.models[0].crop.window.side)

    def pasted(model: int, turn: Turn) -> np.ndarray:
        return copied_in(recipe, demo_sources, studio, model, turn, window, base)[0]

    def like(image: np.ndarray) -> float:
        x1, y1, x2, y2 = mask_xyxy(np.any(image != base, axis=2)) or (0, 0, 1, 1)
        placed: Any = {
            "placement": {"model": 0, "window": [window.x, window.y, window.side], **asdict(bent)},
            "changed_xyxy": [x1, y1, x2, y2],
        }
        return likeness(recipe, demo_sources, studio, placed, image, base)

    same = pasted(0, bent)
    assert like(same) == pytest.approx(1) and like(pasted(0, replace(bent, warp=0.0))) == pytest.approx(1)
    faint = np.round(base + 0.5 * (same.astype(np.float32) - base)).astype(np.uint8)
    assert like(faint) > 0.98
    own = studio.models[0].crop.class_id
    others = [like(pasted(number, bent)) for number, model in enumerate(studio.models) if model.crop.class_id != own]
    others.append(like(pasted(0, replace(bent, angle_deg=0.0))))
    assert max(others) < COPY and like(base) == 0


def test_turned_real_defects_are_near_and_refusals_are_shares_of_all_tried(
    toys: Any, demo_sources: Sources, tmp_path: Path
) -> None:
    recipe = toys.recipe(place={"quarter_turns": True}, data={"base": "defective"})
    studio = replace(make_studio(recipe, demo_sources), screen=Pixels())  # type: ignore[arg-type]
    real = demo_sources.train[0]
    model = next(model for model in studio.models if model.crop.source == real.name)
    mark = real.annotations[model.crop.annotation]
    image = np.rot90(read_rgb(real.path)).copy()
    side, window = real.size_wh[0], model.crop.window
    # Counter-clockwise: what was on the right comes to the top.
    turned = Window(window.y, side - window.x - window.side, window.side)
    x1, y1, x2, y2 = mark.xyxy
    box = (y1, side - x2, y2, side - x1)
    placement = {"window": [turned.x, turned.y, turned.side], "model": studio.models.index(model)} | asdict(Turn())
    placed = PlacedDefect(mark.class_id, box, box, (), box, placement)
    refused = (Rejection(0, "taken for clean", "0.1"),) * 3
    composite = Composite(0, image, np.ones(image.shape[:2], np.uint8), real, "0" * 64, (), (placed,), refused)
    found = diagnose(recipe, demo_sources, studio, made_set(tmp_path, recipe, demo_sources, [composite]))
    assert found["refused"] == {"taken for clean": 0.75}
    assert found["kid"] is None
    assert found["nearest_real"] < 0.2


def test_discrepancy_is_near_0_for_like_samples_and_grows_with_the_shift() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 16)), rng.normal(size=(300, 16))
    assert abs(_squared_mmd(a, b, 1)) < 0.02
    near, far = _squared_mmd(a, b + 0.5, 1), _squared_mmd(a, b + 1, 1)
    assert 0.1 < near < far
    # Eight turns of each that look alike are no more evidence than one.
    few = b[:40]
    turned = np.repeat(few, 8, axis=0) + rng.normal(0, 0.01, (320, 16))
    assert _squared_mmd(a, turned, 8) == pytest.approx(_squared_mmd(a, few, 1), abs=0.01)
    assert _squared_mmd(a, turned, 1) > _squared_mmd(a, few, 1) + 0.05


def test_real_class_check_gives_features_of_windows(fitted: Any) -> None:
    from defectgen.studio import load_studio

    studio = load_studio(fitted.recipe, fitted.sources, fitted.out / "generator")
    windows = np.stack([model.twin for model in studio.models] * 4)
    regions = np.ones(windows.shape[:3], bool)
    features = studio.screen.features(windows, regions)
    assert features.shape == (len(windows), 512)
    assert features[: len(studio.models)] == pytest.approx(features[-len(studio.models) :], abs=1e-4)
    assert np.ptp(features, axis=0).max() > 0
