"""A fine-tuning that is killed goes on where it was, and ends with the bits of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from transformers import Trainer

from stages.finetune import finetune
from stages.storage.cards import read_json, write_json
from stages.training.resuming import TrainingProgress
from tests.project import ROOT, tiny_params
from tests.test_finetune import make_task, make_texts

STEPS = 14  # 2 epochs of 7, the seventh a smaller batch; losses are logged every 5 steps, across epochs
PROGRESS = Path("models/finetuned/.partial-books.training")
OUTPUTS = [Path("models/finetuned/books"), Path("results/training/books")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose model `books` was fine-tuned in one go."""
    root = tmp_path_factory.mktemp("undisturbed")
    make_project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        finetune("books")
    return root


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project like it, not fine-tuned yet, whose trainings save after every step; the working directory."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.training.resuming.SAVE_SECONDS", 0.0)
    return tmp_path


def make_project(root: Path, make: Callable[[Path], object] = lambda place: make_task(place, ["bad", "good"])) -> None:
    params = tiny_params(root / "inputs")
    params["finetune"] = {"epochs": 2, "batch_size": 6, "learning_rate": 1e-3}
    params["models"]["books"]["fisher"] = {"estimator": "adam"}
    YAML().dump(params, root / "params.yaml")
    shutil.copytree(root / "inputs/base", root / "data/sources/base")
    (root / "data/tasks").mkdir()
    make(root / "data/tasks/books")


def assert_same(project: Path, undisturbed: Path) -> None:
    """Weights, moments, card, curves and all."""
    for output in OUTPUTS:
        files = [
            {file.relative_to(root / output) for file in (root / output).rglob("*")} for root in (project, undisturbed)
        ]
        assert files[0] == files[1]
        differing = [
            str(file)
            for file in files[0]
            if (project / output / file).is_file()
            and (project / output / file).read_bytes() != (undisturbed / output / file).read_bytes()
        ]
        assert not differing
    assert {"adam.safetensors", "model.safetensors", "checkpoint.json"} <= {file.name for file in OUTPUTS[0].iterdir()}
    assert {file.name for file in OUTPUTS[1].iterdir()} >= {"train", "eval", "loss.tsv", "grad_norm.tsv"}
    assert not list(project.rglob(".partial-*"))


class Killed(BaseException):
    """As abrupt as a signal: no handler of the stage's catches it."""


def run(steps: int | None = None) -> list[int]:
    """Fine-tune, and stop dead in a step after `steps` of them. Returns the steps' numbers, from 0."""
    original = Trainer.training_step
    done: list[int] = []

    def limited(self: Trainer, *arguments: Any) -> torch.Tensor:
        if len(done) == steps:
            raise Killed
        done.append(self.state.global_step)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", limited)
        if steps is None:
            finetune("books")
        else:
            with pytest.raises(Killed):
                finetune("books")
    return done


@pytest.mark.parametrize("kills", [(3, 2), (7, 3), (10,)])
def test_a_killed_training_goes_on_where_it_was(project: Path, undisturbed: Path, kills: tuple[int, ...]) -> None:
    """Within an epoch and between epochs (7), at a logged step (10) and elsewhere, once and twice."""
    start = 0
    for steps in kills:
        assert run(steps) == list(range(start, start + steps))
        assert not OUTPUTS[0].exists()
        start += steps
    assert run() == list(range(start, STEPS))
    assert_same(project, undisturbed)


@pytest.mark.parametrize("kills", [(3, 5), (7,)])
def test_a_killed_masked_lm_training_hides_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...]
) -> None:
    """Within both epochs, and between them: the masks of an epoch belong to it and to the texts."""
    whole, project = tmp_path / "whole", tmp_path / "project"
    for root in (whole, project):
        root.mkdir()
        make_project(root, make_texts)
    with monkeypatch.context() as patch:
        patch.chdir(whole)
        finetune("books")
    monkeypatch.chdir(project)
    monkeypatch.setattr("stages.training.resuming.SAVE_SECONDS", 0.0)
    start = 0
    for steps in kills:
        assert run(steps) == list(range(start, start + steps))
        start += steps
    assert run() == list(range(start, STEPS))
    assert_same(project, whole)


def test_killed_by_the_system_while_it_saves(project: Path, undisturbed: Path) -> None:
    """A process of its own, and SIGKILL when the state after step 12 lacks its seal only."""
    program = """
import os, signal
from stages import finetune
from stages.training import resuming as training_progress

def seal(self, saved):
    if saved.name == "checkpoint-12":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, saved)

training_progress.SAVE_SECONDS = 0.0
original, training_progress.TrainingProgress._seal = training_progress.TrainingProgress._seal, seal
finetune.finetune("books")
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert (PROGRESS / "checkpoint-12/position.safetensors").is_file()
    assert run() == list(range(11, STEPS))
    for leftover in project.rglob(".partial-*"):  # the unfinished outputs, which no handler removed
        assert not leftover.name.endswith(".training")
        shutil.rmtree(leftover)
    assert_same(project, undisturbed)


@pytest.mark.parametrize(
    ("where", "last"),
    [("transformers.Trainer.evaluate", 6), ("stages.training.finetuning.write_tensors", 13)],
)
def test_killed_where_it_does_not_train(
    project: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, where: str, last: int
) -> None:
    """While it evaluates and while it writes the output: the step before is the last that was saved."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(where, killed)
        with pytest.raises(Killed):
            finetune("books")
    assert run() == list(range(last, STEPS))
    assert_same(project, undisturbed)


def test_steps_between_saves_are_repeated(project: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is looked at after every step and epoch and when saving, and is then a second later."""
    with monkeypatch.context() as patch:
        patch.setattr("stages.training.resuming.SAVE_SECONDS", 5.0)
        patch.setattr("stages.training.resuming.time", SimpleNamespace(monotonic=iter(range(99)).__next__))
        run(13)
    assert sorted(state.name for state in PROGRESS.iterdir()) == ["checkpoint-5", "checkpoint-9"]
    assert run() == list(range(9, STEPS))
    assert_same(project, undisturbed)


def truncated(content: bytearray) -> bytearray:
    return content[:-1]


def zeroed(content: bytearray) -> bytearray:
    return bytearray(len(content))


def flipped(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 1
    return content


def harm(file: Path, damage: Callable[[bytearray], bytearray]) -> None:
    file.write_bytes(damage(bytearray(file.read_bytes())))


def test_damaged_states_are_not_used(project: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its files is damaged, the state before counts; the start, if that is damaged too."""
    run(10)
    shutil.copytree(PROGRESS, "kept")
    progress = next_progress(monkeypatch)
    for file in (project / "kept/checkpoint-10").iterdir():
        for damage in (truncated, zeroed, flipped):
            shutil.rmtree(PROGRESS)
            shutil.copytree("kept", PROGRESS)
            assert progress.latest() == PROGRESS / "checkpoint-10"
            harm(PROGRESS / "checkpoint-10" / file.name, damage)
            assert progress.latest() == PROGRESS / "checkpoint-9", f"{file.name} {damage.__name__}"
    harm(PROGRESS / "checkpoint-9/optimizer.pt", flipped)
    assert run() == list(range(STEPS))
    assert_same(project, undisturbed)
    shutil.copytree("kept", PROGRESS)
    harm(PROGRESS / "checkpoint-10/model.safetensors", flipped)
    assert run() == list(range(9, STEPS))
    assert_same(project, undisturbed)


def next_progress(monkeypatch: pytest.MonkeyPatch) -> TrainingProgress:
    """What the next fine-tuning would look for its states with."""
    found: list[TrainingProgress] = []

    def train(self: TrainingProgress) -> None:
        found.append(self)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "train", train)
        with pytest.raises(Killed):
            finetune("books")
    return found[0]


def test_the_progress_of_another_training_is_not_used(project: Path) -> None:
    params = project / "params.yaml"
    config = project / "data/sources/base/config.json"
    task = project / "data/tasks/books"
    assert run(1) == [0]
    assert run(1) == [1]
    params.write_text(params.read_text().replace("epochs: 2", "epochs: 4"))
    assert run(1) == [0]
    write_json(config, read_json(config) | {"hidden_dropout_prob": 0.2})
    assert run(1) == [0]
    shutil.rmtree(task)
    make_task(task, ["bad", "good"], max_length=5)
    assert run(1) == [0]
    assert run(1) == [1]
