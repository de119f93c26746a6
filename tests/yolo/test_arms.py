import json
from dataclasses import replace

import numpy as np
import pytest

from defectgen.errors import DataError
from defectgen.images import read_rgb
from defectgen.progress import silent
from defectgen.recipe import TrainYolo
from defectgen.records import Annotation, Sources
from defectgen.yolo import arms
from defectgen.yolo.arm_files import write_arm, write_test
from defectgen.yolo.arms import draw, make_schedule, plan_arms

ARMS = ["real", "real+copy-paste", "real+defectgen"]


@pytest.fixture
def plan_with(tmp_path, make_sources, make_synthetic):
    synthetic = {
        "real+copy-paste": make_synthetic(tmp_path / "pasted", 7, seed=7),
        "real+defectgen": make_synthetic(tmp_path / "generated", 11, seed=8),
    }
    sources = make_sources(tmp_path / "sources")

    def plan(**settings):
        config = TrainYolo(**{"iterations": 40, "batch": 10, "arms": ARMS, **settings})
        return plan_arms(config=config, sources=sources, synthetic=synthetic, seed=5)

    return plan


def _totals(arm):
    return {
        origin: sum(count for sample, count in arm.counts if sample.origin == origin)
        for origin in ("real", "synthetic", "clean")
    }


def test_arms_have_equal_lists_and_the_stated_shares(plan_with):
    plan = plan_with()
    for arm in plan.arms:
        assert arm.schedule.list_length == 100  # ten batches of ten, four rounds
        assert arm.schedule.epochs == 4
    assert [_totals(arm) for arm in plan.arms] == [
        {"real": 80, "synthetic": 0, "clean": 20},
        {"real": 40, "synthetic": 40, "clean": 20},
        {"real": 40, "synthetic": 40, "clean": 20},
    ]


def test_an_arm_is_the_same_whichever_others_there_are(plan_with):
    # So small a share that eleven synthetic images need long epochs.
    settings = {"iterations": 400, "batch": 2, "real_share": 0.9}
    alone = {name: plan_with(arms=[name], **settings).arms[0] for name in ("real", "real+defectgen")}
    together = plan_with(arms=["real", "real+defectgen", "full-real"], **settings)
    assert alone["real"].schedule.list_length < alone["real+defectgen"].schedule.list_length
    assert [alone["real"], alone["real+defectgen"]] == list(together.arms[:2])


def test_real_share_is_kept(plan_with):
    plan = plan_with(real_share=0.75, clean_share=0.0)
    assert _totals(plan.arms[1]) == {"real": 75, "synthetic": 25, "clean": 0}


def test_no_real_share_leaves_the_synthetic_images_alone(plan_with):
    real, pasted, _ = plan_with(real_share=0).arms
    assert _totals(pasted) == {"real": 0, "synthetic": 80, "clean": 20}
    assert _totals(real)["real"] == 80


def test_every_arm_has_the_same_background_and_real_images(plan_with):
    plan = plan_with()
    background = [[pair for pair in arm.counts if pair[0].origin == "clean"] for arm in plan.arms]
    assert background[0] == background[1] == background[2]
    real = [[pair for pair in arm.counts if pair[0].origin == "real"] for arm in plan.arms]
    assert {sample for sample, _ in real[0]} == {sample for sample, _ in real[1]} == {sample for sample, _ in real[2]}
    assert real[1] == real[2]


def test_arms_with_lists_of_unequal_length_have_the_same_background(tmp_path, plan_with, make_sources):
    # Of 60 places two would be for the three clean images, of the more that eleven synthetic images need, more.
    plan = plan_with(iterations=400, batch=2, real_share=0.9, clean_share=0.04)
    real, _, generated = plan.arms
    assert real.schedule.list_length < generated.schedule.list_length
    background = [{sample for sample, _ in arm.counts if sample.origin == "clean"} for arm in (real, generated)]
    assert background[0] == background[1]
    assert len(background[0]) == 3


def test_of_too_many_clean_tiles_every_arm_has_the_same_ones(plan_with):
    plan = plan_with(iterations=16, batch=4, clean_share=0.13, real_share=0.7)  # two of three find a place
    background = [[pair for pair in arm.counts if pair[0].origin == "clean"] for arm in plan.arms]
    assert len(background[0]) == 2
    assert background[0] == background[1] == background[2]


def test_samples_are_repeated_evenly():
    counts = dict(draw(["a", "b", "c"], 8, np.random.default_rng(0)))
    assert sorted(counts.values()) == [2, 3, 3]
    assert len(draw(list(range(10)), 4, np.random.default_rng(0))) == 4


def test_clean_images_of_a_synthetic_set_are_not_used(plan_with):
    plan = plan_with()
    assert plan.arms[1].available == {"real": 5, "clean": 3, "synthetic": 7}


def test_no_test_file_is_in_an_arm(plan_with):
    plan = plan_with()
    held_out = {sample.image.path for sample in plan.test}
    assert len(held_out) == 5
    for arm in plan.arms:
        assert not held_out & {sample.image.path for sample, _ in arm.counts}


def test_test_image_copied_into_training_is_refused(tmp_path, make_sources):
    sources = make_sources(tmp_path / "sources")
    sources.test[0].path.write_bytes(sources.train[0].path.read_bytes())
    with pytest.raises(DataError, match=r"test0\.png: is a test image and the same as the training image .*train0"):
        plan_arms(config=TrainYolo(arms=["real"]), sources=sources, synthetic={}, seed=0)


def test_without_clean_images_all_samples_are_defective(tmp_path, make_sources):
    sources = make_sources(tmp_path / "sources")
    bare = Sources(sources.class_names, sources.train, sources.train, (), sources.test, ())
    plan = plan_arms(config=TrainYolo(arms=["real"], iterations=8, batch=5), sources=bare, synthetic={}, seed=0)
    assert _totals(plan.arms[0]) == {"real": 10, "synthetic": 0, "clean": 0}


def test_empty_tiles_of_defective_images_are_background(tmp_path, make_sources):
    sources = make_sources(tmp_path / "sources", size=128)
    config = TrainYolo(arms=["real"], tile_px=64, iterations=8, batch=8)
    plan = plan_arms(config=config, sources=sources, synthetic={}, seed=0)
    arm = plan.arms[0]
    assert 12 < arm.available["clean"] <= 12 + 15


def test_detectors_of_tiles_are_judged_on_whole_images_at_the_same_scale(tmp_path, make_sources):
    sources = make_sources(tmp_path / "sources", size=100)
    config = TrainYolo(arms=["real"], tile_px=64, imgsz=96, iterations=8, batch=8)
    plan = plan_arms(config=config, sources=sources, synthetic={}, seed=0)
    assert len(plan.test) == 5 and len(plan.clean_stems) == plan.num_clean_images == 2
    # 100 px at 1.5 pixels of the detector for one of the image are 150; it is shown 160, 107 of the image.
    assert plan.test_imgsz == 160
    assert {sample.tile.xyxy for sample in plan.test} == {(0, 0, 107, 100)}
    assert [sample.tile.labels for sample in plan.test[:3]] == [image.annotations for image in sources.test]
    write_test(plan, tmp_path / "yolo", silent)
    written = read_rgb(tmp_path / "yolo/test/images/real-00000.png")
    assert np.array_equal(written[:, :100], read_rgb(sources.test[0].path)) and (written[:, 100:] == 114).all()
    rows = (tmp_path / "yolo/test/labels/real-00000.txt").read_text().split()
    x1, y1, x2, y2 = sources.test[0].annotations[0].xyxy
    assert [float(value) for value in rows[1:]] == pytest.approx(
        [(x1 + x2) / 2 / 107, (y1 + y2) / 2 / 100, (x2 - x1) / 107, (y2 - y1) / 100], abs=1e-6
    )


def test_test_images_of_other_sizes_keep_the_scale_of_the_tiles(tmp_path, make_sources):
    small = make_sources(tmp_path / "small", size=64)
    large = make_sources(tmp_path / "large", size=160)
    mixed = replace(small, test=(*small.test, *large.test), test_clean=())
    config = TrainYolo(arms=["real"], tile_px=64, imgsz=64, iterations=8, batch=8)
    plan = plan_arms(config=config, sources=mixed, synthetic={}, seed=0)
    assert plan.test_imgsz == 160 and {sample.tile.xyxy for sample in plan.test} == {(0, 0, 160, 160)}
    write_test(plan, tmp_path / "yolo", silent)
    first = read_rgb(tmp_path / "yolo/test/images/real-00000.png")
    assert np.array_equal(first[:64, :64], read_rgb(small.test[0].path))
    assert (first[64:] == 114).all() and (first[:, 64:] == 114).all()


@pytest.mark.parametrize(("length", "count", "tiles"), [(32, 5, 3), (33, 1, 3), (33, 2, 12)])
def test_detectors_of_parts_of_long_defects_are_judged_on_tiles(tmp_path, make_sources, length, count, tiles):
    sources = make_sources(tmp_path / "sources", size=128)
    short = [Annotation(0, (0, 0, 20, 5))] * (10 - count)
    first, *others = (replace(image, annotations=()) for image in sources.train)
    pool = (replace(first, annotations=(*short, *[Annotation(0, (0, 0, length, 5))] * count)), *others)
    config = TrainYolo(arms=["real"], tile_px=64, imgsz=64, iterations=8, batch=8)
    plan = plan_arms(config=config, sources=replace(sources, train_pool=pool), synthetic={}, seed=0)
    assert len(plan.test) - len(plan.clean_stems) == tiles
    assert plan.test_imgsz == (128 if tiles == 3 else 64)


def test_too_large_test_images_are_judged_on_tiles(tmp_path, make_sources, monkeypatch):
    sources = make_sources(tmp_path / "sources", size=128)
    config = TrainYolo(arms=["real"], tile_px=64, imgsz=64, iterations=8, batch=8)
    for most, test_files in ((128, 5), (127, 20)):
        monkeypatch.setitem(arms._LARGEST_WHOLE_PX, "detect", most)
        assert len(plan_arms(config=config, sources=sources, synthetic={}, seed=0).test) == test_files


def test_detectors_of_images_enlarged_to_a_tile_are_judged_on_tiles(tmp_path, make_sources):
    sources, small = make_sources(tmp_path / "sources", size=128), make_sources(tmp_path / "small", size=48)
    config = TrainYolo(arms=["real"], tile_px=64, imgsz=64, iterations=8, batch=8)
    for image, test_files in ((small.train[0], 20), (make_sources(tmp_path / "tiles", size=64).train[0], 5)):
        mixed = replace(sources, train=(*sources.train, image), train_pool=(*sources.train_pool, image))
        assert len(plan_arms(config=config, sources=mixed, synthetic={}, seed=0).test) == test_files


def test_files_lists_and_samples_json_agree(tmp_path, plan_with):
    plan = plan_with()
    out = tmp_path / "yolo"
    for arm in plan.arms:
        write_arm(plan, arm, out, ("scratch", "spot"), silent)
    folder = out / "real-defectgen"
    record = json.loads((folder / "samples.json").read_text())
    listed = (folder / "train.txt").read_text().splitlines()
    assert len(listed) == 100 == sum(entry["count"] for entry in record["files"])
    for entry in record["files"]:
        assert listed.count(f"./train/images/{entry['file']}") == entry["count"]
        label = (folder / "train/labels" / entry["file"]).with_suffix(".txt").read_text()
        assert label.splitlines() == entry["labels"]
        assert (label == "") == (entry["origin"] == "clean")
    assert record["counts"] == {"real": 40, "synthetic": 40, "clean": 20}
    assert len(list((folder / "train/images").iterdir())) == len(record["files"]) == 5 + 11 + 3


def test_tile_files_hold_the_pixels_of_their_place(tmp_path, make_sources):
    sources = make_sources(tmp_path / "sources", size=100)
    config = TrainYolo(arms=["real"], tile_px=64, iterations=8, batch=8)
    plan = plan_arms(config=config, sources=sources, synthetic={}, seed=0)
    write_arm(plan, plan.arms[0], tmp_path / "yolo", ("scratch", "spot"), silent)
    sample = next(sample for sample, _ in plan.arms[0].counts if sample.tile.xyxy == (36, 0, 100, 64))
    whole = read_rgb(sample.image.path)
    tile = read_rgb(tmp_path / f"yolo/real/train/images/{sample.stem}.png")
    assert np.array_equal(tile, whole[:64, 36:])


def test_written_folder_is_kept_until_the_plan_changes(tmp_path, plan_with):
    plan = plan_with()
    reports: list[tuple[str, int, int, str]] = []
    for _ in range(2):
        write_arm(plan, plan.arms[0], tmp_path / "yolo", ("scratch", "spot"), lambda *report: reports.append(report))
    assert reports == [("write real", number, 8, "") for number in range(1, 9)]
    # Names that were corrected are those of the weights, though no image changed.
    write_arm(plan, plan.arms[0], tmp_path / "yolo", ("Kratzer", "spot"), silent)
    assert json.loads((tmp_path / "yolo/real/data.yaml").read_text())["names"] == ["Kratzer", "spot"]


@pytest.mark.parametrize(
    ("iterations", "needed", "batches", "epochs"),
    [(300, 0, 30, 10), (468, 0, 26, 18), (300, 50, 50, 6), (300, 500, 75, 4), (5, 0, 2, 3), (1, 0, 1, 1)],
)
def test_schedule_divides_the_iterations(iterations, needed, batches, epochs):
    schedule = make_schedule(iterations, 16, needed)
    assert (schedule.batches_per_epoch, schedule.epochs) == (batches, epochs)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("2 0.5 0.5 0.2 0.2\n", "the class must be within 0 to 1"),
        ("0 0.5 0.5\n", "a class and 4 box values"),
        ("0 0.5 0.5 0.2 x\n", "could not convert"),
        ("", "holds no labelled image"),
    ],
)
def test_unusable_synthetic_labels_are_errors(tmp_path, rows, fault, make_sources, make_synthetic):
    synthetic = {"real+defectgen": make_synthetic(tmp_path / "set", 2, rows=rows)}
    config = TrainYolo(arms=["real+defectgen"])
    with pytest.raises(DataError, match=fault):
        plan_arms(config=config, sources=make_sources(tmp_path / "sources"), synthetic=synthetic, seed=0)


def test_arm_without_its_data_set_is_an_error(tmp_path, make_sources):
    with pytest.raises(DataError, match=r"real\+defectgen needs a synthetic data set"):
        plan_arms(config=TrainYolo(arms=ARMS[::2]), sources=make_sources(tmp_path / "sources"), synthetic={}, seed=0)


def test_empty_test_set_is_an_error(tmp_path, make_sources):
    sources = make_sources(tmp_path / "sources")
    bare = Sources(sources.class_names, sources.train, sources.train, sources.train_clean, (), ())
    with pytest.raises(DataError, match="the test set is empty"):
        plan_arms(config=TrainYolo(arms=["real"]), sources=bare, synthetic={}, seed=0)


def test_segmentation_model_needs_outlines(tmp_path, make_sources):
    config = TrainYolo(arms=["real"], model="yolo11n-seg.yaml")
    with pytest.raises(DataError, match="boxes without an outline"):
        plan_arms(config=config, sources=make_sources(tmp_path / "sources"), synthetic={}, seed=0)


def test_full_real_sees_every_real_training_image_and_the_budget_alone_the_others(tmp_path, make_sources):
    sources = make_sources(tmp_path / "sources")
    budget = Sources(
        sources.class_names,
        sources.train[:2],
        sources.train,
        sources.train_clean,
        sources.test,
        sources.test_clean,
    )
    config = TrainYolo(arms=["real", "full-real"], iterations=8, batch=8)
    real, ceiling = plan_arms(config=config, sources=budget, synthetic={}, seed=0).arms

    def seen(arm):
        return {sample.image.path for sample, _ in arm.counts if sample.origin == "real"}

    assert seen(real) == {image.path for image in sources.train[:2]}
    assert seen(ceiling) == {image.path for image in sources.train}
    assert _totals(real)["real"] == _totals(ceiling)["real"] > 0
    stems = {sample.stem for sample, _ in ceiling.counts if sample.origin == "real"}
    assert len(stems) == 5


def test_classifier_needs_something_to_tell_apart(tmp_path, make_sources):
    sources = make_sources(tmp_path / "sources")
    one_class = [
        replace(image, annotations=tuple(replace(mark, class_id=0) for mark in image.annotations))
        for image in sources.train
    ]
    alone = replace(sources, class_names=("spot",), train=tuple(one_class), train_clean=(), test_clean=())
    config = TrainYolo(model="yolo11n-cls.yaml", arms=["real"], imgsz=32, iterations=6, batch=4)
    with pytest.raises(DataError, match="there is one class and no clean image, so a classifier has nothing to tell"):
        plan_arms(config=config, sources=alone, synthetic={}, seed=0)
    with_clean = replace(alone, train_clean=sources.train_clean)
    (arm,) = plan_arms(config=config, sources=with_clean, synthetic={}, seed=0).arms
    assert {sample.origin for sample, _ in arm.counts} == {"real", "clean"}
