"""The ready params.yaml files."""

import re
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.params import Params, load_params
from stages.pipeline.graph import planned_stages
from tests.project import ROOT, Project

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PAPER = ROOT / "recipes" / "paper"
EXPERIMENTS = ("domain-adaptation", "ensembling", "intermediate", "robust")


def paper(name: str) -> Params:
    return load_params(PAPER / f"{name}.yaml")


def test_there_are_some() -> None:
    assert RECIPES
    assert tuple(recipe.stem for recipe in RECIPES if recipe.parent == PAPER) == EXPERIMENTS


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.relative_to(ROOT / "recipes").as_posix())
def test_a_recipe_can_be_planned(recipe: Path) -> None:
    params = load_params(recipe)
    stages = planned_stages(params)
    assert {f"evaluate-{name}" for name in params.merges} <= stages.keys()


def test_the_search_recipe_gives_every_method_the_same_budget() -> None:
    merges = load_params(ROOT / "recipes" / "search.yaml").merges.values()
    assert {merge.search.points for merge in merges if merge.search is not None} == {50}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_dvc_would_run_all_of_an_experiment(name: str, tmp_path: Path) -> None:
    """Without the Hub: a dry run knows every stage, and what it would run comes after what it reads."""
    params = paper(name)
    project = Project(tmp_path / "project", YAML(typ="safe", pure=True).load(PAPER / f"{name}.yaml"))
    project.run("python", "-m", "stages.plan")
    stages = project.repro("--dry", "--force-downstream")  # which does not look for outputs that are not there yet
    sources = {f"fetch@{source}" for source in params.sources}
    tasks = {f"prepare@{task}" for task in params.tasks}
    assert sources | tasks | planned_stages(params).keys() | {"report"} <= set(stages)
    assert stages[-1] == "report"
    for task, settings in params.tasks.items():
        assert stages.index(f"fetch@{settings.source}") < stages.index(f"prepare@{task}")
    for merge in params.merges:
        assert stages.index(f"evaluate-{merge}") < stages.index("scores")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_pins_every_source_to_a_commit_of_the_hub(name: str) -> None:
    sources = YAML(typ="safe", pure=True).load(PAPER / f"{name}.yaml")["sources"].values()
    assert all(re.fullmatch(r"[0-9a-f]{40}", source["revision"]) and "hub" in source for source in sources)


def test_ensembling_merges_five_seeds_of_each_task_by_three_methods_with_equal_coefficients() -> None:
    params = paper("ensembling")
    assert Counter(model.task for model in params.models.values()) == {"rte": 5, "mrpc": 5, "sst2": 5}
    for task in params.tasks:
        merges = [params.merges[f"{task}-{method}"] for method in ("isotropic", "fisher")]
        assert all(merge.search is None for merge in merges)
        for merge in (*merges, params.ensembles[f"{task}-ensemble"]):
            assert set(merge.coefficients.values()) == {0.2}
            assert {params.models[model].task for model in merge.models} == {task}
            assert len({params.finetune_settings(model).seed for model in merge.models}) == 5


def test_robust_goes_from_the_general_to_the_tuned_model_in_tenths_by_both_methods() -> None:
    params = paper("robust")
    labels = [task.output_names for task in params.tasks.values()]
    assert len(set(labels[0])) == 1000
    assert all(other == labels[0] for other in labels)  # or the models would not be evaluated on all of them
    for method in ("isotropic", "fisher"):
        merges = [merge for merge in params.merges.values() if merge.options.method == method]
        assert [merge.coefficients["tuned"] for merge in merges] == [k / 10 for k in range(11)]
        assert all(sum(merge.coefficients.values()) == pytest.approx(1) for merge in merges)


def test_intermediate_merges_every_pair_and_chooses_by_the_target_alone() -> None:
    params = paper("intermediate")
    assert len(params.merges) == 2 * 7 * 6
    for target, donor in permutations(params.tasks, 2):
        for method in ("isotropic", "fisher"):
            merge = params.merges[f"{target}-{donor}-{method}"]
            assert merge.options.method == method
            assert (merge.models, merge.heads) == ([target, donor], "target")
            assert merge.search is not None
            assert (merge.search.points, merge.search.tasks) == (51, [target])


def test_domain_adaptation_keeps_the_targets_head_and_chooses_by_the_target_alone() -> None:
    params = paper("domain-adaptation")
    for merge in params.merges.values():
        target, donor = merge.models
        assert merge.heads == "target"
        assert params.models[donor].task in ("pubmed", "arxiv")
        assert merge.search is not None
        assert (merge.search.points, merge.search.tasks) == (76, [params.models[target].task])
        assert params.models[f"{target}-adapted"].task == params.models[target].task
