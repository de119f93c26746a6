"""The recipe: the only configuration. YAML in, a checked `Recipe` out, every fault reported at once."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from defectgen.errors import UsageError

Fraction = Annotated[float, Field(ge=0, le=1)]
Arm = Literal["real", "real+aug", "real+copy-paste", "real+procedural", "real+defectgen", "full-real"]
DEFAULT_ARMS: tuple[Arm, ...] = ("real", "real+copy-paste", "real+defectgen")
Backend = Literal["paste", "poisson", "diffusion"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DemoData(Section):
    """The embedded demo product: written as image and label files into the run folder, then read like anyone's data."""

    seed: int = Field(0, description="Another seed is another production lot: other parts, other defects.")
    defects_per_class: int = Field(12, ge=1, description="Real-looking defects per class in the training parts.")
    clean_parts: int = Field(40, ge=1, description="Training parts without a defect, one image each.")
    test_parts: int = Field(40, ge=2, description="Held-out parts; half of them carry defects, half are clean.")
    size_px: int = Field(320, ge=128, le=2048, description="Side of the square images, in pixels.")


class Data(Section):
    """Where the real defects and the clean images are. Relative paths are relative to `root`."""

    demo: DemoData | None = Field(None, description="Use the embedded demo product instead of folders.")
    root: str | None = Field(
        None,
        description="Folder of the data, relative to the recipe file. ${NAME} is replaced from the environment, ~ by "
        "your home.",
    )
    format: Literal["yolo", "labelme", "voc", "coco", "cvat", "masks", "mvtec"] = Field(
        "yolo",
        description="yolo: box or polygon rows. labelme: JSON polygons. voc: XML boxes. coco, cvat: one file for all "
        "images. masks: an image per image. mvtec: masks in a folder per class, as in MVTec AD.",
    )
    classes: list[str] | None = Field(
        None,
        description="Class names in label order. Default: yolo: from data.yaml in root; coco, cvat: from their file; "
        "mvtec: the folders; the others: required.",
    )
    train_images: str | None = Field(None, description="Folder of real images with defects.")
    train_labels: str | None = Field(
        None,
        description="Their labels: a folder; for coco and cvat a file. Default: the sibling `labels` (`masks`, "
        "`ground_truth`), else beside them.",
    )
    train_clean: str | None = Field(None, description="Folder of clean product images.")
    test_images: str | None = Field(None, description="Held-out real images; default: groups split off train_images.")
    test_labels: str | None = Field(None, description="Their labels; default as for train_labels.")
    test_clean: str | None = Field(None, description="Held-out clean images: false alarms on good parts count.")
    leave_out: list[str] = Field(
        [],
        description="Images and folders not to read, relative to `root`; *, ? and [ab] as in a shell, ** for any "
        "folders. Nothing learns from them and nothing is judged by them.",
    )
    group_pattern: str | None = Field(
        None,
        description="Regular expression searched in the file name; its first group names what must stay on one side "
        "of the split (part, board, position). Default: every file is a group of its own.",
    )
    test_groups: list[str] = Field([], description="Groups to hold out of train_images. No effect with test_images.")
    test_fraction: Fraction = Field(
        0.3, description="Share of groups held out by seed. No effect with test_images or test_groups."
    )
    max_images: int | None = Field(None, ge=1, description="Budget: real defective images to use, drawn by seed.")
    per_class: int | None = Field(
        None,
        ge=1,
        description="Budget: real defects per class, drawn by seed as whole images until every class has this many.",
    )
    base: Literal["clean", "defective"] = Field(
        "clean",
        description="Images that receive synthetic defects. defective: the budget's real images, where no clean "
        "image exists; their real labels are kept, and but for place.max_overlap no synthetic defect touches them.",
    )

    @field_validator("group_pattern")
    @classmethod
    def _pattern_has_a_group(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        if pattern.groups < 1:
            raise ValueError("needs a group in parentheses, as in ^(part\\d+)_")
        return value

    @field_validator("leave_out")
    @classmethod
    def _stays_below_root(cls, value: list[str]) -> list[str]:
        for pattern in value:
            if not PurePath(pattern).parts or PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
                raise ValueError(f"needs paths below root, as in images/p3_*.jpg, got {pattern!r}")
        return value

    @model_validator(mode="after")
    def _has_a_source(self) -> Data:
        if self.demo is None and (self.root is None or self.train_images is None):
            raise ValueError("needs `root` and `train_images`, or `demo`")
        own = [
            name for name in ("root", "train_images", "train_clean", "test_images", "test_clean") if getattr(self, name)
        ]
        if self.demo is not None and own:
            raise ValueError(
                f"has `demo`, the built-in product, beside data of its own (`{own[0]}`); remove one of them"
            )
        if self.demo is None and self.format in ("labelme", "voc", "masks") and not self.classes:
            raise ValueError(f"needs `classes` for format: {self.format}")
        return self


class Generator(Section):
    """The class-conditioned diffusion model and its training."""

    window_px: int = Field(
        64, ge=32, le=256, multiple_of=16, description="Side the generator draws, in its own pixels."
    )
    context_factor: float = Field(
        2.0, ge=1.2, le=6, description="Side of a window over the longest side of its defect, before scaling."
    )
    channels: list[int] = Field([48, 96, 192], min_length=2, max_length=5, description="UNet channels per level.")
    fold: Literal[1, 2, 4] = Field(2, description="Side of the pixel blocks folded into channels before the UNet.")
    steps: int = Field(2000, ge=1, description="Training steps at most; early stopping may end sooner.")
    batch: int = Field(16, ge=2, description="Windows per step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak of AdamW's rate; warm-up, then cosine to a tenth.")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="Decay of the averaged weights per step.")
    clean_share: Fraction = Field(0.4, description="Share of clean windows (class clean) in a batch.")
    class_dropout: Fraction = Field(0.1, description="Share of windows trained without their class (for guidance).")
    context_dropout: Fraction = Field(0.15, description="Share of windows trained without surroundings (for patches).")
    inside_weight: float = Field(2.0, gt=0, description="Loss weight inside the region, against 0.25 outside.")
    hold_out: Fraction = Field(0.1, description="Share of defects kept out of training to watch for memorising.")
    patience: int = Field(4, ge=1, description="Checks without a better held-out loss before training stops.")
    check_every: int = Field(200, ge=1, description="Steps between held-out checks and checkpoints.")

    @model_validator(mode="after")
    def _network_can_be_built(self) -> Generator:
        # Groups of normalisation, and a head of attention on the last level: see `diffusion.unet.build_unet`.
        if any(number % 16 for number in self.channels) or self.channels[-1] < 32 or min(self.channels) < 16:
            raise ValueError(f"needs channels in multiples of 16, the last at least 32, got {self.channels}")
        halvings, side = len(self.channels) - 1, self.window_px // self.fold
        if side % 2**halvings:
            raise ValueError(
                f"window_px {self.window_px} folded by {self.fold} is {side} px, which cannot be halved {halvings} "
                f"times, for {len(self.channels)} channels; name fewer, or another window_px or fold"
            )
        return self


class Place(Section):
    """Where defects go, learned from the surroundings of the real ones."""

    per_image: tuple[int, int] = Field(
        (1, 3),
        description="Fewest and most synthetic defects per image wanted; where they are refused, there are fewer.",
    )
    class_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="How often a class is placed, relative to the others; 1 where it is not named, 0: never."
    )
    max_overlap: Fraction = Field(0.0, description="Largest overlap (IoU of boxes) with another label in the image.")
    scale: tuple[float, float] = Field((0.85, 1.2), description="Size of a placement over that of its real model.")
    rotate_deg: float = Field(0.0, ge=0, le=180, description="Largest rotation of the real model, +-.")
    flip: bool = Field(True, description="Whether defects may be mirrored.")
    quarter_turns: bool = Field(
        False, description="Whether defects may be turned by 90, 180 or 270 degrees, as on product without a direction."
    )
    warp: Fraction = Field(0.04, description="Largest shift of a point of the real model, as a share of its window.")
    top: int = Field(8, ge=1, description="A place is drawn among this many best ones of the image.")
    region_mask: str | None = Field(
        None,
        description="Image (or folder of images named as the clean ones) that is white where defects may be; nothing "
        "changes where it is black.",
    )

    @field_validator("per_image", "scale")
    @classmethod
    def _is_ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"must be two rising numbers above 0, got {list(value)}")
        return value


class Inpaint(Section):
    """How a defect gets into its place."""

    backend: Backend = Field("diffusion", description="diffusion draws it to suit the place; paste, poisson blend.")
    start: Literal["copy", "place", "patch"] = Field(
        "copy",
        description="What drawing starts from, noised to `strength`: a real defect bent and blended into the place, "
        "the clean place itself, or a generated patch. No effect at strength 1, nor on paste and poisson.",
    )
    strength: tuple[float, float] = Field(
        (0.1, 0.6),
        description="1: drawn afresh from noise; lower: nearer to the start. A number, or a range of which each "
        "round of drawings on an image takes one.",
    )
    num_steps: int = Field(
        10, ge=1, le=1000, description="Sampling steps from pure noise; a drawing takes its strength's share of them."
    )
    guidance: float = Field(
        1.0,
        ge=1,
        description="Weight of the class in sampling; 1 is none, more takes twice the time. Over a copy, which shows "
        "its class, none is needed.",
    )
    feather_px: int = Field(
        3, ge=0, description="Width of the soft edge, in image pixels, inside the region; paste: at most 2."
    )

    @field_validator("strength", mode="before", json_schema_input_type=float | tuple[float, float])
    @classmethod
    def _as_range(cls, value: Any) -> Any:
        return [value, value] if isinstance(value, (int, float)) else value

    @field_validator("strength")
    @classmethod
    def _is_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"must be a number above 0 and at most 1, or two such in rising order, got {list(value)}")
        return value


class Labels(Section):
    """How a label follows from what changed."""

    task: Literal["auto", "detect", "segment"] = Field(
        "auto", description="detect: boxes. segment: polygons. auto: detect, segment for a -seg or -obb model."
    )
    margin: Literal["auto", "tight"] = Field(
        "auto", description="auto: boxes keep the annotators' margin around the visible defect; tight: none."
    )
    min_change: int = Field(
        14,
        ge=1,
        le=255,
        description="Smallest visible change of a pixel, of 255, in any channel.",
    )
    min_area_fraction: Fraction = Field(0.3, description="Label box over the box asked for; below: rejected.")


class Screen(Section):
    """Which composites are refused. Every refusal is counted."""

    classifier: bool = Field(True, description="Refuse what a classifier of real windows takes for another class.")
    min_probability: Fraction = Field(0.4, description="Probability of the wanted class below which one is refused.")
    min_contrast: Fraction = Field(
        0.75,
        description="Contrast below which one is refused, over that of its class's fainter real ones (first decile).",
    )
    max_attempts: int = Field(
        6, ge=1, description="Rounds per image, and per four defects wanted, before those left are given up."
    )


class Synth(Section):
    """The data set to make."""

    num_images: int = Field(100, ge=1, description="Images in the set, clean ones included.")
    clean_share: Fraction = Field(0.15, description="Share of images left clean, with empty labels.")
    format: Literal["png", "jpg"] = Field("png", description="png is lossless; jpg (quality 95) is small.")
    max_tries: int = Field(4, ge=1, description="Clean images tried for one image of the set before synth fails.")


class TrainYolo(Section):
    """The detector, the same for every arm."""

    model: str = Field(
        "yolo11n.yaml",
        description="A YOLO11 size as .yaml (random weights), or a local .pt file, relative to where the command runs.",
    )
    imgsz: int = Field(320, ge=32, multiple_of=32, description="Side the detector sees, in pixels.")
    tile_px: int | None = Field(
        None,
        ge=64,
        description="Train on tiles of this side of every image, real and synthetic, and judge whole test images at "
        "the same scale (on tiles, where many defects are longer than half of one). None: whole images.",
    )
    iterations: int = Field(300, ge=1, description="Optimizer steps, equal in every arm.")
    batch: int = Field(16, ge=1, description="Images per step.")
    learning_rate: float = Field(0.002, gt=0, description="AdamW's rate.")
    mosaic: Fraction = Field(1.0, description="Chance of four images joined into one (ultralytics' mosaic).")
    scale_jitter: Fraction = Field(0.5, description="Largest change of size in training, +- (ultralytics' scale).")
    real_share: Fraction = Field(0.5, description="Share of real samples among defective ones, in arms with synthetic.")
    clean_share: Fraction = Field(0.2, description="Share of clean images in every arm, as background.")
    seeds: list[int] = Field([0], min_length=1, description="One training per arm and seed.")
    arms: list[Arm] = Field(
        list(DEFAULT_ARMS),
        min_length=1,
        description="Which data the detector is trained on. aug: strongly augmented real images. copy-paste, "
        "procedural: real, drawn defects where the synthetic ones are. full-real: all real training images, a ceiling.",
    )

    @field_validator("seeds", "arms")
    @classmethod
    def _names_each_once(cls, value: list[Any]) -> list[Any]:
        # One training counted twice would look like certainty.
        if len(set(value)) < len(value):
            raise ValueError(f"must name each once, got {value}")
        return value

    @field_validator("seeds")
    @classmethod
    def _counts_from_0(cls, value: list[int]) -> list[int]:
        if min(value) < 0:
            raise ValueError(f"must be whole numbers of 0 or more, got {value}")
        return value


class Recipe(Section):
    """A data set and a detector, from the user's real defects on."""

    name: str = Field(description="Names the default run folder: letters, digits, and _ . - between them.")
    seed: int = Field(0, ge=0, description="Root of everything random.")
    data: Data
    generator: Generator = Generator()
    place: Place = Place()
    inpaint: Inpaint = Inpaint()
    labels: Labels = Labels()
    screen: Screen = Screen()
    synth: Synth = Synth()
    train_yolo: TrainYolo = TrainYolo()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", value):
            raise ValueError(f"must be of letters, digits, and _ . - after the first, to name a folder, got {value!r}")
        return value

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a field that stands twice in a section, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} stands twice; keep one of them", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The checked recipe at `path` with `a.b=value` overrides applied and ${NAME} replaced in paths.

    Raises:
        UsageError: the file is missing or no YAML mapping, or fields are wrong; one line per fault.
    """
    if path.is_dir():
        raise UsageError(
            f"{path}: is a folder, not a recipe; draft one for it with `defectgen init {shlex.quote(str(path))}`"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a recipe ({error}); name a YAML file, as in recipes/") from None
    try:
        raw = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: must be a mapping of recipe fields, got {type(raw).__name__}")
    for override in overrides or []:
        _apply_override(raw, override)
    return _parse(raw, path, [override.partition("=")[0] for override in overrides or []])


def _parse(raw: dict[str, Any], path: Path, overridden: Sequence[str]) -> Recipe:
    faults: list[str] = []
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        faults = [_describe(fault, path, overridden) for fault in error.errors()]
        raise UsageError("\n".join(faults)) from None
    root = recipe.data.root
    if root is None:
        return recipe
    # Not Path.expanduser, which drops a leading "./" and knows no folder that is named "~data".
    expanded = os.path.expanduser(_expand_environment(root, path))  # noqa: PTH111
    absolute = str(Path(os.path.normpath((path.parent / expanded).absolute())))
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": absolute})})


def _expand_environment(text: str, path: Path) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if not os.environ.get(name):
            raise UsageError(
                f"{path}: data.root: the environment variable {name} is not set, got {text!r}; "
                f"{_download_hint(text)}set it to the folder that holds the data, as in export {name}=/path/to/data"
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", replace, text)


_DOWNLOADS = {
    "deeppcb": "DeepPCB (github.com/tangsanli5201/DeepPCB), converted to YOLO boxes",
    "bsdata": "BSData (github.com/2Obe/BSData), labelme polygons",
    "quay_cracks": "CrackImageDatasetForDeepLearning (OMU geolab), YOLO boxes",
}


def _download_hint(root: str) -> str:
    name = root.rstrip("/").rsplit("/", 1)[-1]
    return f"download {_DOWNLOADS[name]}, put it there as the folder {name}/, and " if name in _DOWNLOADS else ""


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {override}: must be field=value, as in synth.num_images=20")
    node = raw
    *parents, leaf = key.split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UsageError(f"--set {override}: {parent} is a value, not a section of the recipe")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is no valid YAML: {' '.join(str(error).split())}") from None


def _describe(fault: Any, path: Path, overridden: Sequence[str]) -> str:
    """One line: file (or --set), field, fault, value, remedy."""
    place = ".".join(str(part) for part in fault["loc"])
    by_override = any(f"{place}.".startswith(f"{field}.") for field in overridden)
    where = f"--set {place}" if by_override else f"{path}: {place}" if place else f"{path}"
    if fault["type"] == "extra_forbidden":
        known = list(_section_at(fault["loc"][:-1]).model_fields)
        nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
        return f"{where}: unknown field; {hint}"
    if fault["type"] == "missing":
        return f"{where}: is required; add it"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = fault["input"]
    shown = "" if isinstance(value, dict) or "got" in message else f", got {value!r}"
    return f"{where}: {message}{shown}"


def _section_at(place: tuple[str | int, ...]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for part in place:
        annotation: Any = section.model_fields[str(part)].annotation
        options = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
        section = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return section


def json_schema() -> str:
    """The JSON Schema of a recipe, for editors."""
    return json.dumps(Recipe.model_json_schema(), indent=2)
