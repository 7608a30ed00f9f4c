"""merge-NAME: the merge's checkpoints and Fishers → models/merged/NAME/."""

from tqdm import tqdm

from stages.command import run_stage
from stages.errors import InputError
from stages.merging import Fisher, merge_checkpoints
from stages.params import EnsembleBaseline, load_params
from stages.paths import FINETUNED, FISHERS, MERGED
from stages.plan import check_plan


def merge(name: str) -> None:
    """Merge the models of the merge `name`."""
    params = load_params()
    if name not in params.merges:
        raise InputError(f"params.yaml: merges: there is no merge {name!r}")
    check_plan(params)  # a merge that DVC does not run with all its inputs would be a wrong result
    section = params.merges[name]
    if isinstance(section, EnsembleBaseline):
        raise InputError(f"params.yaml: merges.{name}: an ensemble is evaluated, not merged")
    with tqdm(desc=f"merge {name}", unit="value", unit_scale=True) as bar:
        merge_checkpoints(
            {model: FINETUNED / model for model in section.models},
            MERGED / name,
            method=section,
            coefficients=section.coefficients,
            statistics={model: FISHERS / model for model in section.models} if isinstance(section, Fisher) else None,
            heads=section.heads,
            progress=bar.update,
        )


if __name__ == "__main__":
    run_stage(merge, "name")
