"""A project of regression tasks with real dvc."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from tests.endtoend.kinds.two_tasks import DOMAINS, metrics_of, project_of, published
from tests.tasks.test_text_regression import TARGETS, scored


def test_a_project_of_regression_tasks(tmp_path: Path) -> None:
    """From tables to the report: merges by all sorts of statistics, a search, an ensemble, and what is published."""
    tables = {domain: scored(seed=seed) for seed, domain in enumerate(DOMAINS)}
    project = project_of(tmp_path, tables, {"kind": "text-regression", "targets": TARGETS, "variance": 0.1})
    project.repro()
    outputs = {}
    for result in ("books", "films", "blocks", "regressed", "sought", "together"):
        found = metrics_of(project, result)
        assert found.keys() == set(DOMAINS)
        rows = pd.read_parquet(project.root / f"results/eval/{result}/predictions/films.parquet")
        x, y = np.stack(rows["logits"].to_list()).astype(float), np.stack(rows["label"].to_list())
        for name, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
            wanted = np.mean([correlation(x[:, k], y[:, k]).statistic for k in range(2)])
            assert found["films"][name] == pytest.approx(wanted)
        assert found["films"]["root_mean_squared_error"] == pytest.approx(np.sqrt(((x - y) ** 2).mean()))
        assert found["films"]["pearson_low"] <= found["films"]["pearson"] <= found["films"]["pearson_high"]
        outputs[result] = x
    np.testing.assert_allclose(outputs["together"], (outputs["books"] + outputs["films"]) / 2, rtol=1e-5)
    fisher = json.loads((project.root / "models/fishers/books/fisher.json").read_text())
    assert (fisher["likelihood"], fisher["likelihood_parameters"]) == ("gaussian", {"variance": 0.1})
    config = json.loads((project.root / "models/merged/sought/config.json").read_text())
    assert (list(config["id2label"].values()), config["problem_type"]) == (TARGETS, "regression")
    assert len(pd.read_csv(project.root / "results/search/sought/sweep.csv")) == 3
    assert "Pearson correlation" in (project.root / "results/report/report.html").read_text()
    assert project.repro() == []
    head, card = published(project, "books")
    assert head["pipeline_tag"] == "text-classification"
    assert "Pearson correlation" in card
