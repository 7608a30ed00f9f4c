"""Models with Fishers that are spoilt, merged, and made whole again."""

import shutil
from pathlib import Path
from typing import Any

import torch

from stages.merging import merge_checkpoints
from stages.running.errors import InputError
from stages.storage.cards import FORMAT_VERSION, write_json
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles, TensorSpec, TensorWriter
from tests.fuzz.cases import Random, choice, refused

SHAPES = {
    "bert.embeddings.weight": (6, 5),
    "bert.dense.weight": (5, 5),
    "bert.dense.bias": (5,),
    "bert.steps": (),
    "classifier.weight": (2, 5),
    "classifier.bias": (2,),
}
MODELS = ("ann", "bob")


def write_model(directory: Path, fisher: Path, number: int, max_shard_bytes: int = 5_000_000_000) -> None:
    """A checkpoint of random values and its Fisher, each in a directory, as the pipeline leaves them."""
    directory.mkdir(parents=True)
    fisher.mkdir(parents=True)
    generator = torch.Generator().manual_seed(number)
    values = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    specs = {key: TensorSpec("float32", shape) for key, shape in SHAPES.items()}
    with TensorWriter(directory, "model", specs, max_shard_bytes) as writer:
        for key, value in values.items():
            writer.write(key, value)
        found = writer.fingerprint()
    write_json(directory / "config.json", {"model_type": "bert", "id2label": {"0": "bad", "1": "good"}})
    write_json(directory / "tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": []})
    write_json(
        directory / "checkpoint.json",
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": found,
            "base_model_prefix": "bert",
            "labels": ["bad", "good"],
            "task": "reviews",
            "origin": {"method": "finetuned", "examples": 10, "validation_accuracy": 0.5},
        },
    )
    facts = {"estimator": "exact", "likelihood": "categorical", "examples": 10, "seed": 0}
    squares = {key: value.square() for key, value in values.items()}
    write_statistic(fisher, "diagonal", squares, TensorFiles(directory), facts)


class Menagerie:
    """Two models with Fishers, as the pipeline leaves them, that can be spoilt and made whole again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        for number, name in enumerate(MODELS):
            # bob's tensors lie in several files
            write_model(root / name, root / f"{name}-fisher", number, 5_000_000_000 if name == "ann" else 100)
        self.content = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
        # A card or configuration may say that heads cannot be merged, which is as it should be.
        self.right = {
            method: [self.merge(method, heads="merge"), self.merge(method, heads="target")]
            for method in ("fisher", "isotropic")
        }

    def merge(self, method: str, heads: Any = "merge") -> bytes:
        """The merged weights."""
        checkpoints = {name: self.root / name for name in MODELS}
        fishers: dict[str, Path] = {name: self.root / f"{name}-fisher" for name in MODELS}
        λ = {"ann": 0.75, "bob": 0.25}
        merge_checkpoints(checkpoints, self.out, method=method, coefficients=λ, statistics=fishers, heads=heads)
        merged = (self.out / "model.safetensors").read_bytes()
        shutil.rmtree(self.out)
        return merged

    def outcome(self, method: str, right: list[bytes] | None = None) -> str:
        """Merge what has been spoilt; `right` is what may come out, if that is less than usual."""
        try:
            merged = self.merge(method)
        except InputError as error:
            assert not self.out.exists()
            assert not list(self.root.glob(".partial*"))
            return refused(error, str(self.root))
        assert merged in (right or self.right[method]), "a wrong merge"
        return "right"

    def mend(self) -> None:
        """Make everything whole again."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_symlink() or path.is_file():
                if path not in self.content:
                    path.unlink()
            elif not any(path in file.parents for file in self.content):
                path.rmdir()
        for file, content in self.content.items():
            if not file.is_file() or file.is_symlink() or file.read_bytes() != content:
                file.unlink(missing_ok=True)
                file.write_bytes(content)

    def tensors_file(self, random: Random) -> Path:
        return choice(random, sorted(file for file in self.content if file.suffix == ".safetensors"))
