"""FLOPs against a count by hand."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from stages.params.loading import parse_params
from stages.pipeline.places import EVAL, FINETUNED, TASKS
from stages.results.counting import Counted, forward_flops, stage_costs
from stages.storage.cards import write_json
from stages.storage.tensors import write_tensors
from stages.tasks.data import TaskData
from stages.tasks.kinds.text_classification.settings import TextClassification
from tests.project import tiny_params
from tests.tasks.in_memory import write_task
from tests.tiny import tiny_bert, tiny_config, tiny_tokenizer


def test_a_forward_pass_counts_its_matrix_products(tmp_path: Path) -> None:
    """Twelve texts of one length, so that there is no padding."""
    tiny_bert().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    words = ["good", "bad", "fine", "dull", "plot", "book", "film", "day", "the", "a", "is", "great"]
    frame = pd.DataFrame({"text": [f"{word} film" for word in words], "label": [0, 1] * 6})
    task = TextClassification(source="s", file="f.csv", labels=["bad", "good"], max_length=16)
    (tmp_path / "task").mkdir()
    write_task(tmp_path / "task", task, {"train": frame, "validation": frame, "test": frame}, {})
    config, tokens = tiny_config(("bad", "good")), 4  # [CLS], two words, [SEP]
    hidden, wide = config.hidden_size, config.intermediate_size
    layer = 2 * tokens * (4 * hidden * hidden + 2 * hidden * wide) + 2 * 2 * tokens * tokens * hidden
    by_hand = config.num_hidden_layers * layer + 2 * (hidden * hidden + hidden * 2)  # pooler and classifier: one token
    assert forward_flops(tmp_path / "model", tmp_path / "task") == by_hand
    assert TaskData.open(tmp_path / "task").kind == "text-classification"


def test_a_merge_costs_on_each_task_what_the_model_of_the_used_head_costs(tmp_path: Path) -> None:
    """Its target has never seen the other task, whose labels are others."""
    content = tiny_params(tmp_path / "inputs")
    content["tasks"]["films"]["labels"] = ["dull", "fine", "great"]
    halves = {"books": 0.5, "films": 0.5}
    merge = {"method": "isotropic", "heads": "each", "coefficients": halves}
    content["merges"] = {"fixed": merge, "searched": merge | {"search": {"sampler": "grid", "points": 3}}}
    params = parse_params(content)
    frame = pd.DataFrame({"text": ["a", "b", "c", "d", "e"], "label": [0, 1, 0, 1, 0]})
    for name, task in params.tasks.items():
        (tmp_path / TASKS / name).mkdir(parents=True)
        write_task(tmp_path / TASKS / name, task, {"train": frame, "validation": frame[:2], "test": frame}, {})
        (tmp_path / FINETUNED / name).mkdir(parents=True)
        write_json(tmp_path / FINETUNED / name / "checkpoint.json", {"origin": {"examples": 5}})
    for name, tasks in {"books": ["books"], "films": ["films"], "fixed": halves, "searched": halves}.items():
        (tmp_path / EVAL / name).mkdir(parents=True)
        metrics = {task: {"examples": {"books": 10, "films": 2}[task]} for task in tasks}
        write_json(tmp_path / EVAL / name / "metrics.json", {"tasks": metrics})
    for name in params.merges:
        tiny_bert().save_pretrained(tmp_path / "models/merged" / name)
    counted = Counted(tmp_path, params, {("books", "books"): 3.0, ("films", "films"): 5.0})
    found = {cost.stage: cost.flops for cost in stage_costs(counted, {}, "here")}
    assert found["evaluate-fixed"] == found["evaluate-searched"] == 3 * 10 + 5 * 2
    assert found["search-searched"] == 3 * (3 * 2 + 5 * 2)
    assert found["finetune-films"] == 3 * 5 * 5


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_adapters(tmp_path: Path, kind: str) -> None:
    """Their base's weights need no gradients; of vectors these alone are merged; decompositions are not counted."""
    content = tiny_params(tmp_path / "inputs")
    content["finetune"]["adapter"] = {"type": kind}
    halves = {"books": 0.5, "films": 0.5}
    low = {} if kind == "ia3" else {"adapter": {"rank": 4}}
    content["merges"] = {"both": {"method": "isotropic", "coefficients": halves} | low}
    params = parse_params(content)
    for name in params.models:
        (tmp_path / FINETUNED / name).mkdir(parents=True)
        write_json(tmp_path / FINETUNED / name / "checkpoint.json", {"origin": {"examples": 5}})
    for name, tasks in {"books": ["books"], "films": ["films"], "both": halves}.items():
        (tmp_path / EVAL / name).mkdir(parents=True)
        write_json(tmp_path / EVAL / name / "metrics.json", {"tasks": {task: {"examples": 2} for task in tasks}})
    frame = pd.DataFrame({"text": ["a", "b", "c", "d", "e"], "label": [0, 1, 0, 1, 0]})
    for name, task in params.tasks.items():
        (tmp_path / TASKS / name).mkdir(parents=True)
        write_task(tmp_path / TASKS / name, task, {"train": frame, "validation": frame[:2], "test": frame}, {})
    merged = tmp_path / "models/merged/both"
    merged.mkdir(parents=True)
    write_json(merged / "adapter_config.json", {"peft_type": kind.upper()})
    write_tensors(merged, "adapter_model", {"base_model.model.a.ia3_l": torch.ones(7, 1)})
    counted = Counted(tmp_path, params, {(model, task): 3.0 for model in halves for task in halves})
    found = {cost.stage: cost.flops for cost in stage_costs(counted, {}, "here")}
    epochs = params.finetune_settings("books").epochs
    assert found["finetune-books"] == 2 * 3 * 5 * epochs
    assert found["merge-both"] == (2 * 7 * 2 if kind == "ia3" else None)
