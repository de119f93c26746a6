from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import defectgen.review as reviewing
import defectgen.run as running
from defectgen.bench.cells import _rejected
from defectgen.compose import clean_indexes
from defectgen.dataset import sheet
from defectgen.dataset.manifest import read_manifest
from defectgen.dataset.verify import verify_dataset
from defectgen.errors import RunError, UsageError
from defectgen.review import put_in_place, read_review, rejected_indexes, settle
from defectgen.run import run_synth

SHA = {"recipe_sha256": "a" * 64, "generator_fingerprint": "f00d"}
NUM_IMAGES = 6


def write_review(path: Path, *, rejected: Any = (), accepted: Any = (), **changes: Any) -> Path:
    content = {"kind": "defectgen review", **SHA, "accepted": accepted, "rejected": rejected} | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return path


# Reading and judging.


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"kind": "a diary"}, "kind: input should be 'defectgen review', got 'a diary'; export it again from the"),
        ({"kind": None}, "kind: field required; export it again from the report's gallery"),
        ({"rejected": None}, "rejected: field required; export it again from the report's gallery"),
        ({"rejected": ["3"]}, "rejected.0: input should be a valid integer, got '3'; export"),
        ({"rejected": [True]}, "rejected.0: input should be a valid integer, got 'True'; export"),
        ({"rejected": [-1]}, "rejected.0: input should be greater than or equal to 0, got '-1'; export"),
        ({"note": "x"}, "note: extra inputs are not permitted, got 'x'; export"),
        ({"rejected": [3, 5, 3]}, "rejected: image 3 is listed 2 times; list it once"),
        ({"accepted": [1, 1]}, "accepted: image 1 is listed 2 times; list it once"),
        ({"accepted": [1, 2], "rejected": [2]}, "rejected: image 2 is accepted, too; leave it in one list"),
    ],
)
def test_fault_of_a_review_names_field_value_and_remedy(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    path = write_review(tmp_path / "review.json", **changes)
    with pytest.raises(UsageError) as caught:
        read_review(path)
    assert str(caught.value).startswith(f"{path}: {fault}")


def test_all_faults_of_a_review_are_told_at_once(tmp_path: Path) -> None:
    path = write_review(tmp_path / "review.json", kind="x", rejected=["3"], accepted=None)
    with pytest.raises(UsageError) as caught:
        read_review(path)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("content", [b"", b'{"kind": ', b"\xff\xfe", b"[]", b"null"])
def test_file_that_is_no_review_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "review.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"review\.json: review: .*; export it again from the report's gallery"):
        read_review(path)


def test_missing_review_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no\.json: cannot be read \(No such file or directory\); name a review\.json"
    ):
        read_review(tmp_path / "no.json")


def judged(*paths: Path, earlier: Any = (), clean: Any = (2,), num_images: int = 4) -> list[int]:
    return rejected_indexes(
        paths,
        recipe_sha256=SHA["recipe_sha256"],
        fingerprint=SHA["generator_fingerprint"],
        num_images=num_images,
        clean=clean,
        earlier=earlier,
    )


def test_rejections_add_up_and_their_repetition_changes_nothing(tmp_path: Path) -> None:
    first = write_review(tmp_path / "1.json", rejected=[3], accepted=[0, 1])
    # Of the set 0, 1, 2, 4, which the first review leaves.
    second = write_review(tmp_path / "2.json", rejected=[4, 0], accepted=[1])
    assert judged(first) == [3]
    assert judged(first, second) == [0, 3, 4]
    assert judged(second, earlier=[3]) == [0, 3, 4]
    assert judged(first, second, earlier=[0, 3, 4]) == [0, 3, 4]
    assert judged(second, earlier=[0, 3, 4]) == [0, 3, 4]
    with pytest.raises(
        UsageError, match=r"2\.json: rejected: image 4 is not in the set, whose last is 3; .* in the or"
    ):
        judged(second, first)


@pytest.mark.parametrize(
    ("review", "fault"),
    [
        ({"rejected": [4]}, "rejected: image 4 is not in the set, whose last is 3; take it out"),
        # Without the strictness, 0 would make room for it.
        ({"rejected": [0, 4]}, "rejected: image 4 is not in the set, whose last is 3; take it out"),
        ({"accepted": [17]}, "accepted: image 17 is not in the set, whose last is 3; take it out"),
        ({"rejected": [2]}, "rejected: image 2 is a clean one, nothing was drawn in it; take it out"),
        ({"rejected": [0, 1, 3]}, "rejected: are all 3 composites of the set, and others would be no better; change"),
    ],
)
def test_what_cannot_be_rejected_is_named(tmp_path: Path, review: dict[str, Any], fault: str) -> None:
    path = write_review(tmp_path / "review.json", **review)
    with pytest.raises(UsageError) as caught:
        judged(path)
    assert str(caught.value).startswith(f"{path}: {fault}")


def test_review_of_another_set_says_which_hash_differs_and_nothing_of_its_indexes(tmp_path: Path) -> None:
    path = write_review(tmp_path / "review.json", recipe_sha256="b" * 64, generator_fingerprint="beef", rejected=[99])
    with pytest.raises(UsageError) as caught:
        judged(path)
    recipe, generator = str(caught.value).splitlines()
    assert recipe.startswith(
        f"{path}: recipe_sha256: is of a set of another recipe, got 'bbbbbbbbbbbb', this one is 'aaaaaaaaaaaa'; give"
    )
    assert generator.startswith(
        f"{path}: generator_fingerprint: is of a set of another generator, got 'beef', this one is 'f00d'; fit on"
    )


# Replacing a set by another.


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def a_set(folder: Path, name: str) -> Path:
    (folder / "images").mkdir(parents=True)
    for file in ("images/a.png", "manifest.jsonl", "README.md", "data.yaml"):
        (folder / file).write_text(name)
    return folder


def test_what_the_user_put_into_a_set_goes_along(tmp_path: Path, toys: Any) -> None:
    folder, partial = a_set(tmp_path / "dataset", "old"), a_set(tmp_path / "dataset.partial", "new")
    (folder / "data.yaml").write_text("val: real")
    (folder / "real").mkdir()
    (folder / "real/part.png").write_text("real")
    (folder / "images/000007.png").write_text("old")
    (folder / "images/val").mkdir()
    (folder / "images/val/000001.png").write_text("real")
    (folder / "labels.cache").write_text("old")
    put_in_place(partial, folder)
    own = {"real/part.png": b"real", "images/val/000001.png": b"real"}
    expected = {name: b"new" for name in ("images/a.png", "manifest.jsonl", "README.md")}
    assert toys.read_tree(tmp_path) == {
        f"dataset/{name}": data for name, data in (expected | {"data.yaml": b"val: real"} | own).items()
    }


@pytest.mark.parametrize("killed_at", range(1, 7))
def test_replacement_killed_between_any_two_steps_is_ended(
    tmp_path: Path, toys: Any, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    folder, partial = a_set(tmp_path / "dataset", "old"), a_set(tmp_path / "dataset.partial", "new")
    (folder / "data.yaml").write_text("val: real")
    (folder / "notes.txt").write_text("mine")
    steps = 0

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == killed_at:
                raise Killed
            return step(*args, **options)

        return counting

    def rmtree(tree: Path) -> None:
        shutil.rmtree(tree / "images")
        counted(shutil.rmtree)(tree)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", counted(Path.rename))
        patched.setattr(Path, "replace", counted(Path.replace))
        patched.setattr(reviewing, "shutil", type("Shutil", (), {"rmtree": staticmethod(rmtree)}))
        # Two moves, the user's two files, and the end.
        if killed_at < 6:
            with pytest.raises(Killed):
                put_in_place(partial, folder)
        else:
            put_in_place(partial, folder)
            assert steps == 5
    held = {path.read_text() for path in tmp_path.rglob("manifest.jsonl")}
    assert "new" in held
    settle(folder, partial)
    if killed_at == 1:  # It had not begun.
        assert (folder / "manifest.jsonl").read_text() == "old"
        put_in_place(partial, folder)
    assert toys.read_tree(tmp_path) == {
        "dataset/images/a.png": b"new",
        "dataset/manifest.jsonl": b"new",
        "dataset/README.md": b"new",
        "dataset/data.yaml": b"val: real",
        "dataset/notes.txt": b"mine",
    }


def test_settling_without_a_new_set_gives_the_old_one_back(tmp_path: Path) -> None:
    a_set(tmp_path / "dataset.replaced", "old")
    settle(tmp_path / "dataset", tmp_path / "dataset.partial")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    settle(tmp_path / "dataset", tmp_path / "dataset.partial")
    assert (tmp_path / "dataset/manifest.jsonl").read_text() == "old"


# The whole way.


def silent(stage: str, done: int, total: int, note: str) -> None:
    pass


def synth(recipe: Any, out: Path, *reviews: Path, **options: Any) -> dict[str, Any]:
    return run_synth(recipe, out, reviews=reviews, **{"workers": 1, "progress": silent} | options)


@pytest.fixture(scope="module")
def recipe(toys: Any) -> Any:
    return toys.recipe(synth={"num_images": NUM_IMAGES})


@pytest.fixture
def out(fitted: Any, tmp_path: Path, short_fitting: None, one_process: None) -> Path:
    """A run folder in which `fit` has ended."""
    return Path(shutil.copytree(fitted.out, tmp_path / "run"))


@pytest.fixture(scope="module")
def made(fitted: Any, recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an unreviewed set, made in a process of its own: not to be written to."""
    out = tmp_path_factory.mktemp("made") / "run"
    shutil.copytree(fitted.out, out)
    synth(recipe, out)
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path, short_fitting: None, one_process: None) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def composites_of(recipe: Any) -> list[int]:
    return sorted(set(range(NUM_IMAGES)) - clean_indexes(recipe))


@pytest.fixture
def review(made: Path, recipe: Any, tmp_path: Path) -> Path:
    """Rejects the first two composites of the set."""
    first, second, *others = composites_of(recipe)
    return review_of(made, tmp_path / "review.json", rejected=[first, second], accepted=others)


def review_of(out: Path, path: Path, **lists: Any) -> Path:
    header = read_manifest(out / "dataset/manifest.jsonl").header
    return write_review(path, **lists, **{name: header[name] for name in SHA})  # type: ignore[literal-required]


@pytest.fixture
def reviewed(recipe: Any, out: Path, review: Path, toys: Any) -> dict[str, bytes]:
    """What a fresh run with the review makes."""
    synth(recipe, out, review)
    tree: dict[str, bytes] = toys.read_tree(out / "dataset")
    return tree


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_rejected_images_are_replaced_and_the_others_keep_their_bytes(
    recipe: Any, copy: Path, made: Path, review: Path, reviewed: dict[str, bytes], toys: Any
) -> None:
    before = toys.read_tree(made / "dataset")
    inodes = {path.name: path.stat().st_ino for path in (copy / "dataset/images").iterdir()}
    counts: list[tuple[int, int]] = []
    summary = synth(recipe, copy, review, progress=lambda stage, *n: counts.append(n[:2]) if stage == "synth" else None)
    # Two were made, and no other.
    assert sorted(set(counts)) == [(4, 6), (5, 6), (6, 6)]
    assert summary["num_images"] == NUM_IMAGES and names(copy) == names(made)
    tree = toys.read_tree(copy / "dataset")
    first, second, *_ = composites_of(recipe)
    rejected = [f"{first:06d}", f"{second:06d}"]
    new = [f"{NUM_IMAGES:06d}", f"{NUM_IMAGES + 1:06d}"]
    in_images = {Path(name).stem for name in tree if name.startswith("images/")}
    assert in_images == {f"{index:06d}" for index in range(NUM_IMAGES + 2)} - set(rejected)
    kept = [name for name in tree if Path(name).stem.isdigit() and Path(name).stem not in new]
    assert len(kept) == 3 * (NUM_IMAGES - 2) and all(tree[name] == before[name] for name in kept)
    assert {name for name in tree if Path(name).stem in rejected} == set()
    for path in (copy / "dataset/images").iterdir():
        assert path.stem in new or path.stat().st_ino == inodes[path.name], "an image was made again"

    manifest, header = (
        read_manifest(copy / "dataset/manifest.jsonl"),
        read_manifest(made / "dataset/manifest.jsonl").header,
    )
    assert manifest.header == header | {"rejected": [first, second]}
    assert all(row["placed"] for row in manifest.rows if row["index"] >= NUM_IMAGES)
    assert sum(not row["placed"] for row in manifest.rows) == len(clean_indexes(recipe)) > 0
    assert f"rejected by a person, for which others stand: 2 ({first}, {second})." in tree["README.md"].decode()
    assert verify_dataset(copy / "dataset") == []
    # A fresh run with the review ends at the same bytes; nothing else of it is left in either.
    assert tree == reviewed


def test_reviewed_set_is_kept_with_and_without_the_review(
    recipe: Any, out: Path, review: Path, reviewed: dict[str, bytes], toys: Any
) -> None:
    notes: list[str] = []
    for reviews in ((), (review,)):
        notes.clear()
        synth(recipe, out, *reviews, progress=lambda stage, done, total, note: notes.append(note))
        assert notes[-1] == "already made"
        assert toys.read_tree(out / "dataset") == reviewed


def test_set_without_a_review_has_no_word_of_one(made: Path) -> None:
    assert "rejected" not in read_manifest(made / "dataset/manifest.jsonl").header
    assert "person" not in (made / "dataset/README.md").read_text()


def test_second_review_adds_to_the_first_and_both_make_the_same_anew(
    recipe: Any, copy: Path, out: Path, review: Path, tmp_path: Path, toys: Any
) -> None:
    synth(recipe, copy, review)
    second = review_of(copy, tmp_path / "second.json", rejected=[NUM_IMAGES])
    synth(recipe, copy, second)
    rejected = [*composites_of(recipe)[:2], NUM_IMAGES]
    manifest = read_manifest(copy / "dataset/manifest.jsonl")
    assert manifest.header["rejected"] == rejected
    assert [row["index"] for row in manifest.rows] == [i for i in range(NUM_IMAGES + 3) if i not in rejected]
    assert verify_dataset(copy / "dataset") == []
    synth(recipe, out, review, second)
    assert toys.read_tree(out / "dataset") == toys.read_tree(copy / "dataset")


def kill_at(stage: str, done: int) -> Callable[..., None]:
    def kill(at: str, count: int, total: int, note: str) -> None:
        if (at, count) == (stage, done):
            raise Killed

    return kill


def kill(*args: Any, **options: Any) -> None:
    raise Killed


def kill_between_the_moves(partial: Path, folder: Path) -> None:
    folder.rename(f"{folder}.replaced")
    raise Killed


# What raises in its place.
KILLS: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "before the manifest": (running, "finish", kill),
    "before the sheets": (sheet, "write_contact_sheets", kill),
    "before the old set is moved": (running, "put_in_place", kill),
    "before the new set is moved": (running, "put_in_place", kill_between_the_moves),
    "before the old set is gone": (reviewing, "settle", kill),
}


@pytest.mark.parametrize("moment", [4, 5, *KILLS])
def test_killed_review_loses_nothing_and_goes_on_to_the_same_bytes(
    recipe: Any,
    copy: Path,
    made: Path,
    review: Path,
    reviewed: dict[str, bytes],
    toys: Any,
    monkeypatch: pytest.MonkeyPatch,
    moment: int | str,
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        if isinstance(moment, int):  # Before the first replacement, and after it.
            synth(recipe, copy, review, progress=kill_at("synth", moment))
        else:
            patched.setattr(*KILLS[moment])
            synth(recipe, copy, review)
    if (copy / "dataset").exists() and not (copy / "dataset.replaced").exists():
        assert toys.read_tree(copy / "dataset") == toys.read_tree(made / "dataset")
    synth(recipe, copy, review)
    assert toys.read_tree(copy / "dataset") == reviewed
    assert names(copy) == names(made)


def test_killed_between_the_moves_any_command_ends_the_replacement(
    recipe: Any, copy: Path, review: Path, reviewed: dict[str, bytes], toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(running, "put_in_place", kill_between_the_moves)
        synth(recipe, copy, review)
    assert not (copy / "dataset").exists()
    synth(recipe, copy)
    assert toys.read_tree(copy / "dataset") == reviewed


def test_killed_review_with_half_its_files_gone_goes_on_to_the_same_bytes(
    recipe: Any, copy: Path, review: Path, reviewed: dict[str, bytes], toys: Any
) -> None:
    with pytest.raises(Killed):
        synth(recipe, copy, review, progress=kill_at("synth", 5))
    files = sorted(path for path in (copy / "dataset.partial").rglob("[!.]*") if path.is_file())
    assert len(files) == 4 * 5
    for path in files[::2]:
        path.unlink()
    # The old set's own files are the same files: they must not be written into.
    before = toys.read_tree(copy / "dataset")
    for path in files[1::4]:
        path.unlink()
        path.write_bytes(b"torn")
    assert toys.read_tree(copy / "dataset") == before
    synth(recipe, copy, review)
    assert toys.read_tree(copy / "dataset") == reviewed


def test_killed_review_can_be_given_up(
    recipe: Any, copy: Path, made: Path, review: Path, tmp_path: Path, toys: Any, out: Path
) -> None:
    with pytest.raises(Killed):
        synth(recipe, copy, review, progress=kill_at("synth", 5))
    synth(recipe, copy)
    assert toys.read_tree(copy / "dataset") == toys.read_tree(made / "dataset")
    # Another one takes nothing of what it rejects from the partial set.
    other = review_of(made, tmp_path / "other.json", rejected=[composites_of(recipe)[2]])
    synth(recipe, copy, other)
    synth(recipe, out, other)
    assert toys.read_tree(copy / "dataset") == toys.read_tree(out / "dataset")


@pytest.mark.parametrize("ended", [False, True])
def test_review_of_a_first_synth_that_was_killed_drops_what_was_made_of_it(
    recipe: Any,
    out: Path,
    fitted: Any,
    tmp_path: Path,
    review: Path,
    reviewed: dict[str, bytes],
    toys: Any,
    monkeypatch: pytest.MonkeyPatch,
    ended: bool,
) -> None:
    other = Path(shutil.copytree(fitted.out, tmp_path / "other"))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        if ended:  # Manifest and sheets name the rejected.
            patched.setattr(running, "put_in_place", kill)
            synth(recipe, other)
        else:
            synth(recipe, other, progress=kill_at("synth", 4))
    synth(recipe, other, review)
    assert toys.read_tree(other / "dataset") == reviewed


def test_fresh_run_with_a_review_killed_and_continued_without_it_is_unreviewed(
    recipe: Any, out: Path, made: Path, review: Path, toys: Any
) -> None:
    with pytest.raises(Killed):
        synth(recipe, out, review, progress=kill_at("synth", 5))
    synth(recipe, out)
    assert toys.read_tree(out / "dataset") == toys.read_tree(made / "dataset")


def test_overwriting_forgets_a_review(toys: Any, recipe: Any, out: Path, reviewed: dict[str, bytes]) -> None:
    synth(toys.recipe(synth={"num_images": 3}), out, overwrite=True)
    manifest = read_manifest(out / "dataset/manifest.jsonl")
    assert [row["index"] for row in manifest.rows] == [0, 1, 2] and "rejected" not in manifest.header


def test_review_of_another_set_changes_nothing(
    toys: Any, recipe: Any, copy: Path, out: Path, made: Path, tmp_path: Path
) -> None:
    before = toys.read_tree(copy)
    with pytest.raises(UsageError, match=r"other\.json: recipe_sha256: is of a set of another recipe"):
        synth(recipe, copy, write_review(tmp_path / "other.json", rejected=[1], recipe_sha256="b" * 64))
    assert toys.read_tree(copy) == before
    # Before there is a set, the recipe's own hash counts.
    mine = review_of(made, tmp_path / "other.json", rejected=[composites_of(recipe)[0]])
    with pytest.raises(UsageError, match=r"other\.json: recipe_sha256: is of a set of another recipe"):
        synth(toys.recipe(synth={"num_images": NUM_IMAGES + 1}), out, mine)
    assert not (out / "dataset").exists() and not (out / "dataset.partial").exists()


def test_review_holds_for_the_set_whatever_was_changed_about_training_since(
    recipe: Any, copy: Path, review: Path, reviewed: dict[str, bytes], toys: Any
) -> None:
    longer = recipe.model_copy(update={"train_yolo": recipe.train_yolo.model_copy(update={"iterations": 99})})
    for _ in range(2):
        synth(longer, copy, review)
        assert toys.read_tree(copy / "dataset") == reviewed


@pytest.mark.parametrize("arm", ["real+copy-paste", "real+procedural"])
def test_control_set_of_a_reviewed_set_stands_at_its_images(
    recipe: Any, out: Path, reviewed: dict[str, bytes], arm: str
) -> None:
    sources = running.read_sources(recipe, out)
    folder = running._control_set(arm, recipe, sources, out, progress=silent)
    followed, control = (read_manifest(path / "manifest.jsonl") for path in (out / "dataset", folder))
    assert control.header["rejected"] == followed.header["rejected"]
    facts = [
        [(row["index"], row["source"], [mark["asked_xyxy"] for mark in row["placed"]]) for row in manifest.rows]
        for manifest in (followed, control)
    ]
    assert [row[:2] for row in facts[0]] == [row[:2] for row in facts[1]]
    assert [len(marks) for *_, marks in facts[0]] == [len(marks) for *_, marks in facts[1]]
    assert facts[0][-1][0] == NUM_IMAGES + 1 and len(facts[0]) == NUM_IMAGES
    assert [problem for problem in verify_dataset(folder) if "listed" in problem.reason] == []


def test_bench_counts_what_a_person_rejected(recipe: Any, copy: Path, review: Path) -> None:
    assert _rejected(copy) == 0
    synth(recipe, copy, review)
    assert _rejected(copy) == len(json.loads(review.read_text())["rejected"]) > 0
    assert _rejected(copy / "generator") == 0


def test_arms_that_do_not_use_the_set_take_no_review(recipe: Any, out: Path, review: Path) -> None:
    real = recipe.model_copy(update={"train_yolo": recipe.train_yolo.model_copy(update={"arms": ["real"]})})
    with pytest.raises(UsageError, match=r"--review: none of the arms is trained on the set or follows it; leave it"):
        running.run_train_yolo(real, out, workers=1, progress=silent, reviews=[review])


def test_disk_without_links_gets_copies(
    recipe: Any, copy: Path, review: Path, reviewed: dict[str, bytes], toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    synth(recipe, copy, review)
    assert toys.read_tree(copy / "dataset") == reviewed


def test_image_that_is_gone_from_the_old_set_is_made_again(
    recipe: Any, copy: Path, review: Path, reviewed: dict[str, bytes], toys: Any
) -> None:
    kept = composites_of(recipe)[2]
    (copy / f"dataset/images/{kept:06d}.png").unlink()
    synth(recipe, copy, review)
    assert toys.read_tree(copy / "dataset") == reviewed


def test_failing_write_in_the_middle_is_an_error_that_leaves_the_old_set(
    recipe: Any, copy: Path, made: Path, review: Path, reviewed: dict[str, bytes], toys: Any, monkeypatch: Any
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RunError("disk")

    with monkeypatch.context() as patched:
        patched.setattr(running, "finish", fail)
        with pytest.raises(RunError, match="disk"):
            synth(recipe, copy, review)
    assert toys.read_tree(copy / "dataset") == toys.read_tree(made / "dataset")
    synth(recipe, copy, review)
    assert toys.read_tree(copy / "dataset") == reviewed
