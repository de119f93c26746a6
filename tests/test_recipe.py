from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from defectgen.errors import UsageError
from defectgen.recipe import Generator, Recipe, json_schema, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = {"name": "tiles", "data": {"root": "product", "train_images": "images", "train_clean": "clean"}}


def _write(folder: Path, **fields: Any) -> Path:
    path = folder / "tiles.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **fields}))
    return path


def _message(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_root_is_absolute_and_relative_to_the_recipe_file(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path))
    assert recipe.data.root == str(tmp_path / "product")
    assert recipe.synth.num_images == 100


def test_unknown_field_names_the_nearest_at_its_place(tmp_path: Path) -> None:
    path = _write(tmp_path, place={"max_overlp": 0.1}, sedd=3)
    assert _message(path).split("\n") == [
        f"{path}: place.max_overlp: unknown field; did you mean max_overlap?",
        f"{path}: sedd: unknown field; did you mean seed?",
    ]


def test_unknown_field_unlike_any_lists_the_known(tmp_path: Path) -> None:
    path = _write(tmp_path, labels={"xyz": 1})
    assert _message(path) == f"{path}: labels.xyz: unknown field; known are task, margin, min_change, min_area_fraction"


def test_unknown_field_of_a_nested_optional_section_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, data={"demo": {"test_part": 3}})
    assert _message(path) == f"{path}: data.demo.test_part: unknown field; did you mean test_parts?"


def test_strength_is_a_number_or_a_range(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path, inpaint={"strength": 0.5})).inpaint.strength == (0.5, 0.5)
    assert load_recipe(_write(tmp_path, inpaint={"strength": [0.2, 1]})).inpaint.strength == (0.2, 1)
    for wrong in (0, 1.2, [0.6, 0.2], [0, 0.5]):
        path = _write(tmp_path, inpaint={"strength": wrong})
        assert "inpaint.strength: must be a number above 0 and at most 1, or two such in rising order" in _message(path)


def test_all_faults_are_reported_at_once_with_place_and_value(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        place={"max_overlap": 1.5, "scale": [2, 1]},
        synth={"num_images": 0},
        inpaint={"backend": "magic"},
        train_yolo={"imgsz": 300},
    )
    assert _message(path).split("\n") == [
        f"{path}: place.max_overlap: input should be less than or equal to 1, got 1.5",
        f"{path}: place.scale: must be two rising numbers above 0, got [2.0, 1.0]",
        f"{path}: inpaint.backend: input should be 'paste', 'poisson' or 'diffusion', got 'magic'",
        f"{path}: synth.num_images: input should be greater than or equal to 1, got 0",
        f"{path}: train_yolo.imgsz: input should be a multiple of 32, got 300",
    ]
    # A training counted twice would look like certainty.
    path = _write(tmp_path, train_yolo={"seeds": [0, 1, 0], "arms": ["real", "real"]})
    assert _message(path).split("\n") == [
        f"{path}: train_yolo.seeds: must name each once, got [0, 1, 0]",
        f"{path}: train_yolo.arms: must name each once, got ['real', 'real']",
    ]
    path = _write(tmp_path, train_yolo={"seeds": [-1]})
    assert _message(path) == f"{path}: train_yolo.seeds: must be whole numbers of 0 or more, got [-1]"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"root": "x"}, "data: needs `root` and `train_images`, or `demo`"),
        (
            {"root": "x", "train_images": "i", "train_clean": "c", "format": "labelme"},
            "data: needs `classes` for format: labelme",
        ),
        (
            {"demo": {}, "group_pattern": r"^part\d+_"},
            "data.group_pattern: needs a group in parentheses, as in ^(part\\d+)_, got '^part\\\\d+_'",
        ),
        ({"demo": {}, "group_pattern": "("}, "data.group_pattern: is no regular expression (missing )"),
        ({"demo": {}, "test_fraction": float("nan")}, "data.test_fraction: input should be a finite number, got nan"),
    ],
)
def test_data_that_names_too_little_says_what_it_needs(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    path = _write(tmp_path, data=data)
    assert _message(path).startswith(f"{path}: {message}")


def test_missing_field_is_required(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\n")
    assert _message(path).split("\n") == [f"{path}: name: is required; add it", f"{path}: data: is required; add it"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must be a mapping of recipe fields, got list"),
        ("name: [\n", "is no valid YAML: while parsing"),
        ("name: !!python/object/apply:os.getcwd []\n", "is no valid YAML: could not determine a constructor"),
    ],
)
def test_file_that_is_no_recipe_says_so(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert _message(path).startswith(f"{path}: {message}")


def test_field_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "tiles.yaml"
    path.write_text("name: tiles\ndata:\n  root: .\n  train_images: a\n  train_images: b\n")
    assert "train_images stands twice; keep one of them" in _message(path) and "line 5" in _message(path)


def test_demo_beside_data_of_ones_own_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, data={**SMALL["data"], "demo": {}})
    assert "has `demo`, the built-in product, beside data of its own (`root`)" in _message(path)


def test_folder_is_no_recipe_and_names_may_be_of_any_letters(tmp_path: Path) -> None:
    assert (
        _message(tmp_path)
        == f"{tmp_path}: is a folder, not a recipe; draft one for it with `defectgen init {tmp_path}`"
    )
    assert load_recipe(_write(tmp_path, name="検査_2")).name == "検査_2"
    assert "to name a folder, got 'a/b'" in _message(_write(tmp_path, name="a/b"))


def test_missing_or_binary_file_says_what_to_name(tmp_path: Path) -> None:
    gone = tmp_path / "gone.yaml"
    assert _message(gone).startswith(f"{gone}: cannot be read as a recipe (")
    assert _message(gone).endswith("; name a YAML file, as in recipes/")
    binary = tmp_path / "image.yaml"
    binary.write_bytes(b"\x89PNG\xff")
    assert _message(binary).startswith(f"{binary}: cannot be read as a recipe (")


def test_overrides_win_and_are_parsed_as_yaml(tmp_path: Path) -> None:
    overrides = ["synth.num_images=7", "train_yolo.seeds=[1, 2]", "inpaint.backend=paste", "train_yolo.tile_px=null"]
    recipe = load_recipe(
        _write(tmp_path, seed=4, synth={"num_images": 50, "clean_share": 0.5}, train_yolo={"tile_px": 64}), overrides
    )
    assert recipe.synth.num_images == 7 and recipe.synth.clean_share == 0.5
    assert recipe.train_yolo.seeds == [1, 2]
    assert recipe.inpaint.backend == "paste"
    assert recipe.train_yolo.tile_px is None and recipe.seed == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("synth.num_images", "--set synth.num_images: must be field=value, as in synth.num_images=20"),
        ("name.x=1", "--set name.x=1: name is a value, not a section of the recipe"),
        ("seed=[", "--set seed=[: the value is no valid YAML: while parsing"),
    ],
)
def test_faulty_override_is_quoted(tmp_path: Path, override: str, message: str) -> None:
    assert _message(_write(tmp_path), [override]).startswith(message)


def test_override_of_an_unknown_field_is_a_fault(tmp_path: Path) -> None:
    message = _message(_write(tmp_path, seed=-1), ["synth.num_image=3"])
    # Each where it stands: in the command, in the file.
    assert "--set synth.num_image: unknown field; did you mean num_images?" in message.split("\n")
    assert f"{tmp_path / 'tiles.yaml'}: seed: " in message


def test_root_is_expanded_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, data={**SMALL["data"], "root": "${DEFECTGEN_TEST_ROOT}/deeppcb"})  # type: ignore[dict-item]
    monkeypatch.setenv("DEFECTGEN_TEST_ROOT", "/srv/data")
    assert load_recipe(path).data.root == "/srv/data/deeppcb"


@pytest.mark.parametrize("value", [None, ""])
def test_unset_environment_variable_says_how_to_get_and_name_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("DEFECTGEN_TEST_ROOT", raising=False)
    if value is not None:
        monkeypatch.setenv("DEFECTGEN_TEST_ROOT", value)
    path = _write(tmp_path, data={**SMALL["data"], "root": "${DEFECTGEN_TEST_ROOT}/deeppcb"})  # type: ignore[dict-item]
    assert _message(path) == (
        f"{path}: data.root: the environment variable DEFECTGEN_TEST_ROOT is not set, "
        "got '${DEFECTGEN_TEST_ROOT}/deeppcb'; "
        "download DeepPCB (github.com/tangsanli5201/DeepPCB), converted to YOLO boxes, "
        "put it there as the folder deeppcb/, and set it to the folder that holds the data, "
        "as in export DEFECTGEN_TEST_ROOT=/path/to/data"
    )


def test_resolved_recipe_round_trips_through_yaml(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, seed=5, place={"per_image": [2, 4]}))
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_schema_is_json_and_describes_every_field() -> None:
    schema = json.loads(json_schema())
    sections = {name: section for name, section in schema["$defs"].items() if "properties" in section}
    assert set(sections) == {
        "Data",
        "DemoData",
        "Generator",
        "Inpaint",
        "Labels",
        "Place",
        "Screen",
        "Synth",
        "TrainYolo",
    }
    fields = {
        f"{name}.{field}": value for name, section in sections.items() for field, value in section["properties"].items()
    }
    assert len(fields) > 50
    assert [name for name, value in fields.items() if not value.get("description")] == []
    assert set(schema["required"]) == {"name", "data"}
    assert {option["type"] for option in fields["Inpaint.strength"]["anyOf"]} == {"number", "array"}


def test_every_recipe_of_the_repository_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFECTGEN_DATA", "/srv/data")
    recipes = {path.stem: load_recipe(path) for path in sorted(RECIPES.glob("*.yaml"))}
    assert set(recipes) >= {"ball_screw", "pcb", "quay_cracks", "quickstart"}
    assert all(isinstance(recipe, Recipe) for recipe in recipes.values())
    assert all(recipe.data.demo or str(recipe.data.root).startswith("/srv/data/") for recipe in recipes.values())


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({"channels": [50, 100]}, r"needs channels in multiples of 16, the last at least 32, got \[50, 100\]"),
        ({"channels": [16, 16]}, r"the last at least 32"),
        ({"channels": [16, 0, 32]}, r"multiples of 16"),
        ({"window_px": 48, "fold": 4, "channels": [32, 32, 32, 32]}, r"is 12 px, which cannot be halved 3 times"),
    ],
)
def test_network_that_cannot_be_built_is_refused(generator: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generator.model_validate(generator)
