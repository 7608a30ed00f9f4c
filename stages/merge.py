"""merge-NAME: the merge's checkpoints, what its method needs of them, and λ → models/merged/NAME/."""

from tqdm import tqdm

from stages.pipeline.needs import base_directory, statistics_directories
from stages.pipeline.places import FINETUNED, MERGED, SEARCH
from stages.pipeline.stage_settings import stage_params
from stages.running.command import run_stage
from stages.running.errors import InputError
from stages.storage.cards import COEFFICIENTS, read_json
from stages.storage.digests import verify_contents


def merge(name: str) -> None:
    """Merge the models of the merge `name`, with the λ that its search has found if it has one."""
    params = stage_params(f"merge-{name}")
    if name in params.ensembles:
        raise InputError(f"params.yaml: merges.{name}: an ensemble is evaluated, not merged")
    if name not in params.merges:
        raise InputError(f"params.yaml: merges: there is no merge {name!r}")
    section = params.merges[name]
    from stages.merging.checkpoints import merge_checkpoints  # torch, which a wrong params.yaml need not wait for

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
            vocabulary=section.vocabulary,
            precision=section.precision,
            max_shard_size=section.max_shard_size,
            rank=None if section.adapter is None else section.adapter.rank,
            progress=bar.update,
        )


if __name__ == "__main__":
    run_stage(merge, "name")
