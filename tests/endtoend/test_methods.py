"""Merges by other statistics and searches with real dvc: they re-run no Fisher."""

import json
import re

import pandas as pd
import pytest

from tests.project import Project, tiny_params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One project for the module, with two models' Fishers: each test starts where the one before it ended."""
    root = tmp_path_factory.mktemp("pipeline")
    project = Project(root / "project", tiny_params(root / "inputs") | {"merges": {}})
    project.run("python", "-m", "stages.plan")
    assert {"fisher-books", "fisher-films"} < set(project.repro())
    return project


def test_other_methods_estimate_what_they_need_and_no_fisher_again(project: Project) -> None:
    halves = {"books": 0.5, "films": 0.5}
    methods = {"gram-mean": "regmean", "blocks": "kfac", "vectors": "task_arithmetic"}
    project.edit_params(
        lambda params: params["merges"].update(
            {name: {"method": method, "coefficients": dict(halves)} for name, method in methods.items()}
        )
    )
    project.run("python", "-m", "stages.plan")
    ran = project.repro()
    assert sorted(ran) == sorted(
        [
            *(f"{kind}-{model}" for kind in ("gram", "kfac") for model in ("books", "films")),
            *(f"{stage}-{name}" for stage in ("merge", "evaluate") for name in methods),
            *("settings", "scores", "report"),
        ]
    )
    page = (project.root / "results/report/report.html").read_text()
    for name, method in methods.items():
        origin = json.loads((project.root / "results/eval" / name / "origin.json").read_text())
        assert (origin["method"], origin["coefficients"]) == (method, halves)
        assert name in page


def test_a_search_runs_before_its_merge_which_takes_what_it_found(project: Project) -> None:
    project.edit_params(
        lambda params: params["merges"].update(
            sought={
                "method": "fisher",
                "coefficients": {"books": 1, "films": 3},
                "search": {"sampler": "grid", "points": 5},
            }
        )
    )
    project.run("python", "-m", "stages.plan")
    ran = ["settings", "search-sought", "merge-sought", "evaluate-sought", "scores", "report"]
    assert project.repro() == ran
    found = json.loads((project.root / "results/search/sought/coefficients.json").read_text())
    sweep = pd.read_csv(project.root / "results/search/sought/sweep.csv")
    assert sweep["λ books"].tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert found["coefficients"]["books"] in sweep.loc[sweep["score"] == sweep["score"].max(), "λ books"].tolist()
    assert found["start"] == sweep["score"][3]
    card = json.loads((project.root / "models/merged/sought/checkpoint.json").read_text())
    assert card["origin"]["coefficients"] == found["coefficients"]
    project.edit_params(lambda params: params["merges"]["vectors"]["coefficients"].update(films=0.4))
    # A dry run does not know yet what the settings will be; `make status` does.
    assert project.repro("--dry") == ["settings"]
    would_run = re.findall(r"(\S+) +yes +none set +yes: params.yaml$", project.stage("stages.status").stdout, re.M)
    assert would_run == ["merge-vectors"]


def test_the_sweep_is_among_the_plots(project: Project) -> None:
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.root / "plots/index.html").read_text()
    assert "sweep.csv" in page
    assert "λ books" in page or "\\u03bb books" in page
    assert "Means over the tasks, on the test splits" in page
