from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from defectgen.data.demo import CLASS_NAMES, outline, plan_test, plan_training, render_part, write_demo
from defectgen.errors import RunError
from defectgen.recipe import DemoData
from defectgen.seeds import numpy_rng

CONFIG = DemoData(seed=3, defects_per_class=4, clean_parts=3, test_parts=8, size_px=160)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "demo"
    write_demo(CONFIG, folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def label_rows(folder: Path) -> list[tuple[Path, int, np.ndarray]]:
    """Label file, class and polygon (n, 2) of each row."""
    rows = []
    for path in sorted(folder.glob("*.txt")):
        for line in path.read_text().splitlines():
            class_id, *numbers = line.split()
            rows.append((path, int(class_id), np.array(numbers, float).reshape(-1, 2)))
    return rows


def groups(folder: Path) -> set[str]:
    return {path.name[: len("part0000")] for path in folder.rglob("*.png")}


def test_same_seed_gives_the_same_bytes_whatever_the_global_generator(demo: Path, tmp_path: Path):
    np.random.seed(1)  # noqa: NPY002
    cv2.setRNGSeed(1)
    write_demo(CONFIG, tmp_path / "again")
    assert len(hashes(demo)) > 20
    assert hashes(tmp_path / "again") == hashes(demo)


def test_another_seed_gives_other_pictures(demo: Path, tmp_path: Path):
    write_demo(CONFIG.model_copy(update={"seed": 4}), tmp_path / "other")
    first, second = hashes(demo), hashes(tmp_path / "other")
    clean = [name for name in first if "/clean/" in name]
    assert len(clean) == 7
    assert all(first[name] != second[name] for name in clean)


def test_test_parts_do_not_change_with_the_training_budget(demo: Path, tmp_path: Path):
    write_demo(CONFIG.model_copy(update={"defects_per_class": 1, "clean_parts": 1}), tmp_path / "smaller")
    assert hashes(tmp_path / "smaller" / "test") == hashes(demo / "test")


def test_every_class_has_its_exact_number_of_training_defects(demo: Path):
    counts = Counter(class_id for _, class_id, _ in label_rows(demo / "train" / "labels"))
    assert counts == {0: 4, 1: 4, 2: 4, 3: 4}


@pytest.mark.parametrize("per_class", [1, 2, 3, 4, 7, 12])
def test_training_plan_counts_a_defect_once_per_shot(per_class: int):
    plan = plan_training(numpy_rng(0, "plan", per_class), per_class)
    counts = Counter(class_id for class_ids, num_shots in plan for class_id in class_ids * num_shots)
    assert counts == dict.fromkeys(range(4), per_class)
    assert {len(class_ids) for class_ids, _ in plan} <= {1, 2}
    assert {num_shots for _, num_shots in plan} == ({1, 2} if per_class >= 4 else {1})


@pytest.mark.parametrize(("num_parts", "per_class"), [(2, 1), (4, 2), (20, 7), (21, 8)])
def test_test_plan_balances_the_classes(num_parts: int, per_class: int):
    plan = plan_test(numpy_rng(0, "plan", num_parts), num_parts)
    assert len(plan) == num_parts
    assert {len(class_ids) for class_ids in plan} <= {1, 2}
    assert Counter(class_id for class_ids in plan for class_id in class_ids) == dict.fromkeys(range(4), per_class)


def test_half_of_the_test_parts_are_clean_and_unlabelled(demo: Path):
    assert len(list((demo / "test" / "images").glob("*.png"))) == 4
    assert len(list((demo / "test" / "clean").glob("*.png"))) == 4
    assert len(list((demo / "train" / "clean").glob("*.png"))) == 3
    for subset in ("train", "test"):
        images = {path.stem for path in (demo / subset / "images").iterdir()}
        assert images == {path.stem for path in (demo / subset / "labels").iterdir()}


def test_train_and_test_share_no_part_and_some_parts_have_two_shots(demo: Path):
    train, test = groups(demo / "train"), groups(demo / "test")
    assert train
    assert test
    assert not train & test
    names = [path.name for path in demo.rglob("*.png")]
    assert all(re.fullmatch(r"part\d{4}_[ab]\.png", name) for name in names)
    in_two_shots = [name for name in names if name.endswith("_b.png")]
    assert in_two_shots
    for name in in_two_shots:
        first, second = (cv2.imread(str(demo / "train" / "images" / shot)) for shot in (name.replace("_b", "_a"), name))
        assert (first != second).any()


def test_data_yaml_names_the_classes(demo: Path):
    described = yaml.safe_load((demo / "data.yaml").read_text())
    assert described == {
        "train": "train/images",
        "val": "train/images",
        "names": {0: "scratch", 1: "pit", 2: "stain", 3: "dent"},
    }


def test_label_polygons_are_normalised_and_have_an_area(demo: Path):
    rows = label_rows(demo / "train" / "labels") + label_rows(demo / "test" / "labels")
    assert len(rows) == 16 + 8
    for path, class_id, polygon in rows:
        assert class_id in range(4), path
        assert len(polygon) >= 4, path
        assert polygon.min() >= 0, path
        assert polygon.max() <= 1, path
        assert cv2.contourArea((polygon * 160).astype(np.float32)) > 3, path


@pytest.mark.parametrize("class_id", range(len(CLASS_NAMES)), ids=CLASS_NAMES)
@pytest.mark.parametrize("part_number", range(3))
def test_a_defect_is_visible_inside_its_mask_and_changes_nothing_away_from_it(class_id: int, part_number: int):
    pictures = render_part(9, part_number, 192, class_ids=(class_id,), num_shots=2)
    assert len(pictures) == 2
    for picture in pictures:
        (mask,) = picture.masks
        change = np.abs(picture.image.astype(int) - picture.clean).max(axis=2)
        assert np.percentile(change[mask], 90) >= 20
        assert (change[mask] >= 10).mean() > 0.5
        near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert (change[~near] < 10).all()
        far = cv2.dilate(mask.astype(np.uint8), np.ones((41, 41), np.uint8)) == 0
        assert far.mean() > 0.5
        assert not change[far].any()


def test_the_polygon_box_is_the_box_of_the_mask():
    picture = render_part(9, 5, 192, class_ids=(2, 3), num_shots=1)[0]
    assert not (picture.masks[0] & picture.masks[1]).any()
    for mask, polygon in zip(picture.masks, picture.polygons, strict=True):
        rows, columns = np.nonzero(mask)
        corners = np.array(polygon)
        assert corners.min(axis=0) == pytest.approx([columns.min(), rows.min()], abs=1)
        assert corners.max(axis=0) == pytest.approx([columns.max() + 1, rows.max() + 1], abs=1)


def test_defects_lie_on_the_plate():
    for part_number in range(24):
        picture = render_part(1, part_number, 128, class_ids=(0, 3), num_shots=1)[0]
        for mask in picture.masks:
            # The bore, the holes and the mat around the plate are black; metal and markings are not.
            assert picture.clean[mask].min() > 25, part_number


def test_every_scratch_is_clear_to_a_careful_inspector():
    for part_number in range(24):
        picture = render_part(6, part_number, 128, class_ids=(0,), num_shots=1)[0]
        change = np.abs(picture.image.astype(int) - picture.clean).max(axis=2)
        assert np.percentile(change[change >= 10], 90) >= 32, part_number


def test_stains_lie_lower_than_pits():
    heights: dict[int, list[float]] = {1: [], 2: []}
    for part_number in range(8):
        picture = render_part(2, part_number, 128, class_ids=(1, 2), num_shots=1)[0]
        for class_id, mask in zip(picture.class_ids, picture.masks, strict=True):
            heights[class_id].append(np.nonzero(mask)[0].mean() / 128)
    assert np.mean(heights[2]) > np.mean(heights[1]) + 0.1
    assert min(heights[2]) > 0.45


def test_outline_bridges_two_flanks_and_leaves_out_a_far_speck():
    visible = np.zeros((60, 80), bool)
    visible[20:40, 10:18] = visible[20:40, 22:30] = True
    visible[55, 75] = True
    mask, polygon = outline(visible)
    assert mask[30, 10:30].all()
    assert not mask[55, 75]
    corners = np.array(polygon)
    assert corners.min(axis=0) == pytest.approx([10, 20], abs=0.5)
    assert corners.max(axis=0) == pytest.approx([30, 40], abs=0.5)


def test_existing_folder_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="the folder exists already; remove it or choose another one"):
        write_demo(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_folder_is_absent_after_a_failure(tmp_path: Path):
    # Beyond what the recipe allows: on so few pixels no defect finds a place, and the first one fails.
    with pytest.raises(RunError, match="no place found for a"):
        write_demo(CONFIG.model_copy(update={"size_px": 20}), tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
