"""scores: every model's and merge's metrics and origin → results/scores/, which the report shows.

It depends on each of these files by itself, so that DVC can pull those that are not here without any model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stages.artifacts import FORMAT_VERSION, METRICS, ORIGIN, atomic_directory, read_json, write_json
from stages.command import run_stage
from stages.contents import verify_contents, write_contents
from stages.params import Ensemble, Params, load_params
from stages.paths import EVAL, SCORES
from stages.plan import check_plan

FILE = "scores.json"


@dataclass(frozen=True)
class Result:
    """One evaluated model or merge: its name, what it is (`model`, `merge`, `baseline`), its metrics and its origin."""

    name: str
    role: str
    metrics: Mapping[str, Mapping[str, float]]
    origin: Mapping[str, Any]
    searched: bool = False  # whether its λ were found by a search


def scores() -> None:
    """Collect the results of every model and merge of params.yaml, in its order."""
    params = load_params()
    check_plan(params)
    searched = {name for name, merge in params.merges.items() if merge.search is not None}
    for name in _roles(params):
        verify_contents(EVAL / name, [METRICS, ORIGIN])
    results = [
        Result(name, role, read_json(EVAL / name / METRICS), read_json(EVAL / name / ORIGIN), name in searched)
        for name, role in _roles(params).items()
    ]
    with atomic_directory(SCORES) as partial:
        write_json(
            partial / FILE, {"format_version": FORMAT_VERSION, "results": [asdict(result) for result in results]}
        )
        write_contents(partial)


def read_scores() -> list[Result]:
    """What `scores` has written."""
    verify_contents(SCORES)
    return [Result(**result) for result in read_json(SCORES / FILE)["results"]]


def _roles(params: Params) -> dict[str, str]:
    """What is evaluated, by name; from params.yaml, since old results of deleted merges may still lie on the disk."""
    merges = {
        name: "baseline" if isinstance(merge.options, Ensemble) else "merge" for name, merge in params.merges.items()
    }
    return dict.fromkeys(params.models, "model") | merges


if __name__ == "__main__":
    run_stage(scores)
