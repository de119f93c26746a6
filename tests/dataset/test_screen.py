from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import defectgen.dataset.screen as screening
from defectgen.crops import Crop, centre, region_of
from defectgen.dataset.screen import NUM_FOLDS, REAL_QUANTILE, Screen, train_screen

SIDE = 32


def train(defects: Sequence[Crop], clean: Sequence[Crop], *, num_classes: int = 2, seed: int = 0) -> Screen:
    return train_screen(
        defects,
        clean,
        num_classes=num_classes,
        window_px=SIDE,
        flip=True,
        quarter_turns=False,
        seed=seed,
        progress=lambda done, total: None,
    )


def probabilities(screen: Screen, crop: Crop, *, model: int) -> np.ndarray:
    region = region_of(centre(crop.mask, SIDE), outlined=crop.outlined)
    if not crop.mask.any():
        region[11:21, 11:21] = True
    return screen.probabilities(centre(crop.image, SIDE), region, model=model)


@pytest.fixture(scope="module")
def trained(toys: Any) -> Screen:
    """Trained on dark and bright blocks for long enough to tell them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(screening, "TRAINING_STEPS", 25)
        return train(toys.crops(6), toys.clean(8))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "TRAINING_STEPS", 3)


def test_classes_and_clean_product_are_told_apart_on_windows_never_seen(trained: Screen, toys: Any) -> None:
    unseen = [*toys.crops(5, seed=50), *toys.clean(5, seed=51)]
    for crop in unseen:
        wanted = 2 if crop.class_id is None else crop.class_id
        for model in range(NUM_FOLDS):
            found = probabilities(trained, crop, model=model)
            assert found.shape == (3,) and found.sum() == pytest.approx(1, abs=1e-5)
            assert found.argmax() == wanted
    assert trained.real_accuracy == 1


def test_member_of_a_fold_has_not_seen_its_defects(few_steps: None, toys: Any) -> None:
    crops = toys.crops(6)
    one = train(crops, toys.clean(4))
    judged = zip(crops, one.folds, strict=True)
    changed = [replace(crop, image=255 - crop.image) if fold == 1 else crop for crop, fold in judged]
    other = train(changed, toys.clean(4))
    equal = [
        np.array_equal(probabilities(one, crops[0], model=model), probabilities(other, crops[0], model=model))
        for model in (one.folds.index(fold) for fold in range(NUM_FOLDS))
    ]
    assert equal == [False, True, False]


def test_no_fold_has_a_whole_class(few_steps: None, toys: Any) -> None:
    # As on images with one defect of each of three classes: number % 3 would be the class.
    crops = toys.crops(4, num_classes=3)
    screen = train(crops, toys.clean(4), num_classes=3)
    for class_id in range(3):
        folds = [fold for fold, crop in zip(screen.folds, crops, strict=True) if crop.class_id == class_id]
        assert folds == [0, 1, 2, 0]


def test_shots_of_one_part_are_in_one_fold_where_there_are_parts_enough(few_steps: None, toys: Any) -> None:
    crops = [crop for crop in toys.crops(9) if crop.class_id == 0]

    def folds(*parts: str) -> list[int]:
        return train([replace(crop, group=part) for crop, part in zip(crops, parts, strict=True)], toys.clean(4)).folds

    three = folds(*"aabbbcccc")
    assert three[0] == three[1] and len({three[2], *three[2:5]}) == 1 and len(set(three[5:])) == 1
    assert len(set(three)) == NUM_FOLDS
    # Evenly: the part with the most shots is alone.
    assert sorted(Counter(folds(*"aaaabbccd")).values()) == [2, 3, 4]
    assert sorted(Counter(folds(*"aaaabbbbb")).values()) == [3, 3, 3]


def test_every_defect_is_judged_by_the_member_of_its_fold(trained: Screen, toys: Any) -> None:
    crop = toys.crops(1)[0]
    values = [tuple(probabilities(trained, crop, model=model).tolist()) for model in range(12)]
    assert len(set(zip(trained.folds, values, strict=True))) == len(set(values)) == NUM_FOLDS


def test_same_seed_gives_the_same_screen(few_steps: None, toys: Any) -> None:
    crops, clean = toys.crops(3), toys.clean(4)
    one, same, other = (train(crops, clean, seed=seed) for seed in (1, 1, 2))
    assert (probabilities(one, crops[0], model=0) == probabilities(same, crops[0], model=0)).all()
    assert (probabilities(one, crops[0], model=0) != probabilities(other, crops[0], model=0)).any()


def test_saved_screen_is_loaded_with_the_same_probabilities(trained: Screen, toys: Any, tmp_path: Path) -> None:
    facts = trained.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["screen.safetensors"]
    loaded = Screen.load(tmp_path, facts, num_classes=2)
    for name in ("real_probabilities", "real_quantiles", "real_accuracy", "folds"):
        assert getattr(loaded, name) == getattr(trained, name)
    for model in range(NUM_FOLDS):
        for crop in toys.crops(2, seed=60):
            assert (probabilities(loaded, crop, model=model) == probabilities(trained, crop, model=model)).all()


def test_threshold_is_what_real_defects_reach_with_a_member_that_has_not_seen_them(trained: Screen, toys: Any) -> None:
    crops = toys.crops(6)
    for class_id in range(2):
        reached = [
            probabilities(trained, crop, model=index)[class_id]
            for index, crop in enumerate(crops)
            if crop.class_id == class_id
        ]
        quantile = float(np.quantile(reached, REAL_QUANTILE))
        assert trained.real_quantiles[class_id] == pytest.approx(quantile)
        for index, crop in enumerate(crops):
            if crop.class_id == class_id:
                own = probabilities(trained, crop, model=index)[class_id]
                asked = quantile if own >= quantile else 0.5
                assert quantile > 0.5
                assert trained.threshold(class_id, 1.0, model=index) == pytest.approx(asked)
                assert trained.threshold(class_id, 0.01, model=index) == (0.01 if own >= 0.01 else 0.005)
    reached = np.array(trained.real_probabilities)
    assert (reached < np.array(trained.real_quantiles)[[crop.class_id for crop in crops]]).sum() == 2


def test_what_follows_a_defect_that_the_check_does_not_know_is_asked_for_half(trained: Screen) -> None:
    screen = replace(trained, real_probabilities=[0.02, 0.7, 0.9], real_quantiles=[0.8, 0.2])
    assert screen.threshold(0, 0.6, model=0) == 0.3
    assert screen.threshold(0, 0.6, model=1) == screen.threshold(0, 0.6, model=2) == 0.6
    assert screen.threshold(0, 0.75, model=1) == 0.375
    # But never for more than others are.
    assert screen.threshold(1, 0.6, model=0) == 0.2


def test_class_with_a_single_defect_is_known_to_every_member(few_steps: None, toys: Any) -> None:
    crops = [*(crop for crop in toys.crops(4) if crop.class_id == 0), toys.crops(1)[1]]
    screen = train(crops, toys.clean(4))
    changed = train([*crops[:-1], replace(crops[-1], image=255 - crops[-1].image)], toys.clean(4))
    for fold in range(NUM_FOLDS):
        assert (probabilities(screen, crops[0], model=fold) != probabilities(changed, crops[0], model=fold)).any()


def test_class_without_a_defect_is_not_asked_for_anything(few_steps: None, toys: Any) -> None:
    screen = train([crop for crop in toys.crops(4) if crop.class_id == 0], toys.clean(4))
    assert screen.real_quantiles[1] == 0 and screen.threshold(1, 0.9, model=0) == 0


def test_progress_counts_every_step(few_steps: None, toys: Any) -> None:
    counted: list[tuple[int, int]] = []
    train_screen(
        toys.crops(2),
        toys.clean(2),
        num_classes=2,
        window_px=SIDE,
        flip=False,
        quarter_turns=False,
        seed=0,
        progress=lambda done, total: counted.append((done, total)),
    )
    assert counted == [(done, 9) for done in range(1, 10)]
