"""Projects of multiple choice with real dvc: by choice heads, and by language models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as t
from ruamel.yaml import YAML

from stages.storage.digests import tree_sha256
from tests.project import Project
from tests.tiny import SPECIAL, WORDS, save_base, tiny_tokenizer

HALVES = {"books": 0.5, "films": 0.5}
MERGES: dict[str, dict[str, Any]] = {
    "weighted": {"method": "fisher"},
    "blocks": {"method": "kfac"},
    "regressed": {"method": "regmean"},
    "sought": {"method": "fisher", "search": {"sampler": "grid", "points": 3}},
    "together": {"method": "ensemble"},
}


def questions(rows: int, seed: int) -> list[dict[str, Any]]:
    """A question names a word, and the right one of three lettered choices is that word."""
    random = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < rows:
        words = [WORDS[place] for place in random.choice(12, 3, replace=False)]
        right = int(random.integers(3))
        question = f"the {words[right]} {' '.join(random.choice(WORDS[12:], random.integers(1, 4)))}"
        lines = [f"{letter}. {word}" for letter, word in zip("ABC", words, strict=True)]
        found.setdefault(
            question + str(words), {"question": question, "options": "\n".join(lines), "answer": lines[right]}
        )
    return list(found.values())


def project_of(root: Path, task: Mapping[str, Any]) -> Project:
    """A project of two domains, whose bases are in `root/inputs/base` already."""
    inputs = root / "inputs"
    (inputs / "tables").mkdir()
    for seed, domain in enumerate(HALVES):
        pd.DataFrame(questions(60, seed)).to_json(inputs / f"tables/{domain}.jsonl", orient="records", lines=True)
    shared = {"kind": "multiple-choice", "source": "tables", "choices": "options", "label": "answer", "max_length": 16}
    split = {"validation": 0.2, "test": 0.2}
    params = {
        "sources": {
            name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)} for name in ("base", "tables")
        },
        "tasks": {domain: {**shared, **task, "file": f"{domain}.jsonl", "split": split} for domain in HALVES},
        "finetune": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3},
        "fisher": {"examples": 12, "batch_size": 4},
        "models": {domain: {"base": "base", "task": domain} for domain in HALVES},
        "merges": {name: {**merge, "coefficients": dict(HALVES)} for name, merge in MERGES.items()},
    }
    return Project(root / "project", params)


def save_language_model(directory: Path) -> None:
    torch.manual_seed(0)
    config = t.LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        tie_word_embeddings=True,
    )
    t.LlamaForCausalLM(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


@pytest.mark.parametrize(
    ("task", "tag", "use"),
    [
        ({"scoring": "head"}, "multiple-choice", "AutoModelForMultipleChoice.from_pretrained("),
        ({"scoring": "mean"}, "text-generation", 'pipeline("text-generation", '),
        ({"scoring": "sum", "likelihood": "token"}, "text-generation", 'pipeline("text-generation", '),
    ],
    ids=["head", "mean", "token"],
)
def test_from_tables_to_the_report(tmp_path: Path, task: dict[str, str], tag: str, use: str) -> None:
    (save_base if task["scoring"] == "head" else save_language_model)(tmp_path / "inputs/base")
    project = project_of(tmp_path, task)
    by_token = task.get("likelihood") == "token"
    if by_token:
        refused = project.stage("stages.plan", "--check").stderr
        assert "fisher.estimator = 'exact': an exact Fisher takes a backward pass for each output" in refused
        project.edit_params(lambda params: params["fisher"].update(estimator="sketch"))
    project.run("python", "-m", "stages.plan")
    project.run("python", "-m", "stages.plan", "--check")
    assert {"fisher-books", "kfac-films", "gram-books", "search-sought", "report"} < set(project.repro())
    for name in (*HALVES, *MERGES):
        metrics = json.loads((project.root / f"results/eval/{name}/metrics.json").read_text())["tasks"]
        assert set(metrics) == set(HALVES)
        for domain, own in metrics.items():
            rows = pd.read_parquet(project.root / f"results/eval/{name}/predictions/{domain}.parquet")
            scores, right = np.stack(rows["logits"].to_list()), rows["label"].to_numpy()
            assert scores.shape == (12, 3)
            assert own["accuracy"] == pytest.approx((scores.argmax(-1) == right).mean())
            assert own["accuracy_low"] <= own["accuracy"] <= own["accuracy_high"]
    fisher = json.loads((project.root / "models/fishers/books/fisher.json").read_text())
    found = tuple(fisher[key] for key in ("estimator", "likelihood", "examples"))
    assert found == (("sketch", "token", 12) if by_token else ("exact", "categorical", 12))
    page = (project.root / "results/report/report.html").read_text()
    assert all(name in page for name in MERGES)
    assert project.repro() == []
    project.run("python", "-m", "stages.publish", "books", "--to", "published")
    card = (project.root / "published/README.md").read_text()
    assert YAML(typ="safe").load(card.split("---")[1])["pipeline_tag"] == tag
    assert use in card
