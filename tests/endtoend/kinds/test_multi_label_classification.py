"""A project of multi-label tasks with real dvc."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score

from tests.endtoend.kinds.two_tasks import DOMAINS, metrics_of, project_of, published
from tests.tiny import WORDS, sentiment_table

NAMES = ["kind", "unkind", "film"]


def labelled(seed: int) -> pd.DataFrame:
    """Sentences, and which of three sets their words are of."""
    table = sentiment_table(60, seed)
    groups = {"kind": set(WORDS[4:8]), "unkind": set(WORDS[:4]), "film": {"film"}}
    own = [[name for name, group in groups.items() if group & set(text.split())] for text in table["text"]]
    return table.assign(label=pd.Series(own))


def test_a_project_of_multi_label_tasks(tmp_path: Path) -> None:
    """From tables to the report: merges by all sorts of statistics, a search, an ensemble, and what is published."""
    tables = {domain: labelled(seed) for seed, domain in enumerate(DOMAINS)}
    project = project_of(tmp_path, tables, {"kind": "multi-label-classification", "labels": NAMES})
    project.repro()
    logits, targets = {}, {}
    for result in ("books", "films", "blocks", "regressed", "sought", "together"):
        found = metrics_of(project, result)
        assert found.keys() == set(DOMAINS)
        rows = pd.read_parquet(project.root / f"results/eval/{result}/predictions/films.parquet")
        logits[result], targets[result] = np.stack(rows["logits"].to_list()), np.stack(rows["label"].to_list())
        f1 = f1_score(targets[result], logits[result] > 0, average="macro", zero_division=0.0)
        precision = average_precision_score(targets[result], logits[result], average="macro")
        assert found["films"]["multi_label_macro_f1"] == pytest.approx(f1)
        assert found["films"]["mean_average_precision"] == pytest.approx(precision)
        assert found["films"]["multi_label_macro_f1_low"] <= f1 <= found["films"]["multi_label_macro_f1_high"]
    np.testing.assert_allclose(
        expit(logits["together"]), (expit(logits["books"]) + expit(logits["films"])) / 2, rtol=1e-5
    )
    fisher = json.loads((project.root / "models/fishers/books/fisher.json").read_text())
    assert (fisher["likelihood"], fisher["estimator"]) == ("bernoulli", "exact")
    config = json.loads((project.root / "models/merged/sought/config.json").read_text())
    assert list(config["id2label"].values()) == NAMES
    assert config["problem_type"] == "multi_label_classification"
    assert len(pd.read_csv(project.root / "results/search/sought/sweep.csv")) == 3
    means = json.loads((project.root / "results/scores/means.json").read_text())
    assert "multi_label_macro_f1" in json.dumps(means)
    assert "multi-label macro F1" in (project.root / "results/report/report.html").read_text()
    assert project.repro() == []
    head, card = published(project, "books")
    assert head["pipeline_tag"] == "text-classification"
    assert '["kind", "unkind", "film"]' in card
