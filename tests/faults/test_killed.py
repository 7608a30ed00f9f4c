"""Every stage, ended again and again at different moments, then with no space, no permission and a rival."""

import os
from pathlib import Path

import pytest

from tests.faults.faults import KILLS, Keeps, assert_refused, read_only
from tests.faults.process import Process
from tests.faults.table import Trials
from tests.faults.undisturbed import SAVING, STAGES, Undisturbed
from tests.project import Project

ROUNDS = int(os.environ.get("ROUNDS", "1"))  # five bring every fault together with every moment
LIMIT = 600  # bytes: less than the smallest stage's largest file


def moments(stage: str) -> list[tuple[str, int]]:
    """Where a stage is disturbed: a moment, and the how manieth of its kind."""
    ends = [("begun", 1), ("writing", 1), ("whole", 1), ("renamed", 1)]
    return [("saving", 3), *ends] if stage in SAVING else ends


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_happens_to_a_stage_the_next_run_ends_with_the_same_bits(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path, stage: str
) -> None:
    """At every moment that passes, the disk is looked at: what is there then is what a kill would leave."""
    project = undisturbed.stale(tmp_path, stage)
    keeps = Keeps(project, undisturbed.outputs[stage], undisturbed.project)
    places, position = moments(stage), list(STAGES).index(stage)
    work = 0
    with trials.of(stage) as faults:
        for turn in range(ROUNDS):
            for number, (fault, kill) in enumerate(KILLS.items()):
                # Each round another moment for a fault, and for the same fault at another stage.
                name, count = places[(number + position + turn) % len(places)]
                faults.append(fault)
                process = Process(project, "dvc", "repro", program="stages.")
                kill(process, process.stop_at(name, count, keeps.check))
                keeps.check()
                work += process.work
        faults.append("no space")
        work += refused(project, LIMIT)
        keeps.check()
        faults.append("read-only place")
        with read_only((project.root / undisturbed.outputs[stage][0]).parent):
            work += refused(project)
        keeps.check()
        faults.append("two dvc repro")
        work += beside_another(project, keeps)
        undisturbed.assert_same(project)
        assert project.repro() == []
    if stage in SAVING:
        trials.repeated(stage, undisturbed.work(tmp_path / "whole", stage), work, len(faults) - 1)


def refused(project: Project, limit: int | None = None) -> int:
    """Run, fail, and say why in a line; returns how much work was done."""
    process = Process(project, "dvc", "repro", program="stages.", stop=False, limit=limit)
    assert process.wait() != 0
    assert_refused(process.output)
    return process.work


def beside_another(project: Project, keeps: Keeps) -> int:
    """Two `dvc repro` at once: the second is refused, the first does all. Returns how much work was done."""
    process = Process(project, "dvc", "repro", program="stages.")
    process.stop_at("writing", 1, keeps.check)
    second = project.run("dvc", "repro", check=False)
    assert second.returncode != 0
    assert "it is being blocked by" in second.stderr
    assert "Traceback" not in second.stderr
    process.go_on()
    for _ in process.moments():
        keeps.check()
    assert process.wait() == 0, process.output
    return process.work
