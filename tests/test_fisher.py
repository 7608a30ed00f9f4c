"""The Fisher stage: its file, its card, and what it refuses."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.curvature import Estimation, diagonal_fisher
from stages.curvature.capture import Capture
from stages.curvature.vectors import Estimator
from stages.estimation.estimate import estimate
from stages.estimation.given import bring_in
from stages.params import FisherSettings
from stages.running.errors import InputError
from stages.storage.cards import read_json
from stages.storage.checkpoint import Checkpoint
from stages.storage.digests import tree_sha256
from stages.storage.source import FISHER_FILES, Source
from stages.storage.statistic_files import open_statistic
from stages.storage.tensors import TensorFiles, fingerprint
from stages.tasks.data import TaskData, draw_examples
from stages.tasks.kinds.text_classification.kind import KIND
from tests.cards import reseal, rewrite_card
from tests.project import Project, tiny_params
from tests.test_finetune import make_task
from tests.tiny import tiny_bert


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return make_task(tmp_path / "reviews", ["bad", "good"])


def estimated(tmp_path: Path, checkpoint: Path, task: TaskData, settings: FisherSettings, name: str = "fisher") -> Path:
    estimate("diagonal", checkpoint, task, settings, tmp_path / name)
    return tmp_path / name


def test_it_is_the_fisher_of_examples_drawn_from_the_train_split(
    tmp_path: Path, checkpoint: Path, task: TaskData
) -> None:
    out = estimated(tmp_path, checkpoint, task, FisherSettings(examples=11, batch_size=4, seed=5))
    frame = draw_examples(task.rows("train"), 11, 5).to_pandas()
    tokenizer = KIND.load_processor(checkpoint)
    single = [dict(tokenizer(text, return_tensors="pt")) for text in frame["text"]]
    wanted = diagonal_fisher(KIND.load_model(checkpoint, task.labels), single)
    found = load_file(out / "fisher.safetensors")
    assert found.keys() == wanted.keys() == TensorFiles(checkpoint).specs.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-12)


def test_its_card(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    out = estimated(tmp_path, checkpoint, task, FisherSettings(examples=None))
    card = read_json(out / "fisher.json")
    assert card["checkpoint"] == fingerprint(TensorFiles(checkpoint))
    assert (card["examples"], card["estimator"], card["likelihood"]) == (40, "exact", "categorical")
    unused = card["tensors"]["bert.embeddings.token_type_embeddings.weight"]
    assert unused["zeros"] == 0.5  # single sentences never use the second type
    open_statistic("diagonal", out).verify(Checkpoint(checkpoint))


def test_bfloat16_is_the_same_fisher_rounded(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    wide = load_file(estimated(tmp_path, checkpoint, task, FisherSettings(), "wide") / "fisher.safetensors")
    narrow = load_file(
        estimated(tmp_path, checkpoint, task, FisherSettings(dtype="bfloat16"), "narrow") / "fisher.safetensors"
    )
    assert all(torch.equal(narrow[name], value.bfloat16()) for name, value in wide.items())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["bert.encoder.layer.0.intermediate.dense.bias"][2] = torch.inf
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="outputs are not finite"):
        estimated(tmp_path, checkpoint, task, FisherSettings())


@pytest.mark.parametrize("estimator", ["sketch", "sampled", "empirical"])
def test_other_estimators(tmp_path: Path, checkpoint: Path, task: TaskData, estimator: Estimator) -> None:
    settings = FisherSettings(estimator=estimator, samples=2, examples=12, batch_size=5, seed=3)
    out = estimated(tmp_path, checkpoint, task, settings)
    exact = estimated(tmp_path, checkpoint, task, FisherSettings(examples=12, seed=3), "exact")
    assert read_json(out / "fisher.json")["estimator"] == estimator
    found, wanted = load_file(out / "fisher.safetensors"), load_file(exact / "fisher.safetensors")
    # Two classes: Σ has rank one, so a sketch is exact; the others are of its size and no more.
    ratio = float(found["classifier.weight"].sum() / wanted["classifier.weight"].sum())
    assert ratio == pytest.approx(1, rel=1e-4 if estimator == "sketch" else 0.9)


class Killed(BaseException):
    """As abrupt as a signal: no handler of the stage's catches it."""


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Save after every batch, and stop dead in batch `after`."""
    add, calls = Estimation.add, []

    def limited(self: Estimation, batch: dict[str, torch.Tensor], first: int | None = None) -> None:
        calls.append(first)
        if len(calls) > after:
            raise Killed
        add(self, batch, first)

    monkeypatch.setattr("stages.storage.saved_progress.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Estimation, "add", limited)


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_a_killed_estimation_goes_on_where_it_was_and_gives_the_same_bits(
    tmp_path: Path, checkpoint: Path, task: TaskData, monkeypatch: pytest.MonkeyPatch, estimator: Estimator
) -> None:
    settings = FisherSettings(estimator=estimator, examples=20, batch_size=4)
    whole = estimated(tmp_path, checkpoint, task, settings, "whole")
    with monkeypatch.context() as patch:
        interrupted(patch, after=3)
        with pytest.raises(Killed):
            estimated(tmp_path, checkpoint, task, settings, "resumed")
    assert not (tmp_path / "resumed").exists()
    assert [file.name for file in tmp_path.glob(".partial-*")] == [".partial-resumed.process-0.safetensors"]
    with monkeypatch.context() as patch:
        interrupted(patch, after=2)  # the other two batches of five
        resumed = estimated(tmp_path, checkpoint, task, settings, "resumed")
    assert tree_sha256(resumed) == tree_sha256(whole)
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "flipped", "other seed", "other checkpoint"])
def test_saved_sums_that_do_not_belong_are_not_taken_up(
    tmp_path: Path, checkpoint: Path, task: TaskData, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    settings = FisherSettings(examples=20, batch_size=4)
    with monkeypatch.context() as patch:
        interrupted(patch, after=3)
        with pytest.raises(Killed):
            estimated(tmp_path, checkpoint, task, settings)
    (saved,) = tmp_path.glob(".partial-*")
    content = bytearray(saved.read_bytes())
    if damage == "truncated":
        saved.write_bytes(content[:-100])
    elif damage == "zeroed":
        saved.write_bytes(bytes(len(content)))
    elif damage == "flipped":
        content[-50] ^= 1
        saved.write_bytes(content)
    elif damage == "other seed":
        settings = settings.model_copy(update={"seed": 1})
    else:
        tiny_bert(labels=("bad", "good"), seed=5).save_pretrained(checkpoint)
    found = estimated(tmp_path, checkpoint, task, settings)
    assert tree_sha256(found) == tree_sha256(estimated(tmp_path, checkpoint, task, settings, "fresh"))


def memory_for(monkeypatch: pytest.MonkeyPatch, rows: int, where: str) -> list[int]:
    """Let torch's allocator fail for batches of more than `rows` examples. Returns the sizes that were tried."""
    tried: list[int] = []
    original = getattr(Capture, where)

    def limited(self: Capture, *arguments: Any, **keywords: Any) -> Any:
        tried.append(self._examples)
        if self._examples > rows and self._sums.diagonal:
            if where == "backward":
                original(self, *arguments, **keywords)  # the sums are torn
            torch.empty(1 << 55)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Capture, where, limited)
    return tried


@pytest.mark.parametrize("where", ["__enter__", "backward"])
def test_batches_that_do_not_fit_are_halved_and_nothing_is_lost(
    tmp_path: Path, checkpoint: Path, task: TaskData, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    wanted = load_file(
        estimated(tmp_path, checkpoint, task, FisherSettings(examples=20), "wanted") / "fisher.safetensors"
    )
    tried = memory_for(monkeypatch, 4, where)
    settings = FisherSettings(examples=20, batch_size=16)
    found = load_file(estimated(tmp_path, checkpoint, task, settings) / "fisher.safetensors")
    assert tried == [3, 16, 8, 4, 4, 4, 4, 4]  # the check's, two failures, and 20 examples
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-10)


def test_memory_that_runs_out_late_costs_what_was_not_saved(
    tmp_path: Path, checkpoint: Path, task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FisherSettings(examples=20, batch_size=4)
    wanted = load_file(estimated(tmp_path, checkpoint, task, settings, "wanted") / "fisher.safetensors")
    backward, calls = Capture.backward, []

    def failing(self: Capture, *arguments: Any, **keywords: Any) -> None:
        backward(self, *arguments, **keywords)
        calls.append(self._examples)
        if len(calls) == 4:
            torch.empty(1 << 55)

    monkeypatch.setattr("stages.storage.saved_progress.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Capture, "backward", failing)
    found = load_file(estimated(tmp_path, checkpoint, task, settings) / "fisher.safetensors")
    assert calls == [3, 4, 4, 4, 2, 2, 2, 2, 2, 2]
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-10)


def test_one_example_that_does_not_fit_is_an_error(
    tmp_path: Path, checkpoint: Path, task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Estimation.add

    def failing(self: Estimation, batch: dict[str, torch.Tensor], first: int | None = None) -> None:
        torch.empty(1 << 55)
        add(self, batch, first)

    monkeypatch.setattr(Estimation, "add", failing)
    with pytest.raises(InputError, match="one example does not fit into memory"):
        estimated(tmp_path, checkpoint, task, FisherSettings(examples=20))


def test_passes_in_bfloat16(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    wide = load_file(estimated(tmp_path, checkpoint, task, FisherSettings(), "wide") / "fisher.safetensors")
    out = estimated(tmp_path, checkpoint, task, FisherSettings(precision="bfloat16"))
    narrow = load_file(out / "fisher.safetensors")
    assert read_json(out / "fisher.json")["precision"] == "bfloat16"
    found, wanted = (torch.cat([values[name].flatten() for name in wide]) for values in (narrow, wide))
    assert not torch.equal(found, wanted)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_two_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the launcher that the environment names, with torchrun and gloo: NCCL wants a GPU for each."""
    monkeypatch.setenv("FISHER_DEVICE", "cpu")
    params = tiny_params(tmp_path / "inputs")
    params["fisher"] = {"examples": 22, "batch_size": 4, "estimator": "sampled", "samples": 2}
    project = Project(tmp_path / "project", params)
    project.run("python", "-m", "stages.plan")
    project.repro("models/dvc.yaml:fisher-books")
    one = load_file(project.root / "models/fishers/books/fisher.safetensors")
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    result = project.run("env", f"FISHER_LAUNCHER={launcher}", "python", "-m", "stages.fisher", "books")
    assert "Fisher, 1 of 2 processes" in result.stderr
    two = load_file(project.root / "models/fishers/books/fisher.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-6 * float(value.max()))


def test_adams_moments_as_a_fisher(tmp_path: Path) -> None:
    """Fine-tuning keeps them where a model's Fisher asks for it, and they are its Fisher."""
    params = tiny_params(tmp_path / "inputs")
    params["models"]["books"]["fisher"] = {"estimator": "adam"}
    project = Project(tmp_path / "project", params)
    project.run("python", "-m", "stages.plan")
    assert project.repro("models/dvc.yaml:fisher-books")[-2:] == ["finetune-books", "fisher-books"]
    checkpoint, fisher = project.root / "models/finetuned/books", project.root / "models/fishers/books"
    kept, found = load_file(checkpoint / "adam.safetensors"), load_file(fisher / "fisher.safetensors")
    assert found.keys() == TensorFiles(checkpoint).specs.keys()
    assert all(torch.equal(found[name], value) for name, value in kept.items())
    assert all(float(value.min()) >= 0 for value in found.values())
    assert read_json(fisher / "fisher.json")["estimator"] == "adam"
    open_statistic("diagonal", fisher).verify(Checkpoint(checkpoint))


def test_moments_that_were_not_kept_are_an_error(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    with pytest.raises(InputError, match=r"has no adam\.safetensors; fine-tune it with `fisher: \{estimator: adam\}`"):
        estimated(tmp_path, checkpoint, task, FisherSettings(estimator="adam"))


@pytest.fixture
def estimated_elsewhere(tmp_path: Path, checkpoint: Path, task: TaskData) -> Path:
    return estimated(tmp_path, checkpoint, task, FisherSettings(examples=5), "elsewhere")


def source(path: Path) -> Source:
    return Source(path=str(path), sha256=tree_sha256(path), files=FISHER_FILES)


def test_a_fisher_is_brought_in_from_a_directory(tmp_path: Path, checkpoint: Path, estimated_elsewhere: Path) -> None:
    (estimated_elsewhere / "notes.txt").write_text("not a Fisher")
    bring_in("books", source(estimated_elsewhere), checkpoint, tmp_path / "fisher")
    assert {file.name for file in (tmp_path / "fisher").iterdir()} == {"fisher.json", "fisher.safetensors"}
    for file in (tmp_path / "fisher").iterdir():
        assert file.read_bytes() == (estimated_elsewhere / file.name).read_bytes()


def test_tensors_and_card_are_pinned_together(tmp_path: Path, checkpoint: Path, estimated_elsewhere: Path) -> None:
    """The pin of one file would say nothing of the card beside it."""
    with pytest.raises(InputError, match=r"fisher\.safetensors: is a file; .* name the directory that has both"):
        bring_in("books", source(estimated_elsewhere / "fisher.safetensors"), checkpoint, tmp_path / "fisher")
    pinned = source(estimated_elsewhere)
    rewrite_card(estimated_elsewhere, {"estimator": "sampled"})
    with pytest.raises(InputError, match=r"its contents' sha256 is [0-9a-f]{64}, but params\.yaml pins"):
        bring_in("books", pinned, checkpoint, tmp_path / "fisher")


def in_card(tensor: str, changes: dict[str, Any]) -> Callable[[Path], object]:
    """Let a Fisher's card say something else of a tensor, under a seal that fits."""

    def edit(directory: Path) -> None:
        tensors = read_json(directory / "fisher.json")["tensors"]
        tensors[tensor] |= {key: value * tensors[tensor][key] for key, value in changes.items()}
        rewrite_card(directory, {"tensors": tensors})

    return edit


def rewritten(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a Fisher, and let its card say that it is as it should be."""
    tensors = load_file(directory / "fisher.safetensors")
    edit(tensors)
    save_file(tensors, directory / "fisher.safetensors")
    reseal(directory)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another checkpoint's": (
        lambda directory: rewrite_card(directory, {"checkpoint": "0" * 64}),
        r"fisher\.json: belongs to the checkpoint 000000000000…",
    ),
    "another format": (
        lambda directory: rewrite_card(directory, {"format_version": 99}),
        r"has format_version 99, not 1",
    ),
    "negative": (
        lambda directory: rewritten(directory, lambda tensors: tensors["classifier.bias"].fill_(-1)),
        r"tensor classifier\.bias has a negative entry",
    ),
    "not finite": (
        lambda directory: rewritten(directory, lambda tensors: tensors["classifier.bias"].fill_(math.inf)),
        r"tensor classifier\.bias has an infinite entry",
    ),
    "another shape": (
        lambda directory: rewritten(directory, lambda tensors: tensors.update({"classifier.bias": torch.ones(3)})),
        r"tensor classifier\.bias is float32 \[3\], not a floating-point \[2\]",
    ),
    "a tensor missing": (
        lambda directory: rewritten(directory, lambda tensors: tensors.pop("classifier.bias")),
        r"lacks the tensor classifier\.bias",
    ),
    "no card": (lambda directory: (directory / "fisher.json").unlink(), r"fisher\.json: not found"),
    "another norm in its card": (
        in_card("bert.embeddings.word_embeddings.weight", {"norm": 1e-3}),
        r"fisher\.json: tensors\.bert\.embeddings\.word_embeddings\.weight\.norm is .*, but the tensor's is",
    ),
    "another mean in its card": (
        in_card("bert.encoder.layer.0.output.dense.weight", {"mean": 1.001}),
        r"tensors\.bert\.encoder\.layer\.0\.output\.dense\.weight\.mean is",
    ),
    "a tensor that its card does not know": (
        lambda directory: rewrite_card(directory, {"tensors": {}}),
        r"fisher\.json: tensors: are not those of .*fisher\.safetensors",
    ),
    "not what its card says": (
        lambda directory: save_file(
            {k: v * 2 for k, v in load_file(directory / "fisher.safetensors").items()},
            directory / "fisher.safetensors",
        ),
        r"its contents are not what fisher\.json says",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_fisher_that_cannot_be_right_is_refused(
    tmp_path: Path, checkpoint: Path, estimated_elsewhere: Path, damage: str
) -> None:
    spoil, message = DAMAGE[damage]
    spoil(estimated_elsewhere)
    with pytest.raises(InputError, match=message):
        bring_in("books", source(estimated_elsewhere), checkpoint, tmp_path / "fisher")
    assert not (tmp_path / "fisher").exists()


def test_a_fisher_must_be_what_is_pinned(tmp_path: Path, checkpoint: Path, estimated_elsewhere: Path) -> None:
    pinned = source(estimated_elsewhere)
    (estimated_elsewhere / "notes.txt").write_text("new")
    with pytest.raises(InputError, match=r"its contents' sha256 is [0-9a-f]{64}, but params\.yaml pins"):
        bring_in("books", pinned, checkpoint, tmp_path / "fisher")
