"""Every stage, ended again and again at different moments, then with no space, no permission and a rival."""

import os
from pathlib import Path
from random import Random

import pytest

from tests.faults.faults import KILLS, Keeps, assert_refused, read_only
from tests.faults.process import Process
from tests.faults.table import Trials
from tests.faults.undisturbed import SAVING, STAGES, Undisturbed
from tests.project import Project

ROUNDS = int(os.environ.get("ROUNDS", "1"))  # of all kills, each round at other moments
MOMENTS = ("begun", "writing", "whole", "renamed")  # of writing an output, see `tests.faults.process`
LIMIT = 200  # bytes: less than the smallest stage's largest file


def kills(stage: str, turn: int) -> list[tuple[str, str, int]]:
    """What happens to a stage: a fault, at a moment, the how manieth of its kind; other pairs in every round."""
    random = Random(f"{stage} {turn}")
    faults, moments = random.sample(list(KILLS), len(KILLS)), random.sample(MOMENTS, len(MOMENTS))
    places = [(moment, 1) for moment in moments]
    if stage in SAVING:  # first, while there is something to save
        places = [("saving", 3), ("saving", 3), *places[2:]]
    return [(fault, *place) for fault, place in zip(faults, places, strict=True)]


@pytest.mark.parametrize("turn", range(ROUNDS))
@pytest.mark.parametrize("stage", STAGES)
def test_whatever_happens_to_a_stage_the_next_run_ends_with_the_same_bits(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path, stage: str, turn: int
) -> None:
    """At every moment that passes, the disk is looked at: what is there then is what a kill would leave."""
    project = undisturbed.stale(tmp_path, stage)
    keeps = Keeps(project, undisturbed.outputs[stage], undisturbed.project)
    work = 0
    with trials.of(stage) as faults:
        for fault, name, count in kills(stage, turn):
            faults.append(fault)
            process = Process(project, "dvc", "repro", program="stages.")
            KILLS[fault](process, process.stop_at(name, count, keeps.check))
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
