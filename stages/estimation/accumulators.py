"""What adds a statistic up, by what its description says."""

from importlib import import_module

from stages.curvature import Accumulator
from stages.storage.statistic import StatisticKind


def accumulators(kind: StatisticKind) -> dict[str, Accumulator]:
    """Part of a statistic of Linear weights → what adds it up; see `StatisticKind.parts`.

    Raises:
        ImportError: the description names no class, or is wrong about whether gradients are taken.
    """
    found: dict[str, Accumulator] = {}
    for part, reference in kind.parts.items():
        module, _, name = reference.partition(":")
        made = getattr(import_module(module), name, None)
        if made is None:
            raise ImportError(f"statistic {kind.name}: parts: {part}: {module} has no {name!r}")
        found[part] = made()
    if found and kind.takes_gradients != any(each.adds == "gradients" for each in found.values()):
        raise ImportError(
            f"statistic {kind.name}: takes_gradients is {kind.takes_gradients}, which its parts contradict"
        )
    return found
