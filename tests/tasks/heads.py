"""What kinds of text tasks with a head of several outputs are tested with: tasks, models, and their Fishers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from stages.estimation.estimate import estimate
from stages.params import FisherSettings
from stages.running.placement import Placement
from stages.tasks.data import TaskData
from stages.tasks.kind import Kind
from stages.tasks.prediction import examples_for, predict
from stages.tasks.task import Split, Task
from tests.curvature.reference import Outcomes, assert_same_fisher, reference_fisher
from tests.tasks.in_memory import write_task
from tests.tasks.test_texts import byte_level
from tests.tiny import tiny_bert, tiny_tokenizer


def written_task(directory: Path, settings: Task, frame: pd.DataFrame) -> TaskData:
    """A task of 60 examples or more, the last twenty of which are for validation and test."""
    directory.mkdir(parents=True)
    stop = len(frame) - 20
    splits = {"train": frame[:stop], "validation": frame[stop : stop + 10], "test": frame[stop + 10 :]}
    write_task(directory, settings, {split: part.reset_index(drop=True) for split, part in splits.items()}, {})  # type: ignore[misc]
    return TaskData.open(directory)


def save_bert(directory: Path, outputs: Sequence[str], problem: str | None) -> None:
    """A random BERT with its tokenizer, and names for its outputs."""
    tiny_bert(outputs, problem_type=problem).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


def save_gpt2(directory: Path, outputs: Sequence[str], side: str) -> None:
    """A random GPT-2 with a tokenizer of bytes whose padding is on a side; neither has a padding token."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=260, n_positions=24, n_embd=16, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0)
    _save_of_bytes(GPT2ForSequenceClassification(_naming(config, outputs)), directory, side)


def save_xlnet(directory: Path, outputs: Sequence[str], side: str) -> None:
    """As `save_gpt2`; its head reads the last position, be it padding or not."""
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=260, d_model=16, d_inner=24, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0)
    config.pad_token_id = None
    _save_of_bytes(XLNetForSequenceClassification(_naming(config, outputs)), directory, side)


def _naming(config: Any, outputs: Sequence[str]) -> Any:
    config.id2label, config.label2id = dict(enumerate(outputs)), {name: i for i, name in enumerate(outputs)}
    return config


def _save_of_bytes(model: PreTrainedModel, directory: Path, side: str) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    byte_level(directory, padding_side=side)


def estimated(statistic: str, checkpoint: Path, task: TaskData, out: Path, **settings: Any) -> dict[str, Tensor]:
    """The tensors of a statistic, by the stage's way from the table to the file."""
    found = FisherSettings(**({"examples": None, "batch_size": 5} | settings))
    estimate(statistic, checkpoint, task, found, out)
    (file,) = out.glob("*.safetensors")
    return load_file(file)


def reference(
    checkpoint: Path, task: TaskData, outcomes: Outcomes, labels: Sequence[Sequence[float]] | None = None
) -> Mapping[str, Tensor]:
    """The Fisher of the training examples by a float64 loop over them and over what may come of each."""
    batches = one_by_one(checkpoint, task, "train")
    if labels is not None:
        batches = [batch | {"labels": torch.tensor([own])} for batch, own in zip(batches, labels, strict=True)]
    return reference_fisher(_without_padding(checkpoint), batches, outcomes)


def reference_outputs(checkpoint: Path, task: TaskData) -> np.ndarray:
    """The outputs for the test examples, one by one in float64."""
    model = _without_padding(checkpoint).double().eval()
    with torch.no_grad():
        return np.concatenate([model(**batch).logits.numpy() for batch in one_by_one(checkpoint, task, "test")])


def one_by_one(checkpoint: Path, task: TaskData, split: Split) -> list[dict[str, Tensor]]:
    """A batch for each text, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batches = []
    for text in task.read(split)["text"]:
        ids = tokenizer(text, truncation=True, max_length=task.max_length, return_tensors="pt")["input_ids"]
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return batches


def _without_padding(checkpoint: Path) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model.config.pad_token_id = None
    return model


def assert_padding_before_the_text(kind: Kind[Any], checkpoint: Path, task: TaskData, outcomes: Outcomes) -> None:
    """Batches of the kind's are padded at their texts' beginnings, and outputs and Fisher are those one by one."""
    model = kind.load_model(checkpoint, task.labels)
    examples = examples_for(kind, checkpoint, model, task.rows("test"), task, Placement())
    (batch,) = examples.batches()
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"][:, 0].all()
    found = predict(model, examples, task.metrics)
    np.testing.assert_allclose(found, reference_outputs(checkpoint, task), rtol=1e-4, atol=1e-5)
    fisher = estimated("diagonal", checkpoint, task, checkpoint.with_name("fisher"))
    assert_same_fisher(fisher, reference(checkpoint, task, outcomes), tolerance=1e-4)
