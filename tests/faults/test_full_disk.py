"""A disk with no space left (a small file system in memory): for the stage's output, or for DVC's copy of it."""

from pathlib import Path

import pytest

from tests.faults.faults import Keeps, error_lines, filled, mend, small_disk
from tests.faults.table import Trials
from tests.faults.undisturbed import STAGES, Undisturbed

SPARE = 300_000  # bytes that dvc's own records may take


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(undisturbed: Undisturbed, trials: Trials, tmp_path: Path, stage: str) -> None:
    """Full at once; then with room for some of the output; then for all of it, but not for DVC's copy too."""
    size = sum(
        file.stat().st_size
        for path in undisturbed.outputs[stage]
        for file in [undisturbed.project.root / path, *(undisturbed.project.root / path).rglob("*")]
        if file.is_file()
    )
    with small_disk(tmp_path, 200) as disk:
        project = undisturbed.stale(disk, stage)
        keeps = Keeps(project, undisturbed.outputs[stage], undisturbed.project)
        with trials.of(stage) as faults:
            for name, free in {
                "none": 0,
                "for a part": SPARE + size // 3,
                "for one copy": SPARE + size * 4 // 3,
            }.items():
                faults.append(f"full disk, room {name}")
                with filled(disk, free):
                    result = project.run("dvc", "repro", check=False)
                    said = result.stdout + result.stderr
                assert "Traceback" not in said, said
                if result.returncode:
                    assert error_lines(said) or "ERROR" in said, said
                    assert all("run `dvc repro`" in line for line in error_lines(said)), said
                    keeps.check()
                    mend(project)
            project.repro()
            undisturbed.assert_same(project)
