"""What transformers calls the tensors of a checkpoint's files once it has loaded them, by its own conversion mappings.

One model can be spelled in several ways: LayerNorms with gamma and beta, a body without its prefix, buffers that are no
longer stored, tied embeddings stored once or twice, experts one by one where the model has them in one tensor.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.running.errors import InputError
from stages.storage.tensors import TensorFiles

if TYPE_CHECKING:
    import torch

Model = Any  # a transformers.PreTrainedModel

# Conversions that only move entries about: a Fisher, which has a value per entry, can be moved in the same way.
_PERMUTATIONS = {
    "Chunk",
    "Concatenate",
    "ErnieFuseAndSplitTextVisionExperts",
    "Interleave",
    "MergeModulelist",
    "PermuteForRope",
    "Split",
    "Transpose",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file belongs in a model.

    Attributes:
        name: of the model's tensor; of a part of one (an expert's matrix), the name of that part, which is the same
            however files spell it.
        whole: of the model's tensor, or of the first of several that are made of such parts.
        pattern: by which transformers has found the part, None where the tensor is taken as it is.
        converter: what makes the model's tensors of such parts.
    """

    name: str
    whole: str
    pattern: str | None
    converter: Any


def empty_model(checkpoint: Path, tied_as: Path | None = None) -> Model | None:
    """The model of a checkpoint's config.json, without values; None if transformers knows no such model.

    Args:
        checkpoint: its directory.
        tied_as: the directory of another, whose config.json says instead whether embeddings are tied.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
        if tied_as is not None:
            other = transformers.AutoConfig.from_pretrained(tied_as, trust_remote_code=False, local_files_only=True)
            key, said = "tie_word_embeddings", other.get_text_config()
            if hasattr(said, key):  # not of images, for one
                setattr(config.get_text_config(), key, getattr(said, key))
        with torch.device("meta"):
            return getattr(transformers, config.architectures[0])(config)
    except Exception:  # whatever transformers makes of a configuration that it does not know
        return None


def places(model: Model, names: Iterable[str]) -> dict[str, Place]:
    """Where transformers puts tensors of these names when it loads them into the model; what it leaves out is not here.

    Args:
        model: a transformers model, with values or without.
        names: tensors' names, as files have them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        apply_converters,
        dot_natural_key,
        rename_source_key,
    )

    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix, tensors = model.base_model_prefix, model.state_dict()
    found = {}
    for name in sorted(names, key=dot_natural_key):  # in this order transformers' renamings have been written
        whole, pattern = rename_source_key(name, renamings, converters, prefix, tensors)
        if whole not in tensors and name in tensors:
            whole, pattern = name, None
        if whole not in tensors:
            continue
        if pattern is None:
            found[name] = Place(whole, whole, None, None)
            continue
        part, _ = rename_source_key(name, renamings, [])
        unprefixed, _ = apply_converters(part, converters)
        if whole == f"{prefix}.{unprefixed}":
            part = f"{prefix}.{part}"
        elif unprefixed == f"{prefix}.{whole}":
            part = part.removeprefix(f"{prefix}.")
        found[name] = Place(part, whole, pattern, by_pattern[pattern])
    return found


def ties(model: Model) -> dict[str, str]:
    """The model's tensors that are others', by its configuration: name → the name of the one that counts."""
    pairs = model.get_expanded_tied_weights_keys(all_submodels=True)

    def source(name: str) -> str:
        seen = {name}
        while (further := pairs.get(name)) is not None and further not in seen:
            name = further
            seen.add(name)
        return name

    return {name: source(name) for name in pairs}


def model_names(model: Model, tensors: TensorFiles) -> dict[str, list[str]]:
    """The files' names of each tensor of the model, by the model's name: several where a tied tensor is stored twice.

    As when transformers loads them: copies that differ are not tied, but tensors of their own. What it does not load
    is left out, but for tensors of the body that it would miss silently: they keep their names.
    """
    where = places(model, tensors.specs)
    tied = ties(model)
    found: dict[str, list[str]] = {}
    # The one that counts first, so that copies are compared with it.
    for own in sorted(where, key=lambda own: (where[own].name in tied, own)):
        name = where[own].name
        source = tied.get(name, name)
        if source in found and not _equal(tensors, found[source][0], own):
            source = name
        found.setdefault(source, []).append(own)
    for own in _not_dropped(model, tensors.specs.keys() - where.keys()):
        found.setdefault(own, []).append(own)
    return found


def _equal(tensors: TensorFiles, first: str, second: str) -> bool:
    import torch

    if tensors.specs[first].shape != tensors.specs[second].shape:
        return False
    one, other = tensors.read(first), tensors.read(second)
    return torch.equal(one, other if one.dtype == other.dtype else other.to(one.dtype))


def _not_dropped(model: Model, names: Iterable[str]) -> set[str]:
    """Of tensors that the model has no place for, those of its body that transformers does not know at all.

    It knows buffers that are obsolete, and what only other classes of the architecture have (a pooler).
    """
    import torch
    from transformers import AutoModel
    from transformers.utils.loading_report import LoadStateDictInfo

    body = f"{model.base_model_prefix}."
    unknown = {name for name in names if name.startswith(body)}
    loading = LoadStateDictInfo(
        missing_keys=set(),
        unexpected_keys=unknown,
        mismatched_keys=set(),
        conversion_errors={},
        error_msgs=[],
        skipped_pp_keys=set(),
    )
    model._adjust_missing_and_unexpected_keys(loading)
    if not loading.unexpected_keys:
        return set()
    try:
        with torch.device("meta"):
            whole_body = AutoModel.from_config(model.config, trust_remote_code=False)
    except ValueError:  # no class of the architecture is its body alone
        return loading.unexpected_keys
    return loading.unexpected_keys - places(whole_body, loading.unexpected_keys).keys()


def as_stored(model: Model, tensors: Mapping[str, "torch.Tensor"], files: TensorFiles) -> dict[str, "torch.Tensor"]:
    """Values of a model's parameters, one an entry, under the names and in the shapes that the files have them in.

    Args:
        model: that the parameters are of, with values or without.
        tensors: by the model's names: a Fisher, for instance, or the optimizer's moments.
        files: the model's checkpoint.

    Raises:
        InputError: the files lack a parameter, or hold it in a form whose entries are not the parameter's.
    """
    from transformers.core_model_loading import revert_weight_conversion

    tied, where = ties(model), places(model, files.stored)
    called = {tied.get(name, name): name for name in tensors}
    found: dict[str, torch.Tensor] = {}
    parts: dict[str, str] = {}  # a part's name → the files'
    left = dict(tensors)
    for own, place in sorted(where.items(), key=lambda item: item[1].name in tied):
        if place.converter is not None:
            parts[place.name] = own
            continue
        name = called.get(tied.get(place.name, place.name))
        if name in left:
            found[own] = left.pop(name)
    if left:
        stored = revert_weight_conversion(model, left)
        for name, place in places(model, stored).items():
            if place.name in parts:
                own = parts[place.name]
                _refuse_arithmetic(place.converter, own, files)
                found[own] = stored.pop(name)
        if stored:
            raise InputError(
                f"{files.directory}: the model's parameter {min(stored)} is not in its file; give the checkpoint that "
                "the model was loaded from, or save the model with `save_pretrained`"
            )
    return found


def as_loaded(model: Model, parts: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """The model's tensors, by its names, that transformers makes of parts, by the files' names."""
    groups: dict[str, Any] = {}
    for own, place in places(model, parts).items():
        group = groups.setdefault(place.whole, deepcopy(place.converter))
        group.add_tensor(place.whole, own, place.pattern, parts[own])
    found: dict[str, torch.Tensor] = {}
    for whole, group in groups.items():
        found |= group.convert(whole, model=model, config=model.config)
    return found


def _refuse_arithmetic(converter: Any, name: str, files: TensorFiles) -> None:
    for operation in converter.operations if converter is not None else ():
        if type(operation).__name__ not in _PERMUTATIONS:
            raise InputError(
                f"{files.file}: transformers computes with the tensor {name} when it loads it "
                f"({type(operation).__name__}), so the model's entries are not the file's; save the model with "
                "`save_pretrained`, and use that checkpoint"
            )
