"""What a statistic declares of itself."""

import subprocess
import sys

import pytest

from stages.curvature.accumulators import GradientProducts, InputProducts
from stages.estimation.accumulators import accumulators
from stages.storage.statistic import StatisticKind
from stages.storage.statistics import FACTORS, STATISTICS
from tests.project import ROOT

INPUTS = "stages.curvature.accumulators:InputProducts"


def kind(name: str = "odd", takes_gradients: bool = False, **parts: str) -> StatisticKind:
    return StatisticKind(
        name=name,
        stem=name,
        title="odd ones",
        work="odd ones",
        directory=name,
        takes_gradients=takes_gradients,
        parts=parts,
    )


def test_where_the_three_lie_and_what_their_tensors_are_called() -> None:
    assert {name: (kind.stem, kind.directory) for name, kind in STATISTICS.items()} == {
        "diagonal": ("fisher", "fishers"),
        "kfac": ("kfac", "kfac"),
        "gram": ("gram", "gram"),
    }
    assert set(FACTORS) == {"kfac", "gram"}
    assert STATISTICS["diagonal"].keys("input.weight") == ["input.weight"]
    assert STATISTICS["diagonal"].parameter("input.weight") == "input.weight"
    assert STATISTICS["kfac"].keys("a.weight") == ["input.a.weight", "output.a.weight"]
    assert {STATISTICS["kfac"].parameter(key) for key in ("input.a.weight", "output.a.weight")} == {"a.weight"}
    assert STATISTICS["gram"].parameter("output.a.weight") == "output.a.weight", "it has no such part"


def test_what_adds_it_up_is_found_and_checked() -> None:
    assert [type(each) for each in accumulators(STATISTICS["kfac"]).values()] == [InputProducts, GradientProducts]
    assert accumulators(STATISTICS["diagonal"]) == {}
    assert kind(input=INPUTS).code == ["curvature.accumulators", "storage.statistics.odd"]
    with pytest.raises(ImportError, match=r"odd: parts: input: stages\.curvature\.accumulators has no 'Products'"):
        accumulators(kind(input=INPUTS.replace("InputP", "P")))
    with pytest.raises(ImportError, match="odd: takes_gradients is True, which its parts contradict"):
        accumulators(kind(takes_gradients=True, input=INPUTS))
    with pytest.raises(ValueError, match="statistic odd-one: the stem 'odd-one' must be a word"):
        kind("odd-one")


def test_they_are_read_without_torch() -> None:
    script = "import sys, stages.storage.statistics; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
