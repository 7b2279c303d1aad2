"""The notebooks run from top to bottom, without stored outputs, and show no escape sequences."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
FIGURES = {"score_my_sae": 1, "look_into_a_letter": 0}


def test_all_notebooks_are_run():
    assert sorted(FIGURES) == [path.stem for path in NOTEBOOKS]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env={**environment, "OMP_NUM_THREADS": "1"})
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result"}
    texts = [output.get("text") or output.data["text/plain"] for output in outputs]
    assert not any("\x1b" in text for text in texts)
    assert any("100%" in text for text in texts)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    assert any("Feature absorption" in output.get("data", {}).get("text/html", "") for output in outputs) == (
        path.stem == "score_my_sae"
    )
