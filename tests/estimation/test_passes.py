"""Statistics other than the diagonal, estimated the way the Fisher stage estimates it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.curvature import CurvatureStatistics, curvature_statistics
from stages.curvature.capture import Capture
from stages.estimation.passes import estimated_statistics
from stages.params import FisherSettings
from stages.tasks.data import TaskData, draw_examples
from stages.tasks.kinds.text_classification.kind import KIND
from tests.project import ROOT
from tests.test_finetune import make_task
from tests.test_fisher import Killed, interrupted

SETTINGS = FisherSettings(examples=20, batch_size=4)


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return make_task(tmp_path / "reviews", ["bad", "good"])


def estimated(checkpoint: Path, task: TaskData, out: Path, statistic: str) -> CurvatureStatistics:
    with estimated_statistics(checkpoint, task, SETTINGS, out, [statistic]) as found:
        assert found is not None
        assert found.card["examples"] == 20
        return found.statistics


def assert_equal(found: CurvatureStatistics, wanted: CurvatureStatistics, tolerance: float = 0.0) -> None:
    assert found.transposed == wanted.transposed
    for group in ("diagonal", "input_factors", "output_factors"):
        assert getattr(found, group).keys() == getattr(wanted, group).keys()
        for name, value in getattr(wanted, group).items():
            torch.testing.assert_close(getattr(found, group)[name], value, rtol=tolerance, atol=tolerance / 1e6)


@pytest.mark.parametrize("statistic", ["kfac", "gram"])
def test_they_are_of_the_examples_drawn_from_the_train_split(
    tmp_path: Path, checkpoint: Path, task: TaskData, statistic: str
) -> None:
    found = estimated(checkpoint, task, tmp_path / "out", statistic)
    tokenizer = KIND.load_processor(checkpoint)
    texts = draw_examples(task.rows("train"), 20, 0)["text"]
    single = [dict(tokenizer(text, return_tensors="pt")) for text in texts]
    wanted = curvature_statistics(KIND.load_model(checkpoint, task.labels), single, statistics=[statistic])
    assert found.input_factors
    assert bool(found.output_factors) == (statistic == "kfac")
    assert_equal(found, wanted, tolerance=1e-4)


@pytest.mark.parametrize("statistic", ["kfac", "gram"])
def test_a_killed_estimation_goes_on_where_it_was_and_gives_the_same_bits(
    tmp_path: Path, checkpoint: Path, task: TaskData, monkeypatch: pytest.MonkeyPatch, statistic: str
) -> None:
    whole = estimated(checkpoint, task, tmp_path / "whole", statistic)
    with monkeypatch.context() as patch:
        interrupted(patch, after=3)
        with pytest.raises(Killed):
            estimated(checkpoint, task, tmp_path / "out", statistic)
    with monkeypatch.context() as patch:
        interrupted(patch, after=2)  # the other two batches of five
        assert_equal(estimated(checkpoint, task, tmp_path / "out", statistic), whole)
    assert not list(tmp_path.glob(".partial-*"))


def test_what_was_saved_is_kept_until_the_result_is_written(
    tmp_path: Path, checkpoint: Path, task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.storage.saved_progress.SAVE_SECONDS", 0.0)
    with pytest.raises(Killed), estimated_statistics(checkpoint, task, SETTINGS, tmp_path / "out", ["gram"]):
        raise Killed
    assert list(tmp_path.glob(".partial-*"))
    interrupted(monkeypatch, after=0)  # nothing is left to add
    estimated(checkpoint, task, tmp_path / "out", "gram")
    with pytest.raises(Killed):
        estimated(checkpoint, task, tmp_path / "out", "kfac")  # what was saved of another statistic is not taken up


@pytest.mark.parametrize(("statistic", "sizes"), [("kfac", [3, 4, 4, 4, *[2] * 6]), ("gram", [4, 4, 4, 4, *[2] * 4])])
def test_sums_that_were_torn_when_memory_ran_out_are_replaced(
    tmp_path: Path,
    checkpoint: Path,
    task: TaskData,
    monkeypatch: pytest.MonkeyPatch,
    statistic: str,
    sizes: list[int],
) -> None:
    wanted = estimated(checkpoint, task, tmp_path / "wanted", statistic)
    leave, tried = Capture.__exit__, []

    def failing(self: Capture, *error: object) -> None:
        leave(self, *error)
        tried.append(self._examples)
        if len(tried) == 4:
            torch.empty(1 << 55)

    monkeypatch.setattr("stages.storage.saved_progress.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Capture, "__exit__", failing)
    assert_equal(estimated(checkpoint, task, tmp_path / "out", statistic), wanted, tolerance=1e-4)
    assert tried == sizes  # K-FAC's begin with the comparison with autograd


PROCESS = """
import os, signal, sys, time
from pathlib import Path
import stages.storage.saved_progress
from safetensors.torch import save_file
from stages.curvature import Estimation
from stages.estimation.passes import estimated_statistics
from stages.params import FisherSettings
from stages.tasks.data import TaskData

checkpoint, task, out, how = sys.argv[1:]
stages.storage.saved_progress.SAVE_SECONDS = 0.0
if how == "again":
    Estimation.add = None  # nothing is left to add
settings = FisherSettings(examples=20, batch_size=2)
with estimated_statistics(Path(checkpoint), TaskData.open(Path(task)), settings, Path(out), ["diagonal"]) as found:
    if found is not None and how == "killed":
        time.sleep(2)  # the other process has nothing more to do than wait
        os.kill(os.getpid(), signal.SIGKILL)
    if found is not None:
        save_file(found.statistics.diagonal, out)
"""


def test_all_processes_keep_their_sums_until_the_first_has_written(
    tmp_path: Path, checkpoint: Path, task: TaskData
) -> None:
    """Real ones, with gloo; the first is killed while it writes what all have added up."""
    (tmp_path / "process.py").write_text(PROCESS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def run(how: str) -> int:
        arguments = [tmp_path / "process.py", checkpoint, task.directory, tmp_path / "out", how]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "FISHER_DEVICE": "cpu"}
        return subprocess.run([*launcher, *map(str, arguments)], env=environment, check=False).returncode

    assert run("killed") != 0
    kept = sorted(file.name for file in tmp_path.glob(".partial-*"))
    assert kept == [f".partial-out.process-{process}.safetensors" for process in (0, 1)]
    assert run("again") == 0
    assert not list(tmp_path.glob(".partial-*"))
    settings = FisherSettings(examples=20, batch_size=2)
    with estimated_statistics(checkpoint, task, settings, tmp_path / "one", ["diagonal"]) as found:
        assert found is not None
    wanted, written = found.statistics.diagonal, load_file(tmp_path / "out")
    assert written.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(written[name], value, rtol=1e-5, atol=1e-6 * float(value.max()))
