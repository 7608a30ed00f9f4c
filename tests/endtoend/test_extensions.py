"""What a project adds from outside, with no change to a file that is there.

A merge method or a kind of task is one folder, a statistic is one file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from stages.tasks.data import TaskData
from tests.project import Project, tiny_params
from tests.test_readmes import blocks

OPTIONS = '''
from typing import ClassVar, Literal

from pydantic import Field

from stages.merging.options import MethodOptions


class Loudest(MethodOptions):
    """Options of the merge that takes each value of the model whose Fisher is the largest there.

    margin: by how much another's must be larger than the target's.
    """

    statistics: ClassVar[tuple[str, ...]] = ("diagonal",)
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


def code_of(project: Project, stage: str) -> dict[str, str]:
    """What the stage depends on of the code: path → SHA-256."""
    return json.loads((project.root / f"results/code/{stage}.json").read_text())


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
    assert "merges.loud.floor: unknown key; allowed: adapter, coefficients, heads, margin, " in result.stderr


def test_its_code_is_what_its_merges_depend_on(project: Project) -> None:
    """That of no other method is: one more method re-runs no merge."""
    found = {Path(path) for path in code_of(project, "merge-loud") if path.startswith("stages/merging/methods/")}
    own, averaging = ({path for path in found if path.parent.name == name} for name in ("loudest", "isotropic"))
    assert {path.name for path in own} == {"options.py", "rule.py"}
    assert {path.name for path in found - own - averaging} == {"__init__.py"}


PARTS = {  # of stages/README.md's kind: what each begins its definition with
    "settings": "class OpeningClassification",
    "reading": "class OpeningReader",
    "kind": "class OpeningKind",
}


LIKELIHOOD = """

def likelihood(task: object) -> Tempered:
    return Tempered(2.0)
"""
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
    found["likelihood"] = block("class Tempered") + LIKELIHOOD
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
    examples = TaskData.open(opened.root / "data/tasks/books").read("train")
    assert {len(text.split()) for text in examples["text"]} == {2}
    card = json.loads((opened.root / "data/tasks/books/task.json").read_text())
    assert card["kind"] == "opening-classification"
    fisher = json.loads((opened.root / "models/fishers/books/fisher.json").read_text())
    assert (fisher["likelihood"], fisher["likelihood_parameters"]) == ("tempered", {"temperature": 2.0})
    assert "stages/tasks/kinds/opening_classification/likelihood.py" in code_of(opened, "fisher-books")
    metrics = json.loads((opened.root / "results/eval/both/metrics.json").read_text())["tasks"]
    assert set(metrics) == {"books", "films"}
    for task in ("books", "films"):
        rows = pd.read_parquet(opened.root / f"results/eval/both/predictions/{task}.parquet")
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


WEIGHTED_OPTIONS = '''
from typing import ClassVar, Literal

from stages.merging.options import MethodOptions


class Weighted(MethodOptions):
    """Options of the merge that weighs every input of a Linear by how large it is."""

    statistics: ClassVar[tuple[str, ...]] = ("input_moments",)

    method: Literal["weighted"] = "weighted"
'''
WEIGHTED_RULE = '''
from collections.abc import Iterator

from torch import Tensor

from stages.merging.methods.isotropic import rule as isotropic
from stages.merging.methods.isotropic.options import Isotropic
from stages.merging.methods.weighted.options import Weighted
from stages.merging.models import Models, Rule


def rule(options: Weighted, models: Models) -> Rule:
    """Each column of a Linear's weight by the mean square of its input; the other parameters are averaged."""
    averaged = isotropic.rule(Isotropic(), models)

    def merged(name: str) -> Iterator[Tensor]:
        if not models.has_factor("input_moments", name):
            yield from averaged(name)
            return
        moments = models.factors("input_moments", "moment", name)
        weights = [λ * moment.to(models.dtype) for λ, moment in zip(models.coefficients, moments, strict=True)]
        values = models.matrices("input_moments", name)
        total = sum(value * weight for value, weight in zip(values, weights, strict=True))
        yield models.as_stored("input_moments", name, total / sum(weights))

    return merged
'''
SWAPPED = """
from pathlib import Path
from stages.merging import merge_checkpoints
from stages.running.errors import InputError
checkpoints = {name: Path("models/finetuned") / name for name in ("books", "films")}
statistics = {"books": Path("models/input_moments/films"), "films": Path("models/input_moments/books")}
λ = {"books": 0.5, "films": 0.5}
try:
    merge_checkpoints(checkpoints, "out", method="weighted", coefficients=λ, statistics=statistics)
except InputError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the statistic of stages/README.md, a method that needs it, and one that needs Gram matrices."""
    root = tmp_path_factory.mktemp("statistics")
    project = Project(root / "project", tiny_params(root / "inputs"))
    (module,) = (block for block in blocks("stages/README.md") if "class InputMoments" in block)
    (project.root / "stages/storage/statistics/input_moments.py").write_text(module)
    folder = project.root / "stages/merging/methods/weighted"
    folder.mkdir()
    for name, text in {"__init__": "", "options": WEIGHTED_OPTIONS, "rule": WEIGHTED_RULE}.items():
        (folder / f"{name}.py").write_text(text)
    λ = {"books": 0.3, "films": 0.7}
    merges = {name: {"method": name, "coefficients": λ} for name in ("weighted", "regmean", "fisher")}
    project.edit_params(lambda params: params.update(merges=merges))
    project.run("python", "-m", "stages.plan")
    return project


def test_a_statistic_of_ones_own(measured: Project) -> None:
    """From the plan to the report: it is planned, estimated, stored, and read by a merge."""
    measured.run("python", "-m", "stages.plan", "--check")
    ran = set(measured.repro())
    assert {"input_moments-books", "input_moments-films", "gram-books", "merge-weighted", "report"} < ran
    moments = {}
    for model in ("books", "films"):
        place = measured.root / "models/input_moments" / model
        assert {file.name for file in place.iterdir()} == {"input_moments.json", "input_moments.safetensors"}
        card = json.loads((place / "input_moments.json").read_text())
        assert card["examples"] == 20
        assert not card.keys() & {"estimator", "samples", "likelihood"}, "nothing is differentiated"
        moments[model] = load_file(place / "input_moments.safetensors")
        grams = load_file(measured.root / f"models/gram/{model}/gram.safetensors")
        assert {name.removeprefix("moment.") for name in moments[model]} == {
            name.removeprefix("input.") for name in grams
        }
        for name, moment in moments[model].items():
            gram = grams[f"input.{name.removeprefix('moment.')}"]
            np.testing.assert_allclose(moment, np.diagonal(gram), rtol=1e-5, err_msg=name)
    values = {model: load_file(measured.root / f"models/finetuned/{model}/model.safetensors") for model in moments}
    merged = load_file(measured.root / "models/merged/weighted/model.safetensors")
    weighed = 0
    for name, found in merged.items():
        weights = [
            λ * moments[model].get(f"moment.{name}", np.ones(())).astype(np.float64)
            for model, λ in (("books", 0.3), ("films", 0.7))
        ]
        parts = [values[model][name].astype(np.float64) for model in moments]
        wanted = sum(part * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7, err_msg=name)
        weighed += f"moment.{name}" in moments["books"]
    assert weighed == len(moments["books"]) > 5
    origin = json.loads((measured.root / "results/eval/weighted/origin.json").read_text())
    assert origin["models"]["books"]["input_moments"]["examples"] == 20
    assert "input moments" in (measured.root / "results/report/report.html").read_text()
    assert measured.repro() == []


def test_it_is_checked_and_shown(measured: Project) -> None:
    """Beside another checkpoint it is refused; `make status` has a line for it."""
    refused = measured.run("python", "-c", SWAPPED).stdout
    assert "models/input_moments/films/input_moments.json: belongs to the checkpoint " in refused
    assert "estimate the input_moments of this checkpoint" in refused
    assert "input_moments-books" in measured.stage("stages.status").stdout
    result = measured.stage("stages.factors", "moments", "books")
    assert result.returncode == 1
    assert "there are no factors 'moments'; known: gram, input_moments, kfac" in result.stderr


def test_only_what_uses_it_depends_on_it(measured: Project) -> None:
    """So a new statistic re-runs nothing that somebody has paid for."""
    module = "stages/storage/statistics/input_moments.py"
    stages = YAML(typ="safe").load(measured.root / "models/dvc.yaml")["stages"]
    using = {name for name in stages if module in code_of(measured, name)}
    assert using == {"input_moments-books", "input_moments-films", "merge-weighted"}
