"""Foreign files that want to run code, leave their folder, or fill the memory: refused, and nothing of theirs runs."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from bad_input import KINDS, VICTIM, write_good_set

from defectgen.data.look import look
from defectgen.dataset.verify import verify_dataset
from defectgen.draft import read_layout
from defectgen.errors import DataError, DefectgenError, UsageError
from defectgen.images import read_rgb
from defectgen.recipe import load_recipe
from defectgen.run import read_sources, run_train_yolo

RECIPE = """
name: foreign
data:
  root: {root}
  train_images: train/images
  base: defective
"""


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_good_set(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Appears where foreign code ran."""
    return tmp_path / "it ran"


def silent(*report: Any) -> None:
    """No progress."""


def recipe_of(tmp_path: Path, data: Path, *lines: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(root=data) + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [{mark}]",
        "!!python/name:os.system",
        "!!python/object/new:os.system [x]",
    ],
)
def test_recipe_with_a_yaml_tag(tmp_path: Path, data: Path, mark: Path, tag: str) -> None:
    path = recipe_of(tmp_path, data, f"seed: {tag.format(mark=mark)}")
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        load_recipe(path)
    assert not mark.exists()


def test_data_yaml_with_a_yaml_tag(data: Path, mark: Path) -> None:
    (data / "data.yaml").write_text(f"names: !!python/object/apply:pathlib.Path.touch [{mark}]\n")
    layout, *_ = look(data, "yolo")
    with pytest.raises(DataError, match=r"data\.yaml"):
        read_layout(data, layout)
    assert not mark.exists()


def test_data_yaml_with_a_download_runs_nothing(data: Path, mark: Path) -> None:
    with (data / "data.yaml").open("a") as file:
        file.write(f"download: touch {mark}\n")
    layout, *_ = look(data, "yolo")
    read_layout(data, layout)
    assert not mark.exists()


def test_made_set_whose_data_yaml_got_a_download(made_set: Path) -> None:
    with (made_set / "data.yaml").open("a") as file:
        file.write("download: import os; os.system('true')\n")
    assert any("executes this as code" in problem.reason for problem in verify_dataset(made_set))


@pytest.mark.parametrize("folder", ["../other", "train/../../other", "/etc"])
def test_recipe_that_leads_out_of_its_root(tmp_path: Path, data: Path, folder: str) -> None:
    (tmp_path / "other").mkdir()
    path = recipe_of(tmp_path, data)
    path.write_text(path.read_text().replace("train/images", folder))
    with pytest.raises(DataError, match=r"data\.train_images: leads out of data\.root .*, got '.*'; name a root"):
        read_sources(load_recipe(path), tmp_path / "out")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "images/../../000000.png"])
def test_manifest_that_names_files_elsewhere(made_set: Path, name: str) -> None:
    manifest = made_set / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("images/000000.png", name))
    (problem, *_) = verify_dataset(made_set)
    assert problem.path == str(manifest) and "line 2" in problem.where


def test_manifest_with_another_hash(made_set: Path) -> None:
    image = next((made_set / "images").iterdir())
    image.write_bytes(image.read_bytes() + b" ")
    assert [Path(problem.path).name for problem in verify_dataset(made_set)] == [image.name]


def test_pickled_weights(tmp_path: Path, fitted: Any, mark: Path) -> None:
    weights = tmp_path / "yolo11n.pt"
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("yolo11n/data.pkl", pickle.dumps(Bomb(mark)))
    model = fitted.recipe.train_yolo.model_copy(update={"model": str(weights)})
    recipe = fitted.recipe.model_copy(update={"train_yolo": model})
    with pytest.raises(
        UsageError, match=r"is a pickle, .*; where you know where it comes from, add --trust-checkpoint"
    ):
        run_train_yolo(recipe, tmp_path / "run", workers=1, progress=silent)
    # As torch saved them long ago: not even with trust.
    weights.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UsageError, match="holds no weights as torch saves them"):
        run_train_yolo(recipe, tmp_path / "run", workers=1, progress=silent, trust_checkpoint=True)
    assert not mark.exists() and not (tmp_path / "run").exists()


def test_pickled_cache_beside_the_labels(data: Path, mark: Path) -> None:
    for path in (data / "train/labels.cache", data / "train/labels/labels.cache"):
        path.write_bytes(pickle.dumps(Bomb(mark)))
    layout, *_ = look(data, "yolo")
    _, sources = read_layout(data, layout)
    assert len(sources.train_pool) > 0 and not mark.exists()


def test_generator_with_code_of_its_own(tmp_path: Path, fitted: Any, mark: Path) -> None:
    """Diffusers runs a pipeline's own module where it is let; and a checkpoint that is a pickle is not read."""
    from defectgen.studio import load_studio

    out = Path(shutil.copytree(fitted.out, tmp_path / "run"))
    (out / "generator/pipeline.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n")
    index = out / "generator/model_index.json"
    index.write_text(index.read_text().replace('"_class_name": "', '"_class_name": ["pipeline", "X"], "was": "'))
    (weights,) = (out / "generator/unet").glob("*.safetensors")
    weights.unlink()
    (out / "generator/unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DefectgenError):
        load_studio(fitted.recipe, read_sources(fitted.recipe, out), out / "generator")
    assert not mark.exists()


def test_decompression_bomb(data: Path) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == "decompression bomb")
    with pytest.raises(DataError, match="megapixels; cut it into tiles first"):
        read_rgb(data / kind.spoil(data, VICTIM))


def test_xml_bomb(tmp_path: Path, data: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 10}">' for n in range(9))
    for label in (data / "train/labels").iterdir():
        label.unlink()
    for image in (data / "train/images").iterdir():
        text = f'<?xml version="1.0"?><!DOCTYPE a [{entities}]><annotation><filename>&e8;</filename></annotation>'
        (data / "train/labels" / f"{image.stem}.xml").write_text(text)
    layout, *_ = look(data, "voc")
    layout.data["classes"] = ["pit"]
    _, sources = read_layout(data, layout)
    assert len([problem for problem in sources.problems if problem.path.endswith(".xml")]) >= 6


def test_text_chunk_bomb(data: Path) -> None:
    """A PNG whose comment unpacks to 200 MB."""
    png = (data / "train/images/p1.png").read_bytes()
    packed = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = (len(packed) - 4).to_bytes(4, "big") + packed + zlib.crc32(packed).to_bytes(4, "big")
    path = data / "train/images/p1.png"
    path.write_bytes(png[:33] + chunk + png[33:])
    code = (
        "import resource, sys; from pathlib import Path; from defectgen.images import read_rgb\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_rgb(Path(sys.argv[1]))\n"
        "except Exception: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150_000  # KiB


@pytest.fixture
def made_set(tmp_path: Path, toys: Any, demo_sources: Any) -> Path:
    from stand_ins import made_set as make
    from stand_ins import make_studio

    from defectgen.compose import compose

    recipe = toys.recipe(inpaint={"backend": "diffusion", "start": "place"}, synth={"num_images": 2, "clean_share": 0})
    studio = make_studio(recipe, demo_sources)
    folder: Path = make(
        tmp_path / "set", recipe, demo_sources, [compose(recipe, demo_sources, studio, index) for index in range(2)]
    )
    assert verify_dataset(folder) == []
    return folder
