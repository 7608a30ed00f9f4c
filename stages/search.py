"""search-NAME: a merge's checkpoints and statistics, and validation splits → results/search/NAME/.

`coefficients.json` has the best λ, which merge-NAME takes; `sweep.csv` every point, `sweep.svg` a picture of them.
Every point is merged in memory into one live model; nothing is read from the test splits.
"""

from stages.pipeline.places import SEARCH, TASKS
from stages.pipeline.stage_settings import stage_params
from stages.running.command import run_stage
from stages.running.errors import InputError
from stages.searching.coefficients import search_coefficients
from stages.tasks.data import TaskData


def search(name: str) -> None:
    """Search the λ of the merge `name`."""
    params = stage_params(f"search-{name}")
    if name not in params.merges or params.merges[name].search is None:
        raise InputError(f"params.yaml: merges: there is no merge {name!r} with a `search`")
    merge = params.merges[name]
    tasks = [TaskData.open(TASKS / task) for task in params.search_tasks(merge)]
    search_coefficients(merge, params, tasks, SEARCH / name)


if __name__ == "__main__":
    run_stage(search, "name")
