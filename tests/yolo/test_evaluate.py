import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from defectgen.yolo.evaluate import KEPT_PER_TILE, mean_precision, recall_at_false_alarms

# In a process of its own: once imported, ultralytics leaves one thread to all that follows.
_EVALUATE_CROPS = """
import json, sys
from pathlib import Path
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import ClassificationModel
from defectgen.yolo.evaluate import evaluate_crops

folder = Path(sys.argv[1])
torch.manual_seed(0)
model = YOLO("yolo11n-cls.yaml")
model.model = ClassificationModel("yolo11n-cls.yaml", nc=2, verbose=False)
model.model.task, model.model.names = "classify", {0: "000", 1: "001"}
# Random weights let hardly anything through: so enlarged, crops differ. Whatever it sees, clean is the likeliest.
for module in model.model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.weight.data *= 2.7
model.model.model[-1].linear.bias.data = torch.tensor([0.0, 3.0])
model.save(folder / "weights.pt")
found = {}
for batch in (1, 3, 8):
    sizes = []
    def on_start(predictor):
        predictor.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    settings = {"imgsz": 32, "device": "cpu", "class_names": ["pit"], "num_clean_images": 4}
    figures = evaluate_crops(folder / "weights.pt", folder=folder, batch=batch, on_start=on_start, **settings)
    found[batch] = [max(sizes), figures]
print(json.dumps(found))
"""

# What the network is shown of four test files of 128 x 96 by a detector of 64 px, whole and as if they were tiles.
_EVALUATE_WHOLE = """
import json, sys
from pathlib import Path
import torch
from ultralytics import YOLO
from defectgen.yolo.evaluate import evaluate

folder = Path(sys.argv[1])
YOLO("yolo11n.yaml").save(folder / "weights.pt")
sizes, shown = [], []

def keep(module, inputs):
    if type(module).__name__ == "DetectionModel":
        sizes.append(list(inputs[0].shape))

for imgsz in (64, 128):
    save_dir = folder / str(imgsz)
    save_dir.mkdir()
    figures = evaluate(
        folder / "weights.pt",
        task="detect",
        data=folder / "data.yaml",
        imgsz=imgsz,
        trained_imgsz=64,
        batch=8,
        device="cpu",
        class_names=["pit"],
        clean_stems=["0", "1"],
        num_clean_images=2,
        save_dir=save_dir,
        on_start=lambda validator: (sizes.clear(), torch.nn.modules.module.register_module_forward_pre_hook(keep)),
    )
    shown.append([max(sizes), figures["test_files"], figures["test_defects"]])
print(json.dumps(shown))
"""

# Four test files, a detector that sees much in each, and a clock by which every look at it takes an hour.
_EVALUATE_SLOWLY = """
import itertools, json, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from ultralytics import YOLO
from ultralytics.utils import nms
from defectgen.yolo.evaluate import evaluate

folder = Path(sys.argv[1])
model = YOLO("yolo11n.yaml")
for branch in model.model.model[-1].cv3:
    branch[-1].bias.data += 12
model.save(folder / "weights.pt")
hours = itertools.count()
nms.time = SimpleNamespace(time=lambda: 3600 * next(hours))
evaluate(
    folder / "weights.pt",
    task="detect",
    data=folder / "data.yaml",
    imgsz=64,
    trained_imgsz=64,
    batch=4,
    device="cpu",
    class_names=["pit"],
    clean_stems=["0", "1"],
    num_clean_images=2,
    save_dir=folder,
    on_start=lambda validator: None,
)
assert next(hours) > 4
print(json.dumps({name: len(found) for name, found in json.loads((folder / "detections.json").read_text()).items()}))
"""

# The data set of a loader with a process of its own, which makes batches ahead, as ultralytics' trainer closes mosaics.
_CLOSE_MOSAIC = """
import json
from types import SimpleNamespace
from ultralytics.data.build import InfiniteDataLoader
from defectgen.yolo.worker import _CloseMosaic

class Mosaics:
    mosaic = True
    def __len__(self):
        return 40
    def __getitem__(self, number):
        return self.mosaic

def main():
    for workers in (0, 1):
        data = Mosaics()
        loader = InfiniteDataLoader(data, batch_size=2, num_workers=workers)
        trainer = SimpleNamespace(train_loader=loader, arm_iteration=-1)
        trainer._close_dataloader_mosaic = lambda: setattr(data, "mosaic", False)
        closing, seen = _CloseMosaic(5), []
        for batch in loader:
            trainer.arm_iteration += 1
            closing.at_batch(trainer)
            seen.append(bool(batch.any()))
        print(json.dumps([seen, closing.ended_at]))

if __name__ == "__main__":
    main()
"""


def _recall(clean_confidences, num_clean_images, **settings):
    """Two defective files with four defects, one clean file."""
    return recall_at_false_alarms(
        hits=[np.array([True, False, True]), np.array([True]), np.zeros(len(clean_confidences), dtype=bool)],
        confidences=[np.array([0.9, 0.5, 0.3]), np.array([0.6]), np.array(clean_confidences, dtype=float)],
        is_clean=[False, False, True],
        num_clean_images=num_clean_images,
        num_defects=4,
        **settings,
    )


def test_below_100_clean_images_one_false_alarm_is_allowed():
    # Above 0.4 two of the four defects are found (0.9, 0.6), and 0.3 above 0.2.
    assert _recall([0.4, 0.2], 50) == _recall([0.4, 0.2], 100) == (0.75, 0.2)


def test_one_false_alarm_in_100_is_allowed():
    # 0.4 is allowed; the next one, 0.2, is not. Found: 0.9, 0.6, 0.3.
    assert _recall([0.4, 0.2], 100) == (0.75, 0.2)


def test_threshold_is_zero_where_every_alarm_is_allowed():
    assert _recall([0.4, 0.2], 300) == (0.75, 0.0)
    assert _recall([], 10) == (0.75, 0.0)


def test_exact_multiples_are_not_lost_to_rounding():
    # 0.01 * 300 in floating point must count as 3.
    assert _recall([0.95, 0.94, 0.93, 0.55], 300) == (0.5, 0.55)


def test_equal_alarms_are_cut_together():
    assert _recall([0.4, 0.4], 100) == (0.5, 0.4)


def test_alarm_above_every_hit_leaves_nothing():
    assert _recall([0.99, 0.98], 20) == (0.0, 0.98)


@pytest.mark.parametrize(("num_clean_images", "num_defects"), [(0, 4), (10, 0)])
def test_no_clean_images_or_no_defects_give_no_answer(num_clean_images, num_defects):
    assert (
        recall_at_false_alarms(
            hits=[], confidences=[], is_clean=[], num_clean_images=num_clean_images, num_defects=num_defects
        )
        is None
    )


@pytest.mark.parametrize("found", [[[1.0, 0.5], [0.0, 0.0]], [[1.0, 0.5]]])
def test_class_of_which_nothing_was_detected_has_a_precision_of_zero(found):
    assert mean_precision(found, 2, 2).tolist() == [0.5, 0.25]


def test_precision_is_zero_where_nothing_at_all_was_detected():
    assert mean_precision([], 3, 2).tolist() == [0, 0, 0]


@pytest.mark.long
def test_crops_are_classified_in_batches_that_change_nothing(tmp_path):
    for class_id in range(2):
        rng = np.random.default_rng(0)
        (tmp_path / f"{class_id:03d}").mkdir()
        for number in range(4):
            crop = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            assert cv2.imwrite(str(tmp_path / f"{class_id:03d}" / f"{number}.png"), crop)
    ran = subprocess.run(
        [sys.executable, "-c", _EVALUATE_CROPS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    one, three, all_at_once = json.loads(ran.stdout.splitlines()[-1]).values()
    assert one[0] == 1 and three[0] == 3 and all_at_once[0] == 8
    assert one[1]["test_files"] == 8
    # Of the most defect-like clean crop: one wrongly told apart from a defective one would give another.
    confidences = [figures.pop("confidence_at_fp") for _, figures in (one, three, all_at_once)]
    assert confidences == pytest.approx([confidences[0]] * 3)
    assert one[1] == three[1] == all_at_once[1]
    # All are taken for clean product. Defects and clean crops are the same, and one alarm is allowed: the one defect is
    # found whose share of clean is as low as that of the clean crop which raises it.
    assert [row["accuracy"] for row in one[1]["per_class"]] == [0, 1]
    assert one[1]["recall_at_fp"] == 0.25


def _write_four(folder, shape):
    """Four images of a grey each, two of them with a defect."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(4):
        assert cv2.imwrite(str(folder / f"images/{number}.png"), np.full((*shape, 3), 100 + number, np.uint8))
        (folder / f"labels/{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n" if number > 1 else "")
    (folder / "data.yaml").write_text('{"train": "images", "val": "images", "names": ["pit"]}')


def test_no_test_image_is_taken_for_empty_because_the_machine_is_slow(tmp_path):
    _write_four(tmp_path, (64, 64))
    ran = subprocess.run(
        [sys.executable, "-c", _EVALUATE_SLOWLY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    # Much: as many as are kept to be looked at.
    assert found == dict.fromkeys("0123", KEPT_PER_TILE)


def test_mosaics_end_at_once_where_loaders_have_processes_of_their_own(tmp_path):
    script = tmp_path / "close_mosaic.py"
    script.write_text(_CLOSE_MOSAIC)
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    # The batch in hand at iteration 5 was made before.
    assert [json.loads(line) for line in ran.stdout.splitlines()[-2:]] == [[[True] * 6 + [False] * 14, 5]] * 2


@pytest.mark.long
def test_whole_images_are_shown_at_the_scale_of_tiles_and_as_much_at_once(tmp_path):
    _write_four(tmp_path, (96, 128))
    ran = subprocess.run(
        [sys.executable, "-c", _EVALUATE_WHOLE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    # Two of 128 px are as much as eight of 64; ultralytics pads by half a stride on each side.
    assert json.loads(ran.stdout.splitlines()[-1]) == [[[4, 3, 64, 64], 4, 2], [[2, 3, 128, 160], 4, 2]]
