"""Tasks of lm-evaluation-harness: item by item against loops of our own, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.tasks.manager import load_yaml
from scipy.special import log_softmax
from tokenizers import processors

from stages.params import Params, parse_params
from stages.pipeline.needs import ensemble_kinds, evaluated_tasks
from stages.results.evaluation import contributions, ensemble, metrics, predict
from stages.results.predictions import Predictions
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.storage.cards import read_json, write_json
from stages.storage.digests import write_contents
from stages.tasks.data import TaskData
from stages.tasks.kinds import metric_named
from stages.tasks.kinds.lm_eval.harness import sandboxed
from stages.tasks.kinds.lm_eval.kind import KIND
from stages.tasks.kinds.lm_eval.reading import PREPARER
from stages.tasks.kinds.lm_eval.settings import LmEval
from stages.tasks.kinds.lm_eval.yaml_files import find_tasks
from stages.tasks.kinds.multiple_choice.kind import KIND as RANKING
from stages.tasks.kinds.multiple_choice.settings import MultipleChoice
from stages.tasks.metrics import Accuracy
from stages.tasks.prediction import examples_for, targets
from stages.tasks.prediction import predict as predicted
from tests.language import CHAT, letters_tokenizer, save, tiny_llama, words
from tests.tasks.in_memory import write_task

ITEMS = 24
PIQA: dict[str, Any] = {
    "task": "piqa_local",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "data/train.jsonl", "validation": "data/piqa.jsonl"}},
    "output_type": "multiple_choice",
    "training_split": "train",
    "validation_split": "validation",
    "test_split": None,
    "doc_to_text": "{{goal}}",
    "doc_to_target": "label",
    "doc_to_choice": "{{[sol1, sol2]}}",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_bytes"},
        {"metric": "f1"},
    ],
    "metadata": {"version": 1.0},
}
BOOLQ: dict[str, Any] = {
    "task": "boolq_local",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": ["data/boolq.jsonl"]}},
    "output_type": "multiple_choice",
    "validation_split": "validation",
    "doc_to_text": "{{passage}}\n{{question}}",
    "doc_to_target": "label",
    "doc_to_choice": ["ab", "hedge"],
    "metric_list": [{"metric": "acc"}],
}
WRITING: dict[str, Any] = {
    **{key: PIQA[key] for key in ("dataset_path", "dataset_kwargs", "training_split", "validation_split")},
    "task": "writing",
    "output_type": "generate_until",
    "doc_to_text": "{{goal}} ",
    "doc_to_target": "{{written}}",
    "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 3, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
CONTINUED: dict[str, Any] = {
    **{key: PIQA[key] for key in ("dataset_path", "dataset_kwargs", "training_split", "validation_split")},
    "task": "continued",
    "output_type": "loglikelihood",
    "doc_to_text": "{{goal}}",
    "doc_to_target": "{{next}}",
    "metric_list": [{"metric": "acc"}],
}
Rows = list[dict[str, Any]]


def text_of(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """What a model writes: of all tokens always the most probable one, one after the other."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    while len(ids) < start + tokens and ids[-1] != 1:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def log_p(model: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    """log p of a continuation after a prompt, in float64, a token at a time."""
    whole = tokenizer(prompt + continuation)["input_ids"]
    given = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        scores = log_softmax(model(torch.tensor([whole])).logits[0].double().numpy(), axis=-1)
    return float(sum(scores[place - 1, whole[place]] for place in range(given, len(whole))))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_llama(1), tmp_path_factory.mktemp("model"), letters_tokenizer(CHAT))


@pytest.fixture(scope="module")
def rows(checkpoint: Path) -> Rows:
    """Items that every form of task can be made of; for every other one, what the model writes is right."""
    model, tokenizer = tiny_llama(1), letters_tokenizer()
    goals, random = words(ITEMS + 6, 3), np.random.default_rng(0)
    found = []
    for row, goal in enumerate(goals):
        choices = [goal[::-1] + "ab"[: row % 3], "dec"[row % 3 :] + goal[:1]]
        written = text_of(model, tokenizer, f"{goal} ", 3) if row % 2 else "zz"
        follows = text_of(model, tokenizer, goal, 1) if row % 4 < 2 else "g"
        found.append(
            {
                "goal": goal,
                "sol1": choices[0],
                "sol2": choices[1],
                "label": int(random.integers(2)),
                "passage": goal[::-1],
                "question": f"is {goal}",
                "written": written or "zz",
                "next": follows or "h",
            }
        )
    return found


@pytest.fixture
def source(tmp_path: Path, rows: Rows) -> Path:
    root = tmp_path / "source"
    (root / "data").mkdir(parents=True)
    for name, own in {"train": rows[ITEMS:], "piqa": rows[:ITEMS], "boolq": rows[:ITEMS]}.items():
        (root / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    for content in (PIQA, BOOLQ, WRITING, CONTINUED):
        write_yaml(root, content)
    return root


def write_yaml(root: Path, content: dict[str, Any]) -> None:
    """As JSON, which YAML is a superset of: no words without quotes that are booleans to YAML 1.1."""
    (root / f"{content['task']}.yaml").write_text(json.dumps(content))


def prepared(source: Path, name: str = "harness", **settings: Any) -> TaskData:
    task = LmEval.model_validate({"source": "s", "include": "."} | settings)
    directory = source.parent / "tasks" / name
    directory.mkdir(parents=True)
    assert PREPARER.prepare(task, source, directory) == []
    write_contents(directory)
    return TaskData.open(directory)


def outputs(checkpoint: Path, task: TaskData, model: Any = None) -> np.ndarray:
    return KIND.tested(checkpoint, model or tiny_llama(1), task, Placement(), 3, 64).outputs


def ranked(rows: Rows, normalised: Callable[[str], int] | None = None, prompt: str = "{}") -> list[float]:
    """For every item, 1 if the right choice is the most probable one, by a loop in float64."""
    model, tokenizer, found = tiny_llama(1), letters_tokenizer(), []
    for row in rows:
        choices = [row["sol1"], row["sol2"]]
        scores = [log_p(model, tokenizer, prompt.format(row["goal"]), f" {choice}") for choice in choices]
        if normalised is not None:
            scores = [score / normalised(choice) for score, choice in zip(scores, choices, strict=True)]
        found.append(float(np.argmax(scores) == row["label"]))
    return found


def test_every_item_is_what_a_loop_of_our_own_says(source: Path, rows: Rows, checkpoint: Path) -> None:
    task = prepared(source, tasks=["piqa_local"], measures=["acc", "acc_norm", "acc_bytes"])
    assert task.card["counts"] == {"test": ITEMS}
    found = outputs(checkpoint, task)
    assert found[:, 0].tolist() == ranked(rows[:ITEMS])
    assert found[:, 1].tolist() == ranked(rows[:ITEMS], len)
    assert found[:, 2].tolist() == ranked(rows[:ITEMS], lambda choice: len(choice.encode()))
    assert 0 < found[:, 0].mean() < 1
    assert (found[:, 0] != found[:, 1]).any(), "the lengths decide some"
    assert np.array_equal(found, outputs(checkpoint, task)), "the same bits"


@pytest.mark.parametrize("name", ["piqa_local", "boolq_local"])
def test_our_ranking_agrees_with_acc_item_by_item(source: Path, rows: Rows, checkpoint: Path, name: str) -> None:
    """By the sum of the log-probabilities; their mean is over tokens, and `acc_norm` is over characters."""
    found = outputs(checkpoint, prepared(source, tasks=[name]))[:, 0]
    frame = pd.DataFrame(rows[:ITEMS])
    question = frame["goal"] if name == "piqa_local" else frame["passage"] + "\n" + frame["question"]
    first, second = (frame["sol1"], frame["sol2"]) if name == "piqa_local" else ("ab", "hedge")
    table = pd.DataFrame({"question": question, "choice_0": first, "choice_1": second, "label": frame["label"]})
    settings = MultipleChoice(source="s", file="t.jsonl", scoring="sum", max_length=32)
    directory = source.parent / "ranking"
    directory.mkdir()
    write_task(directory, settings, dict.fromkeys(("train", "validation", "test"), table), {})
    own = TaskData.open(directory)
    model = RANKING.load_model(checkpoint, ())
    examples = examples_for(RANKING, checkpoint, model, own.rows("test"), own, Placement())
    ours = Accuracy().per_example(predicted(model, examples, [Accuracy()]), targets(examples))
    assert ours.tolist() == found.tolist()
    assert 0 < ours.mean() < 1
    through_ours = outputs(checkpoint, TaskData.open(source.parent / "tasks/harness"), model)[:, 0]
    assert through_ours.tolist() == found.tolist(), "the model that ranks choices is the same to lm_eval"


def test_what_a_model_writes_and_what_follows(source: Path, rows: Rows, checkpoint: Path) -> None:
    model, tokenizer = tiny_llama(1), letters_tokenizer()
    task = prepared(source, tasks=["writing"], measures=["exact_match"])
    tested = KIND.tested(checkpoint, model, task, Placement(), 3, 2)
    wanted = [float(text_of(model, tokenizer, f"{row['goal']} ", 3) == row["written"]) for row in rows[:ITEMS]]
    assert tested.outputs[:, 0].tolist() == wanted
    assert 0 < np.mean(wanted) < 1
    assert [each.prompt for each in tested.written] == [f"{row['goal']} " for row in rows[:3]]
    assert [each.reference for each in tested.written] == [row["written"] for row in rows[:3]]
    assert all(len(each.text) <= 2 for each in tested.written), "two letters"
    follows = outputs(checkpoint, prepared(source, "continued", tasks=["continued"]))[:, 0]
    ids = [tokenizer(row["goal"] + row["next"])["input_ids"] for row in rows[:ITEMS]]
    greedy = [float(int(model(torch.tensor([own[:-1]])).logits[0, -1].argmax()) == own[-1]) for own in ids]
    assert follows.tolist() == greedy
    assert 0 < np.mean(greedy) < 1


@pytest.mark.parametrize("own", [1, 9])
def test_a_model_writes_as_many_tokens_as_the_task_says(source: Path, checkpoint: Path, own: int) -> None:
    """What its generation_config.json says of that would count, and cut the answers, or let them go on."""
    task, model = prepared(source, tasks=["writing"], measures=["exact_match"]), tiny_llama(1)
    wanted = KIND.tested(checkpoint, tiny_llama(1), task, Placement(), ITEMS, 64)
    model.generation_config.max_new_tokens = own
    found = KIND.tested(checkpoint, model, task, Placement(), ITEMS, 64)
    assert found.written == wanted.written
    assert np.array_equal(found.outputs, wanted.outputs)
    assert model.generation_config.max_new_tokens == own


def test_several_tasks_are_one_and_a_limit_is_of_each(source: Path, checkpoint: Path) -> None:
    alone = {name: outputs(checkpoint, prepared(source, name, tasks=[name])) for name in ("boolq_local", "piqa_local")}
    both = prepared(source, tasks=["boolq_local", "piqa_local"], include=["boolq_local.yaml", "piqa_local.yaml"])
    assert np.array_equal(outputs(checkpoint, both), np.concatenate(list(alone.values())))
    few = prepared(source, "few", tasks=["boolq_local", "piqa_local"], limit=5)
    assert few.card["items"] == {"boolq_local": 5, "piqa_local": 5}
    assert np.array_equal(outputs(checkpoint, few), np.concatenate([own[:5] for own in alone.values()]))
    assert few.fingerprints != both.fingerprints


def test_examples_before_an_item(source: Path, rows: Rows, checkpoint: Path) -> None:
    """The first of the training split, where the YAML says so; otherwise drawn by the seed."""
    write_yaml(source, {**PIQA, "fewshot_config": {"sampler": "first_n"}})
    shot = rows[ITEMS]
    before = f"{shot['goal']} {[shot['sol1'], shot['sol2']][shot['label']]}\n\n"
    task = prepared(source, "first", tasks=["piqa_local"], few_shot=1)
    assert outputs(checkpoint, task)[:, 0].tolist() == ranked(rows[:ITEMS], prompt=before + "{}")
    write_yaml(source, PIQA)
    drawn = [prepared(source, f"s{seed}", tasks=["piqa_local"], few_shot=2, seed=seed) for seed in (1, 2)]
    assert drawn[0].fingerprints != drawn[1].fingerprints
    assert np.array_equal(outputs(checkpoint, drawn[0]), outputs(checkpoint, drawn[0]))
    write_yaml(source, {**PIQA, "num_fewshot": 2})
    own = prepared(source, "own", tasks=["piqa_local"], seed=1)
    assert np.array_equal(outputs(checkpoint, own), outputs(checkpoint, drawn[0])), "as many as the YAML says"


def test_prompts_by_the_chat_template(source: Path, rows: Rows, checkpoint: Path, tmp_path: Path) -> None:
    task = prepared(source, tasks=["piqa_local"], chat_template=True)
    model, tokenizer, wanted = tiny_llama(1), letters_tokenizer(), []
    for row in rows[:ITEMS]:  # no space after what the template ends with
        prompt = f"<|user|>{row['goal']}</s><|assistant|>"
        scores = [log_p(model, tokenizer, prompt, choice) for choice in (row["sol1"], row["sol2"])]
        wanted.append(float(np.argmax(scores) == row["label"]))
    assert outputs(checkpoint, task)[:, 0].tolist() == wanted
    assert wanted != ranked(rows[:ITEMS])
    plain = save(model, tmp_path / "plain")
    with pytest.raises(
        InputError, match=r"plain: its tokenizer has no chat template; .* tasks\.harness\.chat_template"
    ):
        outputs(plain, task)


def test_a_template_without_system_messages_takes_no_description(
    source: Path, tmp_path: Path, checkpoint: Path
) -> None:
    """lm_eval would leave the description out, without a word to be seen."""
    write_yaml(source, {**PIQA, "description": "abc"})
    task = prepared(source, tasks=["piqa_local"], chat_template=True)
    assert outputs(checkpoint, task).shape == (ITEMS, 1)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT
    forgetting = "{% set messages = messages | selectattr('role', 'ne', 'system') | list %}" + CHAT
    for name, template in {"refusing": refusing, "forgetting": forgetting}.items():
        other = save(tiny_llama(1), tmp_path / name, letters_tokenizer(template))
        with pytest.raises(InputError, match="writes no system message, which the `description` of harness is"):
            outputs(other, task)


def test_tokenizers_that_lm_eval_cuts_answers_wrongly_with_are_refused(source: Path, tmp_path: Path) -> None:
    task = prepared(source, tasks=["piqa_local"])
    ending: Any = letters_tokenizer()
    ending._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    with pytest.raises(InputError, match="its tokenizer puts </s> after every text"):
        outputs(save(tiny_llama(1), tmp_path / "ending", ending), task)
    with pytest.raises(InputError, match="has neither a token that begins a text nor one that ends it"):
        outputs(save(tiny_llama(1), tmp_path / "bare", letters_tokenizer(eos_token=None, bos_token=None)), task)


def test_longer_items_are_cut_and_it_is_said(
    source: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = prepared(source, tasks=["piqa_local"], few_shot=2)
    short = tiny_llama(1, max_position_embeddings=14)
    tested = KIND.tested(checkpoint, short, task, Placement(), 0, 0)
    assert 0 < tested.said["items_cut"] <= ITEMS
    said = f"harness: {tested.said['items_cut']} of {ITEMS} items have more than the 14 tokens that the model reads"
    assert said in capsys.readouterr().err
    with pytest.raises(InputError, match=r"lm_eval cannot evaluate it on writing: .* requested max tokens to generate"):
        outputs(
            checkpoint,
            prepared(source, "writing", tasks=["writing"], measures=["exact_match"]),
            tiny_llama(1, max_position_embeddings=3),
        )


def test_a_model_that_knows_nothing_is_refused(source: Path, checkpoint: Path) -> None:
    model = tiny_llama(1)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(InputError, match="predicts logits that are not finite on harness"):
        outputs(checkpoint, prepared(source, tasks=["piqa_local"]), model)


def test_an_evaluation_keeps_every_item(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Beside the model's own task; the metric's interval and contributions are as of any other."""
    harness = prepared(source, tasks=["piqa_local"], measures=["acc", "acc_norm"])
    settings = MultipleChoice(source="s", file="t.jsonl", scoring="sum", max_length=32)
    (tmp_path / "tasks/own").mkdir()
    table = pd.DataFrame({"question": words(8), "choice_0": "a", "choice_1": "b", "label": [0, 1] * 4})
    write_task(tmp_path / "tasks/own", settings, dict.fromkeys(("train", "validation", "test"), table), {})
    own = TaskData.open(tmp_path / "tasks/own")
    place = save(tiny_llama(1), tmp_path / "model")
    write_json(place / "checkpoint.json", {"base_model_prefix": "model", "labels": [], "task": "own", "origin": {}})
    found, said = predict(place, [harness, own])
    assert set(found) == {"harness", "own"}
    assert said == {}
    measured = {task.name: task.metrics for task in (harness, own)}
    worth = metrics(found, measured)["harness"]
    values = outputs(checkpoint, harness)
    assert worth["acc"] == values[:, 0].mean()
    assert worth["acc_norm"] == values[:, 1].mean()
    assert worth["acc_low"] < worth["acc"] < worth["acc_high"]
    assert worth["examples"] == ITEMS
    primary = {task: own[0] for task, own in measured.items()}
    each = contributions(found, primary, {"harness": "h", "own": "o"})["harness"]
    assert each["metric"] == "acc"
    assert list(each["values"]) == values[:, 0].tolist()
    assert metric_named("acc").summary(np.array(each["values"])) == worth["acc"]


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # in the YAML; in params.yaml; the message
    "no such task": ({}, {"tasks": ["piqa"]}, r"source: its YAML files have no task 'piqa'; they have: .*piqa_local"),
    "absolute": (
        {"dataset_kwargs": {"data_files": "/etc/passwd"}},
        {},
        r"data_files: '/etc/passwd' must be a path relative to that file",
    ),
    "above": ({"dataset_kwargs": {"data_files": {"train": "../x.jsonl"}}}, {}, r"'\.\./x\.jsonl' must be a path"),
    "elsewhere": ({"dataset_kwargs": {"data_files": "hf://datasets/x/y.json"}}, {}, "hf://.* must be a path"),
    "no file": ({"dataset_kwargs": {"data_files": {"validation": "no.jsonl"}}}, {}, r"no\.jsonl: not found; piqa"),
    "no data": ({"dataset_kwargs": {"data_files": None}}, {}, "must name the files of the task's rows"),
    "other data": ({"dataset_kwargs": {"data_dir": "data"}}, {}, r"dataset_kwargs\.data_dir: must be a mapping"),
    "the Hub": ({"dataset_path": "baber/piqa"}, {}, "dataset_path = 'baber/piqa': must be the format of data files"),
    "code": ({"process_docs": "f"}, {}, "process_docs: cannot be used here"),
    "a corpus metric": ({}, {"measures": ["exact_match"]}, r"exact_match is none of .* \(acc, acc_norm, acc_bytes, of"),
    "another mean": (
        {"metric_list": [{"metric": "acc", "aggregation": "median"}]},
        {},
        "acc: aggregation = 'median': must be mean",
    ),
    "code of the Hub": ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, {}, "hf_evaluate = True: must be f"),
    "perplexity": ({"output_type": "loglikelihood_rolling"}, {}, "has no metric that is a mean over the items"),
    "sampling": (
        {"output_type": "generate_until", "generation_kwargs": {"do_sample": True}, "metric_list": None},
        {"measures": ["exact_match"]},
        "must not sample",
    ),
    "two filters": ({"filter_list": [{"name": "a"}, {"name": "b"}]}, {}, "has several filters"),
    "shots that are not wanted": ({"num_fewshot": 0}, {"few_shot": 1}, "num_fewshot = 0: the task wants no examples"),
    "shots of itself": ({"fewshot_split": "validation"}, {"few_shot": 1}, "the item itself among them"),
    "shots of its file": (
        {
            "dataset_kwargs": {
                "data_files": {"train": ["data/train.jsonl", "data/piqa.jsonl"], "t": "data/piqa.jsonl"}
            },
            "validation_split": None,
            "test_split": "t",
        },
        {"few_shot": 1},
        "of the split or file that is evaluated, the item itself among them",
    ),
    "too many shots": ({}, {"few_shot": 9}, "Sample larger than population"),
    "no right choice": ({"doc_to_target": "{{'neither'}}"}, {}, "what is right for item 0, 'neither', is no answer"),
    "hidden answers": ({"doc_to_target": -1}, {}, "what is right for item 0, -1, is no answer"),
    "no column": ({"doc_to_text": "{{missing}}"}, {}, "'missing' is undefined"),
    "a template that acts": (
        {"doc_to_text": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
        {},
        "access to attribute '__class__' of 'str' object is unsafe",
    ),
    "booleans": ({"doc_to_choice": [False, True]}, {}, "doc_to_choice: False is no text; put it in quotes, as no and"),
    "choices alike": (
        {"doc_to_choice": ["a", "b", "b"], "doc_to_target": 2},
        {},
        "item 0, 2, has the text of a choice",
    ),
    "an empty choice": (
        {"doc_to_choice": "{{['a', sol1 if goal == first else '']}}"},
        {},
        "are no texts, or empty ones",
    ),
    "a null": (
        {"doc_to_text": "{{goal if goal == first else none}}"},
        {},
        "item 1 cannot be written: .* is null, which",
    ),
    "hidden answers before": (
        {"fewshot_config": {"doc_to_target": -1}},
        {"few_shot": 1},
        "an example before the items, '.*', has the answer -1, which is none",
    ),
    "no answers before": (
        {"fewshot_config": {"doc_to_target": "{{''}}"}},
        {"few_shot": 1},
        "an example before the items, '.*', has the answer '', which is none",
    ),
    "right texts": ({"doc_to_target": "{{[sol1]}}"}, {}, r"item 0, \['.*'\], is no answer that it has"),
    "right ones without a number": (
        {"doc_to_target": "{{[0, 1]}}", "metric_list": [{"metric": "acc_mutual_info"}]},
        {"measures": ["acc_mutual_info"]},
        r"item 0, \[0, 1\], is a list, which lm_eval does not take here",
    ),
    "one right, then several": (
        {"doc_to_target": "{{0 if goal == first else [0]}}"},
        {},
        r"item 1, \[0\], is a list, and that of the first item is none",
    ),
    "several right, then one": (
        {"doc_to_target": "{{[0] if goal == first else 0}}"},
        {},
        "item 1, 0, is no list, and that of the first item is one",
    ),
    "a metric twice": ({"metric_list": [{"metric": "acc"}, {"metric": "acc"}]}, {}, "metric_list: has acc twice"),
    "no list": ({"filter_list": "a"}, {}, "filter_list = 'a': must be a list"),
    "no mapping": ({"generation_kwargs": ["a"]}, {}, r"generation_kwargs = \['a'\]: must be a mapping"),
    "no choices": ({"doc_to_choice": 5}, {}, "doc_to_choice = 5: must be a text, a list or a mapping"),
    "no such split": ({"validation_split": "dev"}, {}, "dev"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_trusted_or_pinned_is_refused_in_one_line(source: Path, case: str) -> None:
    content, settings, message = REFUSED[case]
    first = json.loads((source / "data/piqa.jsonl").read_text().splitlines()[0])["goal"]
    write_yaml(source, json.loads(json.dumps(PIQA | content).replace("first", f"'{first}'")))
    with pytest.raises(InputError, match=message) as refused:
        prepared(source, **({"tasks": ["piqa_local"]} | settings))
    assert str(source.parent / "tasks") not in str(refused.value), "files are named as the source has them"


ANSWERS: dict[str, tuple[dict[str, Any], Callable[[int, str], Any], str]] = {  # an item's, by number and text
    "a text, then texts": (
        WRITING,
        lambda item, own: [own] if item else own,
        r"item 1, .*, is a list, and that of the",
    ),
    "texts, then a text": (
        WRITING,
        lambda item, own: own if item else [own],
        "item 1, .*, is no list, and that of the",
    ),
    "numbers": (WRITING, lambda item, own: [5, item], r"item 0, \[5, 0\], is no answer that it has"),
    "an empty text": (WRITING, lambda item, own: [own, ""], "item 0, .*, is no answer that it has"),
    "to go on with": (CONTINUED, lambda item, own: [own], r"item 0, \['.*'\], is a list, which lm_eval does not take"),
    "of choices": (
        WRITING | {"doc_to_choice": "{{['a', written]}}"},
        lambda item, own: own,
        "item 0, .*, is no answer that it has",
    ),
}


@pytest.mark.parametrize("case", list(ANSWERS))
def test_answers_that_lm_eval_would_read_wrongly_are_refused(source: Path, rows: Rows, case: str) -> None:
    """It would take a list for its text, a text for its letters, and a number for what no text is."""
    content, answer, message = ANSWERS[case]
    answers = [answer(item, row["written"]) for item, row in enumerate(rows[:ITEMS])]
    as_text = case.startswith(("a text", "texts"))  # a column of a file has values of one type
    for row, own in zip(rows[:ITEMS], answers, strict=True):
        row = row | {"answer": str(own) if as_text else own}
        with (source / "data/answers.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    data = {"data_files": {"validation": "data/answers.jsonl"}}
    target = "{{answer}}" if as_text else "answer"
    write_yaml(source, content | {"dataset_kwargs": data, "doc_to_target": target, "training_split": None})
    with pytest.raises(InputError, match=message):
        prepared(source, tasks=[content["task"]], measures=[content["metric_list"][0]["metric"]])


def test_of_several_right_answers_any_is_right(source: Path, rows: Rows, checkpoint: Path) -> None:
    write_yaml(source, WRITING | {"doc_to_target": "{{['zzz', written]}}"})
    task = prepared(source, tasks=["writing"], measures=["exact_match"])
    write_yaml(source, WRITING)
    alone = prepared(source, "alone", tasks=["writing"], measures=["exact_match"])
    found = outputs(checkpoint, task)
    assert 0 < found.mean() < 1
    assert np.array_equal(found, outputs(checkpoint, alone))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "piqa_local.yaml",
            "task: piqa_local\nprocess_docs: !function utils.f\n",
            "'!function'; a tag such as !function",
        ),
        (
            "piqa_local.yaml",
            "task: piqa_local\nx: !!python/object/apply:os.getcwd []\n",
            "python/object/apply:os.getcwd",
        ),
        ("piqa_local.yaml", "task: [", "not valid YAML"),
        ("other.yaml", "task: piqa_local\n", r"other\.yaml and piqa_local\.yaml both have a task 'piqa_local'"),
        ("piqa_local.yaml", "include: /etc/x.yaml\ntask: piqa_local\n", "include: '/etc/x.yaml' must be a path"),
        ("piqa_local.yaml", "include: piqa_local.yaml\ntask: piqa_local\n", "is there twice"),
        ("piqa_local.yaml", "include: base\ntask: piqa_local\n", "include: base is not found"),
        ("piqa_local.yaml", "group: piqa_local\ntask: [boolq_local]\n", "have no task 'piqa_local'"),
    ],
)
def test_yaml_files_that_are_none_of_a_task(source: Path, file: str, content: str, message: str) -> None:
    (source / file).write_text(content)
    with pytest.raises(InputError, match=message):
        prepared(source, tasks=["piqa_local"])
    if "!function" in content:
        assert prepared(source, "others", tasks=["boolq_local"]).card["counts"] == {"test": ITEMS}, (
            "another file of the directory"
        )


def test_files_that_include_others_are_read_as_lm_eval_reads_them(source: Path) -> None:
    (source / "base/inner").mkdir(parents=True)
    (source / "base/deep").write_text("doc_to_text: deep\ntarget_delimiter: ''\nnum_fewshot: 1\n")
    (source / "base/one").write_text("include: deep\ndoc_to_text: one\ndescription: no\n")
    (source / "two").write_text("doc_to_text: two\ntask_list: [x]\nmetadata: {version: 1e-4}\n")
    write_yaml(source, {"include": ["base/one", "two"], "num_fewshot": 2} | PIQA | {"task": "it", "doc_to_text": "own"})
    (task,) = find_tasks(source, ["it.yaml"], ["it"])
    wanted = {key: value for key, value in load_yaml(source / "it.yaml").items() if value is not None}
    assert task.configuration == wanted
    assert task.files == ["it.yaml", "base/one", "base/deep", "two", "data/train.jsonl", "data/piqa.jsonl"]


def test_templates_are_as_lm_evals_own_otherwise(source: Path) -> None:
    from lm_eval import utils

    template = "{{a}}{% for x in b %}-{{x|upper}}{% endfor %}{{c|regex_replace('o', '0')}}\n"
    content = {"a": "x", "b": ["y", "z"], "c": "foo"}
    before = utils.apply_template(template, content)
    with sandboxed():
        assert utils.apply_template(template, content) == before == "x-Y-Zf00\n"


def test_what_was_prepared_otherwise_or_changed_is_refused(source: Path, checkpoint: Path) -> None:
    task = prepared(source, tasks=["piqa_local"])
    card = read_json(task.directory / "task.json")
    (task.directory / "harness/data/piqa.jsonl").open("a").write("{}\n")
    with pytest.raises(InputError, match=r"piqa\.jsonl: its contents are not what contents\.json says"):
        outputs(checkpoint, task)
    write_json(task.directory / "task.json", card | {"lm_eval": "0.4.1"})
    write_contents(task.directory)
    with pytest.raises(InputError, match=r"was prepared with lm_eval 0\.4\.1, and .* --force prepare@harness"):
        outputs(checkpoint, TaskData.open(task.directory))


def test_the_extra_that_is_missing_is_named() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from stages.tasks.reading import preparer\nfrom stages.tasks import task_evaluator\n"
        "for find in (preparer, task_evaluator):\n"
        "    try: find('lm-eval')\n"
        "    except ValueError as error: print(type(error).__name__, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2
    assert all(line.startswith("InputError tasks of the kind lm-eval need lm-evaluation-harness") for line in said)
    assert all("pip install 'fisher-merging[lm-eval]'" in line for line in said)


def params_of(**changes: Any) -> dict[str, Any]:
    choice = {"kind": "multiple-choice", "source": "s", "file": "t.jsonl"}
    return {
        "sources": {"s": {"path": "s", "sha256": 64 * "0"}},
        "tasks": {
            "harness": {"kind": "lm-eval", "source": "s", "include": "a.yaml", "tasks": ["a"]},
            "ranks": {**choice, "scoring": "sum"},
            "means": {**choice, "scoring": "mean"},
            "heads": choice,
            "chats": {"kind": "causal-lm", "source": "s", "file": "t.jsonl", "text": "text"},
        },
        "fisher": {"estimator": "sketch"},
        "models": {name: {"base": "s", "task": name} for name in ("ranks", "means", "heads", "chats")},
        "merges": {
            "average": {"method": "isotropic", "coefficients": {"chats": 1, "ranks": 1}},
            "encoders": {"method": "isotropic", "coefficients": {"heads": 1}},
            "together": {"method": "ensemble", "coefficients": {"ranks": 1, "means": 1}},
        },
    } | changes


def test_language_models_and_their_merges_are_evaluated_on_it() -> None:
    params: Params = parse_params(params_of())
    found = {name: "harness" in evaluated_tasks(name, params) for name in (*params.models, *params.merges)}
    assert found == {"ranks": True, "means": True, "heads": False, "chats": True, "average": True, "encoders": False}
    assert [metric.name for metric in params.tasks["harness"].own_metrics] == ["acc"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"models": {"it": {"base": "s", "task": "harness"}}, "merges": {}},
            r"models\.it\.task = 'harness': its kind, lm-eval, is for evaluation alone",
        ),
        (
            {
                "merges": {
                    "m": {
                        "method": "fisher",
                        "coefficients": {"chats": 1, "ranks": 1},
                        "search": {"sampler": "grid", "points": 3, "tasks": ["harness"]},
                    }
                }
            },
            r"merges\.m\.search\.tasks: harness is for evaluation alone",
        ),
        (
            {"tasks": {"t": {"kind": "lm-eval", "source": "s", "include": "a.yaml", "tasks": ["a", "a"]}}},
            "`tasks`: names one twice",
        ),
        (
            {"tasks": {"t": {"kind": "lm-eval", "source": "s", "include": "../a.yaml", "tasks": ["a"]}}},
            r"'\.\./a\.yaml' must stay inside the source",
        ),
        (
            {"tasks": {"t": {"kind": "lm-eval", "source": "s", "include": "a.yaml", "tasks": ["a"], "file": "x"}}},
            r"tasks\.t\.file: is for tasks of the kind .*, and this one is lm-eval; remove it",
        ),
    ],
)
def test_what_params_yaml_must_not_say(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_params(params_of(**changes))


def test_an_ensemble_leaves_it_out(tmp_path: Path) -> None:
    """Its outputs are numbers of lm_eval's, whose mean is no prediction."""
    params = parse_params(params_of())
    kinds = ensemble_kinds(params.ensembles["together"], params)
    assert "harness" in kinds
    places = {name: tmp_path / name for name in ("ranks", "means")}
    logits: Sequence[Sequence[float]] = [[0.0, 1.0], [2.0, 0.0]]
    for place in places.values():
        place.mkdir()
        for task, own in {"ranks": logits, "harness": [[1.0], [0.0]]}.items():
            Predictions(np.array(own), np.array([1, 1])).write(place, task)
        entry = {"examples": "e", "metric": "accuracy", "values": [1, 0]}
        write_json(place / "per_example.json", {"tasks": {"ranks": entry, "harness": entry | {"metric": "acc"}}})
    found, shared = ensemble(places, {"ranks": 0.5, "means": 0.5}, kinds)
    assert list(found) == list(shared) == ["ranks"]
