"""A project with real dvc whose models are for tasks of different kinds: a classifier and a regression on one body."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.storage.digests import tree_sha256
from stages.tasks.data import TaskData
from tests.project import Project
from tests.tasks.test_text_regression import TARGETS, scored
from tests.tiny import save_base, sentiment_table

LABELS = ["bad", "good"]


def project_of(root: Path) -> Project:
    inputs = root / "inputs"
    save_base(inputs / "base")
    (inputs / "tables").mkdir()
    sentiment_table(60, 0).to_csv(inputs / "tables/reviews.csv", index=False)
    scored(seed=1).to_csv(inputs / "tables/scores.csv", index=False)
    shared = {"source": "tables", "max_length": 16, "split": {"validation": 0.2, "test": 0.2}}
    halves = {"reviewer": 0.5, "scorer": 0.5}
    search = {"sampler": "grid", "points": 3}
    merges: dict[str, dict[str, Any]] = {
        "both": {"method": "fisher", "heads": "each"},
        "both-sought": {"method": "isotropic", "heads": "each", "search": search | {"tasks": ["scores"]}},
        "classifier": {"method": "fisher", "heads": "target", "search": search},
        "regression": {"method": "regmean", "target": "scorer"},
    }
    params = {
        "sources": {
            name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)} for name in ("base", "tables")
        },
        "tasks": {
            "reviews": {**shared, "file": "reviews.csv", "labels": LABELS},
            "scores": {**shared, "kind": "text-regression", "file": "scores.csv", "targets": TARGETS},
        },
        "finetune": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3},
        "fisher": {"examples": 12, "batch_size": 4},
        "models": {"reviewer": {"base": "base", "task": "reviews"}, "scorer": {"base": "base", "task": "scores"}},
        "merges": {name: {**entry, "coefficients": halves} for name, entry in merges.items()},
    }
    project = Project(root / "project", params)
    project.run("python", "-m", "stages.plan")
    return project


def logits_of(project: Project, merge: str, task: str) -> np.ndarray:
    rows = pd.read_parquet(project.root / f"results/eval/{merge}/predictions/{task}.parquet")
    return np.stack(rows["logits"].to_list())


def by_hand(project: Project, merge: str, head: str, task: str, names: list[str]) -> np.ndarray:
    """What a merge's body and a model's own head predict of a task's test examples, one by one."""
    merged, own = (project.root / f"models/{place}" for place in (f"merged/{merge}", f"finetuned/{head}"))
    model = AutoModelForSequenceClassification.from_pretrained(own).eval()
    assert list(model.config.id2label.values()) == names
    body = {name: value for name, value in load_file(merged / "model.safetensors").items() if name.startswith("bert.")}
    assert not model.load_state_dict(body, strict=False).unexpected_keys
    tokenizer = AutoTokenizer.from_pretrained(merged)
    texts = TaskData.open(project.root / f"data/tasks/{task}").read("test")["text"]
    with torch.no_grad():
        return np.stack([model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in texts])


def test_a_classifier_and_a_regression_on_one_body(tmp_path: Path) -> None:
    """Each task by its own model's head, or the target's alone; searches by what the merged model can do."""
    project = project_of(tmp_path)
    project.repro()
    wanted = {
        "both": {"reviews", "scores"},
        "both-sought": {"reviews", "scores"},
        "classifier": {"reviews"},
        "regression": {"scores"},
    }
    models = {"reviews": ("reviewer", LABELS), "scores": ("scorer", TARGETS)}
    for merge, tasks in wanted.items():
        found = json.loads((project.root / f"results/eval/{merge}/metrics.json").read_text())["tasks"]
        assert found.keys() == tasks
        for task in tasks:
            primary = {"reviews": "accuracy", "scores": "pearson"}[task]
            assert next(iter(found[task])) == primary
            head, names = models[task]
            expected = by_hand(project, merge, head, task, names)
            np.testing.assert_allclose(logits_of(project, merge, task), expected, rtol=1e-4, atol=1e-5)
    for merge, names, problem in (
        ("classifier", LABELS, "single_label_classification"),
        ("regression", TARGETS, "regression"),
    ):
        config = json.loads((project.root / f"models/merged/{merge}/config.json").read_text())
        assert (list(config["id2label"].values()), config["problem_type"]) == (names, problem)
    for merge, metric in (("both-sought", "pearson"), ("classifier", "accuracy")):
        searched = json.loads((project.root / f"results/search/{merge}/coefficients.json").read_text())
        assert searched["metric"] == metric
    report = (project.root / "results/report/report.html").read_text()
    assert "Pearson correlation" in report
    assert "ccuracy" in report
    assert project.repro() == []
