"""Checkpoints: their weights, configuration, card and heads, and the base of several."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.running.errors import InputError
from stages.storage.adapted import AdaptedFiles, OnesFiles, OwnFiles
from stages.storage.adapters import PREFIX, adapter_base
from stages.storage.checkpoint_files import (
    CHECKPOINT_CARD,
    HEADS,
    config_file,
    is_adapter,
    read_checkpoint_card,
    read_config,
)
from stages.storage.digests import verify_contents
from stages.storage.tensors import (
    DEQUANTISE,
    TensorFiles,
    TensorSpec,
    check_fingerprint,
    write_tensors,
)
from stages.storage.weights import open_weights

if TYPE_CHECKING:
    import torch


# Of integer tensors: names that only codes of weights have, and tensors beside them that turn codes into values.
_CODES = re.compile(r"weight|qweight|qzeros|.*_packed|.*_blocks|.*_proj")
_SCALES = (".absmax", ".quant_map", ".nested_absmax", "_scale", "_scales", "_scale_inv", "_format")
_COMPANIONS = ("SCB", "scales", "g_idx", "qzeros")


class Checkpoint:
    """A Hugging Face checkpoint directory, or a PEFT adapter's, which is a model together with its base.

    Args:
        directory: where it is.
        base: of an adapter, the directory of its base, where the one that its configuration names is not here.

    Attributes:
        directory: where it is.
        base: of an adapter, where its base is.
        configured: where the model's config.json is.
        tensors: its weights, mapped; an adapter's model's are computed where the adapter changes them.
        copies: under which further names the files hold tied tensors, once that has been looked for: name → tensor.
        beyond: the names of its body's tensors that a merge's target has none for, once that has been looked for.
        config: its config.json.
        card: its checkpoint.json, empty where there is none (a checkpoint that this pipeline did not make).
    """

    def __init__(self, directory: Path, base: Path | None = None) -> None:
        if not directory.is_dir():
            raise InputError(f"{directory}: no such checkpoint directory")
        self.directory = directory
        verify_contents(directory)
        self.base = adapter_base(directory, base) if is_adapter(directory) else None
        # An adapter from elsewhere has no configuration of the model: it is the base's.
        foreign = self.base is not None and not config_file(directory).is_file()
        self.configured = self.base if self.base is not None and foreign else directory
        self.config = read_config(self.configured)
        self.tensors = open_weights(directory, self.base)
        files = self.tensors.base if isinstance(self.tensors, AdaptedFiles) else self.tensors
        refuse_quantised(self.config, files)
        if isinstance(self.tensors, AdaptedFiles):
            self._tie_as(self.tensors)
        self.card = read_checkpoint_card(directory)
        self.copies: Mapping[str, str] = {}
        self.beyond: set[str] = set()
        self._model_names: Mapping[str, str] = {}

    def _tie_as(self, adapted: AdaptedFiles) -> None:
        """Let the configuration say whether embeddings are tied as the base's does, but for what the adapter unties."""
        assert self.base is not None
        key, base = "tie_word_embeddings", read_config(self.base)
        if adapted.untied:
            self.config[key] = False
        elif key in base:
            self.config[key] = base[key]
        else:  # the architecture's default
            self.config.pop(key, None)

    def untie(self) -> None:
        """Let an adapter's model have two tensors of each tied pair from now on, as others of its base have them."""
        if self.adapted is not None and not self.adapted.untied:
            self.adapted.untie()
            self._tie_as(self.adapted)

    def call(self, names: Mapping[str, str], model_names: Mapping[str, str], copies: Mapping[str, str]) -> None:
        """Let the tensors go by other names from now on, and let those that are not named be gone.

        Args:
            names: the new name of each → the one it has now.
            model_names: the new name of each → what the model in memory calls it.
            copies: further names, in the files, of tied tensors → the new name of the tensor.
        """
        self.tensors = self.tensors.called(names)
        self._model_names = model_names
        self.copies = copies

    @property
    def adapted(self) -> AdaptedFiles | None:
        """Its weights, if they are an adapter's model's."""
        return self.tensors if isinstance(self.tensors, AdaptedFiles) else None

    def take_vectors(self) -> None:
        """Let the tensors be the adapter's own parameters from now on, not its model's weights."""
        assert self.base is not None
        self.tensors = OwnFiles(self.directory, self.base)
        self._model_names = {name: name.removeprefix(PREFIX) for name in self.tensors.specs}

    @property
    def labels(self) -> list[str] | None:
        """The label names, in the order of the outputs, if its configuration has any; it may name what has no names."""
        names = self.config.get("id2label")
        if not isinstance(names, dict):
            return None
        try:
            labels = [str(names[key]) for key in sorted(names, key=int)]
            "".join(labels).encode()
        except ValueError:
            raise InputError(f"{config_file(self.directory)}: id2label is no mapping of numbers to texts") from None
        return labels

    @property
    def output_names(self) -> list[str] | None:
        """What the outputs are called, by its card, if that knows: none where they have no names; else its labels."""
        names = self.card.get("labels")
        return self.labels if names is None else list(names)

    @property
    def base_model_prefix(self) -> str:
        """What the body's parameter names begin with; what lies outside is the head."""
        if isinstance(prefix := self.card.get("base_model_prefix"), str):
            return prefix
        import transformers  # seconds, so only for a foreign checkpoint

        architecture = self.architecture or "(none)"
        model_class = getattr(transformers, architecture, None)
        if model_class is None or not hasattr(model_class, "base_model_prefix"):
            raise InputError(f"{config_file(self.directory)}: unknown architecture {architecture!r}")
        return str(model_class.base_model_prefix)

    @property
    def architecture(self) -> str | None:
        """The name of transformers' class of the model, if config.json says it."""
        return _architecture(self.config)

    def name_in_model(self, name: str) -> str:
        """What the model in memory calls a tensor."""
        return self._model_names.get(name, name)

    def head(self) -> set[str]:
        """The names of the head's tensors: those outside the body."""
        prefix = f"{self.base_model_prefix}."
        return {name for name in self.tensors.specs if not self.name_in_model(name).startswith(prefix)}

    def head_tensors(self) -> dict[str, "torch.Tensor"]:
        """The head's tensors, mapped, by the names that they have in the model."""
        return {self.name_in_model(name): self.tensors.read(name) for name in sorted(self.head())}

    def verify(self) -> None:
        """Refuse weights that are not those of the card, if it knows; quick for what has been read whole already."""
        check_fingerprint(self.tensors, self.card, CHECKPOINT_CARD)


class BaseWeights:
    """The weights that models were fine-tuned from: a checkpoint of the same body, with or without a head.

    Attributes:
        directory: where it is.
        tensors: its weights, mapped.
        config: its config.json, empty where there is none.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self.directory = directory
        self.tensors = TensorFiles(directory)
        self.config = read_config(directory) if config_file(directory).is_file() else {}
        refuse_quantised(self.config, self.tensors)
        self._card = read_checkpoint_card(directory)
        self._prefix = f"{prefix}."
        self._other_heads: set[str] = set()

    @property
    def architecture(self) -> str | None:
        """The name of transformers' class of the base, if it has a config.json that says it."""
        return _architecture(self.config)

    def is_of(self, files: TensorFiles) -> bool:
        """Whether these are the weights in files, wherever they lie."""
        same = self.directory.resolve() == files.directory.resolve()
        return same or self.tensors.fingerprint() == files.fingerprint()

    def call(self, names: Mapping[str, str]) -> None:
        """Let the tensors go by the models' names, each → the one it has now; those that are not named are gone."""
        self.tensors = self.tensors.called(names)

    def name_of(self, name: str) -> str | None:
        """What the base calls the model's tensor `name`; None if it has no such tensor."""
        if name in self._other_heads:
            return None
        for candidate in (name, name.removeprefix(self._prefix)):
            if candidate in self.tensors.specs:
                return candidate
        return None

    def check(self, specs: Mapping[str, TensorSpec]) -> None:
        """Refuse a base that has none of a model's tensors, or one of another shape; such a head counts as none."""
        found = {name: own for name in specs if (own := self.name_of(name)) is not None}
        if not found:
            raise InputError(f"{self.tensors.file}: has none of the models' tensors; it is not their base")
        for name, own in found.items():
            shape = self.tensors.specs[own].shape
            if shape != specs[name].shape and not name.startswith(self._prefix):
                self._other_heads.add(name)
            elif shape != specs[name].shape:
                raise InputError(
                    f"{self.tensors.file}: tensor {own} has the shape {list(shape)}, but the models' have "
                    f"{list(specs[name].shape)}; it is not the base of these models"
                )

    def verify(self) -> None:
        """Refuse weights that are not as they were written, by the base's cards, if it has any."""
        check_fingerprint(self.tensors, self._card, CHECKPOINT_CARD)
        verify_contents(self.tensors.directory)


class Ones(BaseWeights):
    """The base of vectors that scale its activations, as (IA)³'s do: ones; see `OnesFiles`."""

    def __init__(self, vectors: Checkpoint) -> None:
        assert isinstance(vectors.tensors, OwnFiles), "they have been taken"
        self.directory = vectors.directory
        self.tensors = OnesFiles(vectors.tensors)
        self.config: dict[str, Any] = {}
        self._card: dict[str, Any] = {}
        self._prefix = PREFIX
        self._other_heads: set[str] = set()

    def verify(self) -> None:
        """Ones are what they are."""


def write_heads(directory: Path, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Write the heads of checkpoints into a merge's directory, a file each, by the checkpoint's name."""
    (directory / HEADS).mkdir()
    for name, checkpoint in checkpoints.items():
        write_tensors(directory / HEADS, name, checkpoint.head_tensors())


def read_head(directory: Path, name: str) -> dict[str, "torch.Tensor"]:
    """The head of that name in a merge's directory, mapped; that of a model whose head is tied has no tensors."""
    head = TensorFiles(directory / HEADS, name, may_be_empty=True)
    return {tensor: head.read(tensor) for tensor in head.specs}


def refuse_quantised(config: Mapping[str, Any], tensors: TensorFiles) -> None:
    """Refuse weights that are codes of values, of which no average is a model.

    Raises:
        InputError: the configuration or a tensor says so, by name.
    """
    if quantisation := config.get("quantization_config"):
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise InputError(
            f"{config_file(tensors.directory)}: quantization_config: the model is quantised "
            f"({method or 'by an unknown method'}); {DEQUANTISE}"
        )
    for name, spec in tensors.specs.items():
        *module, last = name.split(".")
        scaled = any(".".join([*module, f"{last}{ending}"]) in tensors.specs for ending in _SCALES)
        scaled |= any(".".join([*module, companion]) in tensors.specs for companion in _COMPANIONS)
        if not spec.is_floating and spec.dtype != "bool" and (scaled or _CODES.fullmatch(last)):
            raise InputError(f"{tensors.file}: tensor {name} is quantised ({spec.dtype}); {DEQUANTISE}")


def _architecture(config: Mapping[str, Any]) -> str | None:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None
