"""What a project adds from outside, with no change to a file that is there: a merge method or a kind is one folder."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from tests.project import Project, tiny_params
from tests.test_readmes import blocks

OPTIONS = '''
from typing import ClassVar, Literal

from pydantic import Field

from stages.merging.options import MethodOptions
from stages.storage.statistics import Statistic


class Loudest(MethodOptions):
    """Options of the merge that takes each value of the model whose Fisher is the largest there.

    margin: by how much another's must be larger than the target's.
    """

    statistics: ClassVar[tuple[Statistic, ...]] = ("diagonal",)
    least_models: ClassVar[int] = 2

    method: Literal["loudest"] = "loudest"
    margin: float = Field(default=1.0, ge=1)
'''
RULE = '''
from collections.abc import Iterator

import torch
from torch import Tensor

from stages.merging.methods.loudest.options import Loudest
from stages.merging.models import Models, Rule


def rule(options: Loudest, models: Models) -> Rule:
    """Every parameter of the model whose Fisher is the largest there."""
    fishers = [statistic.tensors for statistic in models.statistics["diagonal"]]

    def merged(name: str) -> Iterator[Tensor]:
        for both in models.chunks(name, [*models.checkpoints, *fishers]):
            values, weights = torch.stack(both[: len(fishers)]), torch.stack(both[len(fishers) :])
            weights[0] *= options.margin
            yield values.gather(0, weights.argmax(0, keepdim=True))[0]

    return merged
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("extensions")
    project = Project(root / "project", tiny_params(root / "inputs"))
    folder = project.root / "stages/merging/methods/loudest"
    folder.mkdir()
    for name, text in {"__init__": "", "options": OPTIONS, "rule": RULE}.items():
        (folder / f"{name}.py").write_text(text)
    project.edit_params(
        lambda params: params.update(
            merges={"loud": {"method": "loudest", "margin": 2.0, "coefficients": {"books": 0.5, "films": 0.5}}}
        )
    )
    return project


def test_a_method_of_ones_own(project: Project) -> None:
    """From the plan to the report."""
    project.run("python", "-m", "stages.plan")
    assert {"fisher-books", "fisher-films", "merge-loud", "evaluate-loud", "report"} < set(project.repro())
    places = {model: project.root / "models/finetuned" / model for model in ("books", "films")}
    values = {model: load_file(place / "model.safetensors") for model, place in places.items()}
    fishers = {model: load_file(project.root / f"models/fishers/{model}/fisher.safetensors") for model in places}
    merged = load_file(project.root / "models/merged/loud/model.safetensors")
    assert merged.keys() == values["books"].keys()
    for name, found in merged.items():
        louder = fishers["films"][name].astype(np.float64) > 2 * fishers["books"][name].astype(np.float64)
        assert np.array_equal(found, np.where(louder, values["films"][name], values["books"][name])), name
    origin = json.loads((project.root / "results/eval/loud/origin.json").read_text())
    assert (origin["method"], origin["options"]) == ("loudest", {"margin": 2.0})
    assert "loudest" in (project.root / "results/report/report.html").read_text()


def test_its_options_are_checked(project: Project) -> None:
    project.edit_params(lambda params: params["merges"]["loud"].update(margin=0.5, floor=1))
    result = project.stage("stages.plan")
    assert result.returncode == 1
    assert "merges.loud.margin = 0.5: input should be greater than or equal to 1" in result.stderr
    assert "merges.loud.floor: unknown key; allowed: coefficients, heads, margin, " in result.stderr


def test_its_code_is_what_its_merges_depend_on(project: Project) -> None:
    """All rules are: which one a merge takes is known when it runs."""
    deps = YAML(typ="safe").load(project.root / "models/dvc.yaml")["stages"]["merge-loud"]["deps"]
    assert "stages/merging" in deps


PARTS = {  # of stages/README.md's kind: what each begins its definition with
    "settings": "class OpeningClassification",
    "reading": "class OpeningReader",
    "kind": "class OpeningKind",
}


METRICS = """from stages.tasks.kinds.opening_classification.mean_rank import MeanRank
from stages.tasks.metrics import Accuracy"""


def block(text: str) -> str:
    """The one example of stages/README.md that has this text."""
    (found,) = (example for example in blocks("stages/README.md") if text in example)
    return found


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the kind of task, metric and likelihood of stages/README.md, which all its tasks have."""
    root = tmp_path_factory.mktemp("kinds")
    project = Project(root / "project", tiny_params(root / "inputs"))
    folder = project.root / "stages/tasks/kinds/opening_classification"
    folder.mkdir()
    (folder / "__init__.py").touch()
    found = {name: block(text) for name, text in PARTS.items()}
    found["likelihood"] = block("class Tempered") + "\n\nLIKELIHOOD = Tempered(2.0)\n"
    found["mean_rank"] = block("class MeanRank")
    kind_line = '    kind: Literal["opening-classification"]'
    assert kind_line in found["settings"]
    found["settings"] = found["settings"].replace(kind_line, f"    metrics = (MeanRank(), Accuracy())\n{kind_line}")
    found["settings"] = found["settings"].replace("\nfrom stages", f"\n{METRICS}\nfrom stages", 1)
    for name, text in found.items():
        (folder / f"{name}.py").write_text(text)

    def edit(params: dict[str, Any]) -> None:
        for task in params["tasks"].values():
            task.update(kind="opening-classification", words=2)
        λ = {"books": 0.5, "films": 0.5}
        params["merges"] = {
            "both": {"method": "fisher", "coefficients": λ},
            "searched": {"method": "isotropic", "coefficients": λ, "search": {"sampler": "grid", "points": 3}},
        }

    project.edit_params(edit)
    return project


def test_a_kind_of_task_of_ones_own(opened: Project) -> None:
    """From the plan to the report, with a search and K-FAC's place in the graph left as they are."""
    opened.run("python", "-m", "stages.plan")
    opened.run("python", "-m", "stages.plan", "--check")
    ran = set(opened.repro())
    assert {"prepare@books", "fisher-films", "search-searched", "merge-both", "evaluate-both", "report"} < ran
    examples = pd.read_parquet(opened.root / "data/tasks/books/train.parquet")
    assert {len(text.split()) for text in examples["text"]} == {2}
    card = json.loads((opened.root / "data/tasks/books/task.json").read_text())
    assert card["kind"] == "opening-classification"
    fisher = json.loads((opened.root / "models/fishers/books/fisher.json").read_text())
    assert (fisher["likelihood"], fisher["likelihood_parameters"]) == ("tempered", {"temperature": 2.0})
    deps = YAML(typ="safe").load(opened.root / "models/dvc.yaml")["stages"]["fisher-books"]["deps"]
    assert "stages/tasks/kinds/opening_classification/likelihood.py" in deps
    metrics = json.loads((opened.root / "results/eval/both/metrics.json").read_text())["tasks"]
    assert set(metrics) == {"books", "films"}
    predictions = pd.read_parquet(opened.root / "results/eval/both/predictions.parquet")
    for task, rows in predictions.groupby("task"):
        logits, labels = np.stack(rows["logits"].to_list()), rows["label"].to_numpy()
        ranks = [1 + sum(row > row[label]) for row, label in zip(logits, labels, strict=True)]
        assert metrics[task]["mean_rank"] == pytest.approx(np.mean(ranks))
        assert metrics[task]["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))
    searched = json.loads((opened.root / "results/search/searched/coefficients.json").read_text())
    sweep = pd.read_csv(opened.root / "results/search/searched/sweep.csv")
    assert searched["metric"] == "mean_rank"
    assert searched["score"] == pytest.approx(sweep["score"].min()), "smaller is better"
    assert "mean rank" in (opened.root / "results/report/report.html").read_text()
    assert opened.repro() == []


def test_its_keys_are_checked(opened: Project) -> None:
    opened.edit_params(lambda params: params["tasks"]["books"].update(words=0, image={"column": "img"}))
    result = opened.stage("stages.plan")
    assert result.returncode == 1
    assert "tasks.books.words = 0: input should be greater than or equal to 1" in result.stderr
    assert "tasks.books.image: is for tasks of the kind image-classification, and this one is " in result.stderr
