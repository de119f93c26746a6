from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'defectgen[dev]'")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'defectgen[dev]'")


@pytest.fixture
def notebook(example: Any) -> Any:
    return nbformat.read(example.folder / "quickstart.ipynb", as_version=4)


def test_the_notebook_is_kept_without_outputs(notebook: Any) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.long
def test_the_notebook_runs_to_its_end_and_shows_pictures_and_figures(
    notebook: Any, fitted: Any, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(fitted.out, tmp_path / "run"))
    (tmp_path / "tiny.yaml").write_text(fitted.recipe.to_yaml())
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = "\n".join(
        [
            "from pathlib import Path",
            'recipe_path, out = Path("tiny.yaml"), Path("run")',
            'overrides, num_preview = ["train_yolo.arms=[real,real+defectgen]"], 2',
        ]
    )
    # It raises what a cell raises.
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert "Marked defects" in text_of(outputs["check"])
    pictures = [output for output in outputs["look"] if "image/jpeg" in output.get("data", {})]
    assert len(pictures) == len(list((run / "preview/sheets").iterdir())) > 1
    results = json.loads((run / "yolo/results.json").read_text())
    assert list(results["arms"]) == ["real", "real+defectgen"]
    shown = text_of(outputs["train"])
    assert all(arm in shown for arm in results["arms"])
    assert results["best"]["weights"] in shown
    assert len(list((run / "dataset/images").iterdir())) == fitted.recipe.synth.num_images


def text_of(outputs: list[Any]) -> str:
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
