"""The whole pipeline with real dvc: what runs, what does not, and what it leaves."""

import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForSequenceClassification

from tests.project import Project, tiny_params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One project for the module: each test starts where the one before it ended, as a day's work does."""
    root = tmp_path_factory.mktemp("pipeline")
    project = Project(root / "project", tiny_params(root / "inputs"))
    project.run("python", "-m", "stages.plan")
    return project


def test_everything_runs_once_and_then_nothing(project: Project) -> None:
    ran = project.repro()
    assert sorted(ran) == sorted(
        [
            *(f"fetch@{source}" for source in ("base", "tables")),
            *(f"prepare@{name}" for name in ("books", "films")),
            *(f"{stage}-{name}" for stage in ("finetune", "fisher") for name in ("books", "films")),
            *("merge-average", "merge-fisher"),
            *(f"evaluate-{name}" for name in ("books", "films", "average", "fisher", "ensemble")),
            *("settings", "similarity", "scores", "report"),
        ]
    )
    assert ran[0] == "settings"
    assert project.repro() == []


def test_outputs(project: Project) -> None:
    names = ["books", "films", "average", "fisher", "ensemble"]
    means = json.loads((project.root / "results/scores/means.json").read_text())
    assert list(means) == names
    for name in names:
        metrics = json.loads((project.root / "results/eval" / name / "metrics.json").read_text())["tasks"]
        assert list(metrics) == ["books", "films"]
        for task in ("books", "films"):
            entry = metrics[task]
            assert entry.keys() == {"accuracy", "accuracy_low", "accuracy_high", "macro_f1", "examples"}
            assert 0 <= entry["accuracy_low"] <= entry["accuracy"] <= entry["accuracy_high"] <= 1
            assert entry["examples"] == 12
        assert means[name] == {"accuracy": (metrics["books"]["accuracy"] + metrics["films"]["accuracy"]) / 2}
        for task in ("books", "films"):
            predictions = pd.read_parquet(project.root / "results/eval" / name / f"predictions/{task}.parquet")
            assert list(predictions.columns) == ["label", "logits"]
            assert len(predictions) == 12
        correct = json.loads((project.root / "results/eval" / name / "per_example.json").read_text())["tasks"]
        for task in ("books", "films"):
            assert correct[task]["metric"] == "accuracy"
            right = correct[task]["values"]
            assert right.count(1) / len(right) == metrics[task]["accuracy"]
    fishers = json.loads((project.root / "results/scores/scores.json").read_text())["fishers"]
    assert 0 < fishers["overlap"]["books"]["films"] < 1
    model = AutoModelForSequenceClassification.from_pretrained(project.root / "models/merged/fisher")
    assert model.config.id2label == {0: "bad", 1: "good"}
    page = (project.root / "results/report/report.html").read_text()
    for name in names:
        assert name in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "<script" not in page
    assert "<svg" in page


def test_metrics_and_plots_are_shown(project: Project) -> None:
    shown = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    means = json.loads((project.root / "results/scores/means.json").read_text())
    assert {file: found["data"] for file, found in shown.items()} == {"results/scores/means.json": means}
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.root / "plots/index.html").read_text()
    assert "Means over the tasks, on the test splits" in page
    assert "accuracy.tsv" in page


def test_a_second_run_from_scratch_gives_the_same_bits(project: Project) -> None:
    locks = [project.root / "dvc.lock", project.root / "models/dvc.lock"]
    before = [lock.read_text() for lock in locks]
    ran = project.repro("--force", "--no-run-cache", "models/dvc.yaml:evaluate-fisher")
    assert {"finetune-books", "fisher-films", "merge-fisher", "evaluate-fisher"} <= set(ran)
    assert [lock.read_text() for lock in locks] == before  # the locks hold every output's hash


def test_a_coefficient_reruns_its_merge_only(project: Project) -> None:
    project.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.4))
    assert project.repro() == ["settings", "merge-fisher", "evaluate-fisher", "scores", "report"]
    origin = json.loads((project.root / "results/eval/fisher/origin.json").read_text())
    assert origin["coefficients"] == pytest.approx({"books": 0.5 / 0.9, "films": 0.4 / 0.9})
    assert json.loads((project.root / "results/eval/films/origin.json").read_text())["task"] == "films"
    assert project.repro() == []


def test_going_back_takes_everything_from_the_cache(project: Project) -> None:
    project.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.5))
    result = project.run("dvc", "repro").stdout
    assert "Running stage" not in result
    assert result.count("is cached") == 5


def test_a_model_reruns_no_other_model(project: Project) -> None:
    project.edit_params(
        lambda params: params["models"].update(third={"base": "base", "task": "films", "finetune": {"seed": 1}})
    )
    project.run("python", "-m", "stages.plan")
    ran = ["evaluate-third", "finetune-third", "fisher-third", "report", "scores", "settings", "similarity"]
    assert sorted(project.repro()) == ran


def test_a_forgotten_plan_is_an_error(project: Project) -> None:
    project.edit_params(
        lambda params: params["merges"].update(
            trio={"method": "fisher", "coefficients": {"books": 1, "films": 1, "third": 1}}
        )
    )
    result = project.run("dvc", "repro", check=False)
    assert result.returncode != 0
    assert "missing: evaluate-trio, merge-trio; stale: scores); run `make plan`" in result.stderr
    assert (project.root / "results/eval/fisher/metrics.json").is_file()


def test_a_merge_reruns_itself_only(project: Project) -> None:
    project.run("python", "-m", "stages.plan")
    # The settings were written before the plan was found wanting.
    assert project.repro() == ["merge-trio", "evaluate-trio", "scores", "report"]


def test_a_changed_model_of_a_merge_needs_a_plan(project: Project) -> None:
    project.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(third=0.5))
    result = project.run("dvc", "repro", check=False)
    assert result.returncode != 0
    assert "stale: merge-fisher" in result.stderr
    project.run("python", "-m", "stages.plan")
    assert project.repro() == ["merge-fisher", "evaluate-fisher", "scores", "report"]


def test_a_finished_checkpoint_is_brought_in(project: Project) -> None:
    from stages.storage.digests import tree_sha256

    finished: Path = project.root.parent / "inputs/finished"
    source = project.root / "models/finetuned/films"
    finished.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (finished / name).write_bytes((source / name).read_bytes())

    def add(params: dict) -> None:
        params["sources"]["finished"] = {"path": str(finished), "sha256": tree_sha256(finished)}
        params["models"]["brought"] = {"base": "finished", "task": "films", "finetune": False}

    project.edit_params(add)
    project.run("python", "-m", "stages.plan")
    ran = project.repro()
    own = ["evaluate-brought", "fetch@finished", "finetune-brought", "fisher-brought"]
    assert sorted(ran) == [*own, "report", "scores", "settings", "similarity"]
    same = [(project.root / "results/eval" / name / "metrics.json").read_text() for name in ("films", "brought")]
    assert same[0] == same[1]
    fisher = [
        (project.root / "models/fishers" / name / "fisher.safetensors").read_bytes() for name in ("films", "brought")
    ]
    assert fisher[0] == fisher[1]
