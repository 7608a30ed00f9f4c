"""Tiny checkpoints with random statistics, to merge in tests."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from stages.merging import merge_checkpoints
from stages.storage.cards import FORMAT_VERSION, write_json
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles, fingerprint
from tests.merging.models import gram
from tests.tiny import save_base, tiny_bert, tiny_masked_lm, tiny_tokenizer

Tensors = dict[str, torch.Tensor]


class Zoo:
    """Model name → checkpoint directory and Fisher directory; the cards of these Fishers say no norms."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints: dict[str, Path] = {}
        self.fishers: dict[str, Path] = {}
        self.uninformed: str | None = None  # the weight whose factors are zero

    @classmethod
    def of(cls, root: Path, *names: str) -> Self:
        """A zoo of these models."""
        zoo = cls(root)
        for name in names:
            zoo.add(name)
        return zoo

    def add(
        self, name: str, dtype: torch.dtype = torch.float32, labels: Sequence[str] = ("bad", "good"), **changes: Any
    ) -> None:
        self.add_model(name, tiny_bert(labels, seed=len(self.checkpoints) + 1, **changes), dtype)

    def add_masked_lm(self, name: str) -> None:
        """A model without a pooler, with another head."""
        self.add_model(name, tiny_masked_lm(seed=len(self.checkpoints) + 1))

    def add_model(self, name: str, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
        directory = self.root / name
        torch.nn.Module.to(model, dtype=dtype)
        model.save_pretrained(directory, max_shard_size="1GB")
        tiny_tokenizer().save_pretrained(directory)
        self.checkpoints[name] = directory
        self.set_fisher(name, self.random_fisher(name))

    def random_fisher(self, name: str) -> Tensors:
        generator = torch.Generator().manual_seed(100 + len(self.fishers))
        fisher = {}
        for tensor, value in load_file(self.checkpoints[name] / "model.safetensors").items():
            # Ten orders of magnitude, as real Fishers have, and some zeros.
            magnitude = 10 ** (-10 * torch.rand(value.shape, generator=generator))
            fisher[tensor] = magnitude * (torch.rand(value.shape, generator=generator) > 0.1)
        return fisher

    def set_fisher(self, name: str, fisher: Tensors) -> None:
        directory = self.root / f"{name}-fisher"
        directory.mkdir(exist_ok=True)
        save_file(fisher, directory / "fisher.safetensors")
        self.fishers[name] = directory
        self.write_card(name)

    def write_card(self, name: str) -> None:
        card = {
            "format_version": FORMAT_VERSION,
            "checkpoint": fingerprint(TensorFiles(self.checkpoints[name])),
            "fingerprint": fingerprint(TensorFiles(self.fishers[name], "fisher")),
        }
        write_json(self.fishers[name] / "fisher.json", card)

    def tensors(self, name: str) -> Tensors:
        return load_file(self.checkpoints[name] / "model.safetensors")

    def change(self, name: str, edit: Callable[[Tensors], None]) -> None:
        tensors = self.tensors(name)
        edit(tensors)
        save_file(tensors, self.checkpoints[name] / "model.safetensors", metadata={"format": "pt"})
        self.write_card(name)

    def change_fisher(self, name: str, edit: Callable[[Tensors], object]) -> None:
        fisher = load_file(self.fishers[name] / "fisher.safetensors")
        edit(fisher)
        self.set_fisher(name, fisher)

    def merge(self, coefficients: Mapping[str, float], **options: Any) -> Tensors:
        out = self.root / "merged"
        merge_checkpoints(self.checkpoints, out, coefficients=coefficients, **({"statistics": self.fishers} | options))
        return load_file(out / "model.safetensors")

    def factors(self, name: str) -> Path:
        """A directory with random K-FAC factors and Gram matrices of a model's Linear weights."""
        directory = self.root / f"{name}-factors"
        directory.mkdir(exist_ok=True)
        checkpoint = TensorFiles(self.checkpoints[name])
        generator = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
        inputs, outputs = {}, {}
        for tensor, spec in checkpoint.specs.items():
            if len(spec.shape) == 2 and "embeddings" not in tensor:
                rows, columns = spec.shape
                known = float(tensor != self.uninformed)
                inputs[f"input.{tensor}"] = known * gram(torch.randn(50, columns, generator=generator))
                outputs[f"output.{tensor}"] = known * gram(torch.randn(50, rows, generator=generator))
        write_statistic(directory, "kfac", inputs | outputs, checkpoint, {})
        write_statistic(directory, "gram", inputs, checkpoint, {})
        return directory

    def base(self) -> Path:
        """A base without a head, whose tensors have no prefix."""
        directory = self.root / "base"
        if not directory.is_dir():
            save_base(directory)
        return directory

    def merge_by(self, method: Any, coefficients: Mapping[str, float], **options: Any) -> Tensors:
        """Merge by any method, with all that it may need."""
        given: dict[str, Any] = {"base": self.base(), "method": method} | options
        if "statistics" not in given:
            given["statistics"] = {name: [self.fishers[name], self.factors(name)] for name in self.checkpoints}
        return self.merge(coefficients, **given)


def without(name: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        del tensors[name]

    return edit


def poisoned(name: str, value: float) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[name].view(-1)[3] = value

    return edit
