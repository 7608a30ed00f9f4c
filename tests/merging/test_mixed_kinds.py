"""Models of different kinds on one body: it is merged, and each task is predicted by its own model's head, or none."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

from stages.merging import merge_checkpoints
from stages.merging.ingredients import Ingredients
from stages.merging.merged_tensors import merging_at
from stages.merging.methods.isotropic.options import Isotropic
from stages.results.evaluation import predict
from stages.running.errors import InputError
from stages.searching.live_model import LiveModel, expert_score
from stages.storage.cards import write_json
from stages.tasks.data import TaskData
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.language_metrics import NegativeLogLikelihood
from stages.tasks.metrics import Accuracy, Metric
from tests.language import letters_tokenizer, made_task, randomised, tiny_gpt2, tiny_llama, words
from tests.tasks.test_multiple_choice import made_task as make_choices
from tests.tasks.test_token_classification import make_tagging, tiny_tagger
from tests.test_finetune import make_task
from tests.tiny import tiny_bert, tiny_config, tiny_tokenizer

λ = {"first": 0.3, "second": 0.7}
LABELS = ["bad", "good"]
Finished = tuple[Any, TaskData, Any]  # a model, its task, its tokenizer
Kind = Callable[[Path], Finished]


def classifier(root: Path) -> Finished:
    return tiny_bert(LABELS, seed=1), make_task(root / "reviews", LABELS), tiny_tokenizer()


def tagger(root: Path) -> Finished:
    """Its body has no pooler."""
    return tiny_tagger(seed=2), make_tagging(root / "tagging"), tiny_tokenizer()


def chooser(root: Path) -> Finished:
    torch.manual_seed(3)
    model = randomised(t.BertForMultipleChoice(tiny_config([])), seed=3)
    return model, make_choices(root / "choices", "head"), tiny_tokenizer()


def of_letters(model: Callable[[int], Any]) -> tuple[Kind, Kind]:
    """A language model, and a classifier with such a body."""

    def writer(root: Path) -> Finished:
        settings = CausalLM(source="s", file="f.csv", text="text", max_length=12)
        return model(4), made_task(root / "texts", settings, {"text": words(12, longest=6)}), letters_tokenizer()

    def judge(root: Path) -> Finished:
        settings = TextClassification(source="s", file="f.csv", labels=LABELS, max_length=12)
        columns: dict[str, Any] = {"text": words(12, 1), "label": [0, 1] * 6}
        config = model(0).config
        config.id2label, config.label2id = dict(enumerate(LABELS)), {label: i for i, label in enumerate(LABELS)}
        config.pad_token_id = 0
        torch.manual_seed(5)
        made = randomised(t.AutoModelForSequenceClassification.from_config(config), seed=5)
        return made, made_task(root / "judged", settings, columns), letters_tokenizer()

    return writer, judge


LLAMA, GPT2 = of_letters(tiny_llama), of_letters(tiny_gpt2)
PAIRS: dict[str, tuple[Kind, Kind]] = {
    "classifier and chooser": (classifier, chooser),
    "chooser and classifier": (chooser, classifier),
    "untied language model and classifier": LLAMA,
    "classifier and untied language model": LLAMA[::-1],
    "tied language model and classifier": GPT2,
    "classifier and tied language model": GPT2[::-1],
    "tagger and classifier": (tagger, classifier),
    "classifier and tagger": (classifier, tagger),
}


def saved(directory: Path, model: Any, task: TaskData, tokenizer: Any) -> Path:
    """A checkpoint with its card, as fine-tuning leaves it."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    card = {"base_model_prefix": model.base_model_prefix, "labels": list(task.labels), "task": task.name}
    write_json(directory / "checkpoint.json", card | {"origin": {"method": "finetuned"}})
    return directory


def averaged(models: Mapping[str, Any], name: str) -> Any:
    """That model's own copy with the bodies' mean in place of its body; what only it has is its own."""
    bodies = {key: getattr(model, model.base_model_prefix).state_dict() for key, model in models.items()}
    own, body = models[name], getattr(models[name], models[name].base_model_prefix)
    mean = {
        tensor: sum(λ[key] * bodies[key][tensor] for key in λ)
        for tensor in body.state_dict()
        if all(tensor in each for each in bodies.values())
    }
    assert len(mean) > 10
    body.load_state_dict(mean, strict=False)
    return own


def merged_and_wanted(
    root: Path, kinds: tuple[Kind, Kind], heads: Any
) -> tuple[Path, dict[str, tuple[TaskData, Path]]]:
    """The merge of two models, and for each of these its task and the checkpoint by hand that should be its like."""
    finished = {}
    for name, kind in zip(λ, kinds, strict=True):
        (root / name).mkdir()
        finished[name] = kind(root / name)
    checkpoints = {name: saved(root / name / "model", *own) for name, own in finished.items()}
    out = root / "merged"
    merge_checkpoints(checkpoints, out, method="isotropic", coefficients=λ, heads=heads)
    wanted = {}
    for name, (_, task, tokenizer) in finished.items():
        again = {key: type(finished[key][0]).from_pretrained(place) for key, place in checkpoints.items()}
        wanted[name] = task, saved(root / name / "wanted", averaged(again, name), task, tokenizer)
    return out, wanted


def assert_predicts(found: Mapping[str, Any], wanted: tuple[TaskData, Path]) -> None:
    task, checkpoint = wanted
    by_hand = predict(checkpoint, [task])[0][task.name]
    np.testing.assert_allclose(found[task.name].outputs, by_hand.outputs, rtol=1e-4, atol=1e-5)
    assert found[task.name].written == by_hand.written


@pytest.mark.parametrize(
    "pair",
    [
        "classifier and chooser",
        "chooser and classifier",
        "untied language model and classifier",
        "classifier and untied language model",
        "tied language model and classifier",
        "classifier and tied language model",
    ],
)
def test_each_task_by_its_own_head(tmp_path: Path, pair: str) -> None:
    merged, wanted = merged_and_wanted(tmp_path, PAIRS[pair], "each")
    found, _ = predict(merged, [task for task, _ in wanted.values()])
    assert found.keys() == {task.name for task, _ in wanted.values()}
    for each in wanted.values():
        assert_predicts(found, each)


@pytest.mark.parametrize("pair", list(PAIRS))
def test_the_targets_task_by_its_head(tmp_path: Path, pair: str) -> None:
    """The pooler that a tagger lacks is the classifier's, where that is the target."""
    merged, wanted = merged_and_wanted(tmp_path, PAIRS[pair], "target")
    found, _ = predict(merged, [task for task, _ in wanted.values()])
    assert found.keys() == {wanted["first"][0].name}
    assert_predicts(found, wanted["first"])


@pytest.mark.parametrize(
    ("pair", "lacks", "has"),
    [("classifier and tagger", "second", "first"), ("tagger and classifier", "first", "second")],
)
def test_heads_of_bodies_that_differ_are_refused(tmp_path: Path, pair: str, lacks: str, has: str) -> None:
    """A classifier's head reads the pooler, which a tagger's body has not."""
    message = (
        rf"{lacks}/model.*lacks the tensor bert\.pooler\.dense\.bias, which {has} has in its body.*`heads: target`"
    )
    with pytest.raises(InputError, match=message):
        merged_and_wanted(tmp_path, PAIRS[pair], "each")


def another_writer(root: Path) -> Finished:
    model, task, tokenizer = GPT2[0](root)
    return randomised(model, seed=8), task, tokenizer


@pytest.mark.parametrize(
    ("kinds", "metric"),
    [((classifier, chooser), Accuracy()), ((GPT2[0], another_writer), NegativeLogLikelihood())],
    ids=["heads of their own", "heads that are tied"],
)
def test_a_search_scores_each_task_by_its_own_head(tmp_path: Path, kinds: tuple[Kind, Kind], metric: Metric) -> None:
    """A point scores what the checkpoints by hand score; a tied head is tied to the body that is searched."""
    _, wanted = merged_and_wanted(tmp_path, kinds, "each")
    ingredients = Ingredients({name: tmp_path / name / "model" for name in wanted}, Isotropic(), heads="each")
    live = LiveModel(ingredients, "each", {task: name for name, (task, _) in wanted.items()}, metric)
    live.load(merging_at(ingredients, {"first": 0.9, "second": 0.1}))  # of which nothing may be left
    live.load(merging_at(ingredients, λ))
    by_hand = [expert_score(checkpoint, task, metric) for task, checkpoint in wanted.values()]
    np.testing.assert_allclose(live.scores(), by_hand, rtol=1e-4)
