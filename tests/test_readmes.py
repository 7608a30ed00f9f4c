"""What the READMEs show is run as it stands, and what they link to is there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from safetensors.torch import load_file

from tests.project import ROOT

READMES = sorted(
    file.relative_to(ROOT).as_posix()
    for place in (".", "data", "models", "recipes", "stages", "stages/*", "tests", "tests/bench")
    for file in ROOT.glob(f"{place}/README.md")
)
SCRIPTS = (
    "stages/README.md",
    "stages/curvature/README.md",
    "stages/merging/README.md",
)  # each begins with a complete one
METHOD = "magnitude"  # of stages/README.md: its example of a merge method


def blocks(readme: str) -> list[str]:
    """The examples of a README: what is indented, after and before an empty line."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    return [dedent(block) for block in re.findall(r"(?<=\n\n)(?: {4}.*\n|\n(?=\n* {4}))+", text)]


def run(script: str, place: Path, package: Path = ROOT) -> str:
    """What a script prints that runs in an empty directory."""
    place.mkdir()
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("readme", SCRIPTS)
def test_the_first_example_runs(readme: str, tmp_path: Path) -> None:
    script = blocks(readme)[0]
    assert len(script.splitlines()) <= 40
    assert run(script, tmp_path / "empty")


def test_the_example_of_a_merge_method_runs(tmp_path: Path) -> None:
    """As a folder of its own, with nothing else changed, in the place of the other README's method."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "stages/merging/methods" / METHOD
    folder.mkdir()
    (folder / "__init__.py").touch()
    options, rule = (block for block in blocks("stages/README.md") if "Magnitude" in block)
    (folder / "options.py").write_text(options)
    (folder / "rule.py").write_text(rule)
    script = blocks("stages/merging/README.md")[0]
    assert script.count("method=Fisher(floor=1e-6)") == 1
    run(script.replace("method=Fisher(floor=1e-6)", f"method={METHOD!r}"), tmp_path / "empty", tmp_path)
    ann, bob, merged = (load_file(tmp_path / "empty" / name / "model.safetensors") for name in ("ann", "bob", "merged"))
    name = "classifier.weight"
    weights = ann[name].double().abs(), bob[name].double().abs()
    wanted = (weights[0] * ann[name] + weights[1] * bob[name]) / sum(weights)
    assert (merged[name] - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("readme", READMES)
def test_what_is_linked_is_there(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (ROOT / readme).parent / path if path else ROOT / readme
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
