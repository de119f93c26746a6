from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import defectgen.inpaint.placement as placement_module
from defectgen.boxes import iou_xyxy
from defectgen.crops import Crop, annotation_mask, centre, crop_side, with_surroundings
from defectgen.inpaint.placement import Model, Placement, Turn, annotated_box, draw_scale, draw_turn, find_place
from defectgen.recipe import Place
from defectgen.records import XYXY, Annotation
from defectgen.windows import crop_window, resize, window_at, window_side

WINDOW_PX = 32


def product(seed: int, width: int = 160, height: int = 120) -> np.ndarray:
    """A product image of soft, coarse texture."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 5), None, 70, 170, cv2.NORM_MINMAX)


def with_spot(image: np.ndarray, x: int, y: int) -> np.ndarray:
    """`image` with a cross on a dark pad, centred at (x, y): the kind of place where the defect occurs."""
    out = image.copy()
    out[y - 14 : y + 14, x - 14 : x + 14] = 10
    out[y - 10 : y + 10, x - 3 : x + 3] = (250, 220, 40)
    out[y - 3 : y + 3, x - 14 : x + 4] = (250, 40, 40)
    return out


def model_of(clean: np.ndarray, xyxy: XYXY, class_id: int = 0) -> Model:
    """The model that a defect marked at `xyxy` of `clean` makes."""
    size_wh = (clean.shape[1], clean.shape[0])
    side = window_side(xyxy, size_wh, window_px=WINDOW_PX, context_factor=2.0)
    window = window_at(((xyxy[0] + xyxy[2]) / 2, (xyxy[1] + xyxy[3]) / 2), side, size_wh)
    around = with_surroundings(window, WINDOW_PX)

    def cut(array: np.ndarray) -> np.ndarray:
        return resize(crop_window(array, around), crop_side(WINDOW_PX))

    x1, y1, x2, y2 = xyxy
    touches = (x1 <= 1.5, y1 <= 1.5, x2 >= size_wh[0] - 1.5, y2 >= size_wh[1] - 1.5)
    mask = cut(annotation_mask(Annotation(class_id, xyxy), size_wh))
    crop = Crop(cut(clean), mask, class_id, "part.png", 0, window, xyxy, touches=touches)
    return Model(crop, centre(crop.image, WINDOW_PX))


def place(
    image: np.ndarray,
    model: Model,
    *,
    turn: Turn | None = None,
    scale: float = 1.0,
    taken: tuple[XYXY, ...] = (),
    max_overlap: float = 0.0,
    allowed: np.ndarray | None = None,
    top: int = 1,
    seed: int = 0,
) -> Placement | None:
    return find_place(
        image,
        [model],
        0,
        turn=turn or Turn(),
        scale=scale,
        taken=taken,
        max_overlap=max_overlap,
        allowed=allowed,
        top=top,
        rng=np.random.default_rng(seed),
    )


def found(image: np.ndarray, model: Model, **options) -> Placement:
    placement = place(image, model, **options)
    assert placement is not None
    return placement


def centre_of(xyxy: XYXY) -> tuple[float, float]:
    return ((xyxy[0] + xyxy[2]) / 2, (xyxy[1] + xyxy[3]) / 2)


def test_defect_goes_where_the_image_looks_like_its_models_surroundings() -> None:
    model = model_of(with_spot(product(0), 50, 60), (40, 50, 60, 70), class_id=3)
    for x, y in [(110, 40), (30, 90), (80, 60)]:
        placement = found(with_spot(product(1), x, y), model)
        assert centre_of(placement.asked_xyxy) == pytest.approx((x, y), abs=3)
        assert placement.class_id == 3 and placement.model == 0
        x1, y1, x2, y2 = placement.asked_xyxy
        assert (x2 - x1, y2 - y1) == pytest.approx((20, 20), abs=3)


def test_its_own_place_differs_least() -> None:
    image = with_spot(product(0), 50, 60)
    model = model_of(image, (40, 50, 60, 70))
    at_home, elsewhere = found(image, model), found(with_spot(product(1), 50, 60), model)
    assert 0 <= at_home.difference < 0.8 * elsewhere.difference


@pytest.mark.parametrize("half", [6, 9, 11, 13, 15])
def test_place_is_met_to_the_pixel_whatever_the_defects_size(half: int) -> None:
    """Windows of 24 to 60 px, drawn at 32: a track that goes on a pixel beside itself is a seam."""
    image = with_spot(product(0), 60, 60)
    model = model_of(image, (60 - half, 60 - half, 60 + half, 60 + half))
    for shift in ((0, 0), (1, 0), (13, -7), (-6, 11)):
        placement = found(np.roll(image, shift, axis=(1, 0)), model)
        window = model.crop.window
        assert (placement.window.x - window.x, placement.window.y - window.y) == shift


def test_image_without_a_place_like_the_models_has_none() -> None:
    model = model_of(with_spot(product(0), 50, 60), (40, 50, 60, 70))
    assert place(product(0), model) is None
    assert place(with_spot(product(0), 110, 40), model) is not None


def test_mirrored_model_goes_to_the_mirrored_place() -> None:
    image = with_spot(product(0), 50, 60)
    model = model_of(image, (46, 50, 76, 70))
    mirrored = np.ascontiguousarray(image[:, ::-1])
    placement = found(mirrored, model, turn=Turn(flip_x=True))
    # The box is mirrored too: 160 - 76, 160 - 46.
    assert placement.asked_xyxy == pytest.approx((84, 50, 114, 70), abs=3)


def test_scale_is_the_size_over_that_of_the_model() -> None:
    model = model_of(product(0), (60, 50, 90, 60))
    for scale in (0.7, 1.0, 1.4):
        placement = found(product(1), model, scale=scale)
        x1, y1, x2, y2 = placement.asked_xyxy
        assert placement.window.side == round(60 * scale)
        assert (x2 - x1, y2 - y1) == pytest.approx((30 * scale, 10 * scale), abs=1.5 * 60 * scale / WINDOW_PX)


def test_asked_box_is_the_outlines_and_the_region_is_around_it() -> None:
    placement = found(product(1), model_of(product(0), (60, 50, 90, 60)))
    ys, xs = np.nonzero(placement.outline >= 128)
    to_image, window = placement.window.side / WINDOW_PX, placement.window
    box = (xs.min() * to_image, ys.min() * to_image, (xs.max() + 1) * to_image, (ys.max() + 1) * to_image)
    expected = np.add(box, (window.x, window.y, window.x, window.y))
    assert placement.asked_xyxy == pytest.approx(tuple(expected), abs=0.001)
    assert placement.region.shape == placement.outline.shape == (WINDOW_PX, WINDOW_PX)
    assert placement.region[placement.outline >= 128].all() and not placement.region.all()


def test_same_rng_gives_the_same_place_and_top_spreads_places() -> None:
    # Nine tiles of the same product: many places are alike.
    image = np.tile(product(0, 80, 60), (3, 3, 1))
    model = model_of(image, (90, 70, 105, 80))
    boxes = [found(image, model, top=8, seed=seed).asked_xyxy for seed in range(30)]
    assert boxes == [found(image, model, top=8, seed=seed).asked_xyxy for seed in range(30)]
    assert 2 <= len(set(boxes)) <= 9
    # Of places that differ by more than noise, the best.
    image[:, 80:] = np.clip(image[:, 80:] + np.random.default_rng(0).normal(0, 12, image[:, 80:].shape), 0, 255)
    image[60:, :80] = 255 - image[60:, :80]
    (best,) = {found(image, model, top=1, seed=seed).asked_xyxy for seed in range(10)}
    assert best == (10, 10, 25, 20)


def test_places_that_are_the_same_are_taken_all_over_the_image() -> None:
    plain = np.full((120, 160, 3), 255, np.uint8)
    model = model_of(plain, (70, 50, 90, 62))
    middles = np.array([centre_of(found(plain, model, top=8, seed=seed).asked_xyxy) for seed in range(60)])
    for middle, side in zip(middles.T, (160, 120), strict=True):
        assert ((middle < 0.4 * side).sum() > 10) and ((middle > 0.6 * side).sum() > 10)
        assert middle.mean() == pytest.approx(side / 2, rel=0.2)


def test_taken_places_are_left_out() -> None:
    image = with_spot(with_spot(product(1), 110, 40), 40, 80)
    model = model_of(with_spot(product(0), 50, 60), (40, 50, 60, 70))
    best = found(image, model).asked_xyxy
    other = found(image, model, taken=(best,)).asked_xyxy
    assert iou_xyxy(other, best) == 0
    assert found(image, model, taken=(best,), max_overlap=1.0).asked_xyxy == best


def test_no_place_is_found_where_all_is_taken_or_denied_or_too_small() -> None:
    image, model = product(1), model_of(product(0), (60, 50, 90, 60))
    assert place(image, model, taken=((0, 0, 160, 120),)) is None
    assert place(image, model, allowed=np.zeros((120, 160), bool)) is None
    narrow = np.zeros((120, 160), bool)
    narrow[50:56] = True  # 6 px high, for a defect of 10
    assert place(image, model, allowed=narrow) is None
    assert place(product(1, 28, 100), model) is None
    assert place(image, model, allowed=np.ones((120, 160), bool)) is not None


def test_model_without_a_mask_finds_no_place() -> None:
    model = model_of(product(0), (60, 50, 90, 60))
    blank = Crop(model.crop.image, np.zeros_like(model.crop.mask), 0, "part.png", 0, model.crop.window, model.crop.xyxy)
    assert place(product(1), Model(blank, model.twin)) is None


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_place_is_inside_free_and_allowed(data: st.DataObject) -> None:
    x1, y1 = data.draw(st.integers(3, 120)), data.draw(st.integers(3, 80))
    xyxy = (x1, y1, data.draw(st.integers(x1 + 2, 155)), data.draw(st.integers(y1 + 2, 115)))
    model = model_of(product(0), xyxy)
    width, height = data.draw(st.integers(40, 200)), data.draw(st.integers(40, 200))
    image = product(data.draw(st.integers(0, 5)), width, height)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    corners = [(rng.integers(width - 10), rng.integers(height - 10)) for _ in range(data.draw(st.integers(0, 4)))]
    taken = tuple(
        (float(x), float(y), float(x + rng.integers(4, 60)), float(y + rng.integers(4, 60))) for x, y in corners
    )
    max_overlap = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    allowed = np.ones((height, width), bool)
    if data.draw(st.booleans()):
        allowed[:, : width // 3] = False
    turn = Turn(data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.sampled_from([0.0, 15.0, -90.0])))
    scale = data.draw(st.sampled_from([0.5, 1.0, 1.2]))
    placement = place(
        image, model, turn=turn, scale=scale, taken=taken, max_overlap=max_overlap, allowed=allowed, top=4, seed=1
    )
    if placement is None:
        return
    left, upper, right, lower = placement.asked_xyxy
    assert 0 <= left < right <= width and 0 <= upper < lower <= height
    assert all(iou_xyxy(placement.asked_xyxy, other) <= max_overlap + 1e-3 for other in taken)
    # Every pixel whose centre the box covers.
    assert allowed[round(upper) : round(lower), round(left) : round(right)].all()
    assert placement.difference >= 0


def test_free_place_is_found_in_a_large_image_whatever_the_defect() -> None:
    for xyxy in [(80, 60, 83, 63), (20, 20, 140, 30), (70, 5, 80, 115), (60, 50, 90, 60)]:
        for seed in range(3):
            assert place(product(seed, 400, 300), model_of(product(9), xyxy)) is not None


def test_what_lies_under_the_defect_counts_for_more_than_what_lies_far_off() -> None:
    """A thin track that a gap is to cut, or the same frame of pads around nothing."""

    def board(*, track: bool, frame: bool) -> np.ndarray:
        image = np.full((120, 160, 3), 200, np.uint8)
        image[59:62, 40:120] = 30 if track else 200
        if frame:
            for x1, y1, x2, y2 in ((60, 44, 100, 48), (60, 72, 100, 76)):
                image[y1:y2, x1:x2] = 30
        return image

    model = model_of(board(track=True, frame=True), (72, 52, 88, 68))
    bare_track = place(board(track=True, frame=False), model)
    assert bare_track is not None
    x1, y1, x2, y2 = bare_track.asked_xyxy
    assert x1 > 40 and x2 < 120 and abs((y1 + y2) / 2 - 60) < 3
    assert place(board(track=False, frame=True), model) is None


EDGE_BOXES: list[XYXY] = [(0, 50, 20, 60), (140, 50, 160, 60), (70, 0, 80, 25), (70, 100, 80, 120), (0, 0, 18, 14)]


@pytest.mark.parametrize("xyxy", EDGE_BOXES)
@pytest.mark.parametrize("turn", [Turn(), Turn(flip_x=True), Turn(flip_y=True), Turn(True, True)])
def test_defect_at_an_edge_stays_at_that_edge(xyxy: XYXY, turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a corner there is one place, like it or not.
    monkeypatch.setattr(placement_module, "UNLIKE", 1e6)
    placement = found(product(1), model_of(product(0), xyxy), turn=turn)
    x1, y1, x2, y2 = placement.asked_xyxy
    near = 6  # two pixels of the generator and the grid of compared places
    left, right = (160 - x2, 160 - x1) if turn.flip_x else (x1, x2)
    top, bottom = (120 - y2, 120 - y1) if turn.flip_y else (y1, y2)
    assert left <= near or xyxy[0] > 0
    assert top <= near or xyxy[1] > 0
    assert right >= 160 - near or xyxy[2] < 160
    assert bottom >= 120 - near or xyxy[3] < 120


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.2])
def test_crack_through_the_whole_image_runs_through_it_again(scale: float) -> None:
    model = model_of(product(0, 128, 128), (0, 50, 128, 70))
    x1, y1, x2, y2 = found(product(1, 128, 128), model, scale=scale).asked_xyxy
    assert x1 <= 16 and x2 >= 112
    assert y2 - y1 == pytest.approx(20 * scale, abs=1.5 * 144 / WINDOW_PX)


def test_mirror_image_beyond_the_edge_is_not_asked_for() -> None:
    # The window reaches 8 px past the image, where the upper part of the crack is mirrored.
    model = model_of(product(0, 128, 128), (0, 3, 128, 12))
    placement = found(product(1, 128, 128), model)
    _, y1, _, y2 = placement.asked_xyxy
    assert y2 - y1 == pytest.approx(9, abs=1.5 * 144 / WINDOW_PX)


def test_edges_that_a_turned_defect_touches_by_hand() -> None:
    left_and_top = (True, True, False, False)
    assert Turn().sides(left_and_top) == left_and_top
    assert Turn(flip_x=True).sides(left_and_top) == (False, True, True, False)
    assert Turn(flip_y=True).sides(left_and_top) == (True, False, False, True)
    assert Turn(True, True).sides(left_and_top) == (False, False, True, True)
    assert Turn(angle_deg=10).sides(left_and_top) == left_and_top


@pytest.mark.parametrize("angle", [0, 90, 180, 270, -90, 365])
@pytest.mark.parametrize("flip_x", [False, True])
def test_edges_that_a_turned_defect_touches_are_where_its_pixels_come_to_lie(angle: float, flip_x: bool) -> None:
    turn = Turn(flip_x=flip_x, angle_deg=angle)
    bar = np.zeros((9, 9), np.uint8)
    bar[3:6, :4] = 255  # touches the left edge alone
    turned = turn.apply(bar) > 128
    shown = (turned[:, 0].any(), turned[0].any(), turned[:, -1].any(), turned[-1].any())
    assert turn.sides((True, False, False, False)) == shown


def test_half_as_large_is_as_frequent_as_twice_as_large() -> None:
    rng, place = np.random.default_rng(0), Place(scale=(0.5, 2))
    scales = np.array([draw_scale(rng, place) for _ in range(4000)])
    assert scales.min() >= 0.5 and scales.max() <= 2
    assert np.quantile(scales, [0.25, 0.5, 0.75]) == pytest.approx([2**-0.5, 1, 2**0.5], rel=0.05)
    assert draw_scale(rng, Place(scale=(0.7, 0.7))) == pytest.approx(0.7)


def test_turns_by_hand() -> None:
    image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    assert Turn().apply(image).tolist() == image.tolist()
    assert Turn(flip_x=True).apply(image).tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert Turn(flip_y=True).apply(image).tolist() == [[7, 8, 9], [4, 5, 6], [1, 2, 3]]
    # Counter-clockwise: the right column becomes the top row.
    assert Turn(angle_deg=90).apply(image).tolist() == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]
    # Mirrored first, then rotated: the left column comes to the top.
    assert Turn(flip_x=True, angle_deg=90).apply(image).tolist() == [[1, 4, 7], [2, 5, 8], [3, 6, 9]]
    colour = np.dstack([image] * 3)
    assert Turn(flip_x=True, angle_deg=90).apply(colour)[0, :, 2].tolist() == [1, 4, 7]


def test_drawn_turns_keep_to_what_is_allowed() -> None:
    rng = np.random.default_rng(0)
    still = [draw_turn(rng, Place(flip=False, warp=0)) for _ in range(20)]
    assert {replace(turn, warp_seed=0) for turn in still} == {Turn()}
    free = [draw_turn(rng, Place(rotate_deg=30)) for _ in range(200)]
    assert {(turn.flip_x, turn.flip_y) for turn in free} == {(x, y) for x in (False, True) for y in (False, True)}
    angles = [turn.angle_deg for turn in free]
    assert min(angles) < -20 and max(angles) > 20 and max(map(abs, angles)) <= 30
    quarters = {draw_turn(rng, Place(flip=False, quarter_turns=True)).angle_deg for _ in range(60)}
    assert quarters == {0, 90, 180, 270}


def test_bent_defect_moves_within_its_window_and_the_border_stays() -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    bent = Turn(warp=0.1, warp_seed=5).bend(image)
    assert (bent == Turn(warp=0.1, warp_seed=5).bend(image)).all()
    assert (bent != Turn(warp=0.1, warp_seed=6).bend(image)).any()
    assert (Turn().bend(image) == image).all()
    border = np.ones((80, 80), bool)
    border[2:-2, 2:-2] = False
    assert np.abs(bent[border].astype(int) - image[border]).max() <= 8
    assert np.abs(bent[30:50, 30:50].astype(int) - image[30:50, 30:50]).max() > 16


def test_bend_is_the_same_at_every_resolution() -> None:
    square = np.zeros((240, 240), np.uint8)
    square[90:150, 90:150] = 255
    turn = Turn(warp=0.06, warp_seed=1)
    small = turn.bend(cv2.resize(square, (60, 60), interpolation=cv2.INTER_AREA)) >= 128
    large = cv2.resize(turn.bend(square), (60, 60), interpolation=cv2.INTER_AREA) >= 128
    assert (small ^ large).sum() <= 0.1 * small.sum()


def test_place_is_found_to_the_pixel() -> None:
    # A track whose place the coarse search knows to a twenty-fourth of the window alone.
    real, image = np.full((200, 200, 3), 60, np.uint8), np.full((200, 200, 3), 60, np.uint8)
    real[:, 97:105], image[:, 130:138] = 200, 200
    model = model_of(real, (85, 85, 117, 115))
    placement = found(image, model)
    left_in_real, left_in_image = 97 - model.crop.window.x, 130 - placement.window.x
    assert placement.window.side == model.crop.window.side == 64
    assert abs(left_in_image - left_in_real) <= 1


def test_defect_that_touches_an_edge_is_placed_at_the_edge_to_the_pixel() -> None:
    model = model_of(product(0, 231, 180), (150, 60, 231, 100))
    gaps = [231 - found(product(seed, 231, 180), model).asked_xyxy[2] for seed in range(1, 6)]
    assert max(gaps) <= 2 * model.crop.window.side / WINDOW_PX


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize(("flip_x", "flip_y"), [(False, False), (True, False), (True, True)])
def test_annotators_box_turns_as_the_outline_does(flip_x: bool, flip_y: bool, angle: float) -> None:
    turn = Turn(flip_x, flip_y, angle)
    model = model_of(product(0), (60, 50, 90, 58))
    placement = found(product(0), model, turn=turn, scale=0.9)
    box = annotated_box(model, turn, placement.window, (160, 120))
    assert box == pytest.approx(placement.asked_xyxy, abs=placement.window.side / WINDOW_PX)


@pytest.mark.parametrize("angle", [10, 30, 45])
def test_annotators_box_of_a_turned_round_defect_is_no_larger(angle: float) -> None:
    model = model_of(product(0), (60, 40, 100, 80))
    x1, y1, x2, y2 = annotated_box(model, Turn(angle_deg=angle), model.crop.window, (160, 120))
    # The corners of a box turned by 45 degrees are 57 px apart.
    assert (x2 - x1, y2 - y1) == pytest.approx((40, 40), abs=2 * model.crop.window.side / WINDOW_PX)


def test_annotators_box_of_an_unturned_model_is_exact_and_ends_at_the_image() -> None:
    model = model_of(product(0), (60.5, 50.25, 90, 58))
    window = model.crop.window
    assert annotated_box(model, Turn(), window, (160, 120)) == (60.5, 50.25, 90, 58)
    assert annotated_box(model, Turn(warp=0.1), window, (80, 120)) == (60.5, 50.25, 80, 58)


def test_placement_is_described_by_json_values() -> None:
    placement = found(product(1), model_of(product(0), (60, 50, 90, 60)), turn=Turn(True, False, 12.5))
    described = placement.to_json()
    assert described["window"] == [placement.window.x, placement.window.y, placement.window.side]
    assert (described["flip_x"], described["flip_y"], described["angle_deg"]) == (True, False, 12.5)
    assert Turn.of_json(described) == placement.turn
    assert described["model"] == 0 and described["difference"] == pytest.approx(placement.difference, abs=0.05)
