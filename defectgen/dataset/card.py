"""The data set's README.md: what is in it, what was refused, under what terms, and how to make it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from defectgen.dataset.manifest import HeaderRow

_LICENCE = (
    "Every image here was made from your own product images and real defects: it is a derivative of them and inherits "
    "their licence and confidentiality. defectgen claims nothing in it."
)


def portable_recipe(recipe_yaml: str) -> str:
    """The recipe with `data.root` and `train_yolo.model` cut to their last part: machines have them in other places."""
    recipe = yaml.safe_load(recipe_yaml)
    if not isinstance(recipe, dict):
        return recipe_yaml
    for section, field in (("data", "root"), ("train_yolo", "model")):
        fields = recipe.get(section)
        if isinstance(fields, dict) and isinstance(fields.get(field), str):
            text = fields[field]
            fields[field] = (PureWindowsPath(text) if "\\" in text else PurePosixPath(text)).name or "."
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def embedded_recipe(card: str) -> str:
    """The recipe that a card embeds, as `dataset_card` was given it; something else where it was edited."""
    return card.rpartition("\n```yaml\n")[2].removesuffix("```\n")


def dataset_card(
    summary: dict[str, Any], *, header: HeaderRow, recipe_yaml: str, licence_note: str | None = None
) -> str:
    """The card as Markdown.

    Args:
        summary: as `manifest.summarise` returns it.
        recipe_yaml: embedded as it is.
        licence_note: what the user's data adds to the terms, in their words.
    """
    kind = "boxes" if header["task"] == "detect" else "polygons"
    counts = [
        f"{summary['num_images']} images: {summary['num_composites']} composites with synthetic defects",
        *([f"{summary['num_kept_only']} with real defects alone"] if summary["num_kept_only"] else []),
        f"{summary['num_clean']} clean (empty labels).",
    ]
    rejected = header.get("rejected", [])
    indexes = ", ".join(str(index) for index in rejected)
    reviewed = f"Images rejected by a person, for which others stand: {len(rejected)} ({indexes})."
    parts = [
        "# Synthetic defect data set",
        f"Made by defectgen {header['version']}. {', '.join(counts)} Labels are YOLO {kind}, measured from the pixels "
        "that changed.",
        *([reviewed] if rejected else []),
        "## Classes",
        _class_table(summary, header["class_names"]),
        "Label size is the longest side in pixels: least, median, most.",
        "## Refused placements",
        _rejection_table(summary, header["class_names"]),
        "## Files",
        "\n".join(
            [
                "- `images/`, `labels/`: one `.txt` per image, empty for a clean one.",
                "- `defect_masks/`: grey PNG, 0 where nothing changed, class index + 1 on the pixels that did.",
                "- `data.yaml`: for Ultralytics. `val` repeats `train`: put held-out real images there.",
                "- `manifest.jsonl`: for every image its source, placements, refusals and SHA-256 hashes.",
            ]
        ),
        "## Terms",
        f"{_LICENCE}\n\n{licence_note}" if licence_note else _LICENCE,
        "## Make it again",
        "Save the recipe below as `recipe.yaml`, set `data.root` to the folder of the data, then:",
        "```\ndefectgen synth recipe.yaml\ndefectgen verify DATASET_FOLDER\n```",
        "Where this run's `recipe.yaml` and `generator/` were copied into the run folder before (`runs/NAME`, or "
        "`--out`), the bytes are the same; a generator fitted anew elsewhere is another.",
        f"The generator's fingerprint was `{header['generator_fingerprint']}`.",
        f"```yaml\n{recipe_yaml.rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _class_table(summary: dict[str, Any], class_names: Sequence[str]) -> str:
    rows = []
    for class_id, name in enumerate(class_names):
        counts = summary["classes"][name]
        size = " / ".join(f"{value:g}" for value in counts["longest_px"]) if counts["longest_px"] else "-"
        rows.append([class_id, name, counts["num_placed"], counts["num_images"], counts["num_kept"], size])
    return _table(["id", "class", "synthetic defects", "in images", "real defects kept", "label size (px)"], rows)


def _rejection_table(summary: dict[str, Any], class_names: Sequence[str]) -> str:
    if not summary["rejections"]:
        return "None."
    rows: list[list[Any]] = [
        [reason, sum(counts.values()), *(counts.get(name, 0) for name in class_names)]
        for reason, counts in summary["rejections"].items()
    ]
    return _table(["reason", "all", *class_names], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
