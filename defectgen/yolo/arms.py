"""What each arm's detector sees: equally many samples, the same real share, the same background.

The plan is drawn before anything is written. Of one epoch's samples, `clean_share` are clean tiles (of the real clean
images, and of the parts of real defective images that show no defect), the same ones in every arm; of the rest,
`real_share` are real and the others synthetic, or all are real in `real` and `full-real`. Each pool is repeated evenly.
ultralytics takes the mosaic's other three images from the same list, so that they keep the same shares.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from defectgen.errors import DataError
from defectgen.images import sha256_file
from defectgen.recipe import Arm, TrainYolo
from defectgen.records import LabelledImage, Sources
from defectgen.seeds import numpy_rng
from defectgen.yolo.folder import read_yolo_folder
from defectgen.yolo.tiles import CROP_PX, Task, Tile, box_sides, crop_side, crop_tiles, cut_tiles, label_text, square

# Arms without a synthetic set: of the budget, and of all real training images.
REAL_ALONE = ("real", "full-real")
Origin = Literal["real", "synthetic", "clean"]

# Short enough that the list is repeated some ten times, long enough that an epoch's overhead does not show.
_BATCHES_PER_EPOCH = 30
# Of each clean image, to classify.
CLEAN_CROPS = 4
# Of the network: it sees sides that are multiples of so many pixels.
STRIDE = 32
# The longest side of a test image that is judged whole, in pixels as the detector sees it: a mask or a comparison per
# detection (`segment`, `obb`), or the network's attention (all pairs of its 32 px cells) fill the memory beyond it.
_LARGEST_WHOLE_PX = {"detect": 2560, "segment": 1280, "obb": 1280}
# Of the training defects at most this share is longer than half a tile where test images are judged whole.
_FEW_LONG = 0.1
_FEWEST_EPOCHS = 4


@dataclass(frozen=True)
class Sample:
    """One tile as the detector sees it; `stem` names its files in the arm's folder."""

    origin: Origin
    image: LabelledImage
    tile: Tile
    stem: str


@dataclass(frozen=True)
class Schedule:
    """`epochs` passes over a list of `batches_per_epoch` batches; the last pass ends at exactly `iterations`."""

    iterations: int
    batch: int
    batches_per_epoch: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.iterations / self.batches_per_epoch)

    @property
    def list_length(self) -> int:
        return self.batches_per_epoch * self.batch


@dataclass(frozen=True)
class ArmPlan:
    """An arm's list of one epoch.

    Attributes:
        counts: how often each sample stands in the list; all counts are at least 1.
        available: samples to choose from, per origin.
        schedule: equal iterations in every arm. How they fall into epochs depends on the arm's own samples alone, so
            that an arm more or less leaves the others as they are.
    """

    name: str
    counts: tuple[tuple[Sample, int], ...]
    available: dict[str, int]
    schedule: Schedule

    @property
    def slug(self) -> str:
        return arm_slug(self.name)


@dataclass(frozen=True)
class Plan:
    """All arms and the test set they share.

    Attributes:
        clean_stems: the test samples cut from clean images.
        num_clean_images: those images, before cutting.
        test_imgsz: longest side, in pixels, at which the detector sees a test sample.
        file_sha256: of every source file.
    """

    arms: tuple[ArmPlan, ...]
    test: tuple[Sample, ...]
    clean_stems: tuple[str, ...]
    num_clean_images: int
    test_imgsz: int
    task: Task
    num_classes: int
    file_sha256: dict[Path, str]

    def entries(self, counts: Iterable[tuple[Sample, int]]) -> list[dict[str, Any]]:
        """The list as JSON rows, for samples.json."""
        return [
            {
                "file": f"{sample.stem}.png",
                "origin": sample.origin,
                "source": str(sample.image.path),
                "source_sha256": self.file_sha256[sample.image.path],
                "tile_xyxy": list(sample.tile.xyxy),
                "labels": label_text(sample.tile, self.task).splitlines(),
                "count": count,
            }
            for sample, count in counts
        ]

    def digest(self, counts: Iterable[tuple[Sample, int]]) -> str:
        """A hash of the files' contents and counts, wherever the sources lie."""
        rows = [{**entry, "source": None} for entry in self.entries(counts)]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def arm_slug(name: str) -> str:
    """The arm's folder name: real+copy-paste -> real-copy-paste."""
    return name.replace("+", "-")


def task_of_model(model: str) -> Task:
    """What a model of that name gives: boxes, outlines (-seg), oriented boxes (-obb) or the class of a crop (-cls)."""
    endings: dict[str, Task] = {"-seg": "segment", "-obb": "obb", "-cls": "classify"}
    return endings.get(Path(model).stem[-4:], "detect")


def needs_outlines(model: str) -> bool:
    """Whether a model of that name learns from outlines, not from boxes."""
    return task_of_model(model) in ("segment", "obb")


def plan_arms(*, config: TrainYolo, sources: Sources, synthetic: dict[str, Path], seed: int) -> Plan:
    """The samples of every arm in `config.arms` and of the test set; nothing is written.

    Raises:
        DataError: no real defect, no test defect, a synthetic set missing, empty or with wrong labels, an outline
            missing for a -seg or -obb model, or a test image that is a training image.
    """
    task = task_of_model(config.model)
    outlines = needs_outlines(config.model)
    check_sources(sources, config)
    cut = _Cut.crops(sources.train) if task == "classify" else _Cut(config.tile_px)
    real, background = _split(cut(sources.train, "real"))
    if not real:
        raise DataError("train-yolo: the real training images carry no label; check data.train_labels")
    clean = [*cut(sources.train_clean, "clean"), *background]
    if task == "classify" and len(sources.class_names) == 1 and not clean:
        raise DataError(
            "train-yolo: there is one class and no clean image, so a classifier has nothing to tell apart; name clean "
            "images in data.train_clean, or set train_yolo.model to a model for boxes"
        )
    pools = dict.fromkeys(config.arms, real)
    if "full-real" in config.arms:
        pools["full-real"], _ = _split(cut(sources.train_pool, "real", prefix="pool"))
    synthetic_samples: dict[str, list[Sample]] = {}
    for name in config.arms:
        if name in REAL_ALONE:
            continue
        if name not in synthetic:
            raise DataError(f"train_yolo.arms: {name} needs a synthetic data set; make it first, or leave the arm out")
        images = read_yolo_folder(synthetic[name], class_names=sources.class_names, outlines=outlines)
        synthetic_samples[name], _ = _split(cut(images, "synthetic"))
        if not synthetic_samples[name]:
            raise DataError(f"{synthetic[name]}: holds no labelled image for arm {name}; make the data set again")

    clean_share = config.clean_share if clean else 0.0
    shared = _same_in_every_arm(clean, config, seed)
    arms = [
        _plan_arm(
            name,
            config,
            {"real": pools[name], "clean": shared, "synthetic": synthetic_samples.get(name, [])},
            clean_share,
            len(clean),
            seed,
        )
        for name in config.arms
    ]

    cut_test, test_imgsz = _cut_of_test(cut, sources, config)
    test = cut_test(sources.test, "real")
    test_clean = cut_test(sources.test_clean, "clean")
    every = [sample for arm in arms for sample, _ in arm.counts] + test + test_clean
    plan = Plan(
        arms=tuple(arms),
        test=(*test, *test_clean),
        clean_stems=tuple(sample.stem for sample in test_clean),
        num_clean_images=len(sources.test_clean),
        test_imgsz=test_imgsz,
        task=task,
        num_classes=len(sources.class_names),
        file_sha256={path: sha256_file(path) for path in sorted({sample.image.path for sample in every})},
    )
    _check_no_leak(plan)
    return plan


def _plan_arm(
    name: Arm,
    config: TrainYolo,
    pools: dict[Origin, Sequence[Sample]],
    clean_share: float,
    clean_available: int,
    seed: int,
) -> ArmPlan:
    real_share = (1 - clean_share) * (config.real_share if pools["synthetic"] else 1)
    shares = {"real": real_share, "clean": clean_share, "synthetic": 1 - clean_share - real_share}
    needed = max(
        math.ceil(len(pool) / shares[origin] / config.batch) if shares[origin] > 0 else 0
        for origin, pool in pools.items()
    )
    schedule = make_schedule(config.iterations, config.batch, needed)
    num_clean = round(schedule.list_length * clean_share)
    num_defective = schedule.list_length - num_clean
    num_real = round(num_defective * config.real_share) if pools["synthetic"] else num_defective
    places = {"real": num_real, "clean": num_clean, "synthetic": num_defective - num_real}
    counts = tuple(
        pair
        for origin, pool in pools.items()
        for pair in draw(pool, places[origin], numpy_rng(seed, "yolo", "list", origin))
    )
    available: dict[str, int] = {**{origin: len(pool) for origin, pool in pools.items()}, "clean": clean_available}
    return ArmPlan(name, counts, available, schedule)


def _same_in_every_arm(clean: Sequence[Sample], config: TrainYolo, seed: int) -> list[Sample]:
    """As many clean tiles, chosen by chance, as any arm can list: a list's length depends on the arm, and with more
    room for them an arm would see more of the product.
    """
    room = round(_longest_list(config.iterations) * config.batch * config.clean_share)
    order = numpy_rng(seed, "yolo", "clean").permutation(len(clean))[:room]
    return [clean[index] for index in sorted(order.tolist())]


def make_schedule(iterations: int, batch: int, needed_batches: int = 0) -> Schedule:
    """Some 30 batches per epoch, or `needed_batches` where more are needed to list every sample once; at least four
    epochs where `iterations` allow. A length that divides `iterations` is taken where one is near.
    """
    longest = _longest_list(iterations)
    wanted = min(max(_BATCHES_PER_EPOCH, needed_batches), longest)
    lowest = wanted if needed_batches >= wanted else math.ceil(wanted * 2 / 3)
    near = [length for length in range(lowest, min(wanted * 3 // 2, longest) + 1) if iterations % length == 0]
    return Schedule(iterations, batch, min(near, key=lambda length: abs(length - wanted), default=wanted))


def _longest_list(iterations: int) -> int:
    """In batches."""
    return max(math.ceil(iterations / _FEWEST_EPOCHS), 1)


def draw(pool: Sequence[Sample], slots: int, rng: np.random.Generator) -> list[tuple[Sample, int]]:
    """How often each sample of the pool fills one of `slots`: evenly, the odd ones by chance; none zero times."""
    if not slots:
        return []
    repeats, rest = divmod(slots, len(pool))
    extra = set(rng.permutation(len(pool))[:rest].tolist())
    counts = [(sample, repeats + (index in extra)) for index, sample in enumerate(pool)]
    return [(sample, count) for sample, count in counts if count]


@dataclass(frozen=True)
class _Cut:
    """How images become samples: whole, in tiles of `tile_px`, whole in the upper left of `canvas_wh`, or, with
    `crop_px`, as a crop around each defect and CLEAN_CROPS of that side from each image without one.
    """

    tile_px: int | None
    crop_px: int | None = None
    canvas_wh: tuple[int, int] | None = None

    @classmethod
    def crops(cls, train: Sequence[LabelledImage]) -> _Cut:
        sides = [crop_side(annotation) for image in train for annotation in image.annotations]
        return cls(None, int(np.median(sides)) if sides else CROP_PX)

    def __call__(self, images: Iterable[LabelledImage], origin: Origin, *, prefix: str | None = None) -> list[Sample]:
        samples = []
        for index, image in enumerate(images):
            for number, tile in enumerate(self._tiles(image)):
                place = f"-x{tile.xyxy[0]}-y{tile.xyxy[1]}" if self.tile_px else f"-{number}" if self.crop_px else ""
                samples.append(Sample(origin, image, tile, f"{prefix or origin}-{index:05d}{place}"))
        return samples

    def _tiles(self, image: LabelledImage) -> list[Tile]:
        if self.canvas_wh is not None:
            return [Tile((0, 0, *self.canvas_wh), image.annotations)]
        if self.crop_px is None:
            return cut_tiles(image.annotations, image.size_wh, self.tile_px)
        if image.annotations:
            return crop_tiles(image.annotations, image.size_wh)
        # By the image's name alone: the same ones whatever else there is.
        places = numpy_rng(0, "yolo", "clean crops", image.name).uniform(0, image.size_wh, (CLEAN_CROPS, 2))
        return [Tile(square(float(x), float(y), self.crop_px, image.size_wh)) for x, y in places]


def _cut_of_test(cut: _Cut, sources: Sources, config: TrainYolo) -> tuple[_Cut, int]:
    """How test images become samples, and the longest side at which the detector sees these.

    Detectors of tiles are judged on whole images at the scale of the tiles, each on a canvas of the largest one's size,
    so that all keep that scale: of a defect that the edge of a tile cuts, every part would count as a defect of its own
    or, unlabelled, as a false alarm. Test images are cut as training images are where more than a few defects there are
    longer than half a tile, of which such a detector finds the parts, where training images smaller than a tile were
    enlarged to its size, and where test images are too large to be shown whole.
    """
    tile_px, imgsz = cut.tile_px, config.imgsz
    sides = [image.size_wh for image in (*sources.test, *sources.test_clean)]
    width, height = (max(side) for side in zip(*sides, strict=True))
    if tile_px is None or max(width, height) <= tile_px:
        return cut, imgsz
    long = [max(box_sides(mark.xyxy)) > tile_px / 2 for image in sources.train_pool for mark in image.annotations]
    enlarged = any(max(image.size_wh) < tile_px for image in (*sources.train_pool, *sources.train_clean))
    if enlarged or sum(long) > _FEW_LONG * len(long):
        return cut, imgsz
    scale = imgsz / tile_px
    whole_imgsz = STRIDE * math.ceil(max(width, height) * scale / STRIDE)
    if whole_imgsz > _LARGEST_WHOLE_PX[task_of_model(config.model)]:
        return cut, imgsz
    # A side that ultralytics, which shows the network multiples of its stride, need not stretch.
    side = round(whole_imgsz / scale)
    return _Cut(None, canvas_wh=(side, height) if width >= height else (width, side)), whole_imgsz


def _split(samples: Iterable[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples with a defect, and those that are background for certain (under a name of their own)."""
    defective, background = [], []
    for sample in samples:
        if sample.tile.labels:
            defective.append(sample)
        elif not sample.tile.ambiguous:
            background.append(Sample("clean", sample.image, sample.tile, f"background-{sample.stem}"))
    return defective, background


def check_sources(sources: Sources, config: TrainYolo) -> None:
    """Nothing, where detectors can be trained and judged on them, as far as can be told before any set is made.

    Raises:
        DataError: no real defect, no test defect, an outline missing for a -seg or -obb model, or a defective test
            image that is a training image.
    """
    if not sources.train:
        raise DataError(
            "train-yolo: no real defective training image; check data.train_images, data.max_images and data.per_class"
        )
    if not sources.test:
        raise DataError(
            "train-yolo: the test set is empty, so no arm can be judged; name data.test_images, or hold "
            "groups out with data.test_groups"
        )
    train = sources.train_pool if "full-real" in config.arms else sources.train
    trained = {sha256_file(image.path): image.path for image in train}
    for image in sources.test:
        twin = trained.get(sha256_file(image.path))
        if twin is not None:
            raise DataError(_leak(image.path, twin))
    check_outlines(sources, config)


def check_outlines(sources: Sources, config: TrainYolo) -> None:
    """Nothing, where the model does without outlines, or all defects have one.

    Raises:
        DataError: with the first image that lacks one.
    """
    if not needs_outlines(config.model):
        return
    train = sources.train_pool if "full-real" in config.arms else sources.train
    for image in (*train, *sources.test):
        if any(annotation.polygon is None for annotation in image.annotations):
            raise DataError(
                f"{image.path}: has boxes without an outline, which a -seg or -obb model cannot learn "
                "from; annotate outlines, or set train_yolo.model to a model for boxes"
            )


def _check_no_leak(plan: Plan) -> None:
    trained = {plan.file_sha256[sample.image.path]: sample.image.path for arm in plan.arms for sample, _ in arm.counts}
    clean = set(plan.clean_stems)
    for sample in plan.test:
        path = sample.image.path
        twin = trained.get(plan.file_sha256[path])
        # A clean image copied into both sets costs nothing but a few easy negatives; a defective one is a leak.
        if twin is not None and (twin == path or sample.stem not in clean):
            raise DataError(_leak(path, twin))


def _leak(path: Path, twin: Path) -> str:
    return f"{path}: is a test image and the same as the training image {twin}; remove one of them"
