"""A merge of adapters as a LoRA adapter again: each weight's change by its best approximation of a rank."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.merging.merged_tensors import Merging
from stages.merging.streaming import on_all_cores
from stages.running.errors import InputError
from stages.storage.adapted import AdaptedFiles
from stages.storage.adapters import BASE, PREFIX, adapter_config
from stages.storage.cards import write_json
from stages.storage.checkpoint_files import ADAPTER_CONFIG, ADAPTER_STEM
from stages.storage.naming import Model, empty_model
from stages.storage.tensors import write_tensors


def _check_written(directory: Path, merging: Merging, names: list[str], tied: set[str]) -> None:
    """Refuse an adapter that changes other weights than the merge does: of tied ones peft changes one, or both."""
    assert merging.ingredients.target.base is not None
    written = AdaptedFiles(directory, merging.ingredients.target.base)
    if other := sorted(written.changed.symmetric_difference(names)) or (sorted(tied) if written.untied else []):
        raise InputError(
            f"{merging.ingredients.target.directory}: the merge changes {other[0]} together with what is tied to it, "
            "or apart from it, which no LoRA adapter of this base does; leave out `adapter`, so that the merge is a "
            "whole model"
        )


@dataclass(frozen=True)
class Factors:
    """A change Δ ≈ B A, by the truncated singular value decomposition: of that rank nothing is nearer to Δ in ‖·‖_F
    (Eckart & Young 1936).

    Attributes:
        a: [rank, inputs].
        b: [outputs, rank]; both have the square roots of the singular values.
        squares: ‖Δ‖_F².
        lost: ‖Δ − B A‖_F².
    """

    a: Tensor
    b: Tensor
    squares: float
    lost: float

    @property
    def relative_error(self) -> float:
        """‖Δ − B A‖_F / ‖Δ‖_F; 0 of a change that is none."""
        return (self.lost / self.squares) ** 0.5 if self.squares else 0.0


def truncated(change: Tensor, rank: int) -> Factors:
    """The best factors of a change [outputs, inputs], in float64, of a rank or, if a side is shorter, of that."""
    u, values, v = torch.linalg.svd(change.double(), full_matrices=False)
    root = values[:rank].sqrt()
    squares = values.square()
    return Factors(root[:, None] * v[:rank], u[:, :rank] * root, float(squares.sum()), float(squares[rank:].sum()))


def write_as_adapter(merging: Merging, rank: int, directory: Path) -> dict[str, Any]:
    """Write a merge of adapters as a LoRA adapter of their base, in an existing directory.

    Modules that an adapter has trained as a whole are whole in the result. Changes are differences of nearly equal
    numbers, so the merge must compute in float64.

    Args:
        merging: of adapters.
        rank: of the adapter.
        directory: where to.

    Returns:
        What a card says of it: `rank`; `relative_error`, ‖Δ − B A‖_F / ‖Δ‖_F over all weights together, and that of
        each.

    Raises:
        InputError: something is merged that no LoRA adapter holds, named.
    """
    if rank < 1:
        raise InputError(f"rank = {rank}: an adapter's rank must be positive")
    adapted = check_adapters(merging)
    merging.prepare()
    target = merging.ingredients.target
    model = empty_model(target.configured)
    assert model is not None
    names = sorted(merging.ingredients.adapted_names() & merging.specs.keys())
    tied = {source for alias, source in adapted.ties.items() if alias not in merging.specs and source in names}
    adapters = [checkpoint.directory for checkpoint in merging.ingredients.checkpoints.values()]
    assert target.base is not None
    places = _Places(model, names, adapters, target.base)

    def factors(name: str) -> Factors:
        base = adapted.base_value(name)
        assert base is not None
        change = merging.exact(name) - base.double()
        return truncated(change if places.outputs_first(name) else change.T, rank)

    found = dict(zip(places.factored, on_all_cores(factors, places.factored), strict=True))
    tensors: dict[str, Tensor] = {}
    for name, own in found.items():
        tensors |= places.tensors(name, own)
    for name in places.whole:
        tensors[PREFIX + name] = merging.exact(name).to(getattr(torch, merging.specs[name].dtype))
        merging.refuse_infinite(name, tensors[PREFIX + name])
    for alias, name in adapted.ties.items():
        if name in tied and name in found:  # an embedding, which is the weight of a Linear layer too
            own = found[name]
            tensors |= places.tensors(alias, Factors(own.b.T, own.a.T, own.squares, own.lost))
        elif name in tied:
            tensors[PREFIX + alias] = tensors[PREFIX + name]
    write_tensors(directory, ADAPTER_STEM, {name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    write_json(directory / ADAPTER_CONFIG, places.config(rank, found, ties=bool(tied)))
    _check_written(directory, merging, names, tied)
    squares, lost = (sum(getattr(own, part) for own in found.values()) for part in ("squares", "lost"))
    return {
        "rank": rank,
        "relative_error": (lost / squares) ** 0.5 if squares else 0.0,
        "relative_errors": {name: own.relative_error for name, own in found.items()},
    }


class _Places:
    """Where the merged tensors lie in a LoRA adapter.

    Attributes:
        factored: the weights that have factors.
        whole: what modules have that are saved whole.
    """

    def __init__(self, model: Model, names: Iterable[str], adapters: Sequence[Path], base: Path) -> None:
        from transformers.pytorch_utils import Conv1D

        self._modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
        self._before = adapter_config(adapters[0])
        self._base_name = self._before.get(BASE) or base.as_posix()
        saved = {name for adapter in adapters for name in adapter_config(adapter).get("modules_to_save") or []}
        self.whole = [name for name in self._modules if _is_saved(name.rpartition(".")[0], saved)]
        self.factored = [name for name in self._modules if name not in self.whole]
        self._transposed = Conv1D
        for name in self.factored:
            linear = isinstance(self._modules[name], torch.nn.Linear | torch.nn.Embedding | Conv1D)
            if not linear or not name.endswith(".weight"):
                raise InputError(
                    f"{adapters[0]}: the merge changes {name}, of which a LoRA adapter has no change of low rank; "
                    "leave out `adapter`, so that the merge is a whole model"
                )

    def outputs_first(self, name: str) -> bool:
        """Whether the weight is stored as [outputs, inputs]; an embedding's inputs are its tokens."""
        return not isinstance(self._modules[name], self._transposed | torch.nn.Embedding)

    def tensors(self, name: str, factors: Factors) -> dict[str, Tensor]:
        """The factors of a weight, in float32, under the names that a LoRA adapter's file has."""
        path = PREFIX + name.removesuffix(".weight")
        embedding = isinstance(self._modules.get(name), torch.nn.Embedding)
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        return {f"{path}.{a}": factors.a.float(), f"{path}.{b}": factors.b.float()}

    def config(self, rank: int, found: dict[str, Factors], *, ties: bool) -> dict[str, Any]:
        """The adapter's configuration: each weight's own rank is its scaling's too, so that this is 1.

        Args:
            rank: of most.
            found: the factors of each weight.
            ties: whether what is tied to one of the weights changes with it.
        """
        import peft

        paths = {name: name.removesuffix(".weight") for name in found}
        lower = {paths[name]: len(own.a) for name, own in found.items() if len(own.a) < rank}
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=sorted(paths.values()),
            rank_pattern=lower,
            alpha_pattern=lower,
            fan_in_fan_out=any(isinstance(self._modules[name], self._transposed) for name in found),
            modules_to_save=sorted({name.rpartition(".")[0] for name in self.whole}) or None,
            ensure_weight_tying=ties,
            task_type=self._before.get("task_type"),
            inference_mode=True,
            base_model_name_or_path=self._base_name,
        )
        facts = {key: getattr(value, "value", value) for key, value in config.to_dict().items()}
        return {key: sorted(value) if isinstance(value, set) else value for key, value in facts.items()}


def _is_saved(module: str, saved: Iterable[str]) -> bool:
    """Whether an adapter's `modules_to_save` names the module, as peft reads it: by the ending of its path."""
    return any(module == name or module.endswith(f".{name}") for name in saved)


def check_adapters(merging: Merging) -> AdaptedFiles:
    """The target's weights, where a merge can be an adapter.

    Raises:
        InputError: a model is none; or the merge goes on from another base than the adapters', and so changes more.
    """
    for name, checkpoint in merging.ingredients.checkpoints.items():
        if checkpoint.adapted is None:
            raise InputError(
                f"{checkpoint.directory}: {name} is no LoRA adapter, so the merge cannot be one; leave out `adapter`"
            )
    adapted = merging.ingredients.target.adapted
    assert adapted is not None
    if beyond := sorted(merging.models.averaged - merging.ingredients.adapted_names()):
        base = merging.ingredients.base
        assert base is not None
        raise InputError(
            f"{base.directory}: has other weights than the adapters' base {adapted.base.directory}, "
            f"so the merge changes {beyond[0]} too, which no adapter changes; give the adapters' base, or leave out "
            "`adapter`"
        )
    return adapted
