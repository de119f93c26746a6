"""What onnxruntime finds is what Ultralytics finds with the same weights in torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen.yolo.environment import worker_environment

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'defectgen[examples]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'defectgen[examples]'")

NAMES = ["Ölfleck", "Kratzer groß"]
# Wide, tall, square of another size, and the network's own, in pixels.
SIZES_WH = ((101, 60), (41, 90), (200, 200), (64, 64))
CONFIDENCE = 0.4

# Ultralytics changes torch and OpenCV when it is imported, hence the process. In a network of random weights signals
# fade away; where its normalisations know them and boxes are small, some differ from others.
IN_TORCH = """
import json, sys
from pathlib import Path
import cv2, numpy as np, torch
from ultralytics import YOLO

folder, names, confidence = Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
yolo = YOLO("yolo11n.yaml")
model = type(yolo.model)("yolo11n.yaml", nc=len(names), verbose=False)
model.names = dict(enumerate(names))
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = 1.0
with torch.inference_mode():
    model.train()(torch.rand(8, 3, 64, 64))
for boxes, scores in zip(model.model[-1].cv2, model.model[-1].cv3):
    boxes[-1].bias.data = -0.7 * torch.arange(16.0).repeat(4)
    torch.nn.init.normal_(scores[-1].weight, std=0.5)
    torch.nn.init.constant_(scores[-1].bias, 0.0)
yolo.model, yolo.ckpt = model, {"train_args": {"imgsz": 64, "task": "detect", "model": "yolo11n.yaml"}}
yolo.save(folder / "last.pt")
yolo = YOLO(folder / "last.pt")
found = {}
for path in sorted(folder.glob("*.png")):
    result = yolo.predict(path, imgsz=64, rect=False, conf=confidence, iou=0.5, max_det=10_000, device="cpu")[0].boxes
    found[path.name] = torch.cat([result.cls[:, None], result.conf[:, None], result.xyxy], 1).tolist()
x = torch.from_numpy(np.load(folder / "x.npy"))
with torch.inference_mode():
    y = yolo.model.float().eval()(x)
np.save(folder / "y.npy", (y[0] if isinstance(y, (tuple, list)) else y).numpy())
(folder / "found.json").write_text(json.dumps(found))
"""

# Python runs it at the start of every process.
NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event == "socket.getaddrinfo":
        raise SystemExit(f"asked for the network: {arguments}")

sys.addaudithook(refuse)
"""


@dataclass(frozen=True)
class Exported:
    """Weights, images and what torch makes of them; the same weights as ONNX."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "last.onnx"

    def image(self, name: str) -> np.ndarray:
        return cv2.imread(str(self.folder / name))


@pytest.fixture(scope="module")
def onnx_run(example: Any) -> ModuleType:
    return example.load("onnx_run.py")


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("offline")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def exported(example: Any, offline: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("onnx")
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES_WH):
        blocks = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
        pixels = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    np.save(folder / "x.npy", rng.random((1, 3, 64, 64), np.float32))
    command = [sys.executable, "-c", IN_TORCH, folder, json.dumps(NAMES), str(CONFIDENCE)]
    environment = worker_environment(folder / "settings", os.environ)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    said = example.start("onnx_run.py", "export", folder / "last.pt", cwd=folder, **offline).stdout
    assert said.splitlines()[-1] == str(folder / "last.onnx")
    return Exported(folder)


def test_a_detector_of_tiles_is_exported_for_whole_images(
    exported: Exported, example: Any, offline: dict[str, str], onnx_run: ModuleType, tmp_path: Path
) -> None:
    shutil.copy(exported.folder / "last.pt", tmp_path)
    example.start("onnx_run.py", "export", tmp_path / "last.pt", "--imgsz", "128", cwd=tmp_path, **offline)
    assert onnx_run.Detector(exported.model).size_hw == (64, 64)
    assert onnx_run.Detector(tmp_path / "last.onnx").size_hw == (128, 128)


def test_the_network_gives_the_same_numbers_in_onnxruntime_as_in_torch(exported: Exported) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported.model), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"images": np.load(exported.folder / "x.npy")})
    wanted = np.load(exported.folder / "y.npy")
    # 8 x 8, 4 x 4 and 2 x 2 places, each with a box and two scores.
    assert y.shape == wanted.shape == (1, 6, 84)
    np.testing.assert_allclose(y[:, :4], wanted[:, :4], atol=0.02)
    np.testing.assert_allclose(y[:, 4:], wanted[:, 4:], atol=1e-3)
    # Else anything would be equal.
    assert wanted[0, 4:].std() > 0.1 and wanted[0, 2:4].std() > 1


@pytest.mark.parametrize("name", [f"{number}.png" for number in range(len(SIZES_WH))])
def test_boxes_are_those_of_ultralytics(onnx_run: ModuleType, exported: Exported, name: str) -> None:
    detector = onnx_run.Detector(exported.model)
    found = detector(exported.image(name), confidence=CONFIDENCE, iou=0.5)
    wanted = json.loads((exported.folder / "found.json").read_text())[name]
    assert [box.name for box in found] == [NAMES[int(row[0])] for row in wanted]
    assert len(wanted) > 3
    np.testing.assert_allclose([box.confidence for box in found], [row[1] for row in wanted], atol=1e-3)
    np.testing.assert_allclose([box.xyxy for box in found], [row[2:] for row in wanted], atol=0.05)


def test_an_image_is_centred_on_grey(onnx_run: ModuleType) -> None:
    bgr = np.zeros((30, 64, 3), np.uint8)
    bgr[..., 2] = 255
    x, scale_xy, offset_xy = onnx_run.letterbox(bgr, (64, 128))
    assert x.shape == (1, 3, 64, 128) and scale_xy == (2, 2) and offset_xy == (0, 2)
    assert x[0, :, 2:62].reshape(3, -1).min(1).tolist() == x[0, :, 2:62].reshape(3, -1).max(1).tolist() == [1, 0, 0]
    assert np.all(x[0, :, [0, 1, 62, 63]] == np.float32(114 / 255))


def test_overlapping_boxes_of_a_class_are_one_and_of_two_classes_two(onnx_run: ModuleType) -> None:
    # Centre, size and two scores each: the second overlaps the first by 0.82, the fourth is too unsure.
    columns = [(20, 20, 10, 10, 0.6, 0), (21, 20, 10, 10, 0.9, 0), (20, 20, 10, 10, 0, 0.5), (50, 50, 4, 4, 0.2, 0.1)]
    found = onnx_run.decode(np.array(columns).T, scale_xy=(2, 4), offset_xy=(6, 0), confidence=0.25, iou=0.7)
    assert [(class_id, confidence) for class_id, confidence, _ in found] == [(0, 0.9), (1, 0.5)]
    assert [xyxy.tolist() for *_, xyxy in found] == [[5, 3.75, 10, 6.25], [4.5, 3.75, 9.5, 6.25]]


def test_weights_of_train_yolo_are_exported_and_run_without_torch(
    example: Any, made: Any, offline: dict[str, str], tmp_path: Path
) -> None:
    weights = Path(shutil.copy(made.run / "yolo/real/seed0/weights/last.pt", tmp_path))
    example.start("onnx_run.py", "export", weights, cwd=tmp_path, **offline)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was asked for')")
    (tmp_path / "defectgen.py").write_text("raise SystemExit('defectgen was asked for')")
    image = tmp_path / "Gehäuse 1.png"
    shutil.copy(made.run / "dataset/images/000000.png", image)
    alone = {"PYTHONPATH": str(tmp_path)}
    said = example.start(
        "onnx_run.py", "detect", "last.onnx", image, "--confidence", "0.000001", cwd=tmp_path, **alone
    ).stdout
    rows = [line.removeprefix(f"{image} ").split() for line in said.splitlines()]
    assert rows and {row[0] for row in rows} <= {"scratch", "pit", "stain", "dent"}
    for _, confidence, x1, y1, x2, y2 in rows:
        assert 0 <= float(confidence) < 1
        assert 0 <= float(x1) <= float(x2) <= 128 and 0 <= float(y1) <= float(y2) <= 128


def test_a_file_that_is_no_image_is_named(onnx_run: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    with pytest.raises(SystemExit, match=r"notes\.txt: is no image"):
        onnx_run.read_image(path)
