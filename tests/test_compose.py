"""Composites with a stand-in generator: what it draws is known, so right labels can be told from wrong ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from stand_ins import SIDE, Blobs, Verdict, block_sources, changed, inside, make_studio

from defectgen.boxes import iou_xyxy
from defectgen.compose import HARDLY_NOISED, _own_label, base_image, clean_indexes, compose
from defectgen.copies import copied_in
from defectgen.crops import centre
from defectgen.diffusion.pipelines import DefectOutput
from defectgen.errors import DataError, RunError
from defectgen.images import encode_image, read_rgb, sha256_file
from defectgen.inpaint.backends import scaled_region
from defectgen.inpaint.placement import Turn, annotated_box, find_place
from defectgen.records import Annotation, Composite, LabelledImage, Sources
from defectgen.studio import Studio, load_studio
from defectgen.windows import Window

# What the stand-in for the generator draws does not depend on a start: none is made.
FROM_PLACE = {"backend": "diffusion", "start": "place"}


@pytest.fixture
def recipe(toys: Any) -> Any:
    return toys.recipe(inpaint=FROM_PLACE, synth={"num_images": 12, "clean_share": 0.25})


@pytest.fixture
def studio(recipe: Any, demo_sources: Sources) -> Studio:
    return make_studio(recipe, demo_sources)


def composites(recipe: Any, sources: Sources, studio: Studio) -> list[Composite]:
    return [compose(recipe, sources, studio, index) for index in range(recipe.synth.num_images)]


def test_image_is_a_pure_function_of_its_index(recipe: Any, demo_sources: Sources, studio: Studio) -> None:
    forwards = composites(recipe, demo_sources, studio)
    backwards = [
        compose(recipe, demo_sources, make_studio(recipe, demo_sources), index) for index in reversed(range(12))
    ]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        assert one == other
        assert (one.image == other.image).all() and (one.mask == other.mask).all()
    assert len({composite.image.tobytes() for composite in forwards}) == 12


def test_class_without_a_place_keeps_no_other_from_its_own(
    toys: Any, demo_sources: Sources, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = next(number for number, name in enumerate(demo_sources.class_names) if name == "scratch")

    def find(image: np.ndarray, models: Any, number: int, **options: Any) -> Any:
        return None if models[number].crop.class_id == hopeless else find_place(image, models, number, **options)

    monkeypatch.setattr("defectgen.compose.find_place", find)
    # Where the first four of eight are scratches, a round has nothing to draw.
    recipe = toys.recipe(
        inpaint=FROM_PLACE,
        synth={"num_images": 20, "clean_share": 0, "max_tries": 1},
        place={"class_weights": {"scratch": 4.5}, "per_image": (8, 8)},
    )
    assert all(made.placed for made in composites(recipe, demo_sources, studio))


def test_class_that_is_refused_takes_no_turn_from_the_others(toys: Any, demo_sources: Sources) -> None:
    hard = demo_sources.class_names[0]
    recipe = toys.recipe(
        inpaint=FROM_PLACE,
        place={"per_image": (8, 8), "class_weights": {hard: 4}},
        screen={"classifier": True, "min_probability": 0.2, "max_attempts": 2},
        synth={"num_images": 6, "clean_share": 0},
    )

    def num_easy(of_hard: float) -> int:
        studio = make_studio(recipe, demo_sources, screen=Verdict([of_hard, 0.25, 0.25, 0.25, 0.0]))
        made = composites(recipe, demo_sources, studio)
        return sum(placed.class_id > 0 for composite in made for placed in composite.placed)

    assert num_easy(0.0) >= num_easy(0.25) > 10


def test_another_seed_gives_other_images(recipe: Any, demo_sources: Sources, studio: Studio) -> None:
    other_recipe = recipe.model_copy(update={"seed": 1})
    index = next(index for index in range(12) if index not in clean_indexes(recipe) | clean_indexes(other_recipe))
    one = compose(recipe, demo_sources, studio, index)
    other = compose(other_recipe, demo_sources, studio, index)
    assert one.placed and other.placed and one.placed != other.placed


def test_each_round_takes_a_strength_of_the_range_and_the_manifest_says_which(
    toys: Any, demo_sources: Sources, studio: Studio
) -> None:
    recipe = toys.recipe(inpaint=FROM_PLACE | {"strength": [0.2, 0.7]}, synth={"num_images": 8, "clean_share": 0})
    strengths = {one.placement["strength"] for made in composites(recipe, demo_sources, studio) for one in made.placed}
    assert len(strengths) >= 6 and 0.2 <= min(strengths) < 0.4 < 0.5 < max(strengths) <= 0.7


def test_classes_are_placed_as_often_as_their_weights_say(toys: Any, demo_sources: Sources, studio: Studio) -> None:
    def placed(**weights: float) -> Counter[str]:
        recipe = toys.recipe(
            inpaint=FROM_PLACE, synth={"num_images": 12, "clean_share": 0}, place={"class_weights": weights}
        )
        made = composites(recipe, demo_sources, studio)
        return Counter(demo_sources.class_names[one.class_id] for composite in made for one in composite.placed)

    first, second, *others = demo_sources.class_names
    assert set(placed()) == set(demo_sources.class_names)
    assert set(placed(**dict.fromkeys(others, 0.0))) == {first, second}
    counts = placed(**dict.fromkeys(others, 0.0), **{first: 9.0})
    assert counts[first] > 3 * counts[second]


@pytest.mark.parametrize(
    ("num_images", "share", "expected"), [(12, 0.25, 3), (10, 0, 0), (10, 0.15, 2), (3, 1, 2), (1, 1, 0)]
)
def test_clean_images_are_as_many_as_asked_for_but_never_all(
    toys: Any, num_images: int, share: float, expected: int
) -> None:
    recipe = toys.recipe(synth={"num_images": num_images, "clean_share": share})
    clean = clean_indexes(recipe)
    assert len(clean) == expected and clean <= set(range(num_images))


def test_clean_image_is_its_source_with_no_label(recipe: Any, demo_sources: Sources, studio: Studio) -> None:
    for index in clean_indexes(recipe):
        composite = compose(recipe, demo_sources, studio, index)
        assert (composite.image == read_rgb(composite.source.path)).all() and not composite.mask.any()
        assert (composite.placed, composite.kept, composite.rejected) == ((), (), ())
        assert composite.source_sha256 == sha256_file(composite.source.path)


def test_all_clean_images_are_used_equally_often(recipe: Any, demo_sources: Sources) -> None:
    assert len(demo_sources.train_clean) == 6
    laps = [[base_image(recipe, demo_sources, 6 * lap + i, attempt=0).name for i in range(6)] for lap in range(3)]
    names = {image.name for image in demo_sources.train_clean}
    assert all(set(lap) == names for lap in laps)
    assert len({tuple(lap) for lap in laps}) > 1


def test_another_attempt_takes_another_base(recipe: Any, demo_sources: Sources) -> None:
    tried = Counter(base_image(recipe, demo_sources, 0, attempt=attempt).name for attempt in range(6))
    assert len(tried) > 2


def test_number_of_defects_is_within_the_asked_and_classes_are_mixed(
    recipe: Any, demo_sources: Sources, studio: Studio
) -> None:
    made = composites(recipe, demo_sources, studio)
    counts = [len(composite.placed) for composite in made if composite.placed]
    assert len(counts) == 9 and min(counts) >= 1 and max(counts) <= 3 and len(set(counts)) > 1
    assert {placed.class_id for composite in made for placed in composite.placed} == {0, 1, 2, 3}


def test_pixels_outside_the_regions_are_those_of_the_source(recipe: Any, demo_sources: Sources, studio: Studio) -> None:
    seen = 0
    for composite in composites(recipe, demo_sources, studio):
        elsewhere = np.ones(composite.mask.shape, bool)
        for placed in composite.placed:
            # The region lies within a margin of at most 6 of the window's pixels around the box asked for.
            slack = 8 * Window(*placed.placement["window"]).side / SIDE
            x1, y1, x2, y2 = placed.asked_xyxy
            inside((max(x1 - slack, 0), max(y1 - slack, 0), x2 + slack, y2 + slack), elsewhere)[...] = False
            seen += 1
        assert not (changed(composite) & elsewhere).any()
    assert seen >= 9


def test_label_holds_what_visibly_changed_and_nothing_else_did(
    recipe: Any, demo_sources: Sources, studio: Studio
) -> None:
    num_visible = num_unexplained = 0
    for composite in composites(recipe, demo_sources, studio):
        source = read_rgb(composite.source.path)
        change = cv2.absdiff(composite.image, source).max(axis=2)
        visible = change >= recipe.labels.min_change
        unexplained = visible.copy()
        for placed in composite.placed:
            mask = inside(placed.changed_xyxy, composite.mask == placed.class_id + 1)
            assert mask.any(axis=0)[[0, -1]].all() and mask.any(axis=1)[[0, -1]].all(), "the box is not tight"
            assert placed.label_xyxy == placed.changed_xyxy
            assert placed.polygons
            inside(placed.changed_xyxy, unexplained)[...] = False
        assert (composite.mask > 0)[change < recipe.labels.min_change // 2].sum() == 0
        num_visible, num_unexplained = num_visible + visible.sum(), num_unexplained + unexplained.sum()
    # Specks and hair lines are no part of a defect.
    assert num_unexplained <= 0.05 * num_visible


def test_real_defects_are_followed_in_equal_shares_however_well_their_places_fit(toys: Any, tmp_path: Path) -> None:
    # One defect lies on flat product, which fits itself to the grey level, one on grain, which never does.
    def product(seed: int) -> np.ndarray:
        image = np.full((128, 256, 3), 120, np.uint8)
        image[:, 128:] += np.random.default_rng(seed).integers(0, 40, (128, 128, 1)).astype(np.uint8)
        return image

    images = []
    for name, image in (("real", product(0)), ("clean", product(1))):
        path = tmp_path / f"{name}.png"
        path.write_bytes(encode_image(image, "png"))
        marks = (Annotation(0, (56, 56, 72, 72)), Annotation(0, (184, 56, 200, 72))) if name == "real" else ()
        images.append(LabelledImage(path, path.name, (256, 128), name, marks))
    sources = Sources(("pit",), (images[0],), (images[0],), (images[1],), (), ())
    recipe = toys.recipe(inpaint=FROM_PLACE, place={"per_image": (1, 1)}, synth={"num_images": 40, "clean_share": 0})
    made = composites(recipe, sources, make_studio(recipe, sources))
    followed = Counter(placed.placement["model"] for composite in made for placed in composite.placed)
    differences = {placed.placement["model"]: placed.placement["difference"] for one in made for placed in one.placed}
    assert differences[0] < 0.1 * differences[1]
    assert min(followed.values()) >= 10


def test_box_without_a_line_is_not_followed_where_its_class_is_one_of_lines(recipe: Any, demo_sources: Sources) -> None:
    studio = make_studio(recipe, demo_sources)
    one, *others = [replace(model, crop=replace(model.crop, outlined=False)) for model in studio.models]
    lined = [number for number, model in enumerate(studio.models) if model.crop.class_id == one.crop.class_id]
    assert len(lined) > 1 and studio.followed == list(range(len(studio.models)))
    line = replace(one, crop=replace(one.crop, outlined=True, line_slack_px=()))
    studio = replace(studio, models=[line, *others])
    assert set(range(len(studio.models))) - set(studio.followed) == set(lined[1:])
    followed = {
        placed.placement["model"] for made in composites(recipe, demo_sources, studio) for placed in made.placed
    }
    assert followed and not followed & set(lined[1:])


def test_annotators_margin_widens_the_label_unless_tight_is_asked_for(recipe: Any, demo_sources: Sources) -> None:
    studio = make_studio(recipe, demo_sources, margin=2)
    index = next(index for index in range(12) if index not in clean_indexes(recipe))
    (placed, *_) = compose(recipe, demo_sources, studio, index).placed
    x1, y1, x2, y2 = placed.changed_xyxy
    assert placed.label_xyxy == (max(x1 - 2, 0), max(y1 - 2, 0), min(x2 + 2, 128), min(y2 + 2, 128))
    tight = recipe.model_copy(update={"labels": recipe.labels.model_copy(update={"margin": "tight"})})
    (placed, *_) = compose(tight, demo_sources, studio, index).placed
    assert placed.label_xyxy == placed.changed_xyxy


class Copies(Blobs):
    """Draws what drawing started from."""

    def __call__(self, windows: np.ndarray, regions: np.ndarray, class_ids: Sequence[int], **options: Any) -> Any:
        patches = options["patches"]
        return DefectOutput(images=patches[..., :3].copy(), masks=regions.astype(np.float32))


def test_label_of_a_redrawn_copy_has_the_margin_of_its_own_box_turned_with_it(toys: Any, tmp_path: Path) -> None:
    recipe = toys.recipe(
        inpaint={"backend": "diffusion", "start": "copy"},
        place={"per_image": (1, 1), "scale": (1, 1), "warp": 0, "flip": True, "quarter_turns": True},
        synth={"num_images": 12, "clean_share": 0},
    )
    sources = block_sources(tmp_path)
    real = replace(sources.train[0], annotations=(Annotation(0, (38, 43, 62, 66)),))  # the block: 40, 48, 56, 56
    sources = replace(sources, train=(real,), train_pool=(real,))
    studio = make_studio(recipe, sources, margin=5)
    crop = studio.models[0].crop
    model = replace(studio.models[0], twin=np.full((SIDE, SIDE, 3), 128, np.uint8))
    studio = replace(studio, models=[model], pipeline=Copies())
    drawn_twin = replace(studio, models=[replace(model, photographed=False)])
    turns = set()
    for made in composites(recipe, sources, studio):
        (placed,) = made.placed
        turn, window = Turn.of_json(placed.placement), Window(*placed.placement["window"])
        assert crop.window.side == window.side
        assert placed.label_xyxy == pytest.approx(annotated_box(model, turn, window, (96, 96)), abs=2.5)
        turns.add((turn.flip_x, turn.flip_y, turn.angle_deg))
    assert len(turns) > 5
    # The box leaves 2 px on the left; of a drawn twin that is not believed: three quarters of the class's 5.
    inside = 0
    for made, other in zip(composites(recipe, sources, studio), composites(recipe, sources, drawn_twin), strict=True):
        (x1, y1, x2, y2), (left, top, right, bottom) = made.placed[0].label_xyxy, other.placed[0].label_xyxy
        # At the image's edge there is no room for it.
        if left > 0 and top > 0 and right < 96 and bottom < 96:
            inside += 1
            assert max(x1 - left, y1 - top, right - x2, bottom - y2) == pytest.approx(1.75, abs=1)
    assert inside


def test_box_around_half_of_a_defect_is_no_margin_to_label_by(toys: Any, tmp_path: Path) -> None:
    sources = block_sources(tmp_path)
    model = make_studio(toys.recipe(), sources).models[0]
    real = np.ascontiguousarray(centre(model.crop.image, SIDE))
    clean = np.full_like(real, 128)
    # Of the block, 16 px wide, the twin lacks the left half alone: the box leaves 12 px on the right of that, not 4.
    half = clean.copy()
    half[:, SIDE // 2 :] = real[:, SIDE // 2 :]
    placement: Any = SimpleNamespace(window=model.crop.window, turn=Turn())

    def label(twin: np.ndarray, margin_px: float) -> Any:
        return _own_label(replace(model, twin=twin), placement, clean, real, 14, margin_px, (96, 96))

    # Three times the class's margin, and two of the generator's pixels.
    assert label(clean, 2.0) == pytest.approx(model.crop.xyxy, abs=1)
    assert label(half, 4.0)[2] == pytest.approx(model.crop.xyxy[2] + 8, abs=2)
    assert label(half, 2.0) is None


class FaintTail(Blobs):
    """The right half of each blob is so faint that it is no visible change by itself."""

    def __call__(self, windows: np.ndarray, regions: np.ndarray, class_ids: Sequence[int], **options: Any) -> Any:
        output = super().__call__(windows, regions, class_ids, **options)
        for image, window, region in zip(output.images, windows, regions, strict=True):
            xs = np.nonzero(region.any(axis=0))[0]
            half = np.s_[:, (xs[0] + xs[-1]) // 2 :]
            image[half] = np.where(image[half] < window[half], window[half] - np.uint8(15), window[half])
        return output


def test_label_follows_a_faint_end_unless_the_annotators_margin_holds_it(toys: Any, demo_sources: Sources) -> None:
    place = {"per_image": (1, 1), "scale": (1.5, 1.5)}
    recipe = toys.recipe(inpaint=FROM_PLACE, place=place, synth={"num_images": 12, "clean_share": 0})
    widths = {}
    for margin in (0.0, 1.0):
        studio = replace(make_studio(recipe, demo_sources, margin=margin), pipeline=FaintTail())
        boxes = [one.changed_xyxy for made in composites(recipe, demo_sources, studio) for one in made.placed]
        widths[margin] = np.mean([x2 - x1 for x1, _, x2, _ in boxes])
    assert widths[0.0] > 1.2 * widths[1.0]


def test_labels_do_not_overlap(toys: Any, demo_sources: Sources) -> None:
    recipe = toys.recipe(inpaint=FROM_PLACE, place={"per_image": (3, 3)}, synth={"num_images": 8, "clean_share": 0})
    pairs = 0
    for composite in composites(recipe, demo_sources, make_studio(recipe, demo_sources, margin=2)):
        labels = [placed.label_xyxy for placed in composite.placed]
        for number, label in enumerate(labels):
            assert all(iou_xyxy(label, other) == 0 for other in labels[:number])
            pairs += number
    assert pairs > 5


def test_windows_are_drawn_in_batches_of_one_size_with_seeds_of_their_own(
    recipe: Any, demo_sources: Sources, studio: Studio
) -> None:
    composites(recipe, demo_sources, studio)
    blobs: Any = studio.pipeline
    assert len({shape for shape, _ in blobs.calls}) == 1
    seeds = [seed for _, batch in blobs.calls for seed in batch]
    assert len(seeds) == len(set(seeds)) > 30


def test_scores_of_the_screen_are_kept(toys: Any, demo_sources: Sources) -> None:
    recipe = toys.recipe(inpaint=FROM_PLACE, screen={"classifier": True, "min_probability": 0.2})
    studio = make_studio(recipe, demo_sources, screen=Verdict([0.21, 0.21, 0.21, 0.21, 0.16]))
    placed = [placed for composite in composites(recipe, demo_sources, studio) for placed in composite.placed]
    assert placed and all(one.placement["probability"] == 0.21 for one in placed)


@pytest.mark.parametrize(
    ("probabilities", "reason"),
    [((0.1, 0.1, 0.1, 0.1, 0.6), "taken for clean"), ((0.39, 0.39, 0.39, 0.39, 0), "taken for another class")],
)
def test_screen_that_refuses_all_fails_with_counted_reasons(
    toys: Any, demo_sources: Sources, probabilities: tuple[float, ...], reason: str
) -> None:
    recipe = toys.recipe(
        inpaint=FROM_PLACE,
        screen={"classifier": True, "max_attempts": 2},
        synth={"clean_share": 0, "max_tries": 3},
    )
    with pytest.raises(RunError) as caught:
        compose(recipe, demo_sources, make_studio(recipe, demo_sources, screen=Verdict(probabilities)), 0)
    message = str(caught.value)
    assert message.startswith("image 0: no defect was accepted on 3 clean images (")
    # 3 images, 2 rounds each, 4 windows a round.
    assert f"24 x {reason}" in message
    assert message.endswith(f"against {reason!r}: fit longer (generator.steps), or lower screen.min_probability")


def test_change_that_nobody_sees_is_refused_and_counted(toys: Any, demo_sources: Sources) -> None:
    recipe = toys.recipe(inpaint=FROM_PLACE, labels={"min_change": 255}, synth={"clean_share": 0, "max_tries": 1})
    with pytest.raises(RunError, match=r"image 2: no defect was accepted on 1 clean images \(24 x no visible change\)"):
        compose(recipe, demo_sources, make_studio(recipe, demo_sources), 2)


def test_defect_fainter_than_the_real_ones_is_refused(toys: Any, demo_sources: Sources) -> None:
    recipe = toys.recipe(
        inpaint=FROM_PLACE,
        screen={"classifier": False, "min_contrast": 0.75},
        synth={"num_images": 12, "clean_share": 0},
    )
    made = composites(recipe, demo_sources, make_studio(recipe, demo_sources, least_contrast=100))
    refused = [one.detail for composite in made for one in composite.rejected if one.reason == "fainter than real ones"]
    assert refused and all(detail.endswith("at least 75") for detail in refused)
    assert all(int(detail.split()[1]) <= 75 for detail in refused)
    for composite in made:
        change = cv2.absdiff(composite.image, read_rgb(composite.source.path)).max(axis=2)
        for placed in composite.placed:
            assert change[composite.mask == placed.class_id + 1].max() >= 75


def test_change_far_smaller_than_asked_is_refused(toys: Any, demo_sources: Sources) -> None:
    recipe = toys.recipe(
        inpaint=FROM_PLACE, labels={"min_area_fraction": 1.0}, synth={"clean_share": 0, "num_images": 8}
    )
    accepted = []
    for index in range(8):
        try:
            composite = compose(recipe, demo_sources, make_studio(recipe, demo_sources), index)
        except RunError as error:
            assert "smaller than asked" in str(error)
            continue
        accepted += composite.placed
    for placed in accepted:
        (a1, b1, a2, b2), (x1, y1, x2, y2) = placed.label_xyxy, placed.asked_xyxy
        assert (a2 - a1) * (b2 - b1) >= (x2 - x1) * (y2 - y1)


def test_refusals_of_an_accepted_image_are_kept_with_class_and_value(toys: Any, demo_sources: Sources) -> None:
    recipe = toys.recipe(
        inpaint=FROM_PLACE,
        screen={"classifier": True},
        synth={"clean_share": 0},
        place={"per_image": (3, 3)},
    )
    studio = make_studio(recipe, demo_sources, screen=Verdict([0.9, 0.9, 0.1, 0.1, 0]))
    made = composites(recipe, demo_sources, studio)
    assert {placed.class_id for composite in made for placed in composite.placed} <= {0, 1}
    refused = [one for composite in made for one in composite.rejected]
    assert {one.class_id for one in refused if one.reason == "taken for another class"} == {2, 3}
    screened = [one for one in refused if one.reason == "taken for another class"]
    assert {one.detail for one in screened if one.class_id == 2} == {"probability 0.10 of its class, at least 0.40"}


@pytest.mark.parametrize("backend", ["paste", "poisson"])
def test_other_back_ends_place_patches_drawn_from_noise(toys: Any, fitted: Any, backend: str) -> None:
    recipe = toys.recipe(inpaint={"backend": backend}, synth={"clean_share": 0})
    studio = load_studio(recipe, fitted.sources, fitted.out / "generator")
    one, again = (compose(recipe, fitted.sources, studio, 0) for _ in range(2))
    assert one.placed and one == again and (one.image == again.image).all()
    assert (changed(one) & (one.mask > 0)).any()


class Recording:
    """The fitted pipeline; keeps what it was given and what it drew."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.given: list[tuple[np.ndarray, np.ndarray | None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, windows: np.ndarray, *args: Any, patches: np.ndarray | None, **options: Any) -> DefectOutput:
        self.given.append((windows, patches))
        return self.pipeline(windows, *args, patches=patches, **options)


@pytest.mark.parametrize("start", ["copy", "place", "patch"])
def test_drawing_starts_from_what_the_recipe_says(toys: Any, fitted: Any, start: str) -> None:
    recipe = toys.recipe(
        inpaint={"backend": "diffusion", "strength": 0.5, "start": start}, synth={"clean_share": 0, "max_tries": 1}
    )
    studio = load_studio(recipe, fitted.sources, fitted.out / "generator")
    recording = Recording(studio.pipeline)
    try:
        compose(recipe, fitted.sources, replace(studio, pipeline=recording), 0)
    except RunError as error:
        assert "no defect was accepted" in str(error)
    windows, patches = recording.given[0]
    assert patches is not None and patches.shape == (4, SIDE, SIDE, 4) and patches.dtype == np.uint8
    assert np.array_equal(patches[..., :3], windows) == (start == "place")


def test_what_the_model_cannot_render_of_a_copy_is_not_drawn_away(toys: Any, fitted: Any) -> None:
    # An untrained model renders nothing well. At the noise it is shown the copy itself at, it changes nothing either.
    recipe = toys.recipe(
        inpaint={"backend": "diffusion", "start": "copy", "strength": (HARDLY_NOISED, HARDLY_NOISED), "num_steps": 1},
        place={"per_image": (1, 1)},
        synth={"num_images": 4, "clean_share": 0},
    )
    studio = load_studio(recipe, fitted.sources, fitted.out / "generator")
    for composite in composites(recipe, fitted.sources, studio):
        (placed,) = composite.placed
        window = Window(*placed.placement["window"])
        turn = Turn(**{name: placed.placement[name] for name in Turn.__dataclass_fields__})
        clean = read_rgb(composite.source.path)
        copy, _ = copied_in(recipe, fitted.sources, studio, placed.placement["model"], turn, window, clean)
        in_full = cv2.erode((composite.mask > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        apart = np.abs(composite.image.astype(int) - copy)[in_full]
        assert in_full.any() and np.median(apart) <= 1


def test_base_defective_keeps_the_real_defects_and_no_synthetic_one_touches_them(
    toys: Any, demo_sources: Sources
) -> None:
    recipe = toys.recipe(
        data={"base": "defective"},
        inpaint=FROM_PLACE,
        place={"per_image": (2, 3)},
        synth={"num_images": 10, "clean_share": 0.5},
    )
    assert clean_indexes(recipe) == frozenset()
    num_kept = 0
    for composite in composites(recipe, demo_sources, make_studio(recipe, demo_sources, margin=2)):
        assert composite.source in demo_sources.train
        assert composite.kept == composite.source.annotations and composite.placed
        for annotation in composite.kept:
            num_kept += 1
            assert all(iou_xyxy(placed.label_xyxy, annotation.xyxy) == 0 for placed in composite.placed)
            assert not inside(annotation.xyxy, composite.mask).any()
            assert not inside(annotation.xyxy, changed(composite)).any(), "pixels of a real defect changed"
    assert num_kept >= 10


@pytest.mark.parametrize("base", ["clean", "defective"])
def test_what_a_region_changes_past_its_box_is_no_other_defects(toys: Any, demo_sources: Sources, base: str) -> None:
    refused = num_others = 0
    for seed in range(8):
        recipe = toys.recipe(
            seed=seed,
            data={"base": base},
            inpaint=FROM_PLACE,
            place={"per_image": (6, 6)},
            synth={"num_images": 8, "clean_share": 0},
        )
        # Blobs that nearly fill their regions, which reach past the boxes.
        studio = replace(make_studio(recipe, demo_sources), pipeline=Blobs(margin=1))
        for composite in composites(recipe, demo_sources, studio):
            refused += sum(one.detail.endswith("of its pixels changed") for one in composite.rejected)
            visible = changed(composite)
            for annotation in composite.kept:
                num_others += 1
                assert not inside(annotation.xyxy, visible).any()
            for placed in composite.placed:
                num_others += 1
                mask = inside(placed.changed_xyxy, composite.mask == placed.class_id + 1)
                assert mask.any(axis=0)[[0, -1]].all() and mask.any(axis=1)[[0, -1]].all()
    assert refused > 0 and num_others > 100


def write_mask(path: Path, size_wh: tuple[int, int] = (128, 128), *, left: int = 0, right: int = 0) -> Path:
    mask = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    mask[:, left:right] = 255
    path.write_bytes(encode_image(mask, "png"))
    return path


def masked_recipe(toys: Any, mask: Path) -> Any:
    return toys.recipe(
        inpaint=FROM_PLACE,
        place={"region_mask": str(mask)},
        synth={"num_images": 8, "clean_share": 0, "max_tries": 2},
    )


def test_defects_are_asked_for_where_the_mask_is_white(toys: Any, demo_sources: Sources, tmp_path: Path) -> None:
    recipe = masked_recipe(toys, write_mask(tmp_path / "mask.png", left=64, right=128))
    boxes = [
        placed.asked_xyxy
        for composite in composites(recipe, demo_sources, make_studio(recipe, demo_sources))
        for placed in composite.placed
    ]
    assert len(boxes) >= 8 and min(box[0] for box in boxes) >= 63.5
    for composite in composites(recipe, demo_sources, make_studio(recipe, demo_sources)):
        assert not changed(composite)[:, :64].any()


def test_mask_that_denies_everything_leaves_no_place(toys: Any, demo_sources: Sources, tmp_path: Path) -> None:
    recipe = masked_recipe(toys, write_mask(tmp_path / "mask.png"))
    # 2 images, 6 rounds, 4 windows.
    with pytest.raises(RunError, match=r"no defect was accepted on 2 clean images \(8 x no fitting place\)"):
        compose(recipe, demo_sources, make_studio(recipe, demo_sources), 0)


def test_folder_of_masks_is_looked_up_by_the_name_of_the_image(
    toys: Any, demo_sources: Sources, tmp_path: Path
) -> None:
    for image in demo_sources.train_clean:
        write_mask(tmp_path / image.name, right=64)
    recipe = masked_recipe(toys, tmp_path)
    studio = make_studio(recipe, demo_sources)
    composite = compose(recipe, demo_sources, studio, 0)
    assert composite.placed and max(placed.asked_xyxy[2] for placed in composite.placed) <= 64.5
    base = base_image(recipe, demo_sources, 0, attempt=0)
    (tmp_path / base.name).unlink()
    with pytest.raises(
        DataError, match=rf"{tmp_path}: place\.region_mask has no image named {Path(base.name).stem}\.\*"
    ):
        compose(recipe, demo_sources, studio, 0)


def test_mask_of_another_size_names_both_sizes(toys: Any, demo_sources: Sources, tmp_path: Path) -> None:
    recipe = masked_recipe(toys, write_mask(tmp_path / "mask.png", (64, 32), right=64))
    with pytest.raises(
        DataError,
        match=r"mask\.png: place\.region_mask must have the size of part\d+_a\.png, 128x128, got 64x32; resize it",
    ):
        compose(recipe, demo_sources, make_studio(recipe, demo_sources), 0)


def test_region_at_the_scale_of_a_window_keeps_its_corners() -> None:
    region = np.zeros((4, 4), bool)
    region[0, 0] = region[3, 3] = True
    scaled = scaled_region(region, 8)
    assert scaled.sum() == 8 and scaled[:2, :2].all() and scaled[6:, 6:].all()
