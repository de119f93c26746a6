"""One image of the data set: a pure function of (recipe, fitted studio, image index)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from defectgen.boxes import area, iou_xyxy, mask_xyxy, union
from defectgen.copies import copied_in
from defectgen.data.region import allowed_region
from defectgen.dataset.labels import (
    CUT_BORDER,
    LEAST_OWN_MARGIN,
    MOST_OWN_MARGIN,
    contrast,
    cut_off,
    even_margin,
    label_box,
    measure,
    own_margin,
    visible_part,
    window_view,
)
from defectgen.errors import RunError
from defectgen.images import read_rgb, sha256_file
from defectgen.inpaint.backends import composite
from defectgen.inpaint.placement import Model, Placement, draw_scale, draw_turn, find_place
from defectgen.recipe import Recipe
from defectgen.records import XYXY, Composite, LabelledImage, PlacedDefect, Rejection, Sources
from defectgen.seeds import derive_seed, numpy_rng
from defectgen.studio import Studio
from defectgen.windows import crop_window, inside_at, resize

if TYPE_CHECKING:
    from defectgen.diffusion.pipelines import DefectInpaintPipeline, DefectOutput

NO_PLACE = "no fitting place"
# At this strength the model gives back what it is shown, as well as it can.
HARDLY_NOISED = 0.05
# Windows drawn together. Fixed, since the size of a batch changes the last bits of what is drawn in it.
MICRO_BATCH = 4
# So many real defects are tried for one that has a place like its own, each in so many turns and sizes: tried in one,
# those that stand on plain product would be followed nearly always.
MODELS_TRIED, TURNS_TRIED = 8, 6
# So many of these searches without a place are made for a class on one image: the next would take as long.
SEARCHES = 4

_LESS_STRICT = "fit longer (generator.steps), or lower screen.min_probability"
# By the reason of the refusals, where all tries for an image were refused.
_REMEDIES = {
    NO_PLACE: "add clean images, set place.flip or place.quarter_turns, or lower place.per_image",
    "taken for clean": _LESS_STRICT,
    "taken for another class": _LESS_STRICT,
    "cut off by its region": "fit longer (generator.steps), or lower inpaint.strength",
    "no visible change": "fit longer (generator.steps), or lower labels.min_change",
    "fainter than real ones": "fit longer (generator.steps), or lower screen.min_contrast",
    "smaller than asked": "fit longer (generator.steps), or lower labels.min_area_fraction",
    # Where nothing is placed, it is the label of a real defect.
    "overlaps another label": "raise place.max_overlap",
}


# A refused drawing: why, and its window before and after, both uint8 (p, p, 3) at the generator's scale.
Watch = Callable[[Rejection, np.ndarray, np.ndarray], None]


@dataclass
class _Canvas:
    """An image in the making: what it shows so far, what changed, and the labels it carries."""

    image: np.ndarray
    mask: np.ndarray
    kept: list[XYXY]
    placed: list[PlacedDefect]


def compose(recipe: Recipe, sources: Sources, studio: Studio, index: int, *, watch: Watch | None = None) -> Composite:
    """Image `index` of the set. `watch` is shown every drawing that is refused.

    Raises:
        RunError: no defect was accepted on any of the clean images tried.
    """
    if index in clean_indexes(recipe):
        base = base_image(recipe, sources, index, attempt=0)
        image = read_rgb(base.path)
        return Composite(
            index, image, np.zeros(image.shape[:2], np.uint8), base, sha256_file(base.path), base.annotations, (), ()
        )
    rejected: list[Rejection] = []
    for attempt in range(recipe.synth.max_tries):
        base = base_image(recipe, sources, index, attempt=attempt)
        canvas = _fill(recipe, sources, studio, base, index, attempt, rejected, watch)
        if canvas.placed:
            return Composite(
                index,
                canvas.image,
                canvas.mask,
                base,
                sha256_file(base.path),
                base.annotations,
                tuple(canvas.placed),
                tuple(rejected),
            )
    reasons: dict[str, int] = {}
    for one in rejected:
        reasons[one.reason] = reasons.get(one.reason, 0) + 1
    often = sorted(reasons, key=lambda reason: -reasons[reason])
    listed = ", ".join(f"{reasons[reason]} x {reason}" for reason in often)
    raise RunError(
        f"image {index}: no defect was accepted on {recipe.synth.max_tries} clean images ({listed}); look at "
        f"`defectgen synth RECIPE --preview 8`; against {often[0]!r}: {_REMEDIES[often[0]]}"
    )


def clean_indexes(recipe: Recipe) -> frozenset[int]:
    """Which images of the set stay clean."""
    num_images = recipe.synth.num_images
    count = round(recipe.synth.clean_share * num_images) if recipe.data.base == "clean" else 0
    order = numpy_rng(recipe.seed, "which stay clean").permutation(num_images)
    return frozenset(int(i) for i in order[: min(count, num_images - 1)])


def base_image(recipe: Recipe, sources: Sources, index: int, *, attempt: int) -> LabelledImage:
    """The clean image that image `index` is made from: all are used equally often."""
    bases = sources.train_clean if recipe.data.base == "clean" else sources.train
    lap, position = divmod(index + attempt * 7919, len(bases))
    return bases[int(numpy_rng(recipe.seed, "bases", lap).permutation(len(bases))[position])]


def _fill(
    recipe: Recipe,
    sources: Sources,
    studio: Studio,
    base: LabelledImage,
    index: int,
    attempt: int,
    rejected: list[Rejection],
    watch: Watch | None,
) -> _Canvas:
    image = read_rgb(base.path)
    canvas = _Canvas(image, np.zeros(image.shape[:2], np.uint8), [a.xyxy for a in base.annotations], [])
    rng = numpy_rng(recipe.seed, "image", index, attempt)
    by_class: dict[int, list[int]] = {}
    for number in studio.followed:
        model = studio.models[number]
        by_class.setdefault(model.crop.class_id or 0, []).append(number)
    low, high = recipe.place.per_image
    classes = sorted(by_class)
    shares = None
    if recipe.place.class_weights:
        weights = np.array([recipe.place.class_weights.get(sources.class_names[number], 1.0) for number in classes])
        shares = weights / weights.sum()
    wanted = [int(rng.choice(classes, p=shares)) for _ in range(int(rng.integers(low, high + 1)))]
    allowed = allowed_region(recipe, base)
    searched: Counter[int] = Counter()
    for round_number in range(recipe.screen.max_attempts * math.ceil(len(wanted) / MICRO_BATCH)):
        wanted = [class_id for class_id in wanted if searched[class_id] < SEARCHES]
        if not wanted:
            break
        candidates: list[tuple[int, Placement]] = []
        for number in range(MICRO_BATCH):
            slot = number % len(wanted)
            if searched[wanted[slot]] == SEARCHES:
                continue
            taken = [
                *canvas.kept,
                *(one.label_xyxy for one in canvas.placed),
                *(placement.asked_xyxy for other, placement in candidates if other != slot),
            ]
            placement = _place(recipe, studio, canvas.image, by_class[wanted[slot]], taken, allowed, rng)
            if placement is None:
                searched[wanted[slot]] += 1
                rejected.append(
                    Rejection(wanted[slot], NO_PLACE, f"none free that is like that of up to {MODELS_TRIED} models")
                )
            else:
                candidates.append((slot, placement))
        if not candidates:
            continue
        placements = [placement for _, placement in candidates]
        drawn = _draw(recipe, sources, studio, canvas.image, placements, (index, attempt, round_number))
        filled: set[int] = set()
        for number, (slot, placement) in enumerate(candidates):
            if slot in filled:
                continue
            verdict = _judge(recipe, studio, canvas, placement, drawn[number])
            if isinstance(verdict, Rejection):
                rejected.append(verdict)
                if watch is not None:
                    before = window_view(canvas.image, placement.window, recipe.generator.window_px)
                    watch(verdict, before, drawn[number].image)
            else:
                filled.add(slot)
        # What was refused waits until all others have been tried: a hard class would keep easy ones from their turn.
        unfilled = [class_id for slot, class_id in enumerate(wanted[:MICRO_BATCH]) if slot not in filled]
        wanted = wanted[MICRO_BATCH:] + unfilled
    return canvas


def _place(
    recipe: Recipe,
    studio: Studio,
    image: np.ndarray,
    numbers: Sequence[int],
    taken: Sequence[XYXY],
    allowed: np.ndarray | None,
    rng: np.random.Generator,
) -> Placement | None:
    """A place for a real defect of the class (`numbers` into studio.models); another one where it has none.

    All are followed equally often. Taking the one whose place fits best instead would follow the small and faint ones:
    on flat product, which is what most of an image is like, nothing differs.
    """
    for number in rng.permutation(np.asarray(numbers))[:MODELS_TRIED]:
        for _ in range(TURNS_TRIED):
            placement = find_place(
                image,
                studio.models,
                int(number),
                turn=draw_turn(rng, recipe.place),
                scale=draw_scale(rng, recipe.place),
                taken=taken,
                max_overlap=recipe.place.max_overlap,
                allowed=allowed,
                top=recipe.place.top,
                rng=rng,
            )
            if placement is not None:
                return placement
    return None


@dataclass(frozen=True)
class _Drawn:
    """A window with a defect in it: `image` uint8 (p, p, 3), `outline` uint8 (p, p), 255 on the defect.

    `start`, uint8 (side, side, 3), is what it was drawn over, in image pixels, and `copied`, bool (side, side), where
    in it a real defect was copied; None for the clean window. `strength`: of the drawing; None for a blended patch.
    """

    image: np.ndarray
    outline: np.ndarray
    start: np.ndarray | None = None
    copied: np.ndarray | None = None
    strength: float | None = None


def _draw(
    recipe: Recipe,
    sources: Sources,
    studio: Studio,
    image: np.ndarray,
    placements: Sequence[Placement],
    key: tuple[int, int, int],
) -> list[_Drawn]:
    """The defect of each placement, drawn in one padded micro-batch."""
    config = recipe.inpaint
    padded = [*placements, *[placements[0]] * (MICRO_BATCH - len(placements))]
    seeds = [derive_seed(recipe.seed, "draw", *key, number) for number in range(MICRO_BATCH)]
    class_ids = [placement.class_id for placement in padded]
    if config.backend != "diffusion":
        return _patches(recipe, studio, padded, seeds)[: len(placements)]
    window_px = recipe.generator.window_px
    strength = float(numpy_rng(recipe.seed, "strength", *key).uniform(*config.strength))
    windows = np.stack([window_view(image, placement.window, window_px) for placement in padded])
    starts = [_Drawn(window, placement.outline) for window, placement in zip(windows, padded, strict=True)]
    if config.start == "patch" and strength < 1:
        starts = _patches(recipe, studio, padded, seeds)
    if config.start == "copy" and strength < 1:
        starts = []
        for placement in padded:
            with_copy, copied = copied_in(
                recipe, sources, studio, placement.model, placement.turn, placement.window, image
            )
            copy = crop_window(with_copy, placement.window)
            starts.append(_Drawn(resize(copy, window_px), placement.outline, copy, copied))
    regions = np.stack([placement.region for placement in padded])
    patches = np.stack([np.concatenate([start.image, start.outline[..., None]], axis=2) for start in starts])
    draw = studio.pipeline if starts[0].copied is None else partial(redraw, studio.pipeline)
    output = draw(
        windows,
        regions,
        class_ids,
        seeds=seeds,
        patches=patches,
        strength=strength,
        num_steps=config.num_steps,
        guidance=config.guidance,
    )
    drawn = [
        _Drawn(image, np.round(mask * 255).astype(np.uint8), start.start, start.copied, strength)
        for image, mask, start in zip(output.images, output.masks, starts, strict=True)
    ]
    return drawn[: len(placements)]


def redraw(
    pipeline: DefectInpaintPipeline,
    windows: np.ndarray,
    regions: np.ndarray,
    class_ids: Sequence[int],
    *,
    patches: np.ndarray,
    strength: float,
    num_steps: int,
    **settings: Any,
) -> DefectOutput:
    """`pipeline` drawing over copies, of which it keeps what it cannot render: arguments and result are the pipeline's.

    What drawing changed is what differs from how the model renders the copy itself. Against the copy, all that a small
    model cannot render (highlights, crisp edges) would count as drawn away.
    """
    output = pipeline(windows, regions, class_ids, patches=patches, strength=strength, num_steps=num_steps, **settings)
    rendered = pipeline(
        windows, regions, class_ids, patches=patches, strength=HARDLY_NOISED, num_steps=1, **settings
    ).images
    lost = np.where(regions[..., None], patches[..., :3].astype(np.int16) - rendered, 0)
    output.images = np.clip(output.images + lost, 0, 255).astype(np.uint8)
    return output


def _patches(recipe: Recipe, studio: Studio, placements: Sequence[Placement], seeds: Sequence[int]) -> list[_Drawn]:
    """Patches drawn from noise, moved and scaled so that their masks fill the outlines asked for."""
    from defectgen.diffusion.pipelines import DefectPatchPipeline

    pipeline = DefectPatchPipeline(
        studio.pipeline.unet,
        studio.pipeline.scheduler,
        studio.pipeline.config.class_names,
        studio.pipeline.config.window_px,
    )
    output = pipeline(
        [placement.class_id for placement in placements],
        seeds=[derive_seed(seed, "patch") for seed in seeds],
        num_steps=recipe.inpaint.num_steps,
        guidance=recipe.inpaint.guidance,
    )
    patches = []
    for image, mask, placement in zip(output.images, output.masks, placements, strict=True):
        asked = cv2.boundingRect((placement.outline >= 128).astype(np.uint8))
        drawn = cv2.boundingRect((mask >= 0.5).astype(np.uint8))
        if drawn[2] == 0 or asked[2] == 0:
            drawn = asked = (0, 0, *mask.shape[::-1])
        scale_x, scale_y = asked[2] / drawn[2], asked[3] / drawn[3]
        matrix = np.array(
            [[scale_x, 0, asked[0] - scale_x * drawn[0]], [0, scale_y, asked[1] - scale_y * drawn[1]]], np.float32
        )
        size = mask.shape[::-1]
        moved = cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REFLECT_101)
        outline = cv2.warpAffine(np.round(mask * 255).astype(np.uint8), matrix, size)
        patches.append(_Drawn(moved, outline))
    return patches


def _judge(
    recipe: Recipe, studio: Studio, canvas: _Canvas, placement: Placement, drawn: _Drawn
) -> PlacedDefect | Rejection:
    """The placed defect, after `canvas` carries it; or why it was refused."""
    window_px = recipe.generator.window_px
    min_change = recipe.labels.min_change
    before = window_view(canvas.image, placement.window, window_px)

    def refuse(reason: str, detail: str) -> Rejection:
        assert reason in _REMEDIES
        return Rejection(placement.class_id, reason, detail)

    if recipe.inpaint.backend == "diffusion":
        share = cut_off(drawn.image, before, placement.region, min_change=min_change)
        if share > CUT_BORDER:
            return refuse("cut off by its region", f"{share:.2f} of the border changed, at most {CUT_BORDER}")
    image = composite(
        canvas.image,
        placement.window,
        drawn.image,
        outline=drawn.outline,
        region=placement.region,
        backend=recipe.inpaint.backend,
        feather_px=recipe.inpaint.feather_px,
        start=drawn.start,
    )
    margin_px = studio.margins[placement.class_id] if recipe.labels.margin == "auto" else 0.0
    measured = measure(
        image,
        canvas.image,
        placement.window,
        min_change=min_change,
        window_px=window_px,
        # The annotators' margin holds the faint rim already.
        weak_change=None if margin_px else max(min_change // 2, 1),
        expected=drawn.copied,
    )
    if measured is None:
        return refuse("no visible change", f"no pixel changed by {min_change} grey levels")
    size_wh = (image.shape[1], image.shape[0])
    evenly = label_box(measured.xyxy, even_margin(measured.xyxy, margin_px), size_wh)
    label = evenly
    after = window_view(image, placement.window, window_px)
    if margin_px and drawn.copied is not None:
        own = _own_label(studio.models[placement.model], placement, before, after, min_change, margin_px, size_wh)
        label = evenly if own is None else union(own, measured.xyxy)
    seen = contrast(after, before, min_change=min_change)
    least = recipe.screen.min_contrast * studio.least_contrasts[placement.class_id]
    if seen < least:
        return refuse("fainter than real ones", f"contrast {seen:.0f} grey levels, at least {least:.0f}")
    # A speck with the margin of a defect would be as large as one.
    share = area(evenly) / area(placement.asked_xyxy)
    if share < recipe.labels.min_area_fraction:
        smallest = recipe.labels.min_area_fraction
        return refuse("smaller than asked", f"{share:.2f} of the box asked for, at least {smallest}")
    others = [*canvas.kept, *(one.label_xyxy for one in canvas.placed)]
    overlap = max((iou_xyxy(label, other) for other in others), default=0.0)
    if overlap > recipe.place.max_overlap:
        return refuse("overlaps another label", f"IoU {overlap:.2f}, at most {recipe.place.max_overlap}")
    # A region reaches past its box: what it changes there may be another defect's.
    taken = canvas.mask > 0
    for x1, y1, x2, y2 in canvas.kept:
        taken[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)] = True
    touched = int((taken & np.any(image != canvas.image, axis=2)).sum())
    if touched and recipe.place.max_overlap == 0:
        return refuse("overlaps another label", f"{touched} of its pixels changed")
    scores: dict[str, Any] = {} if drawn.strength is None else {"strength": round(drawn.strength, 3)}
    if recipe.screen.classifier:
        probabilities = studio.screen.probabilities(after, placement.region, model=placement.model)
        probability = float(probabilities[placement.class_id])
        threshold = studio.screen.threshold(placement.class_id, recipe.screen.min_probability, model=placement.model)
        if probability < threshold:
            clean = int(probabilities.argmax()) == len(probabilities) - 1
            reason = "taken for clean" if clean else "taken for another class"
            return refuse(reason, f"probability {probability:.2f} of its class, at least {threshold:.2f}")
        scores["probability"] = round(probability, 2)
    placed = PlacedDefect(
        class_id=placement.class_id,
        label_xyxy=label,
        changed_xyxy=measured.xyxy,
        polygons=measured.polygons,
        asked_xyxy=placement.asked_xyxy,
        placement=placement.to_json() | scores,
    )
    canvas.image = image
    canvas.mask[measured.mask] = placement.class_id + 1
    canvas.placed.append(placed)
    return placed


def _own_label(
    model: Model,
    placement: Placement,
    before: np.ndarray,
    after: np.ndarray,
    min_change: int,
    margin_px: float,
    size_wh: tuple[int, int],
) -> XYXY | None:
    """The label of a redrawn copy, with the margin of its own model; None where the model has no box, nothing is seen,
    or that margin is far above `margin_px`, its class's.

    What is visible is measured alike of both, at the generator's scale, so that what the measure misses of a defect, or
    its twin gets wrong, is in neither.
    """
    if model.crop.outlined:
        return None
    at_least = 0.0 if model.photographed else LEAST_OWN_MARGIN * margin_px
    at_most = MOST_OWN_MARGIN * margin_px + 2 * model.crop.window.side / len(after)
    margin = own_margin(model.crop, model.twin, min_change=min_change, at_least=at_least)
    # Beyond the edges of its image the window shows mirror images.
    inside = inside_at(placement.window, size_wh, len(after))
    seen = mask_xyxy(visible_part(after, before, min_change=min_change) & inside)
    if margin is None or seen is None or max(margin) > at_most:
        return None
    return label_box(placement.window.to_image(seen, len(after)), placement.turn.sides(margin), size_wh)
