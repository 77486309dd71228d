"""The notebook: it runs from top to bottom, is kept without outputs, and its links lead somewhere.

It runs in a kernel, as a reader runs it, and not by `exec` in this process: the last line of a cell is shown, figures are
drawn inline, and signals and warnings are those of a kernel. That costs three seconds more, most of them for torch.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from common.files import PROJECT_ROOT

NOTEBOOK = PROJECT_ROOT / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs_of(notebook: NotebookNode, cell_id: str) -> list[NotebookNode]:
    """What a cell has printed and shown."""
    (cell,) = [cell for cell in notebook.cells if cell.id == cell_id]
    return cell.outputs


def printed(notebook: NotebookNode, cell_id: str) -> str:
    """What a cell has printed."""
    return "".join(output.text for output in outputs_of(notebook, cell_id) if output.output_type == "stream")


@pytest.mark.slow
def test_every_cell_runs(notebook: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder, in which nothing is written."""
    own = tmp_path / "settings"  # not the settings, the history and the kernels of whoever runs the tests
    own.mkdir()
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(own / name.lower()))
    folder = tmp_path / "anywhere"
    folder.mkdir()
    NotebookClient(notebook, timeout=120, iopub_timeout=60, resources={"metadata": {"path": str(folder)}}).execute()
    assert list(folder.iterdir()) == []
    assert "car_horn/0.wav" in outputs_of(notebook, "features")[-1].data["text/html"]
    assert "image/png" in outputs_of(notebook, "map")[-1].data
    assert "24 clips, 4 classes" in printed(notebook, "heads") and "three-layer" in printed(notebook, "heads")
    assert re.search(r"^new\.wav +\w+ \d", printed(notebook, "new"), re.MULTILINE)


def test_the_notebook_is_kept_without_outputs(notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z-]+", cell.id), f"{cell.id}: an id that a tool has made up changes with every edit"
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), f"{cell.id}: clear the outputs before a commit"


def test_the_links_of_the_notebook_lead_somewhere(notebook: NotebookNode) -> None:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    scripts = re.findall(r"\b\w+/\w+\.py\b", text)
    assert links and scripts
    assert [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []
    assert [script for script in scripts if not (PROJECT_ROOT / script).is_file()] == []
