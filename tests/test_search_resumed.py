"""A search that was killed goes on where it was, unless its inputs or settings are others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.estimation.estimate import estimate
from stages.params import FisherSettings
from stages.searching.live_model import LiveModel
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint_files import CHECKPOINT_CARD
from stages.storage.digests import tree_sha256
from stages.storage.saved_progress import Progress
from stages.storage.tensors import TensorFiles, fingerprint
from stages.tasks.arrow import write_rows
from stages.tasks.data import TaskData, examples_fingerprint
from tests.cards import rewrite_card
from tests.test_fisher import Killed
from tests.workshop import MODELS, OUT, THREE, params_of, searched


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Save after every point, and stop dead when more than `after` are scored. Returns the numbers scored."""
    scores = LiveModel.scores
    calls: list[int] = []

    def limited(self: LiveModel) -> list[float]:
        if len(calls) == after:
            raise Killed
        calls.append(len(calls))
        return scores(self)

    monkeypatch.setattr("stages.storage.saved_progress.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(LiveModel, "scores", limited)
    return calls


@pytest.mark.parametrize("sampler", ["simplex", "tpe"])
def test_a_killed_search_goes_on_where_it_was_and_gives_the_same_bytes(
    inside: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    params = params_of(THREE, {"sampler": sampler, "points": 14})
    searched(params, Path("results/whole"))
    with monkeypatch.context() as patch:
        stopping(patch, after=5)
        with pytest.raises(Killed):
            searched(params)
    assert not OUT.exists()
    assert len(list(OUT.parent.glob(".partial-*"))) == 1
    save, saved = Progress.save, []

    def noted(self: Progress, tensors: Mapping[str, torch.Tensor], position: Mapping[str, int]) -> None:
        saved.append(position["done"])
        save(self, tensors, position)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "save", noted)
        calls = stopping(patch, after=9)
        searched(params)
    assert len(calls) == 9  # of 14
    assert saved == list(range(6, 15))  # what was saved is never replaced by less
    for file in ("coefficients.json", "sweep.csv"):
        assert (OUT / file).read_bytes() == (Path("results/whole") / file).read_bytes()
    assert not list(OUT.parent.glob(".partial-*"))


def change_checkpoint() -> None:
    file = Path("models/finetuned/bob/model.safetensors")
    tensors = load_file(file)
    tensors["classifier.bias"][0] += 0.1
    save_file(tensors, file, metadata={"format": "pt"})
    found = fingerprint(TensorFiles(file.parent))
    own = file.parent / CHECKPOINT_CARD
    write_json(own, read_json(own) | {"fingerprint": found})
    rewrite_card(Path("models/fishers/bob"), {"checkpoint": found})  # as if its Fisher came out the same


def change_fisher(name: str) -> None:
    task = TaskData.open(Path("data/tasks") / MODELS[name][0])
    estimate(
        "diagonal", Path("models/finetuned") / name, task, FisherSettings(examples=13), Path("models/fishers") / name
    )


def change_validation() -> None:
    file = Path("data/tasks/films/validation.arrow")
    frame = TaskData.open(file.parent).read("validation")
    write_rows(file, [frame[1:]])
    card = read_json(file.with_name("task.json"))
    found = examples_fingerprint(frame[1:])
    write_json(file.with_name("task.json"), card | {"fingerprints": card["fingerprints"] | {"validation": found}})


def change_max_length() -> None:
    file = Path("data/tasks/films/task.json")
    write_json(file, read_json(file) | {"max_length": 5})


def change_base() -> None:
    file = Path("data/sources/base/model.safetensors")
    save_file({name: value * 2 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        change_checkpoint,
        lambda: change_fisher("bob"),
        lambda: change_fisher("cid"),
        change_validation,
        change_max_length,
        change_base,
    ],
    ids=["checkpoint", "fisher", "prior", "validation split", "max_length", "base"],
)
def test_points_saved_of_other_inputs_are_scored_again(
    inside: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    search = {"sampler": "simplex", "points": 6}
    params = params_of({"ann": 1, "bob": 1}, search, method="uncertainty", prior="cid", scale=0.8)
    with monkeypatch.context() as patch:
        stopping(patch, after=4)
        with pytest.raises(Killed):
            searched(params)
    change()
    with monkeypatch.context() as patch:
        calls = stopping(patch, after=6)
        searched(params)
    assert len(calls) == 6
    searched(params, Path("results/fresh"))
    assert tree_sha256(OUT) == tree_sha256(Path("results/fresh"))


def test_points_saved_under_other_settings_are_scored_again(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, after=4)
        with pytest.raises(Killed):
            searched(params_of(THREE, {"sampler": "simplex", "points": 6}))
    calls = stopping(monkeypatch, after=6)
    searched(params_of(THREE, {"sampler": "simplex", "points": 6, "metric": "macro_f1"}))
    assert len(calls) == 6
