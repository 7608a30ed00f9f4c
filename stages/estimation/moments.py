"""Second moments of a model's gradients that come without a card, as a Fisher; nothing binds them to the checkpoint.

So are they published: an optimizer's `exp_avg_sq` in a safetensors file, under the names of the model's parameters. All
that can be checked is checked: names, shapes and values. That they are of this checkpoint is their user's word.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from stages.running.errors import InputError
from stages.running.scratch import scratch_directory
from stages.storage import naming
from stages.storage.cards import library_versions, write_json
from stages.storage.checkpoint import Checkpoint
from stages.storage.digests import tree_sha256
from stages.storage.outputs import atomic_directory
from stages.storage.source import FisherSource
from stages.storage.sources import fetch_source
from stages.storage.statistic import GIVEN, UNVERIFIED
from stages.storage.statistic_files import bad_value
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles

# What torch's wrappers put into names, wherever they stand; and what trainers put before all of them.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIXES = ("module.", "model.")
_REMEDY = "give the moments of this checkpoint's parameters, and of nothing else"


def take_moments(source: FisherSource, checkpoint: Path, out: Path) -> None:
    """Write the second moments in a source's `file` as the Fisher of a checkpoint, with a card, as directory `out`.

    The tensors are mapped, and read one by one: they may be larger than memory.

    Args:
        source: with `file` and `unverified`.
        checkpoint: whose moments they are said to be. The card has its fingerprint, so that no merge takes the Fisher
            beside another.
        out: the directory; it is as it was if anything is refused.

    Raises:
        InputError: they cannot be had, differ from their pin, are no safetensors file, are not finite, negative or zero
            everywhere; or a parameter is missing, a tensor too many, or one of another shape.
    """
    with scratch_directory() as folder, atomic_directory(out) as partial:
        brought = folder / "fisher"
        fetch_source(source, brought)
        opened = Checkpoint(checkpoint)
        moments = _open(brought / source.moments.parent, source.moments.name)
        names = moments_of_parameters(opened, moments)
        _check_shapes(opened, moments, names)
        _check_values(moments)
        card = {
            "estimator": GIVEN,
            UNVERIFIED: True,
            "origin": _origin(source, moments),
            "dtype": " and ".join(sorted({spec.dtype for spec in moments.specs.values()})),
            "libraries": library_versions("torch", "transformers"),
        }
        tensors = {own: moments.read(stored) for own, stored in names.items()}
        opened.verify()
        write_statistic(partial, "diagonal", tensors, opened.tensors, card)


def _open(directory: Path, stem: str) -> TensorFiles:
    """The tensors of a file, or of its shards; where these have no index, all of them must be there."""
    index = directory / f"{stem}.safetensors.index.json"
    shards = sorted(directory.glob(f"{escape(stem)}-*-of-*.safetensors"))
    if shards and not index.is_file() and not (directory / f"{stem}.safetensors").is_file():
        count = shards[0].stem.rpartition("-of-")[2]
        wanted = [f"{stem}-{i + 1:0{len(count)}}-of-{count}.safetensors" for i in range(int(count))]
        if missing := sorted(set(wanted) - {shard.name for shard in shards}):
            raise InputError(f"{directory / missing[0]}: not found, and there is no {index.name}; give all shards")
        if strange := sorted({shard.name for shard in shards} - set(wanted)):
            raise InputError(f"{directory / strange[0]}: is of another number of shards than {wanted[0]}; give one set")
        listed = {name: shard.name for shard in shards for name in TensorFiles(directory, shard.stem).specs}
        write_json(index, {"weight_map": listed})
    return TensorFiles(directory, stem)


def _origin(source: FisherSource, moments: TensorFiles) -> dict[str, Any]:
    """Where the moments are from, for the card: no path, which would say where they lay on one machine."""
    pinned = source.model_dump(mode="json", include={"package", "hub", "revision", "sha256", "inside", "file"})
    files = sorted(moments.directory.glob(f"{escape(moments.stem)}*.safetensors"))
    return {
        **{key: value for key, value in pinned.items() if value},
        "files": {file.name: tree_sha256(file) for file in files},
    }


@dataclass(frozen=True)
class _Matched:
    """How the moments of one spelling fit a checkpoint.

    Attributes:
        names: the checkpoint's name of each parameter that has moments → theirs.
        lacking: the parameters that have none.
        unknown: the moments that are of no parameter.
    """

    names: Mapping[str, str]
    lacking: list[str]
    unknown: list[str]


def moments_of_parameters(checkpoint: Checkpoint, moments: TensorFiles) -> dict[str, str]:
    """Which tensor of the moments is which parameter's: the checkpoint's file's name → the moments' file's.

    Names are the checkpoint's, or others that transformers loads to the same place, also behind what torch's wrappers
    and trainers put before names. A copy of a tied parameter counts once.

    Raises:
        InputError: a parameter has none, or a tensor is of no parameter.
    """
    parameters = {name for name, spec in checkpoint.tensors.specs.items() if spec.is_floating}
    if parameters == moments.specs.keys():
        return {name: name for name in sorted(parameters)}
    model = naming.empty_model(checkpoint.directory)
    found = [_matched(checkpoint, moments.called(names), model) for names in _spellings(moments.specs)]
    best = min(found, key=lambda each: len(each.lacking) + len(each.unknown))
    if not best.lacking and not best.unknown:
        return dict(best.names)
    has = f" but has {best.unknown[0]}, which is of no parameter" if best.unknown else ""
    if best.lacking:
        raise InputError(
            f"{moments.file}: lacks the parameter {best.lacking[0]} of {checkpoint.tensors.file}{has}; {_REMEDY}"
        )
    raise InputError(
        f"{moments.file}: tensor {best.unknown[0]} is of no parameter of {checkpoint.tensors.file}; {_REMEDY}"
    )


def _spellings(stored: Iterable[str]) -> Iterator[dict[str, str]]:
    """How the names may be meant, each as meant name → stored one: as they are, without wrappers', without prefixes.

    A prefix is taken from all names or from none, and nothing is taken that would make one name of two. So at most one
    of these gives every parameter one tensor, but for those that transformers loads alike.
    """
    names = {name: name for name in stored}
    yield names
    unwrapped = {_WRAPPERS.sub("", name): own for name, own in names.items()}
    if len(unwrapped) < len(names):
        return
    if unwrapped.keys() != names.keys():
        yield unwrapped
    while (prefix := min(unwrapped).partition(".")[0] + ".") in _PREFIXES and all(
        name.startswith(prefix) for name in unwrapped
    ):
        unwrapped = {name.removeprefix(prefix): own for name, own in unwrapped.items()}
        yield unwrapped


def _matched(checkpoint: Checkpoint, moments: TensorFiles, model: naming.Model | None) -> _Matched:
    """Compare the moments, by the names that they go by, with the checkpoint's parameters."""
    ours, theirs = _placed(checkpoint.tensors, model), _placed(moments, model)
    buffers = set() if model is None else {name for name, _ in model.named_buffers()}
    parameters = {
        place: own[0]
        for place, own in ours.items()
        if checkpoint.tensors.specs[own[0]].is_floating and place not in buffers
    }
    shared = parameters.keys() & theirs.keys()
    known = {name for place in shared for name in theirs[place]}
    return _Matched(
        {parameters[place]: moments.stored_name(theirs[place][0]) for place in sorted(shared)},
        sorted(own for place, own in parameters.items() if place not in shared),
        sorted(moments.stored_name(name) for name in moments.specs.keys() - known),
    )


def _placed(tensors: TensorFiles, model: naming.Model | None) -> dict[str, list[str]]:
    """Where transformers loads tensors → their names; where it does not know the model, all are where their name is."""
    return {name: [name] for name in tensors.specs} if model is None else naming.model_names(model, tensors)


def _check_shapes(checkpoint: Checkpoint, moments: TensorFiles, names: Mapping[str, str]) -> None:
    for own, stored in names.items():
        spec, wanted = moments.specs[stored], checkpoint.tensors.specs[own].shape
        if not spec.is_floating or spec.shape != wanted:
            raise InputError(
                f"{moments.file}: tensor {stored} is {spec.dtype} {list(spec.shape)}, but {own} in "
                f"{checkpoint.tensors.file} is a floating-point {list(wanted)}; {_REMEDY}"
            )


def _check_values(moments: TensorFiles) -> None:
    """Refuse what no mean of squares can be, and the moments of a model that was never trained."""
    largest = 0.0
    for name, spec in moments.specs.items():
        if not spec.elements:
            continue
        low, high = (float(end) for end in moments.read(name).aminmax())
        if not 0 <= low <= high < float("inf"):  # of NaN none of these holds
            raise InputError(
                f"{moments.file}: tensor {name} has {bad_value(moments.read(name))} entry, which is no mean of "
                "squares; fetch or make the file again"
            )
        largest = max(largest, high)
    if not largest:
        raise InputError(
            f"{moments.file}: is zero everywhere, as the moments of a model that was never trained are; give those "
            "that its training ended with"
        )
