"""A streamed Fisher merge against reading its inputs and writing its output."""

import shutil
import tempfile
from pathlib import Path

import torch

from stages.artifacts import (
    CHECKPOINT_CARD,
    FISHER_CARD,
    FORMAT_VERSION,
    TensorFiles,
    fingerprint,
    write_json,
    write_tensors,
)
from stages.merging import merge_checkpoints
from tests.bench.fisher import minilm
from tests.bench.timing import medians, table

MODELS = ("a", "b")


def bench(repeats: int) -> str:
    """Two models of MiniLM's shape, 91 MB each, with float32 Fishers."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in MODELS:
            model = minilm(2)
            model.save_pretrained(root / name)
            write_json(root / name / CHECKPOINT_CARD, {"base_model_prefix": "bert"})
            (root / f"{name}-fisher").mkdir()
            fisher = {key: torch.rand_like(parameter) for key, parameter in model.named_parameters()}
            write_tensors(root / f"{name}-fisher", "fisher", fisher)
            card = {
                "format_version": FORMAT_VERSION,
                "checkpoint": fingerprint(TensorFiles(root / name)),
                "fingerprint": fingerprint(TensorFiles(root / f"{name}-fisher", "fisher")),
            }
            write_json(root / f"{name}-fisher" / FISHER_CARD, card)
        inputs = [root / name / "model.safetensors" for name in MODELS]
        inputs += [root / f"{name}-fisher" / "fisher.safetensors" for name in MODELS]

        def read_and_write() -> None:
            for file in inputs:
                with file.open("rb") as stream:
                    while stream.read(1 << 20):
                        pass
            shutil.copyfile(inputs[0], root / "copy")

        def merge(method: str) -> None:
            merge_checkpoints(
                {name: root / name for name in MODELS},
                root / "out",
                method=method,
                coefficients=dict.fromkeys(MODELS, 0.5),
                statistics={name: root / f"{name}-fisher" for name in MODELS},
            )

        seconds = medians(
            {
                "read inputs, write output": read_and_write,
                "Fisher merge": lambda: merge("fisher"),
                "isotropic merge": lambda: merge("isotropic"),
            },
            repeats,
        )
    return table("Two models of 22 M parameters", seconds, "read inputs, write output")
