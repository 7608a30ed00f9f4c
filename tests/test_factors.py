"""K-FAC factors and Gram matrices as stages: their files, their cards, and merges by them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForSequenceClassification

import stages.factors
from stages.curvature import curvature_statistics
from stages.estimation.estimate import estimate
from stages.merging import Kfac, Regmean, merge_checkpoints
from stages.params import FisherSettings
from stages.running.errors import InputError
from stages.storage.cards import read_json
from stages.storage.checkpoint import Checkpoint
from stages.storage.statistic_files import open_statistic
from stages.storage.statistics import TRANSPOSED
from stages.storage.tensors import TensorFiles, fingerprint
from stages.tasks.data import TaskData, draw_examples
from stages.tasks.kinds.text_classification.kind import KIND
from tests.project import tiny_params
from tests.test_finetune import make_task
from tests.tiny import SPECIAL, WORDS, tiny_bert, tiny_tokenizer

SETTINGS = FisherSettings(examples=20, batch_size=4, seed=2)
W = "bert.encoder.layer.0.attention.output.dense.weight"

both_kinds = pytest.mark.parametrize("kind", ["kfac", "gram"])


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return make_task(tmp_path / "reviews", ["bad", "good"])


def save_gpt2(directory: Path) -> None:
    """A GPT-2 classifier, whose weights are stored as [in, out]."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        n_positions=24,
        n_embd=16,
        n_layer=1,
        n_head=2,
        pad_token_id=0,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    model = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


def factors(kind: str, checkpoint: Path, task: TaskData, out: Path, **settings: object) -> Path:
    estimate(kind, checkpoint, task, SETTINGS.model_copy(update=settings), out)
    return out


@both_kinds
@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_the_files_have_the_factors_of_the_examples_that_the_fisher_is_estimated_on(
    tmp_path: Path, checkpoint: Path, task: TaskData, kind: str, model: str
) -> None:
    if model == "gpt2":
        checkpoint = tmp_path / "gpt2"
        save_gpt2(checkpoint)
    out = factors(kind, checkpoint, task, tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == [f"{kind}.json", f"{kind}.safetensors"]
    tokenizer = KIND.load_processor(checkpoint)
    texts = draw_examples(task.rows("train"), 20, 2)["text"]
    single = [dict(tokenizer(text, return_tensors="pt")) for text in texts]
    wanted = curvature_statistics(KIND.load_model(checkpoint, task.labels), single, statistics=[kind])
    found = load_file(out / f"{kind}.safetensors")
    expected = {f"input.{name}": factor for name, factor in wanted.input_factors.items()}
    expected |= {f"output.{name}": factor for name, factor in wanted.output_factors.items()}
    assert found.keys() == expected.keys()
    assert any(name.startswith("output.") for name in found) == (kind == "kfac")
    for name, factor in expected.items():
        torch.testing.assert_close(found[name], factor, rtol=1e-4, atol=1e-5 * float(factor.abs().max()))
    card = read_json(out / f"{kind}.json")
    assert card[TRANSPOSED] == sorted(wanted.transposed)
    assert bool(card[TRANSPOSED]) == (model == "gpt2")


@both_kinds
def test_their_cards_say_what_they_are_of(tmp_path: Path, checkpoint: Path, task: TaskData, kind: str) -> None:
    out = factors(kind, checkpoint, task, tmp_path / "out")
    estimate("diagonal", checkpoint, task, SETTINGS, tmp_path / "fisher")
    card, fisher = read_json(out / f"{kind}.json"), read_json(tmp_path / "fisher/fisher.json")
    assert card["checkpoint"] == fingerprint(TensorFiles(checkpoint)) == fisher["checkpoint"]
    assert card["fingerprint"] == fingerprint(TensorFiles(out, kind))
    for fact in ("task", "examples", "examples_fingerprint", "seed"):
        assert card[fact] == fisher[fact]
    of_the_output = {"estimator", "samples", "likelihood"}
    assert card.keys() & of_the_output == (of_the_output if kind == "kfac" else set())
    open_statistic(kind, out).verify(Checkpoint(checkpoint))


@pytest.mark.parametrize("estimator", ["sampled", "empirical", "adam"])
def test_the_gram_matrices_do_not_depend_on_the_estimator(
    tmp_path: Path, checkpoint: Path, task: TaskData, estimator: str
) -> None:
    found = [
        factors("gram", checkpoint, task, tmp_path / name, estimator=name, samples=samples)
        for name, samples in (("exact", 1), (estimator, 3))
    ]
    for file in ("gram.json", "gram.safetensors"):
        assert (found[0] / file).read_bytes() == (found[1] / file).read_bytes()


def test_the_output_factors_do_depend_on_the_estimator(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    tiny_bert(noise=0.5).save_pretrained(checkpoint)  # less undecided: what labels are drawn matters
    exact, empirical = (
        load_file(factors("kfac", checkpoint, task, tmp_path / name, estimator=name) / "kfac.safetensors")
        for name in ("exact", "empirical")
    )
    assert torch.equal(exact[f"input.{W}"], empirical[f"input.{W}"])
    assert not torch.allclose(exact[f"output.{W}"], empirical[f"output.{W}"], rtol=0.01)


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


class Pair:
    """Two models with what merges by factors need of them, and the factors and weights of one Linear."""

    def __init__(self, root: Path, task: TaskData) -> None:
        self.root = root
        self.checkpoints, self.places = {}, {}
        for seed, name in enumerate(("ann", "bob"), start=1):
            checkpoint = root / name
            tiny_bert(seed=seed, noise=0.3).save_pretrained(checkpoint)
            tiny_tokenizer().save_pretrained(checkpoint)
            self.checkpoints[name] = checkpoint
            self.places[name] = [
                factors("kfac", checkpoint, task, root / f"kfac-{name}"),
                factors("gram", checkpoint, task, root / f"gram-{name}"),
                root / f"fisher-{name}",
            ]
            estimate("diagonal", checkpoint, task, SETTINGS, root / f"fisher-{name}")
        self.weights = [self.of(checkpoint, "model", W) for checkpoint in self.checkpoints.values()]

    def of(self, directory: Path, stem: str, key: str) -> np.ndarray:
        return double(load_file(directory / f"{stem}.safetensors")[key])

    def all_of(self, stem: str, key: str) -> list[np.ndarray]:
        return [self.of(self.root / f"{stem}-{name}", stem, key) for name in self.checkpoints]

    def merge(self, method: Regmean | Kfac, λ: tuple[float, float]) -> np.ndarray:
        merge_checkpoints(
            self.checkpoints,
            self.root / "merged",
            method=method,
            coefficients=dict(zip(self.checkpoints, λ, strict=True)),
            statistics=self.places,
        )
        return self.of(self.root / "merged", "model", W)


def test_a_regmean_merge_of_two_models(tmp_path: Path, task: TaskData) -> None:
    pair = Pair(tmp_path, task)
    left, right = np.zeros((16, 16)), np.zeros((16, 16))
    for λ, A, weight in zip((0.3, 0.7), pair.all_of("gram", f"input.{W}"), pair.weights, strict=True):
        scaled = 0.8 * A + 0.2 * np.diag(np.diag(A))
        left += λ * scaled
        right += λ * scaled @ weight.T
    found = pair.merge(Regmean(alpha=0.8), (0.3, 0.7))
    np.testing.assert_allclose(found, np.linalg.solve(left, right).T, rtol=0, atol=1e-5)
    average = 0.3 * pair.weights[0] + 0.7 * pair.weights[1]
    assert np.abs(found - average).max() > 0.01  # it is not that


def test_a_kfac_merge_of_two_models(tmp_path: Path, task: TaskData) -> None:
    pair = Pair(tmp_path, task)
    norms = [
        np.sqrt(sum(np.square(double(value)).sum() for value in load_file(place / "fisher.safetensors").values()))
        for *_, place in pair.places.values()
    ]
    c = np.array([0.3, 0.7]) / norms
    fishers, damping = pair.all_of("fisher", W), 0.1
    floored = [np.maximum(fishers[0], 1e-6), fishers[1]]
    start = sum(a * F * weight for a, F, weight in zip(c, floored, pair.weights, strict=True)) / sum(
        a * F for a, F in zip(c, floored, strict=True)
    )
    blocks = [
        share * np.kron(G, A)  # of vec(W) row by row
        for share, A, G in zip(
            c / c.sum(), pair.all_of("kfac", f"input.{W}"), pair.all_of("kfac", f"output.{W}"), strict=True
        )
    ]
    δ = damping * np.diag(sum(blocks)).mean()
    right = sum(F @ weight.ravel() for F, weight in zip(blocks, pair.weights, strict=True)) + δ * start.ravel()
    wanted = np.linalg.solve(sum(blocks) + δ * np.eye(256), right).reshape(16, 16)
    found = pair.merge(Kfac(normalize="l2", damping=damping, iterations=500, tolerance=1e-10), (0.3, 0.7))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert np.abs(found - start).max() > 0.01  # the factors do count


def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(
    tmp_path: Path, checkpoint: Path, task: TaskData
) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["bert.encoder.layer.0.intermediate.dense.bias"][2] = torch.inf
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"checkpoint: the gram of .* is not finite"):
        factors("gram", checkpoint, task, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_kinds_and_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    YAML().dump(tiny_params(tmp_path / "inputs"), tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there are no factors 'diagonal'; known: gram, kfac"):
        stages.factors.factors("diagonal", "books")
    with pytest.raises(InputError, match=r"params\.yaml: models: there is no model 'boks'"):
        stages.factors.factors("kfac", "boks")
