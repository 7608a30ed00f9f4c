"""Which tensors of a checkpoint have a row for each token: transformers says so, sizes do not."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

from stages.running.errors import InputError
from stages.storage import naming
from stages.storage.checkpoint import Checkpoint
from stages.storage.checkpoint_files import config_file
from stages.storage.naming import Model
from stages.storage.tensors import TensorFiles

REMEDY = "merge models of one vocabulary (`vocabulary: same`)"
_MORE = 1024  # tokens: a multiple of all that vocabularies are padded to
_OF_POSITIONS = ("position", "seq_len", "n_ctx", "context_length")  # in keys of how many positions there are
_NOT_OF_TOKENS = ("type_vocab_size",)  # BERT's kinds of segments


def token_tensors(checkpoint: Checkpoint) -> set[str]:
    """The names, as they go here, of the input and output embeddings and the output's bias, as far as there are any.

    What depends on the vocabulary's size is found by a model whose configuration has more tokens.

    Raises:
        InputError: transformers does not know the model, another tensor depends on the vocabulary's size or may do so,
            or these have different numbers of rows.
    """
    model = naming.empty_model(checkpoint.directory)
    larger_model = None if model is None else _enlarged(model, _is_of_tokens)
    if model is None or larger_model is None:
        raise InputError(
            f"{config_file(checkpoint.directory)}: transformers makes no model of it, so it is not known which tensors "
            f"have a row per token; {REMEDY}"
        )
    sizes, larger = dict(_shapes(model)), dict(_shapes(larger_model))
    embeddings, tied = _embeddings(model), naming.ties(model)
    found: set[str] = set()
    where = naming.places(model, checkpoint.tensors.specs)
    for name, place in where.items():
        whole = place.whole
        if larger.get(whole) == sizes[whole]:
            continue
        grown_in_rows = larger.get(whole, ())[1:] == sizes[whole][1:] and place.pattern is None
        if not grown_in_rows or tied.get(whole, whole) not in embeddings:
            raise InputError(
                f"{checkpoint.tensors.file}: tensor {name} depends on the size of the vocabulary, but is neither an "
                f"input nor an output embedding, so its entries cannot be matched by token; {REMEDY}"
            )
        found.add(name)
    rows = rows_of(checkpoint.tensors, found)
    for name in sorted(checkpoint.tensors.specs.keys() - where.keys()):
        if rows in checkpoint.tensors.specs[name].shape:
            raise InputError(
                f"{checkpoint.tensors.file}: tensor {name}, which transformers does not load, may have an entry per "
                "token, as the embeddings have a row; load the model, and save it again with `save_pretrained`"
            )
    return found


def rows_of(tensors: TensorFiles, names: set[str]) -> int:
    """How many rows these tensors have; 0 if the files have none of them. Raises `InputError` if they differ."""
    specs = {name: tensors.specs[name] for name in sorted(names & tensors.specs.keys())}
    rows = {name: spec.shape[0] if spec.shape else 0 for name, spec in specs.items()}
    for name, number in rows.items():
        first = next(iter(rows))
        if number != rows[first]:
            raise InputError(
                f"{tensors.file}: tensor {name} has {number} rows, but {first} has {rows[first]}; resize "
                "both to one number of tokens (`resize_token_embeddings`)"
            )
    return next(iter(rows.values()), 0)


def positions_may_follow_padding(checkpoint: Path) -> bool:
    """Whether the number of the padding token may decide positions, as in RoBERTa: whether there is a table of them.

    True too where transformers makes no model of it.
    """
    model = naming.empty_model(checkpoint)
    larger = None if model is None else _enlarged(model, lambda key: any(word in key for word in _OF_POSITIONS))
    return model is None or larger is None or sorted(_shapes(model)) != sorted(_shapes(larger))


def _is_of_tokens(key: str) -> bool:
    return "vocab_size" in key and key not in _NOT_OF_TOKENS


def _enlarged(model: Model, chosen: Callable[[str], bool]) -> Model | None:
    """A model without values of the same configuration, but for these keys, which are larger; None if there is none."""
    import torch

    config = deepcopy(model.config)
    configs = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    for each in configs:
        # What a class calls otherwise (XLM's n_words) goes by its usual name too.
        keys = {*each.to_dict(), *each.attribute_map} if each is not None else set()
        for key in sorted(keys):
            if chosen(key) and type(getattr(each, key, None)) is int:
                setattr(each, key, getattr(each, key) + _MORE)
    try:
        with torch.device("meta"):
            return type(model)(config)
    except Exception:  # whatever transformers makes of a configuration that it does not like
        return None


def _shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of all that a model holds, stored or not."""
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return ((name, tuple(tensor.shape)) for name, tensor in tensors)


def _embeddings(model: Model) -> set[str]:
    """The model's names of its embeddings' parameters; of tied ones, of the one that counts."""
    modules: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = naming.ties(model)
    names = {
        f"{name}.{parameter}"
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is each for each in modules)
        for parameter in ("weight", "bias")
    }
    # What the class ties to them where the configuration lets it: BERT's decoder has a bias outside itself.
    declared = getattr(model, "_tied_weights_keys", None)
    names |= {source for name, source in declared.items() if name in names} if isinstance(declared, dict) else set()
    return {tied.get(name, name) for name in names}
