"""What stages are told by params.yaml: every value and order that decides something, and no other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.params import FisherSettings, Params, load_params, parse_params
from stages.pipeline.graph import planned_stages
from stages.pipeline.stage_settings import settings_text
from stages.tasks.kinds import KINDS
from tests.metrics import kind_with
from tests.project import ROOT, Project, tiny_params

HALVES = {"books": 0.5, "films": 0.5}


def told(params: Params) -> dict[str, str]:
    ends = [*(f"fetch@{name}" for name in params.sources), *(f"prepare@{name}" for name in params.tasks)]
    return {stage: settings_text(stage, params) for stage in (*ends, *planned_stages(params))}


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """Of a params.yaml with stages of all kinds, in which everything that has a default is left out."""
    params = tiny_params(tmp_path / "inputs")
    del params["finetune"], params["fisher"]
    for task in params["tasks"].values():
        del task["split"], task["max_length"]
    params["tasks"]["stars"] = {"source": "tables", "file": "s.csv", "labels": {"low": [1, 2], "high": [4, 5]}}
    params["models"]["films"]["fisher"] = {"examples": 7}
    params["merges"] |= {
        "blocks": {"method": "kfac", "coefficients": HALVES},
        "trimmed": {"method": "ties", "coefficients": HALVES},
        "sought": {"method": "regmean", "coefficients": HALVES, "search": {"sampler": "tpe"}},
    }
    return params


def changed(content: dict[str, Any], edit: Callable[[dict[str, Any]], object]) -> set[str]:
    """The stages that are told otherwise after an edit, of those that are there before and after."""
    before = told(parse_params(content))
    edited = json.loads(json.dumps(content))
    edit(edited)
    after = told(parse_params(edited))
    return {stage for stage in before.keys() & after.keys() if before[stage] != after[stage]}


def test_the_defaults_project_is_told_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    files = told(load_params())
    assert json.loads(files["prepare@tweets"])["labels"] == [["negative", -4.0, -0.5], ["positive", 0.5, 4.0]]
    assert json.loads(files["fisher-nyt"])["fisher"] == FisherSettings(examples=512).model_dump()
    assert json.loads(files["merge-kfac"])["options"]["iterations"] == 20


DEFAULTS = [  # a default in stages/, another, and whom it tells: `films` has its own fisher.examples
    (
        "params/schema.py",
        "epochs: int = Field(default=2",
        "epochs: int = Field(default=3",
        "finetune-books finetune-films",
    ),
    (
        "params/schema.py",
        "from_scratch: bool = Field(default=False",
        "from_scratch: bool = Field(default=True",
        "finetune-books finetune-films",
    ),
    (
        "params/schema.py",
        "examples: int | None = Field(default=256",
        "examples: int | None = Field(default=99",
        "fisher-books gram-books kfac-books",
    ),
    (
        "tasks/task.py",
        "test: float = Field(default=0.15",
        "test: float = Field(default=0.3",
        "prepare@books prepare@films prepare@stars",
    ),
    ("storage/source.py", 'default=["*"]', 'default=["*.csv"]', "fetch@base fetch@tables"),
    (
        "merging/methods/ties/options.py",
        "density: float = Field(default=0.2",
        "density: float = Field(default=0.3",
        "merge-trimmed",
    ),
    ("params/merges.py", "points: int = Field(default=50", "points: int = Field(default=40", "search-sought"),
    (
        "params/merges.py",
        '"5GB"',
        '"4GB"',
        "merge-average merge-blocks merge-fisher merge-sought merge-trimmed search-sought",
    ),
]


def test_a_changed_default_is_told_to_whom_it_is_in_force_for(content: dict[str, Any], tmp_path: Path) -> None:
    project = Project(tmp_path / "project", content)
    project.run("python", "-m", "stages.plan")

    def files() -> dict[str, str]:
        project.run("python", "-m", "stages.settings")
        return {file.stem: file.read_text() for file in (project.root / "results/settings").iterdir()}

    before = files()
    assert before == told(parse_params(content))
    for name, old, new, stages in DEFAULTS:
        file = project.root / "stages" / name
        text = file.read_text()
        assert text.count(old) == 1, old
        file.write_text(text.replace(old, new))
        after = files()
        assert sorted(stage for stage in before if before[stage] != after[stage]) == stages.split(), new
        file.write_text(text)


def test_a_models_sections_are_told_apart(content: dict[str, Any]) -> None:
    def edit(model: str, **settings: Any) -> set[str]:
        return changed(content, lambda params: params["models"][model].update(settings))

    estimates = {"fisher-books", "kfac-books", "gram-books"}
    assert edit("books", fisher={"examples": 9}) == estimates
    assert edit("books", fisher={"samples": 1}) == set(), "the default, written down"
    assert edit("books", finetune={"epochs": 1}) == {"finetune-books"}
    assert edit("books", finetune={"epochs": 2}) == set()
    assert edit("books", finetune=False) == {"finetune-books"}
    assert edit("films", fisher={}) == {"fisher-films", "kfac-films", "gram-films"}
    source = {"path": "elsewhere", "sha256": 64 * "0"}
    assert edit("books", fisher=source) == {"fisher-books"}

    def without_blocks(**settings: Any) -> Callable[[dict[str, Any]], object]:
        return lambda params: (params["merges"].pop("blocks"), params["models"]["books"].update(settings))

    # The optimizer's moments are kept by fine-tuning.
    found = changed(content, without_blocks(fisher={"estimator": "adam"}))
    assert {"finetune-books", "fisher-books"} <= found
    assert "finetune-films" not in found


def test_a_coefficient_is_told_to_its_merge(content: dict[str, Any]) -> None:
    def coefficient_of(name: str) -> set[str]:
        return changed(content, lambda params: params["merges"][name]["coefficients"].update(books=0.1))

    assert coefficient_of("fisher") == {"merge-fisher"}
    assert coefficient_of("ensemble") == {"evaluate-ensemble"}
    assert coefficient_of("sought") == {"search-sought"}, "the merge takes what it finds"


def test_a_search_is_told_its_metric(content: dict[str, Any]) -> None:
    def naming(metric: str) -> set[str]:
        return changed(content, lambda params: params["merges"]["sought"]["search"].update(metric=metric))

    before = told(parse_params(content))
    assert json.loads(before["search-sought"])["search"]["metric"] == "accuracy"
    assert naming("accuracy") == set(), "the default, written down"
    assert naming("macro_f1") == {"search-sought"}
    with kind_with("text-classification", *reversed(KINDS["text-classification"].metrics)):
        after = told(parse_params(content))
    told_otherwise = {stage for stage in before if before[stage] != after[stage]}
    assert told_otherwise == {"search-sought", *(stage for stage in before if stage.startswith("evaluate-"))}


def test_the_metric_that_counts_trains_nothing_again(content: dict[str, Any]) -> None:
    def by_f1(params: dict[str, Any]) -> None:
        for task in params["tasks"].values():
            task["metric"] = "macro_f1"

    found = {stage.replace("@", "-").partition("-")[0] for stage in changed(content, by_f1)}
    assert found == {"prepare", "search", "evaluate"}  # what is prepared stays the same


def turned(params: dict[str, Any], *keys: str) -> None:
    """Turn the order of a mapping in params.yaml."""
    for key in keys:
        params = params[key]
    for key, value in reversed(list(params.items())):
        del params[key]
        params[key] = value


def test_an_order_is_told_where_it_counts_and_is_nothing_elsewhere(content: dict[str, Any]) -> None:
    def turning(*keys: str) -> set[str]:
        return changed(content, lambda params: turned(params, *keys))

    for keys in (
        ["sources"],
        ["tasks"],
        ["tasks", "books"],
        ["merges", "fisher"],
        *(["merges", name, "coefficients"] for name in content["merges"]),
    ):
        assert turning(*keys) == set(), keys
    # Outputs are in the labels' order; results are listed in that of models and merges.
    assert turning("tasks", "stars", "labels") == {"prepare@stars"}
    assert turning("models") == {"scores"}
    assert turning("merges") == {"scores"}


def test_a_result_is_the_same_for_coefficients_in_any_order(content: dict[str, Any]) -> None:
    """To the last bit: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1."""
    content["models"]["third"] = {"base": "base", "task": "films"}
    λ = {"books": 0.1, "films": 0.2, "third": 0.3}
    sums = set()
    for order in (list(λ), list(reversed(λ)), ["films", "third", "books"]):
        content["merges"] = {"it": {"method": "isotropic", "coefficients": {model: λ[model] for model in order}}}
        merge = parse_params(content).merges["it"]
        assert list(merge.coefficients) == list(λ)
        sums.add(sum(merge.coefficients.values()))
    assert len(sums) == 1
    assert len({0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1}) == 2


def test_an_edit_while_dvc_runs_is_refused(tmp_path: Path) -> None:
    """Else a stage would use what dvc does not record."""
    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    project.run("python", "-m", "stages.plan")
    project.run("python", "-m", "stages.settings")
    by_dvc = ("env", "DVC_STAGE=prepare@books", "python", "-m")
    project.edit_params(lambda params: params["tasks"]["films"].update(max_length=9))
    assert project.run(*by_dvc, "stages.fetch", "tables").returncode == 0
    assert project.run(*by_dvc, "stages.prepare", "books").returncode == 0
    project.edit_params(lambda params: params["tasks"]["books"].update(max_length=9))
    refused = (
        "error: params.yaml: was changed after the stage `settings` ran, in what prepare@books is told; run "
        "`dvc repro --force settings`, then `dvc repro` again\n"
    )
    assert project.run(*by_dvc, "stages.prepare", "books", check=False).stderr == refused
    assert project.stage("stages.prepare", "books").returncode == 0, "by hand, params.yaml is what is meant"
    project.edit_params(
        lambda params: params["tasks"].update(other=params["tasks"].pop("books")) or params.update(models={}, merges={})
    )
    assert project.run(*by_dvc, "stages.prepare", "books", check=False).stderr == refused


def test_a_stage_that_is_planned_otherwise_is_refused(tmp_path: Path) -> None:
    """Its own entry decides, whatever is wrong with others: it would read what dvc does not know of."""
    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    project.edit_params(lambda params: params["sources"].update(other=params["sources"]["base"]))
    project.run("python", "-m", "stages.plan")
    project.edit_params(lambda params: params["models"]["films"].update(base="other"))
    project.run("python", "-m", "stages.settings")
    by_dvc = ("env", "DVC_STAGE=it", "python", "-m")
    planned = "models/dvc.yaml is not what params.yaml asks for (stale: finetune-films); run `make plan`"
    assert project.run(*by_dvc, "stages.finetune", "films", check=False).stderr == f"error: {planned}\n"
    assert "data/tasks/books" in project.run(*by_dvc, "stages.finetune", "books", check=False).stderr
