"""A Fisher in memory, as a directory that merges take."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stages.running.errors import InputError
from stages.storage import naming
from stages.storage.cards import library_versions
from stages.storage.checkpoint import Checkpoint
from stages.storage.outputs import atomic_directory, refuse_foreign
from stages.storage.statistics import STATISTICS, write_statistic

_PEFT_PREFIX = "base_model.model."


def save_fisher(fisher: Mapping[str, Tensor], checkpoint: str | Path, out: str | Path) -> None:
    """Write what `stages.curvature.diagonal_fisher` has found as a directory: `fisher.safetensors` with its card.

    Names and shapes become those of the checkpoint's file, where they differ from the model's in memory: older names,
    tied tensors, experts that the file has one by one.

    Args:
        fisher: parameter name in the model → its diagonal Fisher, in the parameter's shape.
        checkpoint: directory that the model was loaded from, or has been saved to.
        out: becomes the Fisher's directory, whole or not at all. A Fisher that is there is replaced; anything else is
            refused.

    Raises:
        InputError: a parameter is not in the checkpoint, or stored in a form whose entries are not the parameter's; an
            entry is negative or not finite; the Fisher is of adapters; or `out` holds something else.
    """
    out, directory = Path(out), Path(checkpoint)
    refuse_foreign(out, _fisher_files(out), [directory])
    if adapter := next((name for name in fisher if name.startswith(_PEFT_PREFIX)), None):
        raise InputError(
            f"the Fisher has the parameter {adapter} of a PEFT model, which no merge takes; merge the adapter into its "
            "base model (`merge_and_unload()`), and estimate the Fisher of that"
        )
    opened = Checkpoint(directory)
    tensors = {name: values.detach() for name, values in fisher.items()}
    if not tensors.keys() <= opened.tensors.specs.keys():
        model = naming.empty_model(directory)
        if model is None:
            name = min(tensors.keys() - opened.tensors.specs.keys())
            raise InputError(
                f"{opened.tensors.file}: lacks the parameter {name}, and transformers does not know this architecture; "
                "name the Fisher's tensors as the file does"
            )
        tensors = naming.as_stored(model, tensors, opened.tensors)
    with atomic_directory(out) as partial:
        card = {"libraries": library_versions("torch", "transformers")}
        write_statistic(partial, "diagonal", tensors, opened.tensors, card)


def _fisher_files(directory: Path) -> set[str]:
    """The files of a Fisher in a directory, if its card is there."""
    stem = STATISTICS["diagonal"].stem
    if not (directory / f"{stem}.json").is_file():
        return set()
    patterns = (f"{stem}.json", f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}-*-of-*.safetensors")
    return {file.name for pattern in patterns for file in directory.glob(pattern)}
