"""The ready params.yaml files."""

from pathlib import Path

import pytest

from stages.params import load_params
from stages.plan import planned_stages
from tests.project import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_there_are_some() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_can_be_planned(recipe: Path) -> None:
    params = load_params(recipe)
    stages = planned_stages(params)
    assert {f"evaluate-{name}" for name in params.merges} <= stages.keys()


def test_the_search_recipe_gives_every_method_the_same_budget() -> None:
    merges = load_params(ROOT / "recipes" / "search.yaml").merges.values()
    assert {merge.search.points for merge in merges if merge.search is not None} == {50}
