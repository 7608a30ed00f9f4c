"""The streamed merge of checkpoint directories: chunk by chunk, on all cores, into a new checkpoint directory."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from stages.merging.card import merged_card, model_card
from stages.merging.ingredients import Heads, Ingredients
from stages.merging.merged_tensors import Merging, Precision, merging_at
from stages.merging.methods import METHODS
from stages.merging.options import MethodOptions
from stages.merging.rules import method_options
from stages.merging.sizes import bytes_of
from stages.merging.streaming import on_all_cores
from stages.merging.token_rows import Vocabulary
from stages.merging.truncation import write_as_adapter
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint import write_heads
from stages.storage.checkpoint_files import (
    ADAPTER_CONFIG,
    ADAPTER_STEM,
    ADAPTER_WEIGHTS,
    CHECKPOINT_CARD,
    MODEL_CARD,
    STEM,
    WEIGHTS,
    config_file,
    is_adapter,
    read_config,
)
from stages.storage.configuration import copy_adapter_configuration, copy_configuration
from stages.storage.digests import CONTENTS, write_contents
from stages.storage.outputs import atomic_directory, refuse_foreign
from stages.storage.tensors import MAX_SHARD_BYTES, TensorWriter
from stages.storage.weights import open_weights


def merge_checkpoints(
    checkpoints: Mapping[str, str | Path],
    out: str | Path,
    *,
    method: str | MethodOptions = "fisher",
    coefficients: Mapping[str, SupportsFloat],
    statistics: Mapping[str, str | Path | Sequence[str | Path]] | None = None,
    base: str | Path | None = None,
    heads: Heads = "merge",
    vocabulary: Vocabulary = "same",
    precision: Precision = "float32",
    max_shard_size: str | int = "5GB",
    rank: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Merge checkpoint directories into a new one, with config, tokenizer and cards (`checkpoint.json`, `README.md`).

    Values are written in the target's type. A model whose λ is zero takes no part; where only one takes part, its
    tensors are copied bit for bit, in its own type. Integer tensors are copied if all models' are equal. What the base
    lacks (heads) is averaged by the methods that need a base.

    Args:
        checkpoints: model name → directory; the first is the target.
        out: becomes the merged checkpoint, whole or not at all. A merge that is there is replaced; anything else is
            refused.
        method: the name of a method in `stages.merging.methods.METHODS`, or an object with its options.
        coefficients: λ by model name; they are divided by their sum.
        statistics: for methods that need them: model name → its directory with `fisher.safetensors` (or `kfac`, or
            `gram`), or several directories.
        base: directory of the weights that the models were fine-tuned from, for methods that need them.
        heads: see `stages.params.Merge`. With `each`, every model's own head is kept in `out/heads/`; with `target`,
            the card says as `kept` what else is the target's because another model lacks it.
        vocabulary: see `stages.params.Merge`. With `shared` and `union`, rows of embeddings are matched by token.
        precision: what to compute in.
        max_shard_size: in bytes, or for example `5GB`; larger checkpoints are spread over several files.
        rank: of adapters: write a LoRA adapter of this rank, by the truncated singular value decomposition of each
            weight's change, and not a whole model. The merge is computed in float64 then.
        progress: called with numbers of merged values, as they are done.

    Raises:
        InputError: inputs that cannot be merged, named; `out` is as it was.
    """
    out, directories = Path(out), {name: Path(directory) for name, directory in checkpoints.items()}
    places = {name: _paths(directories) for name, directories in (statistics or {}).items()}
    bases = [] if base is None else [Path(base)]
    refuse_foreign(
        out, _merged_before(out), [*directories.values(), *bases, *(p for of in places.values() for p in of)]
    )
    if heads == "each":
        _refuse_no_file_names(directories)
    base_directory = bases[0] if bases else None
    ingredients = Ingredients(directories, method_options(method), places, base_directory, heads, vocabulary)
    merging = merging_at(ingredients, coefficients, precision if rank is None else "float64")
    with atomic_directory(out) as partial:
        write_merged(merging, partial, heads, bytes_of(max_shard_size), rank, progress)


def write_merged(
    merging: Merging,
    directory: Path,
    heads: Heads,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    rank: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a merged checkpoint into an empty directory; the arguments are those of `merge_checkpoints`.

    Raises:
        InputError: an input has a NaN or an infinite entry, or is not what its card says; or the result overflows.
    """
    ingredients = merging.ingredients
    _write_configuration(merging, directory)
    if ingredients.rows is not None:
        ingredients.rows.write(directory)
    found, truncation = _write_tensors(merging, directory, rank, max_shard_bytes, progress)
    ingredients.verify()
    if heads == "each":
        write_heads(directory, ingredients.checkpoints)
    _write_cards(merging, merged_card(merging, heads, found, truncation), directory)
    write_contents(directory, besides=ADAPTER_WEIGHTS if is_adapter(directory) else WEIGHTS)


def _paths(directories: str | Path | Sequence[str | Path]) -> list[Path]:
    """One or several directories, as paths."""
    return [Path(each) for each in ([directories] if isinstance(directories, str | Path) else directories)]


def _merged_before(out: Path) -> set[str]:
    """The files in a directory that an earlier merge has written there: none if it is not that of a merge."""
    if not ((out / CONTENTS).is_file() and (out / CHECKPOINT_CARD).is_file()):
        return set()
    origin, listed = read_json(out / CHECKPOINT_CARD).get("origin"), read_json(out / CONTENTS).get("files")
    if not (isinstance(origin, dict) and origin.get("method") in METHODS and isinstance(listed, dict)):
        return set()
    return {CONTENTS, *listed, *(file.name for pattern in (WEIGHTS, ADAPTER_WEIGHTS) for file in out.glob(pattern))}


def _refuse_no_file_names(models: Iterable[str]) -> None:
    """Refuse models' names that no file can have, where each model has a file of its own."""
    for name in models:
        if "/" in name or "\0" in name or name in ("", ".", ".."):
            raise InputError(
                f"the model {name!r}: with `heads: each` a file is named after every model, which this name cannot be; "
                "call it otherwise, without a slash"
            )


def _write_configuration(merging: Merging, directory: Path) -> None:
    """Write what belongs to the target beside its weights; of an adapter, the base's too where it has no other."""
    target = merging.ingredients.target
    if target.base is None:
        copy_configuration(target.directory, directory)
    else:
        copy_adapter_configuration(target.base, target.directory, directory)
    if target.adapted is not None and target.config != read_config(target.configured):
        write_json(config_file(directory), target.config)
    if merging.ingredients.of_vectors:
        shutil.copyfile(target.directory / ADAPTER_CONFIG, directory / ADAPTER_CONFIG)


def _write_cards(merging: Merging, card: Mapping[str, Any], directory: Path) -> None:
    """Write what the merge says of itself, for programs and for people."""
    write_json(directory / CHECKPOINT_CARD, card)
    checkpoints = merging.ingredients.checkpoints
    trained = {name: checkpoint.card.get("origin", {}) for name, checkpoint in checkpoints.items()}
    (directory / MODEL_CARD).write_text(model_card(card, trained), encoding="utf-8")


def _write_tensors(
    merging: Merging,
    directory: Path,
    rank: int | None,
    max_shard_bytes: int,
    progress: Callable[[int], object] | None,
) -> tuple[str, dict[str, Any] | None]:
    """Write the merge's weights or adapter; returns its identity, and what a card says of its truncation, if any."""
    truncation = None
    if rank is not None:
        truncation = write_as_adapter(merging, rank, directory)
    else:
        found = _write_weights(merging, directory, max_shard_bytes, progress)
    if is_adapter(directory):  # its identity is the base's too
        found = open_weights(directory, merging.ingredients.target.base).fingerprint()
    return found, truncation


def _write_weights(
    merging: Merging, directory: Path, max_shard_bytes: int, progress: Callable[[int], object] | None
) -> str:
    """Write the merged tensors; returns their fingerprint."""
    merging.prepare()
    # The largest first, so that no core is left with a large one at the end.
    names = sorted(merging.specs, key=lambda name: (-merging.specs[name].elements, name))
    stem = ADAPTER_STEM if merging.ingredients.of_vectors else STEM
    with TensorWriter(directory, stem, merging.specs, max_shard_bytes) as writer:

        def write(name: str) -> int:
            for piece in merging.merged(name):
                writer.write(name, piece)
            return merging.specs[name].elements

        for elements in on_all_cores(write, names):
            if progress is not None:
                progress(elements)
        return writer.fingerprint()
