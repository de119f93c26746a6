"""A data set of defectgen in FiftyOne: every placement with its scores, to sort, filter and look at.

    python examples/fiftyone_view.py runs/housing/dataset    # opens the app in the browser
    python examples/fiftyone_view.py DIR --no-app            # of `defectgen export --to yolo` or `--to coco`, too

Needs `pip install fiftyone`, best in an environment of its own: it is large, and this file needs nothing else.
Useful filters: `confidence` (how sure the class check is), `strength` (how much was drawn anew), `model` (which real
defect was followed).
"""

import argparse
import json
from pathlib import Path

import fiftyone as fo

# What `defectgen export` calls its splits.
SPLITS = ("train", "val", "test")


def load(folder: Path, name: str | None = None) -> fo.Dataset:
    """The data set in `folder` as FiftyOne's, not persistent.

    Raises:
        SystemExit: `folder` holds none.
    """
    if (folder / "manifest.jsonl").is_file():
        return load_manifest(folder, name)
    dataset = fo.Dataset(name)
    for split in SPLITS:
        options = {"tags": split, "label_field": "defects"}
        if (folder / split / "labels").is_dir():
            labelled = fo.types.YOLOv5Dataset
            # Without validation images YOLO's `val` is the test set.
            is_val = split == "test" and not (folder / "val").is_dir()
            options |= {"dataset_dir": str(folder), "yaml_path": "data.yaml", "split": "val" if is_val else split}
        elif (folder / split / "_annotations.coco.json").is_file():
            labelled = fo.types.COCODetectionDataset
            options |= {
                "data_path": str(folder / split),
                "labels_path": str(folder / split / "_annotations.coco.json"),
                "include_id": False,
                "label_types": "detections",
            }
        else:
            continue
        dataset.add_dir(dataset_type=labelled, **options)
    if not len(dataset):
        raise SystemExit(
            f"{folder}: holds neither manifest.jsonl nor a set of `defectgen export --to yolo` or `--to coco`"
        )
    return dataset


def load_manifest(folder: Path, name: str | None = None) -> fo.Dataset:
    """A data set that `synth` made: what was placed, what real defects were kept, what changed, what was refused."""
    header, *rows = map(json.loads, (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    dataset = fo.Dataset(name)
    dataset.default_mask_targets = {number: name for number, name in enumerate(header["class_names"], 1)}
    dataset.add_samples([sample_of(row, folder) for row in rows], dynamic=True)
    return dataset


def sample_of(row: dict, folder: Path) -> fo.Sample:
    def detection(mark: dict, xyxy: list[float], **fields: object) -> fo.Detection:
        (x1, y1, x2, y2), (width, height) = xyxy, row["size_wh"]
        box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
        return fo.Detection(label=mark["class_name"], bounding_box=box, **fields)

    def synthetic(mark: dict) -> fo.Detection:
        # FiftyOne has a slider for `confidence`.
        sure = mark["placement"].get("probability")
        return detection(mark, mark["label_xyxy"], tags=["synthetic"], confidence=sure, **mark["placement"])

    placed = [synthetic(mark) for mark in row["placed"]]
    kept = [detection(mark, mark["xyxy"], tags=["real"]) for mark in row["kept"]]
    return fo.Sample(
        filepath=str(folder.absolute() / row["image"]),
        defects=fo.Detections(detections=placed + kept),
        changed=fo.Segmentation(mask_path=str(folder.absolute() / row["mask"])),
        source=row["source"],
        refused=[f"{one['class_name']}: {one['reason']}" for one in row["rejected"]],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-app", action="store_true", help="load it, print what it holds, and end")
    asked = parser.parse_args()
    dataset = load(asked.folder)
    print(dataset)
    print(dataset.count_values("defects.detections.label"))
    if not asked.no_app:
        fo.launch_app(dataset).wait()


if __name__ == "__main__":
    main()
