"""A project of taggers with real dvc: entities in two domains, from plain text and JSON to report and model card."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from seqeval.metrics import f1_score

from stages.storage.digests import tree_sha256
from tests.project import Project
from tests.tasks.test_token_classification import sentences
from tests.tiny import WORDS, save_base

LABELS = ["O", "B-THING", "I-THING"]
DOMAINS = ("books", "films")
MERGES: dict[str, dict[str, Any]] = {
    "weighted": {"method": "fisher"},
    "blocks": {"method": "kfac"},
    "squares": {"method": "regmean"},
    "sought": {"method": "fisher", "search": {"sampler": "grid", "points": 3}},
    "together": {"method": "ensemble"},
}


def tags(words: list[str]) -> list[str]:
    """Raw tags: `film`, `book`, `plot` and `day` are things, which go on as long as there are more of them."""
    things = [8 <= WORDS.index(word) < 12 for word in words]
    before = [False, *things]
    return ["o" if not thing else "i" if before[place] else "b" for place, thing in enumerate(things)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("tagging")
    inputs = root / "inputs"
    save_base(inputs / "base")
    (inputs / "tables").mkdir()
    found = {name: [(words, tags(words)) for words in sentences(90, seed)] for seed, name in enumerate(DOMAINS)}
    lines = (" ".join(f"{word}/{tag}" for word, tag in zip(*pair, strict=True)) for pair in found["books"])
    (inputs / "tables/books").write_text("\n".join(lines))
    rows = (json.dumps({"tokens": words, "ner": [own.upper() for own in raw]}) for words, raw in found["films"])
    (inputs / "tables/films.jsonl").write_text("\n".join(rows))
    common: dict[str, Any] = {"kind": "token-classification", "source": "tables", "max_length": 16}
    patterns = {label: [letter, letter.upper()] for label, letter in zip(LABELS, "obi", strict=True)}
    halves = dict.fromkeys(DOMAINS, 0.5)
    return Project(
        root / "project",
        {
            "sources": {
                name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)} for name in ("base", "tables")
            },
            "tasks": {
                "books": {**common, "file": "books", "form": "word/tag", "labels": patterns},
                "films": {
                    **common,
                    "max_length": 7,
                    "file": "films.jsonl",
                    "words": "tokens",
                    "tag": "ner",
                    "labels": patterns,
                },
            },
            "finetune": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2},
            "fisher": {"estimator": "sketch", "examples": 20, "batch_size": 4},
            "models": {name: {"base": "base", "task": name} for name in DOMAINS},
            "merges": {name: {**entry, "coefficients": halves} for name, entry in MERGES.items()},
        },
    )


def test_a_project_of_taggers(project: Project) -> None:
    project.run("python", "-m", "stages.plan")
    ran = set(project.repro())
    assert {"prepare@books", "fisher-films", "kfac-books", "gram-films", "search-sought", "report"} < ran
    for name in [*DOMAINS, *MERGES]:
        metrics = json.loads((project.root / "results/eval" / name / "metrics.json").read_text())["tasks"]
        assert set(metrics) == set(DOMAINS)
        for task, own in metrics.items():
            rows = pd.read_parquet(project.root / f"results/eval/{name}/predictions/{task}.parquet")
            wanted = [[LABELS[position] for position in row] for row in rows["label"]]
            found = [[LABELS[int(np.argmax(z))] for z in row] for row in rows["logits"]]
            assert own["entity_f1"] == pytest.approx(f1_score(wanted, found))
            assert own["entity_f1_low"] <= own["entity_f1"] <= own["entity_f1_high"]
            right = [
                one == other
                for own, its in zip(wanted, found, strict=True)
                for one, other in zip(own, its, strict=True)
            ]
            assert own["tag_accuracy"] == pytest.approx(np.mean(right))
        origin = json.loads((project.root / "results/eval" / name / "origin.json").read_text())
        assert ("not_predicted" in origin) == (name != "together"), "some sentences are of six words"
    assert json.loads((project.root / "results/search/sought/coefficients.json").read_text())["metric"] == "entity_f1"
    assert "entity F1" in (project.root / "results/report/report.html").read_text()
    config = json.loads((project.root / "models/merged/blocks/config.json").read_text())
    assert list(config["id2label"].values()) == LABELS
    assert project.repro() == []


def test_a_model_card_of_a_tagger(project: Project) -> None:
    result = project.stage("stages.publish", "books", "--to", str(project.root / "published"))
    assert result.returncode == 0, result.stderr
    card = (project.root / "published/README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "Validation entity F1" in card
    assert '["O", "B-THING", "I-THING"]' in card


def test_what_params_refuse(project: Project) -> None:
    """An exact Fisher; and an unknown tag, by the stage that reads it, in one line."""
    project.edit_params(lambda params: params["fisher"].update(estimator="exact"))
    result = project.stage("stages.plan")
    assert result.returncode == 1
    assert "a model of the kind token-classification has too many; put `fisher: {estimator: sketch}`" in result.stderr
    project.edit_params(lambda params: params["fisher"].update(estimator="sketch"))
    project.edit_params(lambda params: params["tasks"]["books"].update(labels={"O": ["o"], "B-THING": ["b"]}))
    project.run("python", "-m", "stages.settings")
    result = project.stage("stages.prepare", "books")
    assert result.returncode == 1
    assert result.stderr.startswith("error: data/sources/tables/books: line ")
    assert "matches no pattern in `labels`" in result.stderr
    assert result.stderr.count("\n") == 1
