"""The weights of an adapter's model: the base's, with the adapter's changes in them, computed when they are read."""

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from stages.running.errors import InputError
from stages.storage import naming
from stages.storage.adapters import PREFIX, Adapter, deciding_config
from stages.storage.checkpoint_files import ADAPTER_STEM, STEM, config_file
from stages.storage.tensors import TensorFiles, TensorSpec

if TYPE_CHECKING:
    import torch


class AdaptedFiles(TensorFiles):
    """What the files of an adapter's whole model would hold, under the names that transformers would save it by.

    Nothing is stored twice: the base's tensors are mapped, and what the adapter changes is computed as it is read.

    Attributes:
        adapter: what changes.
        base: the base's files.
        changed: names of the tensors that are not the base's.
        ties: the base's tied tensors: name → the name of the one that counts.
        untied: whether a tied pair of the base's is no longer one: the adapter changes one of the two.

    Args:
        directory: the adapter's.
        base: the directory of its base.

    Raises:
        InputError: the adapter is none of this base, or of a kind whose change is of no weights; named.
    """

    def __init__(self, directory: Path, base: Path) -> None:
        # Whether embeddings are tied is the base's matter: an adapter's own config.json says what came of them.
        configured = directory if config_file(directory).is_file() else base
        model = naming.empty_model(configured, tied_as=base)
        if model is None:
            raise InputError(
                f"{config_file(configured)}: transformers does not know this architecture, so no adapter can "
                "be put on it"
            )
        self.directory, self.stem = directory, STEM
        self.base = TensorFiles(base)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.ties = naming.ties(model)
        where = naming.places(model, self.base.specs)
        if parts := sorted(name for name, place in where.items() if place.pattern is not None):
            raise InputError(
                f"{self.base.file}: the model has its tensor {parts[0]} together with others in one, so no adapter's "
                "weights can be told; use a base whose weights are stored as the model has them"
            )
        self._of_base = {name: own[0] for name, own in naming.model_names(model, self.base).items()}
        self.adapter = Adapter(directory, model)
        self.changed = {*self.adapter.computed, *self.adapter.replaced}
        self._same: dict[str, str] = {}  # since `untie`
        self.untied = self._find_untied()
        specs = {name: self.base.specs[own] for name, own in self._of_base.items()}
        for name, own in self.adapter.replaced.items():
            dtype = specs[name].dtype if name in specs else self.adapter.tensors.specs[own].dtype
            specs[name] = TensorSpec(dtype, self.adapter.tensors.specs[own].shape)
            if specs[name].shape != shapes[name]:
                raise InputError(
                    f"{self.adapter.tensors.file}: tensor {own} has the shape {list(specs[name].shape)}, but the model "
                    f"{list(shapes[name])}; it is no adapter of this base"
                )
        if lacking := sorted(self.adapter.computed - specs.keys()):
            raise InputError(f"{self.base.file}: lacks the tensor {lacking[0]}, which the adapter changes")
        self.stored = dict(sorted(specs.items()))
        self.specs = self.stored
        self.digests = {}
        self._stored_names = {}
        self.selections = {}
        if self.untied:  # a configuration says it of all pairs
            self.untie()

    @property
    def file(self) -> Path:
        """The file to name in a message: the adapter's."""
        return self.adapter.tensors.file

    def untie(self) -> None:
        """Have both of every tied pair from now on: of one that is still tied, or of which the base has one, twice."""
        self.untied = True
        for alias, source in self.ties.items():
            if source in self.stored and alias not in self.stored:
                self._same[alias] = source
                self._of_base[alias] = self._of_base[source]
                self.changed |= {alias} if source in self.changed else set()
                self.stored[alias] = self.stored[source]
        self.stored = dict(sorted(self.stored.items()))
        self.specs = self.stored

    def _find_untied(self) -> bool:
        """Give both of a tied pair a tensor of their own where the adapter leaves them different."""
        import torch

        untied = False
        for alias, source in self.ties.items():
            if not self.changed & {alias, source} or source not in self._of_base:
                continue
            self._of_base.setdefault(alias, self._of_base[source])
            one, other = (self._values(name, torch.float32) for name in (alias, source))
            if torch.equal(one, other) or (self.changed >= {alias, source} and torch.allclose(one, other, atol=1e-6)):
                self.changed.discard(alias)
                self.adapter.computed.discard(alias)
                self.adapter.replaced.pop(alias, None)
                del self._of_base[alias]
            else:
                untied = True
        return untied

    def _values(self, name: str, dtype: "torch.dtype") -> "torch.Tensor":
        import torch

        name = self._same.get(name, name)
        if name in self.adapter.computed:
            precise = torch.promote_types(dtype, torch.float32)  # peft's layers lose much in a lower precision
            return self.adapter.weight(name, self.base.read(self._of_base[name]), precise)
        if name in self.adapter.replaced:
            return self.adapter.tensors.read(self.adapter.replaced[name])
        return self.base.read(self._of_base[name])

    def read_as(self, name: str, dtype: "torch.dtype") -> "torch.Tensor":
        """The tensor `name`: as it is stored, or, where the adapter changes it, computed in `dtype` or float32."""
        return self._values(self.stored_name(name), dtype)

    def _read_stored(self, name: str) -> "torch.Tensor":
        import torch

        return self._values(name, torch.float32)

    def base_value(self, name: str) -> "torch.Tensor | None":
        """The base's tensor `name`, mapped; None of one that it lacks."""
        own = self._of_base.get(self.stored_name(name))
        return None if own is None else self.base.read(own)

    def take_digest(self, name: str, digest: str) -> None:
        """Of what is computed no digest is kept: the identity is that of base and adapter."""

    def copy_to(self, directory: Path) -> None:
        """Copy the adapter's own files as they are."""
        self.adapter.tensors.copy_to(directory)

    def fingerprint(self) -> str:
        """The identity of the model: SHA-256 of the base's fingerprint, the adapter's, and its configuration."""
        facts = [self.base.fingerprint(), self.adapter.tensors.fingerprint(), deciding_config(self.directory)]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class OwnFiles(TensorFiles):
    """An adapter's own parameters, as its file has them; their identity is that of the adapter's model.

    Args:
        directory: the adapter's.
        base: the directory of its base.
    """

    def __init__(self, directory: Path, base: Path) -> None:
        super().__init__(directory, ADAPTER_STEM)
        self.whole = AdaptedFiles(directory, base)

    def fingerprint(self) -> str:
        """The identity of the adapter's model."""
        return self.whole.fingerprint()


class OnesFiles(TensorFiles):
    """What a base is to an adapter of vectors: ones, of the vectors' names and shapes; of modules saved whole, its own.

    Args:
        vectors: the adapter's own parameters.
    """

    def __init__(self, vectors: OwnFiles) -> None:
        self.directory, self.stem = vectors.directory, vectors.stem
        self._base: dict[str, torch.Tensor] = {}
        for name, spec in vectors.specs.items():
            values = vectors.whole.base_value(name.removeprefix(PREFIX))
            if values is not None and tuple(values.shape) == spec.shape:
                self._base[name] = values
        known = {name: spec for name, spec in vectors.specs.items() if name in self._base or name.endswith(".ia3_l")}
        self.stored = self.specs = known
        self.digests = {}
        self._stored_names = {}
        self.selections = {}

    def _read_stored(self, name: str) -> "torch.Tensor":
        import torch

        return self._base[name] if name in self._base else torch.ones(self.stored[name].shape)
