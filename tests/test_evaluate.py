"""Predictions, metrics and the ensemble, against independent computations."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from ruamel.yaml import YAML

from stages.evaluate import evaluate
from stages.merging import merge_checkpoints
from stages.results.evaluation import contributions, ensemble, metrics, predict, shared_examples
from stages.results.predictions import Predictions, read_predictions
from stages.results.scores import Contributions
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.tensors import TensorFiles, fingerprint
from stages.tasks.averaging import Averaging, MeanOfSigmoid, MeanOfSoftmax, MeanOutput, MixtureOfTexts
from stages.tasks.kinds import KINDS
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.tasks.kinds.multiple_choice.settings import MultipleChoice
from stages.tasks.metrics import Accuracy, MacroF1
from tests.language import made_task, save, tiny_llama, words
from tests.project import tiny_params
from tests.test_finetune import make_task, make_texts
from tests.tiny import tiny_bert, tiny_tokenizer

KIND = "text-classification"
MEASURED_BY = (Accuracy(), MacroF1())


def carded(directory: Path, labels: list[str], task: str, seed: int = 0) -> Path:
    """A tiny checkpoint with its card."""
    tiny_bert(labels, seed=seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    card = {"base_model_prefix": "bert", "labels": labels, "task": task, "origin": {"method": "finetuned"}}
    write_json(directory / "checkpoint.json", card)
    return directory


def test_logits_do_not_depend_on_padding_or_order(tmp_path: Path) -> None:
    task = make_task(tmp_path / "reviews", ["bad", "good"])
    checkpoint = carded(tmp_path / "model", ["bad", "good"], "reviews")
    predictions, _ = predict(checkpoint, [task, make_task(tmp_path / "other", ["x", "y"])])
    assert list(predictions) == ["reviews"]  # the other task has other labels
    model, tokenizer = tiny_bert(("bad", "good")).eval(), tiny_tokenizer()
    for text, logits in zip(task.read("test")["text"], predictions["reviews"].outputs, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(logits, alone.numpy(), rtol=1e-4, atol=1e-5)


def test_a_model_without_a_task_is_refused(tmp_path: Path) -> None:
    checkpoint = carded(tmp_path / "model", ["bad", "good"], "reviews")
    with pytest.raises(InputError, match="are those of no task"):
        predict(checkpoint, [make_task(tmp_path / "other", ["x", "y"])])


def test_texts_without_labels_are_no_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [make_texts(tmp_path / "texts"), make_task(tmp_path / "reviews", ["bad", "good"])]
    predictions, _ = predict(carded(tmp_path / "model", ["bad", "good"], "reviews"), tasks)
    assert list(predictions) == ["reviews"]
    with pytest.raises(InputError, match=r"its labels, \[\], are those of no task"):
        predict(carded(tmp_path / "adapted", [], "texts"), tasks)
    params = tiny_params(tmp_path / "inputs")
    params["tasks"]["texts"] = {"kind": "masked-lm", "source": "tables", "file": "books.csv"}
    params["models"]["adapted"] = {"base": "base", "task": "texts", "fisher": {"estimator": "sketch"}}
    YAML().dump(params, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"models\.adapted: .* of the kind masked-lm, which has no metric to evaluate it by"
    ):
        evaluate("adapted")


def test_longer_texts_of_another_models_task_are_cut_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model gets what it reads of them, their beginnings; what it was trained for is not touched by that."""
    short = make_task(tmp_path / "short", ["bad", "good"], max_length=6)
    long = make_task(tmp_path / "long", ["bad", "good"], max_length=64)
    tiny_bert(["bad", "good"], max_position_embeddings=6).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    card = {"base_model_prefix": "bert", "labels": ["bad", "good"], "task": "short", "origin": {}}
    write_json(tmp_path / "model/checkpoint.json", card)
    found, said = predict(tmp_path / "model", [short, long])
    assert said == {"texts_cut_to_tokens": {"long": 6}}
    assert capsys.readouterr().err == "long: the model reads 6 tokens of its texts, which may have 64\n"
    np.testing.assert_array_equal(found["short"].outputs, found["long"].outputs)  # the same sentences
    assert predict(tmp_path / "model", [short])[1] == {}


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path / "reviews", ["bad", "good"])
    checkpoint = carded(tmp_path / "model", ["bad", "good"], "reviews")
    card = read_json(checkpoint / "checkpoint.json")
    write_json(checkpoint / "checkpoint.json", card | {"fingerprint": fingerprint(TensorFiles(checkpoint))})
    predict(checkpoint, [task])
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"not what checkpoint\.json says; make or fetch .*model again"):
        predict(checkpoint, [task])


def test_damaged_predictions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "it/predictions").mkdir(parents=True)
    (tmp_path / "it/predictions/t.parquet").write_bytes(b"PAR1")
    write_json(tmp_path / "it/per_example.json", {"tasks": of_task("t", "t")})
    with pytest.raises(InputError, match=r"predictions/t\.parquet: cannot be read .*; make or fetch .*it again"):
        ensemble({"it": tmp_path / "it"}, {"it": 1.0}, {"t": KIND})


def test_every_task_gets_its_own_head(tmp_path: Path) -> None:
    tasks = [make_task(tmp_path / "two", ["bad", "good"]), make_task(tmp_path / "three", ["bad", "good", "odd"])]
    for seed, task in enumerate(tasks):
        carded(tmp_path / f"model-{task.name}", list(task.labels), task.name, seed)
    merge_checkpoints(
        {task.name: tmp_path / f"model-{task.name}" for task in tasks},
        tmp_path / "merged",
        method="isotropic",
        coefficients={"two": 1.0, "three": 0.0},
        heads="each",
    )
    predictions, _ = predict(tmp_path / "merged", tasks)
    alone, _ = predict(tmp_path / "model-two", tasks[:1])
    np.testing.assert_array_equal(predictions["two"].outputs, alone["two"].outputs)
    assert predictions["three"].outputs.shape[1] == 3


def of_task(task: str, examples: str) -> dict[str, Contributions]:
    """A task of per_example.json, with the fingerprint of its examples."""
    return {task: {"examples": examples, "metric": "accuracy", "values": [0, 1]}}


def worth(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """What predictions on one task are worth."""
    return metrics({"t": Predictions(logits, labels)}, {"t": MEASURED_BY})["t"]


def test_metrics_against_a_plain_computation() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    logits = random.normal(size=(200, 3)) + 1.5 * np.eye(3)[labels]
    found = worth(logits, labels)
    right = logits.argmax(1) == labels
    f1 = []
    for k in range(3):
        hits = np.sum((logits.argmax(1) == k) & (labels == k))
        f1.append(2 * hits / (np.sum(logits.argmax(1) == k) + np.sum(labels == k)))
    assert found["accuracy"] == right.mean()
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    resampled = [right[random.integers(0, 200, 200)].mean() for _ in range(4000)]
    assert found["accuracy_low"] == pytest.approx(np.quantile(resampled, 0.025), abs=0.011)
    assert found["accuracy_high"] == pytest.approx(np.quantile(resampled, 0.975), abs=0.011)
    assert worth(logits, labels) == found
    certain = worth(np.eye(3)[labels], labels)
    assert (certain["accuracy_low"], certain["accuracy_high"]) == (1, 1)


def test_the_ensemble_is_the_weighted_mean_of_probabilities(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tables = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        logits = random.normal(size=(10, 2)).astype(np.float32) * 3
        tables[name] = logits
        Predictions(logits[:6], np.array([0, 1] * 3)).write(tmp_path / name, "t")
        Predictions(logits[6:], np.array([0, 1] * 2)).write(tmp_path / name, "u")
    places = {name: tmp_path / name for name in tables}
    for place in places.values():
        tasks = of_task("t", "t") | of_task("u", "u")
        write_json(place / "per_example.json", {"tasks": tasks})
    kinds = {"t": KIND, "u": KIND}
    found, shared = ensemble(places, {"a": 0.75, "b": 0.25}, kinds)
    assert shared == {"t": "t", "u": "u"}
    p = {name: np.exp(z) / np.exp(z).sum(1, keepdims=True) for name, z in tables.items()}
    mean = np.exp(np.concatenate([found["t"].outputs, found["u"].outputs]))
    np.testing.assert_allclose(mean, 0.75 * p["a"] + 0.25 * p["b"], rtol=1e-5)
    assert list(metrics(found, dict.fromkeys(kinds, MEASURED_BY))) == ["t", "u"]
    with pytest.raises(InputError, match=r"has evaluations on u, which params.yaml does not ask for; run `dvc repro`"):
        ensemble(places, {"a": 0.75, "b": 0.25}, {"t": KIND})

    write_json(places["b"] / "per_example.json", {"tasks": of_task("t", "others")})
    with pytest.raises(InputError, match="other examples of t than a's"):
        ensemble(places, {"a": 0.5, "b": 0.5}, kinds)
    write_json(places["b"] / "per_example.json", {"tasks": of_task("v", "v")})
    with pytest.raises(InputError, match="no task in common"):
        ensemble(places, {"a": 0.5, "b": 0.5}, kinds)


def test_which_examples_are_right() -> None:
    predictions = {
        "t": Predictions(np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.zeros(3, int)),
        "u": Predictions(np.array([[0.0, 0.0, 9.0]]), np.array([2])),
    }
    assert contributions(
        predictions, dict.fromkeys(predictions, Accuracy()), {"t": "one", "u": "two", "v": "three"}
    ) == {
        "t": {"examples": "one", "metric": "accuracy", "values": [1, 0, 1]},
        "u": {"examples": "two", "metric": "accuracy", "values": [1]},
    }


def test_an_ensemble_is_of_results_on_the_same_examples(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("a", "b")}
    for name, place in places.items():
        place.mkdir()
        tasks = of_task("t", "t") | of_task(name, name)
        write_json(place / "per_example.json", {"tasks": tasks})
    assert shared_examples(places) == {"t": "t"}
    write_json(
        places["b"] / "per_example.json",
        {"tasks": of_task("t", "others")},
    )
    with pytest.raises(InputError, match="b: was made on other examples of t than a's; evaluate again"):
        shared_examples(places)


def test_outputs_at_positions_are_kept_as_far_as_an_example_goes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    targets = np.array([[0, 1, -100], [2, 0, 1], [1, -100, -100]])
    outputs = random.normal(size=(3, 3, 4)).astype(np.float32)
    outputs[targets == -100] = 0
    (tmp_path / "it").mkdir()
    Predictions(outputs, targets).write(tmp_path / "it", "tags")
    found = read_predictions(tmp_path / "it", "tags")
    np.testing.assert_array_equal(found.outputs, outputs)
    np.testing.assert_array_equal(found.targets, targets)
    rows = pd.read_parquet(tmp_path / "it/predictions/tags.parquet")
    assert [len(row) for row in rows["logits"]] == [2, 3, 1]
    for name, kept in (("a", targets), ("b", np.where(targets == 2, -100, targets))):  # b reads fewer tokens
        (tmp_path / name).mkdir()
        Predictions(outputs, kept).write(tmp_path / name, "tags")
        write_json(tmp_path / name / "per_example.json", {"tasks": of_task("tags", "t")})
    with pytest.raises(InputError, match="b: has other outputs on tags than a's, of other parts of the texts perhaps"):
        ensemble({name: tmp_path / name for name in "ab"}, {"a": 0.5, "b": 0.5}, {"tags": KIND})


@pytest.mark.parametrize(
    ("averaging", "link"),
    [
        (MeanOfSoftmax(), lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)),
        (MeanOfSigmoid(), lambda z: 1 / (1 + np.exp(-z))),
        (MeanOutput(), lambda z: z),
    ],
)
def test_averaging(averaging: Averaging, link: Callable[[np.ndarray], np.ndarray]) -> None:
    random = np.random.default_rng(0)
    outputs = [random.normal(size=(5, 2, 3)) * 3 for _ in range(3)]
    weights = [0.5, 0.2, 0.3]
    wanted = sum(λ * link(z) for λ, z in zip(weights, outputs, strict=True))
    found = averaging.mean([z.astype(np.float32) for z in outputs], weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(link(found.astype(float)), wanted, rtol=1e-5, atol=1e-6)
    extreme = np.array([[200.0, -200.0]], dtype=np.float32)
    assert np.isfinite(averaging.mean([extreme, extreme], [0.5, 0.5])).all()


def test_an_ensemble_of_models_that_write_is_their_mixture() -> None:
    """The probability of a whole text is the mean of those that the models give it."""
    random = np.random.default_rng(0)
    tokens = random.integers(1, 9, size=6).astype(np.float32)
    likelihoods = [-random.exponential(size=6) * 20 for _ in range(3)]
    weights = [0.5, 0.2, 0.3]
    outputs = [np.stack([each, tokens], axis=-1).astype(np.float32) for each in likelihoods]
    found = MixtureOfTexts().mean(outputs, weights)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 1], tokens)
    wanted = np.log(sum(λ * np.exp(each) for λ, each in zip(weights, likelihoods, strict=True)))
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-5)
    far = np.array([[-5000.0, 3.0]], dtype=np.float32)
    mixed = MixtureOfTexts().mean([far, far - np.array([[1000, 0]])], [0.5, 0.5])
    np.testing.assert_allclose(mixed, [[-5000 + np.log(0.5), 3]])


def test_a_language_model_is_evaluated_on_tasks_of_both_kinds(tmp_path: Path) -> None:
    """One is trained to write, the other to choose; each is scored on both tasks, as by a model of the task's own."""
    found = words(24)
    write = CausalLM(source="s", file="f", prompt="question", completion="answer", max_length=24)
    choose = MultipleChoice(source="s", file="f", choices=["a", "b"], scoring="sum", max_length=24)
    assert write.has_outputs_of(choose)
    assert choose.has_outputs_of(write)
    assert not choose.has_outputs_of(choose.model_copy(update={"scoring": "head"}))
    columns = {"question": found, "choice_0": [word[::-1] + "a" for word in found], "choice_1": ["b"] * len(found)}
    tasks = [
        made_task(tmp_path / "write", write, {"question": found, "answer": found[::-1]}),
        made_task(tmp_path / "choose", choose, {**columns, "label": [i % 2 for i in range(len(found))]}),
    ]
    checkpoint = save(tiny_llama(), tmp_path / "model")
    card = {"base_model_prefix": "model", "labels": [], "origin": {"method": "finetuned"}}
    outputs = []
    for own in ("write", "choose"):
        write_json(checkpoint / "checkpoint.json", card | {"task": own})
        predictions, _ = predict(checkpoint, tasks)
        assert list(predictions) == ["write", "choose"]
        outputs.append({name: each.outputs for name, each in predictions.items()})
    for name, shape in (("write", (4, 2)), ("choose", (4, 2))):
        assert outputs[0][name].shape == shape
        np.testing.assert_array_equal(outputs[0][name], outputs[1][name])
    alone, _ = predict(checkpoint, tasks[:1])
    np.testing.assert_array_equal(alone["write"].outputs, outputs[0]["write"])


def test_a_task_names_the_metric_that_counts(tmp_path: Path) -> None:
    task = make_task(tmp_path / "reviews", ["bad", "good"])
    assert [metric.name for metric in task.metrics] == ["accuracy", "macro_f1"]
    settings = {"source": "tables", "file": "a.csv", "labels": ["bad", "good"]}
    chosen = KINDS[KIND].model_validate(settings | {"metric": "macro_f1"})
    assert [metric.name for metric in chosen.own_metrics] == ["macro_f1", "accuracy"]
    with pytest.raises(ValidationError, match="`metric`: 'f1' is none of this task's: accuracy, macro_f1"):
        KINDS[KIND].model_validate(settings | {"metric": "f1"})
    assert "metric" not in KINDS[KIND].model_validate(settings).model_dump()
