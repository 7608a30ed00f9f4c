"""A project's artefacts to search λ with: tiny models with Fishers, and what a search or a merge makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.estimation.estimate import estimate
from stages.merging import merge_checkpoints
from stages.params import FisherSettings, Params, parse_params
from stages.pipeline.needs import base_directory, statistics_directories
from stages.searching.coefficients import search_coefficients
from stages.storage.cards import read_json
from stages.tasks.data import TaskData
from stages.tasks.kinds import KINDS, kind_of
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.tasks.task import Task
from stages.training.finished import bring_in
from tests.tasks.in_memory import write_task
from tests.tiny import save_base, sentiment_table, tiny_bert, tiny_tokenizer

BINARY = ["bad", "good"]
# Random models as far apart as these make different mistakes, which depend on λ.
MODELS: dict[str, tuple[str, list[str], int]] = {  # task, labels, seed
    "ann": ("books", BINARY, 1),
    "bob": ("films", BINARY, 3),
    "cid": ("films", BINARY, 5),
    "dan": ("plays", ["awful", "fair", "great"], 5),
}
TASKS = {"books": BINARY, "films": BINARY, "plays": ["awful", "fair", "great"]}
TASKS_OF_TWO = ["books", "films"]
THREE = {"ann": 1.0, "bob": 1.0, "cid": 2.0}
OUT = Path("results/search/it")


def task_of(content: dict[str, Any]) -> Task:
    """A task as params.yaml has it, of whatever kind."""
    return KINDS[kind_of(content)].model_validate(content)


def make_task(directory: Path, labels: Sequence[str], seed: int) -> None:
    directory.mkdir(parents=True)
    table = sentiment_table(110, seed)
    kind = (table["label"] == "good").astype(int)
    position = kind if len(labels) == 2 else kind * 2 - (table["text"].str.len() % 2)
    frame = table.assign(label=position.clip(lower=0))
    settings = TextClassification(source="base", file="f.csv", labels=list(labels), max_length=16)
    write_task(directory, settings, {"train": frame[:20], "validation": frame[20:80], "test": frame[80:]}, {})


def build(root: Path) -> None:
    """A project's artefacts, but for the test splits: nothing that a search does may need them."""
    save_base(root / "data/sources/base")
    for seed, (name, labels) in enumerate(TASKS.items(), start=1):
        make_task(root / "data/tasks" / name, labels, seed)
    for name, (task_name, labels, seed) in MODELS.items():
        source = root / "sources" / name
        tiny_bert(labels, seed=seed, noise=0.5).save_pretrained(source)
        tiny_tokenizer().save_pretrained(source)
        task = TaskData.open(root / "data/tasks" / task_name)
        checkpoint = root / "models/finetuned" / name
        checkpoint.mkdir(parents=True)
        bring_in(source, task, checkpoint)
        estimate("diagonal", checkpoint, task, FisherSettings(examples=12), root / "models/fishers" / name)
    for file in root.glob("data/tasks/*/test.arrow"):
        file.unlink()


def params_of(coefficients: dict[str, float], search: dict[str, Any], **merge: Any) -> Params:
    """Params with one merge, `it`, which is a Fisher merge unless it is said otherwise."""
    return parse_params(
        {
            "sources": {"base": {"path": "base", "sha256": 64 * "0"}},
            "tasks": {
                name: {"source": "base", "file": "f.csv", "labels": labels, "max_length": 16}
                for name, labels in TASKS.items()
            },
            "models": {name: {"base": "base", "task": task} for name, (task, _, _) in MODELS.items()},
            "merges": {"it": {"method": "fisher", "coefficients": coefficients, "search": search} | merge},
        }
    )


def searched(params: Params, out: Path = OUT) -> tuple[dict[str, Any], pd.DataFrame]:
    """What the search of the merge `it` leaves: its coefficients.json and its sweep."""
    merge = params.merges["it"]
    tasks = [TaskData.open(Path("data/tasks") / name) for name in params.search_tasks(merge)]
    search_coefficients(merge, params, tasks, out)
    return read_json(out / "coefficients.json"), pd.read_csv(out / "sweep.csv")


def merged_with(params: Params, coefficients: dict[str, float]) -> Path:
    """The checkpoint that merge-it would write with these λ."""
    merge = params.merges["it"]
    merge_checkpoints(
        {model: Path("models/finetuned") / model for model in merge.models},
        Path("merged"),
        method=merge.options,
        coefficients=coefficients,
        statistics=statistics_directories(merge),
        base=base_directory(merge, params),
        heads=merge.heads,
        vocabulary=merge.vocabulary,
    )
    return Path("merged")


def logits_of(checkpoint: Path, task: str, head: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels on a task's validation split, a sentence at a time."""
    labels = TASKS[task]
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=len(labels), ignore_mismatched_sizes=True
    )
    if head is not None:
        model.load_state_dict(load_file(head), strict=False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    frame = TaskData.open(Path("data/tasks") / task).read("validation")
    with torch.no_grad():
        logits = [model.eval()(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in frame["text"]]
    return np.stack(logits), frame["label"].to_numpy()


def predicted(checkpoint: Path, task: str, head: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels on a task's validation split."""
    logits, labels = logits_of(checkpoint, task, head)
    return logits.argmax(-1), labels


def accuracy_of(checkpoint: Path, task: str, head: Path | None = None) -> float:
    found, labels = predicted(checkpoint, task, head)
    return float(np.mean(found == labels))


def λ_of(row: pd.Series, models: Sequence[str]) -> dict[str, float]:
    return {model: float(row[f"λ {model}"]) for model in models}
