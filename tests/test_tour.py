"""The notebook docs/tour.ipynb: it runs from top to bottom, and what is stored in it is small and without errors."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_code_of_the_notebook_runs_in_a_fresh_process():
    code = "\n\n".join("".join(cell["source"]) for cell in cells("code"))
    command = [sys.executable, "-c", f"import matplotlib\nmatplotlib.use('agg')\n{code}"]
    result = subprocess.run(command, cwd=TOUR.parent, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"largest difference (\S+)", result.stdout)[1]) < 1e-4  # flat and two levels


def test_the_stored_notebook_has_its_outputs_and_pictures_and_is_small():
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells("code")] == list(range(1, len(cells("code")) + 1))  # run once, from top to bottom
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}  # no errors
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert TOUR.stat().st_size < 400_000


def test_the_links_of_the_notebook_lead_to_files():
    links = [link for cell in cells("markdown") for link in re.findall(r"\]\(([^)]+)\)", "".join(cell["source"]))]
    assert len(links) > 4 and not [link for link in links if not (TOUR.parent / link).exists()]


def test_the_notebook_has_the_format_of_one():
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(TOUR, nbformat.NO_CONVERT))
