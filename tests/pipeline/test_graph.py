"""models/dvc.yaml: what each merge's stages depend on."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.params import load_params
from stages.params.loading import parse_params
from stages.pipeline.graph import PLAN_FILE, planned_artifacts, planned_stages, stages_before
from stages.pipeline.plan_file import ENDS_FILE, check_ends, check_plan
from stages.plan import plan
from stages.running.errors import InputError
from tests.project import ROOT, Project, tiny_params


def inputs(stage: dict[str, Any]) -> list[str]:
    """What a stage depends on beside its settings and its code."""
    return [path for path in stage["deps"] if not path.startswith(("results/code/", "results/settings/"))]


@pytest.fixture
def in_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    monkeypatch.chdir(project.root)
    return project


def test_this_repositorys_plan_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_plan(load_params())
    check_ends()


def test_a_merge_depends_on_exactly_its_models(in_project: Project) -> None:
    stages = planned_stages(load_params())
    assert sorted(stages) == [
        "evaluate-average",
        "evaluate-books",
        "evaluate-ensemble",
        "evaluate-films",
        "evaluate-fisher",
        "finetune-books",
        "finetune-films",
        "fisher-books",
        "fisher-films",
        "merge-average",
        "merge-fisher",
        "scores",
        "similarity",
    ]

    def artefacts(stage: str) -> list[str]:
        return sorted(inputs(stages[stage]))

    models = ["models/finetuned/books", "models/finetuned/films"]
    assert artefacts("merge-average") == models
    assert artefacts("merge-fisher") == [*models, "models/fishers/books", "models/fishers/films"]
    assert artefacts("evaluate-fisher") == ["data/tasks/books", "data/tasks/films", "models/merged/fisher"]
    assert artefacts("evaluate-books") == ["data/tasks/books", "data/tasks/films", "models/finetuned/books"]
    results = [
        f"results/eval/{name}/{file}.json"
        for name in ("books", "films", "average", "fisher", "ensemble")
        for file in ("contents", "metrics", "per_example", "origin")
    ]
    assert artefacts("scores") == sorted([*results, "results/similarity"])
    assert artefacts("similarity") == ["models/fishers/books", "models/fishers/films"]
    assert artefacts("evaluate-ensemble") == [
        f"results/eval/{model}/{file}"
        for model in ("books", "films")
        for file in ("contents.json", "per_example.json", "predictions")
    ]
    for name, stage in stages.items():
        assert stage["deps"][:2] == [f"results/settings/{name}.json", f"results/code/{name}.json"]
        assert "params" not in stage


def test_what_other_methods_depend_on(in_project: Project) -> None:
    """A dependency too many re-runs too much, one too few gives wrong results."""
    halves = {"books": 0.5, "films": 0.5}

    def add(params: dict[str, Any]) -> None:
        params["models"]["third"] = {"base": "base", "task": "books"}
        params["merges"] |= {
            "gram-mean": {"method": "regmean", "coefficients": halves},
            "blocks": {"method": "kfac", "coefficients": halves},
            "vectors": {"method": "task_arithmetic", "coefficients": halves},
            "careful": {"method": "uncertainty", "prior": "third", "coefficients": halves},
            "own-prior": {"method": "uncertainty", "prior": "films", "coefficients": halves, "target": "films"},
            "sought": {"method": "kfac", "coefficients": halves, "search": {"sampler": "grid"}},
            "films-only": {
                "method": "isotropic",
                "coefficients": halves,
                "search": {"sampler": "grid", "tasks": ["films"]},
            },
        }

    in_project.edit_params(add)
    stages = planned_stages(load_params())
    factors = [f"{kind}-{model}" for kind in ("gram", "kfac") for model in ("books", "films")]
    assert sorted(name for name in stages if name.startswith(("gram-", "kfac-"))) == factors
    for name in factors:
        kind, model = name.split("-")
        assert stages[name]["cmd"] == f"python -m stages.factors {kind} {model}"
        assert stages[name]["outs"] == [f"models/{kind}/{model}"]
        assert sorted(inputs(stages[name])) == [f"data/tasks/{model}", f"models/finetuned/{model}"]

    def of_both(kind: str) -> list[str]:
        return [f"models/{kind}/books", f"models/{kind}/films"]

    def found(name: str) -> list[str]:
        return [f"results/search/{name}/{file}.json" for file in ("coefficients", "contents")]

    models = of_both("finetuned")
    wanted = {
        "gram-mean": [*models, *of_both("gram")],
        "blocks": [*models, *of_both("fishers"), *of_both("kfac")],
        "vectors": ["data/sources/base", *models],
        "careful": ["data/sources/base", *models, *of_both("fishers"), "models/fishers/third"],
        "own-prior": ["data/sources/base", *models, *of_both("fishers")],
        "sought": [*models, *of_both("fishers"), *of_both("kfac"), *found("sought")],
        "films-only": [*models, *found("films-only")],
    }
    for name, deps in wanted.items():
        assert sorted(inputs(stages[f"merge-{name}"])) == sorted(deps), name

    searches = {
        "sought": ["data/tasks/books", "data/tasks/films", *models, *of_both("fishers"), *of_both("kfac")],
        "films-only": ["data/tasks/films", *models],
    }
    assert {name for name in stages if name.startswith("search-")} == {f"search-{name}" for name in searches}
    for name, deps in searches.items():
        assert sorted(inputs(stages[f"search-{name}"])) == sorted(deps), name
        assert stages[f"search-{name}"]["outs"] == [
            f"results/search/{name}/coefficients.json",
            f"results/search/{name}/contents.json",
            f"results/search/{name}/sweep.svg",
        ]
        (plot,) = stages[f"search-{name}"]["plots"]
        assert plot.keys() == {f"results/search/{name}/sweep.csv"}
        assert f"results/search/{name}/sweep.csv" in stages["scores"]["deps"]


def test_a_model_without_a_fisher(in_project: Project) -> None:
    def keep_one(params: dict[str, Any]) -> None:
        del params["models"]["films"]
        params["merges"] = {}

    in_project.edit_params(keep_one)
    own = {"finetune-books", "evaluate-books", "scores"}
    assert planned_stages(load_params()).keys() == {*own, "fisher-books", "similarity"}
    assert planned_artifacts(load_params()).keys() == {"checkpoint-books", "fisher-books"}
    in_project.edit_params(lambda params: params["models"]["books"].update(fisher=False))
    assert planned_stages(load_params()).keys() == own
    assert planned_artifacts(load_params()).keys() == {"checkpoint-books"}


def test_a_model_of_a_model(in_project: Project) -> None:
    """It depends on that model's checkpoint; what both come from is the base of a merge."""

    def add(params: dict[str, Any]) -> None:
        params["sources"]["films"] = params["sources"]["base"]
        params["models"]["films"]["base"] = "films"
        params["models"]["later"] = {"base": "books", "task": "films"}
        params["models"]["last"] = {"base": "later", "task": "films"}
        halves = {"later": 0.5, "last": 0.5}
        params["merges"] = {
            "line": {"method": "task_arithmetic", "coefficients": halves},
            "sides": {"method": "task_arithmetic", "coefficients": {"books": 0.5, "last": 0.5}},
        }

    in_project.edit_params(add)
    stages = planned_stages(load_params())

    def artefacts(stage: str) -> list[str]:
        return sorted(inputs(stages[stage]))

    assert artefacts("finetune-books") == ["data/sources/base", "data/tasks/books"]
    assert artefacts("finetune-films") == ["data/sources/films", "data/tasks/films"]  # not itself
    assert artefacts("finetune-later") == ["data/tasks/films", "models/finetuned/books"]
    assert "models/finetuned/books" in artefacts("merge-line")
    assert "data/sources/base" in artefacts("merge-sides")


def test_a_model_without_labels_is_not_evaluated_but_its_merges_are(in_project: Project) -> None:
    def add(params: dict[str, Any]) -> None:
        params["tasks"]["prose"] = {"kind": "masked-lm", "source": "tables", "file": "books.csv"}
        params["models"]["reader"] = {"base": "base", "task": "prose", "fisher": {"estimator": "sketch"}}
        λ = {"books": 0.7, "reader": 0.3}
        params["merges"] = {"adapted": {"method": "fisher", "coefficients": λ, "target": "books", "heads": "target"}}

    in_project.edit_params(add)
    stages = planned_stages(load_params())
    assert {"finetune-reader", "fisher-reader", "evaluate-adapted"} < stages.keys()
    assert "evaluate-reader" not in stages
    assert not any("reader" in path for path in stages["scores"]["deps"])
    assert [path for path in stages["evaluate-adapted"]["deps"] if path.startswith("data")] == [
        "data/tasks/books",
        "data/tasks/films",
    ]


def test_check_names_what_differs(in_project: Project) -> None:
    with pytest.raises(InputError, match=r"models/dvc\.yaml: not found; run `make plan`"):
        check_plan(load_params())
    plan()
    check_plan(load_params())
    assert PLAN_FILE.read_text().startswith("# Generated from params.yaml by stages/pipeline/graph.py")
    in_project.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(books=0.1))
    check_plan(load_params())  # a coefficient needs no plan
    in_project.edit_params(lambda params: params["merges"].update(second=params["merges"]["average"]))
    with pytest.raises(InputError, match=r"missing: evaluate-second, merge-second; stale: scores\); run `make plan`"):
        check_plan(load_params())
    plan()
    in_project.edit_params(lambda params: params["merges"].pop("second"))
    with pytest.raises(InputError, match=r"stale: scores; not in params\.yaml: evaluate-second, merge-second"):
        check_plan(load_params())
    in_project.edit_params(lambda params: params["merges"]["average"]["coefficients"].pop("books"))
    plan()
    stages = YAML(typ="safe").load(PLAN_FILE)["stages"]
    assert "models/finetuned/books" not in stages["merge-average"]["deps"]


PLANNED = [
    *(f"{stage}-{model}" for stage in ("finetune", "fisher", "kfac", "gram") for model in ("books", "films")),
    *(f"evaluate-{name}" for name in ("books", "films", "blocks", "mean", "sought", "ensemble")),
    *("merge-blocks", "merge-mean", "merge-sought", "search-sought", "similarity", "scores"),
]


def all_kinds(params: dict[str, Any]) -> None:
    halves = {"books": 0.5, "films": 0.5}
    params["merges"] = {
        "blocks": {"method": "kfac", "coefficients": halves},
        "mean": {"method": "regmean", "coefficients": halves},
        "sought": {"method": "fisher", "coefficients": halves, "search": {"sampler": "grid"}},
        "ensemble": {"method": "ensemble", "coefficients": halves},
    }


def test_check_sees_every_stage_and_every_artifact(in_project: Project) -> None:
    """Also a stage that has the name of an artifact: no entry hides another."""
    in_project.edit_params(all_kinds)
    params = load_params()
    plan()
    whole = YAML(typ="safe").load(PLAN_FILE)
    assert sorted(whole["stages"]) == sorted(PLANNED)
    assert "fisher-books" in whole["artifacts"]
    check_plan(params)

    def refused(words: str) -> None:
        YAML().dump(whole, PLAN_FILE)
        with pytest.raises(InputError, match=rf"\({words}\); run `make plan`$"):
            check_plan(params)

    for section, kind in (("stages", ""), ("artifacts", "artifact ")):
        for name in list(whole[section]):
            entry = whole[section].pop(name)
            refused(f"missing: {kind}{name}")
            whole[section][name] = {**entry, "deps": entry["deps"][:-1]} if "deps" in entry else {**entry, "path": "x"}
            refused(f"stale: {kind}{name}")
            whole[section][name] = entry
        whole[section]["more"] = entry
        refused(rf"not in params\.yaml: {kind}more")
        del whole[section]["more"]


def test_the_order_in_params_is_no_part_of_the_plan(in_project: Project) -> None:
    in_project.edit_params(all_kinds)
    plan()

    def turn(mapping: dict[str, Any]) -> None:
        for key, value in reversed(list(mapping.items())):
            del mapping[key]
            mapping[key] = value
            if isinstance(value, dict):
                turn(value)

    in_project.edit_params(turn)
    assert list(in_project.params["tasks"]) == ["films", "books"]
    check_plan(load_params())


def test_the_ends_depend_on_their_settings_and_their_code(in_project: Project) -> None:
    check_ends()
    text = ENDS_FILE.read_text()
    for stage, line in (
        ("fetch", "results/code/fetch@${key}.json"),
        ("prepare", "results/settings/prepare@${key}.json"),
        ("report", "results/code/report.json"),
        ("settings", "params.yaml"),
        ("settings", "stages"),
    ):
        ENDS_FILE.write_text(text.replace(f"- {line}\n", "- other.py\n", 1))
        with pytest.raises(InputError, match=rf"^dvc\.yaml: stages\.{stage}\.deps must be: .*{re.escape(line)}"):
            check_ends()
    ENDS_FILE.write_text("stages: {}\n")
    with pytest.raises(InputError, match=r"stages\.settings\.deps must be"):
        check_ends()
    assert "error: dvc.yaml: stages.settings.deps" in in_project.stage("stages.settings").stderr


def test_the_command_line(in_project: Project) -> None:
    missing = in_project.stage("stages.plan", "--check")
    assert missing.returncode == 1
    assert missing.stderr == "error: models/dvc.yaml: not found; run `make plan`\n"
    assert in_project.stage("stages.plan").returncode == 0
    assert in_project.stage("stages.plan", "--check").returncode == 0
    assert "usage: python -m stages.plan" in in_project.stage("stages.plan", "--chek").stderr
    in_project.edit_params(lambda params: params["merges"]["fisher"].update(method="fischer"))
    wrong = in_project.stage("stages.merge", "fisher")
    assert wrong.returncode == 1
    assert wrong.stderr == (
        "error: params.yaml: merges.fisher.method = 'fischer': unknown method; allowed: "
        "dare, ensemble, fisher, isotropic, kfac, regmean, slerp, task_arithmetic, ties, uncertainty\n"
    )


def test_merge_and_plan_start_without_transformers(in_project: Project) -> None:
    code = (
        "import sys, stages.merge, stages.plan; "
        "heavy = {'transformers', 'datasets', 'pandas', 'sklearn', 'altair'} & sys.modules.keys(); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = in_project.run("python", "-c", code, check=False)
    assert result.returncode == 0, result.stderr


def test_a_result_needs_what_came_before_it(tmp_path: Path) -> None:
    content = tiny_params(tmp_path)
    content["models"]["later"] = {"base": "books", "task": "films", "fisher": False}
    content["merges"]["one"] = {
        "method": "isotropic",
        "coefficients": {"films": 0.5, "later": 0.5},
        "search": {"sampler": "grid"},
    }
    before = stages_before(parse_params(content))
    assert before["evaluate-average"] == ["finetune-books", "finetune-films", "merge-average", "evaluate-average"]
    assert set(before["evaluate-one"]) == {
        "finetune-books",
        "finetune-films",
        "finetune-later",
        "search-one",
        "merge-one",
        "evaluate-one",
    }
    assert {"evaluate-books", "finetune-films"} < set(before["evaluate-ensemble"])
    assert "fisher-books" in before["evaluate-fisher"]
    assert "fisher-books" not in before["evaluate-average"]
