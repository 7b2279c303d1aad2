"""The notebooks and their page run from top to bottom; no outputs are stored, and no escape sequences shown."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
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


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_the_page_about_notebooks_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "notebook.md").read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(code, scope)
    assert scope["result"].summary["sae"].unique().tolist() == ["mine"]
