"""Synthetic labels to CVAT or Label Studio, where a person corrects them, and back.

    python examples/label_round_trip.py runs/housing/dataset --to cvat --out housing.xml
    python examples/label_round_trip.py runs/housing/dataset --to label-studio --out housing.json

Outlines go as boxes. What is printed is the list of labels to paste there.

CVAT: make a task of the images, then Upload annotations, format "CVAT 1.1". Back: Export task dataset, "CVAT for images
1.1". Lay its annotations.xml beside the images folder: `data.format: cvat`.

Label Studio: start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set
to the data set's folder, add its images folder as local storage (no sync), import the file. Back: Export, "YOLO with
images" or "COCO"; unpack it and run `defectgen init` on the folder. Label Studio sorts the classes by name and
puts a code before each image's.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree as ET

from defectgen.data.load import load_sources
from defectgen.recipe import Recipe
from defectgen.records import LabelledImage, Sources


def read(folder: Path) -> Sources:
    """The images and labels of a data set of defectgen.

    Raises:
        SystemExit: a file is faulty, and its labels would be missing.
    """
    data = {"root": str(folder), "format": "yolo", "train_images": "images", "test_fraction": 0, "base": "defective"}
    sources = load_sources(Recipe.model_validate({"name": "labels", "data": data}))
    faults = [str(one) for one in sources.problems if one.severity == "error" and Path(one.path).is_file()]
    if faults:
        raise SystemExit("\n".join(faults))
    return sources


def all_images(sources: Sources) -> list[LabelledImage]:
    return sorted((*sources.train_pool, *sources.train_clean), key=lambda image: image.name)


def cvat_xml(images: Sequence[LabelledImage], class_names: Sequence[str]) -> bytes:
    """CVAT for images 1.1. CVAT finds its own image by the name."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "task"), "labels")
    for name in class_names:
        ET.SubElement(ET.SubElement(labels, "label"), "name").text = name
    for number, image in enumerate(images):
        size = {"width": str(image.size_wh[0]), "height": str(image.size_wh[1])}
        listed = ET.SubElement(root, "image", {"id": str(number), "name": image.name, **size})
        for mark in image.annotations:
            corners = zip(("xtl", "ytl", "xbr", "ybr"), mark.xyxy, strict=True)
            # CVAT's importer refuses a box without `occluded`.
            more = {"label": class_names[mark.class_id], "source": "auto", "occluded": "0"}
            ET.SubElement(listed, "box", more | {side: f"{value:.2f}" for side, value in corners})
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def cvat_labels(class_names: Sequence[str]) -> str:
    """What goes into the "Raw" tab of a task's labels."""
    return json.dumps([{"name": name, "attributes": []} for name in class_names], ensure_ascii=False)


def label_studio_tasks(images: Sequence[LabelledImage], class_names: Sequence[str], root: Path) -> list[dict]:
    """Tasks whose labels are predictions, which a person submits or corrects. Paths are relative to `root`."""
    tasks = []
    for image in images:
        (width, height), result = image.size_wh, []
        for number, mark in enumerate(image.annotations):
            x1, y1, x2, y2 = mark.xyxy
            box = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
            value = {side: 100 * share for side, share in box.items()}
            result.append(
                {
                    "id": f"defect{number}",
                    "type": "rectanglelabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": width,
                    "original_height": height,
                    "value": {**value, "rotation": 0, "rectanglelabels": [class_names[mark.class_id]]},
                }
            )
        url = f"/data/local-files/?d={quote(image.path.relative_to(root.absolute()).as_posix())}"
        tasks.append({"data": {"image": url}, "predictions": [{"model_version": "defectgen", "result": result}]})
    return tasks


def label_studio_config(class_names: Sequence[str]) -> str:
    """What goes into the "Code" tab of the labelling interface."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image")
    labels = ET.SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in class_names:
        ET.SubElement(labels, "Label", value=name)
    return ET.tostring(view, encoding="unicode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a data set that `synth` made: images/, labels/, data.yaml")
    parser.add_argument("--to", choices=("cvat", "label-studio"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    asked = parser.parse_args()
    sources = read(asked.folder)
    images, names = all_images(sources), sources.class_names
    if asked.to == "cvat":
        asked.out.write_bytes(cvat_xml(images, names))
        print(cvat_labels(names))
    else:
        tasks = label_studio_tasks(images, names, asked.folder)
        asked.out.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
        print(label_studio_config(names))


if __name__ == "__main__":
    main()
