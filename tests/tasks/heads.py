"""What kinds of text tasks with a head of several outputs are tested with: tasks, models, and their Fishers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from stages.estimation.estimate import estimate
from stages.params import FisherSettings
from stages.tasks.data import TaskData
from stages.tasks.task import Task
from tests.curvature.reference import Outcomes, reference_fisher
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
    """A random GPT-2 with a tokenizer of bytes that pads on a side; neither has a padding token."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=260, n_positions=24, n_embd=16, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0)
    config.id2label, config.label2id = dict(enumerate(outputs)), {name: i for i, name in enumerate(outputs)}
    model = GPT2ForSequenceClassification(config)
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
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model.config.pad_token_id = None
    batches = []
    for row, text in enumerate(task.read("train")["text"]):
        ids = tokenizer(text, truncation=True, max_length=task.max_length, return_tensors="pt")["input_ids"]
        own = {} if labels is None else {"labels": torch.tensor([labels[row]])}
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), **own})
    return reference_fisher(model, batches, outcomes)
