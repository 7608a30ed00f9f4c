"""The weights in a checkpoint's directory, whichever form they have: a model's own, or an adapter's with its base."""

from pathlib import Path

from stages.storage.adapted import AdaptedFiles
from stages.storage.adapters import adapter_base
from stages.storage.cards import read_json
from stages.storage.checkpoint_files import CHECKPOINT_CARD, is_adapter
from stages.storage.digests import verify_contents
from stages.storage.tensors import TensorFiles, check_fingerprint


def open_weights(directory: Path, base: Path | None = None) -> TensorFiles:
    """The tensors of the model in a directory, mapped; those of an adapter's model are computed as they are read.

    Args:
        directory: a checkpoint's or an adapter's.
        base: the directory of an adapter's base, where the one that its configuration names is not here.

    Raises:
        InputError: there are none that can be read, or an adapter does not fit its base.
    """
    if is_adapter(directory):
        return AdaptedFiles(directory, adapter_base(directory, base))
    return TensorFiles(directory)


def verify_checkpoint(checkpoint: Path) -> None:
    """Compare all files of a directory, weights too, with what its cards say; without any, all is well.

    Raises:
        InputError: the weights, or other files, or an adapter's base, are not as they were.
    """
    verify_contents(checkpoint)
    card = checkpoint / CHECKPOINT_CARD
    if card.is_file():
        check_fingerprint(open_weights(checkpoint), read_json(card), card.name)
