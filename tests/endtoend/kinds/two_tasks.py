"""A project in miniature of two tasks of one kind, `books` and `films`, with every sort of merge of their models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from stages.storage.digests import tree_sha256
from tests.project import Project
from tests.tiny import save_base

DOMAINS = ("books", "films")


def project_of(root: Path, tables: Mapping[str, pd.DataFrame], task: Mapping[str, Any]) -> Project:
    """The project, planned.

    Args:
        root: an empty directory.
        tables: domain → its examples, which are written as lines of JSON.
        task: what both tasks have, beside their source and file.
    """
    inputs = root / "inputs"
    save_base(inputs / "base")
    (inputs / "tables").mkdir()
    for domain, table in tables.items():
        table.to_json(inputs / "tables" / f"{domain}.jsonl", orient="records", lines=True)
    methods: dict[str, dict[str, Any]] = {
        "blocks": {"method": "kfac"},
        "regressed": {"method": "regmean"},
        "sought": {"method": "fisher", "search": {"sampler": "grid", "points": 3}},
        "together": {"method": "ensemble"},
    }
    shared = {"source": "tables", "max_length": 16, "split": {"validation": 0.2, "test": 0.2}}
    params = {
        "sources": {
            name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)} for name in ("base", "tables")
        },
        "tasks": {domain: {**shared, **task, "file": f"{domain}.jsonl"} for domain in DOMAINS},
        "finetune": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3},
        "fisher": {"examples": 12, "batch_size": 4},
        "models": {domain: {"base": "base", "task": domain} for domain in DOMAINS},
        "merges": {name: {**entry, "coefficients": {"books": 0.5, "films": 0.5}} for name, entry in methods.items()},
    }
    project = Project(root / "project", params)
    project.run("python", "-m", "stages.plan")
    return project


def metrics_of(project: Project, result: str) -> dict[str, dict[str, float]]:
    """Task → by name, what a result has on its test split."""
    found: dict[str, dict[str, float]] = json.loads(
        (project.root / "results/eval" / result / "metrics.json").read_text()
    )["tasks"]
    return found


def published(project: Project, model: str) -> tuple[dict[str, Any], str]:
    """The head of the card of a model that is published, and the whole."""
    project.run("python", "-m", "stages.publish", model, "--to", "published")
    card = (project.root / "published/README.md").read_text()
    return YAML(typ="safe").load(card.split("---")[1]), card
