"""Killed, out of disk, with failing writes, four at a time: run again, every stage ends at the same bytes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nothing_lost import DONE, REFUSED, FailingWrites, KilledBeforeMove, Killer, finish, shares, start

from defectgen.dataset.manifest import read_manifest
from defectgen.errors import DataError
from defectgen.images import read_rgb
from defectgen.recipe import Recipe

STAGES = {"fit": "generator", "synth": "dataset", "export": "exported"}


def times(many: int) -> pytest.MarkDecorator:
    """A few times in the default tests, `many` with -m torture."""
    return pytest.mark.parametrize("count", [2, pytest.param(many, marks=pytest.mark.torture)])


@pytest.fixture(scope="module")
def recipe(toys: Any) -> Recipe:
    made: Recipe = toys.recipe(synth={"num_images": 6})
    return made


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory, toys: Any) -> tuple[Path, dict[str, float]]:
    """A run folder in which every stage ended, and the seconds that each took."""
    # The first child waits for the imports.
    finish("fit", recipe, tmp_path_factory.mktemp("first") / "run")
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, {stage: finish(stage, recipe, out) for stage in STAGES}


@pytest.fixture
def before(whole: tuple[Path, dict[str, float]], tmp_path: Path) -> Any:
    """Makes a run folder in which all stages before one have ended."""

    def prepare(stage: str, where: Path = tmp_path) -> Path:
        out = where / "run"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole[0], out)
        for later in list(STAGES)[list(STAGES).index(stage) :]:
            shutil.rmtree(out / STAGES[later])
        return out

    return prepare


def content(out: Path, stage: str, toys: Any) -> dict[str, bytes]:
    """Bytes of what the stage made, but for the seconds that fitting took."""
    tree: dict[str, bytes] = toys.read_tree(out / STAGES[stage])
    return {name: re.sub(rb'"seconds": [\d.]+', b"", data) for name, data in tree.items()}


def assert_nothing_torn(out: Path) -> None:
    """Every file under a final name is whole; what is being written has a name of its own."""
    for path in out.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        if path.suffix in (".png", ".jpg"):
            try:
                read_rgb(path)
            except DataError as error:
                pytest.fail(str(error))
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines())


@times(34)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_it_goes_on(stage: str, count: int, recipe: Recipe, whole: Any, before: Any, toys: Any) -> None:
    expected = content(whole[0], stage, toys)
    killer = Killer(stage, recipe, whole[1][stage])
    for share in shares(count, seed=1):
        out = before(stage)
        # Twice: what goes on can be killed, too.
        for part in (share / 2, share):
            killer.kill(out, part, goes_on=part == share)
            assert_nothing_torn(out)
        finish(stage, recipe, out)
        assert content(out, stage, toys) == expected
    assert killer.killed >= max(count // 2, 1)


@pytest.mark.torture
@pytest.mark.parametrize("stage", ["fit", "synth"])
def test_killed_before_a_move_it_leaves_nothing_behind(
    stage: str, recipe: Recipe, whole: Any, before: Any, toys: Any
) -> None:
    expected = content(whole[0], stage, toys)
    # Every third: the images' own moves, image, label, mask and row, are alike, and four is no multiple of it.
    for move in itertools.count(1, 3):
        out = before(stage)
        process = start(stage, recipe, out, KilledBeforeMove(move))
        process.join()
        assert_nothing_torn(out)
        if process.exitcode == DONE:
            break
        assert process.exitcode == -signal.SIGKILL
        finish(stage, recipe, out)
        assert content(out, stage, toys) == expected
        assert not list(out.rglob(".*.tmp"))
    assert move > 10


@pytest.fixture
def before_review(before: Any) -> Any:
    """Makes a run folder with a finished set and a review of it."""

    def prepare(where: Path) -> Path:
        out: Path = before("export", where)
        manifest = read_manifest(out / "dataset/manifest.jsonl")
        rejected = [row["index"] for row in manifest.rows if row["placed"]][:2]
        review = {name: manifest.header[name] for name in ("recipe_sha256", "generator_fingerprint")}  # type: ignore[literal-required]
        review |= {"kind": "defectgen review", "accepted": [], "rejected": rejected}
        (out / "review.json").write_text(json.dumps(review))
        return out

    return prepare


@times(34)
def test_killed_review_goes_on(count: int, recipe: Recipe, before_review: Any, tmp_path: Path, toys: Any) -> None:
    out = before_review(tmp_path)
    old, seconds = content(out, "synth", toys), finish("review", recipe, out)
    expected = content(out, "synth", toys)
    assert expected != old
    killer = Killer("review", recipe, seconds)
    for share in shares(count, seed=2):
        out = before_review(tmp_path)
        for part in (share / 2, share):
            killer.kill(out, part, goes_on=part == share)
            assert_nothing_torn(out)
            # One of the two is whole at every moment.
            sets = [out / name for name in ("dataset", "dataset.partial", "dataset.replaced")]
            assert any(toys.read_tree(folder) in (old, expected) for folder in sets if folder.exists())
        finish("review", recipe, out)
        assert content(out, "synth", toys) == expected
        assert not list(out.glob("dataset.*"))
    assert killer.killed >= max(count // 2, 1)


@times(25)
def test_writes_of_a_review_fail_from_the_nth(
    count: int, recipe: Recipe, before_review: Any, tmp_path: Path, toys: Any
) -> None:
    out = before_review(tmp_path)
    finish("review", recipe, out)
    expected = content(out, "synth", toys)
    refused = 0
    for first in range(1, count + 1):
        out = before_review(tmp_path)
        process = start("review", recipe, out, FailingWrites(first, 3))
        process.join()
        refused += process.exitcode == REFUSED
        assert process.exitcode in (DONE, REFUSED), out.with_suffix(".txt").read_text()
        assert_nothing_torn(out)
        finish("review", recipe, out)
        assert content(out, "synth", toys) == expected
    assert refused >= min(count, 3) - 1


@times(25)
@pytest.mark.parametrize("stage", ["fit", "synth"])
def test_out_of_disk_it_goes_on_elsewhere(
    stage: str, count: int, recipe: Recipe, whole: Any, before: Any, toys: Any, disk: Any
) -> None:
    expected = content(whole[0], stage, toys)
    made = sum(path.stat().st_size for path in (whole[0] / STAGES[stage]).rglob("*") if path.is_file())
    failed = 0
    for number in range(count):
        template = before(stage)
        there = sum(path.stat().st_size for path in template.rglob("*") if path.is_file())
        # From nothing left to nearly enough; every file takes whole pages.
        mounted = disk(there + 4096 * 80 + made * number // count)
        out = Path(shutil.copytree(template, mounted / "run"))
        process = start(stage, recipe, out)
        process.join()
        if process.exitcode != DONE:
            failed += 1
            assert process.exitcode == REFUSED, f"size {number}: exit code {process.exitcode}"
        assert_nothing_torn(out)
        rescued = Path(shutil.copytree(out, template.parent / f"rescued{number}"))
        finish(stage, recipe, rescued)
        assert content(rescued, stage, toys) == expected
        shutil.rmtree(rescued)
    assert failed >= count // 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Any]:
    """A disk of so many bytes, where this user may mount one."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        unmount()
        place = tmp_path / f"disk{size}"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("this user may not mount a small disk")
        mounted.append(place)
        return place

    def unmount() -> None:
        while mounted:
            subprocess.run(["umount", str(mounted.pop())], check=True)

    yield mount
    unmount()


@times(25)
@pytest.mark.parametrize("stage", STAGES)
def test_writes_fail_from_the_nth(stage: str, count: int, recipe: Recipe, whole: Any, before: Any, toys: Any) -> None:
    expected = content(whole[0], stage, toys)
    refused = 0
    for first in range(1, count + 1):
        out = before(stage)
        process = start(stage, recipe, out, FailingWrites(first, 3))
        process.join()
        refused += process.exitcode == REFUSED
        assert process.exitcode in (DONE, REFUSED), out.with_suffix(".txt").read_text()
        assert_nothing_torn(out)
        finish(stage, recipe, out)
        assert content(out, stage, toys) == expected
    assert refused >= min(count, 3) - 1


@times(20)
def test_four_processes_on_one_folder(count: int, recipe: Recipe, whole: Any, before: Any, toys: Any) -> None:
    expected = content(whole[0], "synth", toys)
    for _ in range(count):
        out = before("synth")
        processes = [start("synth", recipe, out) for _ in range(4)]
        for process in processes:
            process.join()
        codes = sorted(int(process.exitcode or 0) for process in processes)
        assert codes[0] == DONE and set(codes) <= {DONE, REFUSED}
        if REFUSED in codes:
            assert "is in use by" in out.with_suffix(".txt").read_text()
        assert content(out, "synth", toys) == expected
        assert_nothing_torn(out)


def test_read_only_folder_is_one_message(recipe: Recipe, whole: Any, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    process = start("fit", recipe, tmp_path / "locked/run")
    process.join()
    assert process.exitcode == REFUSED
