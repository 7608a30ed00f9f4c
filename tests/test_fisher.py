"""The Fisher stage: its file, its card, and what it refuses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.artifacts import TensorFiles, fingerprint, read_json
from stages.curvature import diagonal_fisher
from stages.curvature.estimation import Estimator
from stages.errors import InputError
from stages.fisher import estimate
from stages.merging.inputs import Checkpoint, open_fisher
from stages.params import FisherSettings
from stages.tasks.data import TaskData, draw_examples
from stages.tasks.text_classification import load_model, load_tokenizer
from tests.test_finetune import make_task


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return make_task(tmp_path / "reviews", ["bad", "good"])


def estimated(tmp_path: Path, checkpoint: Path, task: TaskData, settings: FisherSettings, name: str = "fisher") -> Path:
    estimate(checkpoint, task, settings, tmp_path / name)
    return tmp_path / name


def test_it_is_the_fisher_of_examples_drawn_from_the_train_split(
    tmp_path: Path, checkpoint: Path, task: TaskData
) -> None:
    out = estimated(tmp_path, checkpoint, task, FisherSettings(examples=11, batch_size=4, seed=5))
    frame = draw_examples(task.read("train"), 11, 5)
    tokenizer = load_tokenizer(checkpoint)
    single = [dict(tokenizer(text, return_tensors="pt")) for text in frame["text"]]
    wanted = diagonal_fisher(load_model(checkpoint, task.labels), single)
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
    open_fisher(out, Checkpoint(checkpoint))


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
