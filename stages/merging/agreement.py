"""Whether checkpoints can be merged: one function, one vocabulary, the same tensors."""

from collections.abc import Collection, Mapping
from pathlib import Path

from stages.merging.configuration import refuse_other_function
from stages.merging.vocabulary import has_vocabulary, refuse_other_vocabulary
from stages.running.errors import InputError
from stages.storage.adapters import deciding_config, has_vectors
from stages.storage.checkpoint import BaseWeights, Checkpoint
from stages.storage.checkpoint_files import ADAPTER_CONFIG
from stages.storage.tensors import TensorSpec

SAVE_AGAIN = (
    "if transformers loads both as one architecture, load this one with the installed version and save it again with "
    "`save_pretrained`"
)


def check_same_function(
    checkpoints: Mapping[str, Checkpoint], base: BaseWeights | None, *, any_vocabulary: bool = False
) -> None:
    """Refuse checkpoints, and a base, that compute otherwise than the first one or have another vocabulary.

    Args:
        checkpoints: the models, the target first.
        base: theirs, if it has a part in the merge.
        any_vocabulary: whether their vocabularies may differ.

    Raises:
        InputError: with the files and what differs.
    """
    first, *others = checkpoints.values()
    for other in others:
        if other.config.get("model_type") != first.config.get("model_type"):
            raise InputError(
                f"{other.directory}: is a {other.config.get('model_type')} model, but {first.directory} is a "
                f"{first.config.get('model_type')} model; only models of one architecture can be merged"
            )
        refuse_other_function(
            first.configured,
            first.config,
            other.configured,
            other.config,
            any_vocabulary=any_vocabulary,
            any_ties=_is_untied(first) and _is_untied(other),
        )
        if not any_vocabulary:
            ours, theirs = _vocabulary_of(first), _vocabulary_of(other)
            # Of an adapter without a tokenizer it is not known whether tokens were added to its base's.
            unknown = ours != first.directory or theirs != other.directory
            refuse_other_vocabulary(ours, theirs, may_lack=unknown)
    if base is not None and base.config:
        refuse_other_function(
            first.configured,
            first.config,
            base.directory,
            base.config,
            any_vocabulary=any_vocabulary,
            any_ties=_is_untied(first),
        )
        if not any_vocabulary:
            refuse_other_vocabulary(_vocabulary_of(first), base.directory, may_lack=True)


def _is_untied(checkpoint: Checkpoint) -> bool:
    """Whether it is an adapter's model that has two tensors of what its base ties, whatever its config.json says."""
    return checkpoint.adapted is not None and checkpoint.adapted.untied


def _vocabulary_of(checkpoint: Checkpoint) -> Path:
    """Where its tokenizer is: of an adapter that has none, beside its base."""
    lacks = checkpoint.base is not None and not has_vocabulary(checkpoint.directory)
    return checkpoint.base if checkpoint.base is not None and lacks else checkpoint.directory


def check_same_bases(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse adapters of different bases: each is a change of its own base's weights.

    Raises:
        InputError: with the two adapters and their bases.
    """
    adapters = {name: checkpoint for name, checkpoint in checkpoints.items() if checkpoint.adapted is not None}
    for name, other in list(adapters.items())[1:]:
        first_name, first = next(iter(adapters.items()))
        assert first.adapted is not None
        assert other.adapted is not None
        same = first.base == other.base or first.adapted.base.fingerprint() == other.adapted.base.fingerprint()
        if not same:
            raise InputError(
                f"{other.directory}: {name} is an adapter of the weights in {other.base}, but {first_name} of those in "
                f"{first.base}, which are others; only adapters of one base can be merged"
            )


def refuse_adapters(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Raise `InputError` if a model is an adapter, where vocabularies may differ."""
    for name, checkpoint in checkpoints.items():
        if checkpoint.base is not None:
            raise InputError(
                f"{checkpoint.directory}: {name} is an adapter, whose rows are not matched by token; remove "
                "`vocabulary`, or write it as a whole model by a merge of it alone, and merge that"
            )


def all_are_vectors(checkpoints: Mapping[str, Checkpoint]) -> bool:
    """Whether all models are adapters whose parameters are vectors, put at the same places: these can be averaged.

    Raises:
        InputError: some are such adapters, at other places or with others that are not; with the two models.
    """
    vectors = {name: has_vectors(checkpoint.directory) for name, checkpoint in checkpoints.items()}
    if not any(vectors.values()):
        return False
    (first_name, first), *others = checkpoints.items()
    for name, other in others:
        if vectors[name] != vectors[first_name]:
            raise InputError(
                f"{other.directory}: {name} and {first_name} are not both adapters of vectors that scale activations, "
                "which are averaged among themselves only"
            )
        ours, theirs = deciding_config(first.directory), deciding_config(other.directory)
        if differing := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            raise InputError(
                f"{other.directory / ADAPTER_CONFIG}: {differing[0]} is {theirs.get(differing[0])}, but "
                f"{ours.get(differing[0])} in {first.directory}; only such adapters of the same places can be averaged"
            )
    return True


def check_same_body(
    checkpoints: Mapping[str, Checkpoint], heads: Collection[str], of_tokens: Collection[str] = ()
) -> None:
    """Refuse checkpoints whose tensors outside `heads` differ in name or shape from the first one's.

    Args:
        checkpoints: the models, the target first.
        heads: names of tensors that may differ.
        of_tokens: names of those that may have another number of rows.

    Raises:
        InputError: with the model, the tensor and what differs.
    """
    (first_name, first), *others = checkpoints.items()
    for name, other in others:
        ours, theirs = first.tensors.specs, other.tensors.specs
        for tensor in sorted((ours.keys() | theirs.keys()) - set(heads)):
            if tensor not in theirs:
                raise InputError(
                    f"{other.tensors.file}: lacks the tensor {tensor}, which {first_name} has; {SAVE_AGAIN}"
                )
            if tensor not in ours:
                raise InputError(f"{first.tensors.file}: lacks the tensor {tensor}, which {name} has; {SAVE_AGAIN}")
            if _shape(ours[tensor], tensor in of_tokens) != _shape(theirs[tensor], tensor in of_tokens):
                raise InputError(
                    f"{other.tensors.file}: tensor {tensor} has the shape {list(theirs[tensor].shape)}, but "
                    f"{first_name}'s has {list(ours[tensor].shape)}"
                )


def check_heads_fit_body(checkpoints: Mapping[str, Checkpoint], heads: Collection[str]) -> None:
    """Refuse checkpoints of which one has tensors in its body that another lacks: its head may read what they make.

    A tagger's BERT has no pooler, for one, which a classifier's head reads.

    Raises:
        InputError: with the two models, the tensor, and how they can be merged.
    """
    (target_name, target), *others = checkpoints.items()
    for name, other in others:
        only_target = target.tensors.specs.keys() - other.tensors.specs.keys() - set(heads)
        only_other = other.beyond | other.tensors.specs.keys() - target.tensors.specs.keys() - set(heads)
        if only_target and only_other:
            continue  # they are called otherwise, or are other models
        for tensor in sorted(only_target or only_other):
            has, lacks = (target_name, other) if only_target else (name, target)
            raise InputError(
                f"{lacks.tensors.file}: lacks the tensor {tensor}, which {has} has in its body, so that heads of their "
                "own cannot all work on one body; set `heads: target`, in a merge for each target"
            )


def lacked_by_others(checkpoints: Mapping[str, Checkpoint]) -> set[str]:
    """The names of the first one's tensors that some other checkpoint lacks."""
    first, *others = (checkpoint.tensors.specs.keys() for checkpoint in checkpoints.values())
    return {name for name in first if not all(name in other for other in others)}


def heads_agree(checkpoints: Mapping[str, Checkpoint], of_tokens: Collection[str] = ()) -> bool:
    """Whether all models have the same label names, and all their tensors the same names and shapes.

    What the outputs mean must be the same too, where two models say it: one label of several, any of them, or numbers.

    Args:
        checkpoints: the models.
        of_tokens: names of tensors that may have another number of rows.
    """
    first, *others = checkpoints.values()

    def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
        return {name: _shape(spec, name in of_tokens) for name, spec in checkpoint.tensors.specs.items()}

    stated = {checkpoint.config.get("problem_type") for checkpoint in checkpoints.values()} - {None}
    if len(stated) < 2 and all(other.labels == first.labels for other in others):
        shapes = shapes_of(first)
        if all(shapes_of(other) == shapes for other in others):
            return True
        # The bodies may differ, which is an error that names the tensor; only a head may.
        head = first.head()
        return all(
            {name: shape for name, shape in shapes_of(other).items() if name in head}
            == {name: shape for name, shape in shapes.items() if name in head}
            for other in others
        )
    return False


def _shape(spec: TensorSpec, of_tokens: bool) -> tuple[int, ...]:
    """A tensor's shape, of one with a row per token without the number of rows."""
    return spec.shape[1:] if of_tokens else spec.shape


def refuse_unequal(tensor: str, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse an integer tensor that is not the same in all checkpoints."""
    import torch

    (first_name, first), *others = checkpoints.items()
    for _, other in others:
        if not torch.equal(first.tensors.read(tensor), other.tensors.read(tensor)):
            raise InputError(
                f"{other.tensors.file}: the integer tensor {tensor} differs from {first_name}'s; it cannot be averaged"
            )
