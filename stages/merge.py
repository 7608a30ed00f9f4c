"""merge-NAME: the merge's checkpoints, what its method needs of them, and λ → models/merged/NAME/."""

from tqdm import tqdm

from stages.artifacts import COEFFICIENTS, read_json
from stages.command import leave, run_stage
from stages.contents import verify_contents
from stages.errors import InputError
from stages.merging import merge_checkpoints
from stages.params import Ensemble
from stages.paths import FINETUNED, MERGED, SEARCH
from stages.plan import base_directory, statistics_directories
from stages.settings import stage_params


def merge(name: str) -> None:
    """Merge the models of the merge `name`, with the λ that its search has found if it has one."""
    params = stage_params(f"merge-{name}")
    if name not in params.merges:
        raise InputError(f"params.yaml: merges: there is no merge {name!r}")
    section = params.merges[name]
    if isinstance(section.options, Ensemble):
        raise InputError(f"params.yaml: merges.{name}: an ensemble is evaluated, not merged")
    found = SEARCH / name / COEFFICIENTS
    verify_contents(found.parent, [COEFFICIENTS])
    # No bar for a merge that ends sooner: what is refused at once is one line.
    with tqdm(desc=f"merge {name}", unit="value", unit_scale=True, delay=2) as bar:
        merge_checkpoints(
            {model: FINETUNED / model for model in section.models},
            MERGED / name,
            method=section.options,
            coefficients=section.coefficients if section.search is None else read_json(found)["coefficients"],
            statistics=statistics_directories(section),
            base=base_directory(section, params),
            heads=section.heads,
            precision=section.precision,
            max_shard_size=section.max_shard_size,
            progress=bar.update,
        )


if __name__ == "__main__":
    run_stage(merge, "name")
    leave()
