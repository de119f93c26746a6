"""A trained detector as ONNX, and found boxes without torch or Ultralytics.

    python examples/onnx_run.py export runs/housing/yolo/real-defectgen/seed0/weights/last.pt    # writes last.onnx
    python examples/onnx_run.py detect last.onnx part.png [...] --confidence 0.25

`export` needs onnx beside defectgen; `detect` needs numpy, opencv-python and onnxruntime alone. Weights as .pt are
pickles, which can run any code when they are loaded: export your own.

Images are shrunk to the network's size whole. A detector trained on tiles (`train_yolo.tile_px`) wants them at their
scale: `export` it with `--imgsz`, the longest side of your images times `imgsz / tile_px`, up to a multiple of 32 (the
`test_imgsz` in results.json is that of the largest test image).

Licence: exported weights stand where the weights stand. Ultralytics (AGPL-3.0) holds that its licence covers models
trained with it: see "Licences" in README.md before you ship one.
"""

import argparse
import ast
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Ultralytics' grey around an image that is not square.
GREY = 114
Pair = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A found defect, in pixels of the image."""

    name: str
    confidence: float
    xyxy: tuple[float, float, float, float]


def export(weights: Path, imgsz: int | None = None) -> Path:
    """The ONNX file beside `weights`, for images of `imgsz` pixels, by default the size they were trained at."""
    from defectgen.yolo.environment import worker_environment

    with tempfile.TemporaryDirectory() as settings:
        # Before ultralytics is imported: it shall fetch and install nothing.
        os.environ.update(worker_environment(Path(settings), os.environ))
        from ultralytics import YOLO

        size = {} if imgsz is None else {"imgsz": imgsz}
        return Path(YOLO(weights).export(format="onnx", simplify=False, device="cpu", **size))


class Detector:
    """An exported YOLO11 detector.

    Raises:
        SystemExit: the model is none for boxes.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        about = self.session.get_modelmeta().custom_metadata_map
        if about.get("task") != "detect":
            raise SystemExit(f"{path}: is a model for {about.get('task')!r}; this example decodes boxes alone")
        self.names: dict[int, str] = ast.literal_eval(about["names"])
        self.size_hw: tuple[int, int] = tuple(self.session.get_inputs()[0].shape[2:])

    def __call__(self, bgr: np.ndarray, *, confidence: float = 0.25, iou: float = 0.7) -> list[Box]:
        """The defects in `bgr`, uint8 (H, W, 3) as OpenCV reads it, surest first."""
        x, scale_xy, offset_xy = letterbox(bgr, self.size_hw)
        (y,) = self.session.run(None, {"images": x})
        found = decode(y[0], scale_xy=scale_xy, offset_xy=offset_xy, confidence=confidence, iou=iou)
        high = np.tile(bgr.shape[1::-1], 2)
        return [Box(self.names[i], score, tuple(np.clip(xyxy, 0, high).tolist())) for i, score, xyxy in found]


def letterbox(bgr: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, Pair, Pair]:
    """The network's input, float32 (1, 3, H, W) RGB in [0, 1]; how the image was scaled, and where it lies in there."""
    height, width = bgr.shape[:2]
    scale = min(size_hw[0] / height, size_hw[1] / width)
    inner_wh = round(width * scale), round(height * scale)
    # An odd pixel goes to the right and below, as in Ultralytics.
    left, top = (size_hw[1] - inner_wh[0]) // 2, (size_hw[0] - inner_wh[1]) // 2
    canvas = np.full((*size_hw, 3), GREY, np.uint8)
    canvas[top : top + inner_wh[1], left : left + inner_wh[0]] = cv2.resize(bgr, inner_wh)
    x = canvas[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
    return x, (inner_wh[0] / width, inner_wh[1] / height), (left, top)


def decode(
    y: np.ndarray, *, scale_xy: Pair, offset_xy: Pair, confidence: float, iou: float
) -> list[tuple[int, float, np.ndarray]]:
    """Class, confidence and xyxy in the image's pixels, surest first; of a class, overlapping boxes are one.

    Args:
        y: float (4 + classes, boxes): centre, width and height in pixels of the network's input, a score per class.
    """
    centres, sizes, scores = y[:2].T, y[2:4].T, y[4:].T
    class_ids, best = scores.argmax(1), scores.max(1)
    xywh = np.hstack([centres - sizes / 2, sizes]).astype(float)
    kept = cv2.dnn.NMSBoxesBatched(xywh.tolist(), best.tolist(), class_ids.tolist(), confidence, iou)
    kept = sorted(np.array(kept, int).ravel(), key=lambda i: -best[i])
    xyxy = (np.hstack([centres - sizes / 2, centres + sizes / 2]) - np.tile(offset_xy, 2)) / np.tile(scale_xy, 2)
    return [(int(class_ids[i]), float(best[i]), xyxy[i]) for i in kept]


def read_image(path: Path) -> np.ndarray:
    """Raises: SystemExit where `path` is no image."""
    # cv2.imread cannot open names with umlauts on Windows.
    pixels: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise SystemExit(f"{path}: is no image that OpenCV can read")
    return pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="write an ONNX file beside the weights")
    exporting.add_argument("weights", type=Path)
    exporting.add_argument("--imgsz", type=int, help="longest side of what the network sees, a multiple of 32")
    detecting = commands.add_parser("detect", help="print the boxes found in images")
    detecting.add_argument("model", type=Path)
    detecting.add_argument("images", type=Path, nargs="+")
    detecting.add_argument("--confidence", type=float, default=0.25)
    detecting.add_argument("--iou", type=float, default=0.7, help="more overlap than this, and two boxes are one")
    asked = parser.parse_args()
    if asked.command == "export":
        print(export(asked.weights, asked.imgsz))
        return
    detector = Detector(asked.model)
    for path in asked.images:
        for box in detector(read_image(path), confidence=asked.confidence, iou=asked.iou):
            print(path, box.name, f"{box.confidence:.3f}", *(f"{value:.1f}" for value in box.xyxy))


if __name__ == "__main__":
    main()
