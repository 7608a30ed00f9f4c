"""scores: every model's and merge's results, and what else the report shows → results/scores/scores.json.

It depends on each of these files by itself, so that DVC can pull those that are not here without any model.
"""

from dataclasses import asdict

from stages.pipeline.needs import models_with_fishers, roles
from stages.pipeline.places import SCORES, SEARCH
from stages.pipeline.plan_file import check_plan
from stages.pipeline.stage_settings import stage_params
from stages.results.scores import FILE, MEANS, SCORES_VERSION, Scores, read_result, read_similarity, read_sweep
from stages.running.command import run_stage
from stages.storage.cards import SWEEP, write_json
from stages.storage.digests import write_contents
from stages.storage.outputs import atomic_directory


def scores() -> None:
    """Collect the results of every model and merge of params.yaml, in its order."""
    params = stage_params("scores")
    check_plan(params)
    searched = [name for name, merge in params.merges.items() if merge.search is not None]
    found = Scores(
        [read_result(name, role, name in searched) for name, role in roles(params).items()],
        {name: read_sweep(SEARCH / name / SWEEP) for name in searched},
        read_similarity() if models_with_fishers(params) else {},
    )
    with atomic_directory(SCORES) as partial:
        write_json(partial / FILE, {"format_version": SCORES_VERSION, **asdict(found)})
        write_json(partial / MEANS, {result.name: result.means for result in found.results})
        write_contents(partial)


if __name__ == "__main__":
    run_stage(scores)
