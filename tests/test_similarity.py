"""How alike Fishers are, against numpy on whole vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.results.similarity import compare_fishers
from stages.storage.cards import FORMAT_VERSION, write_json
from stages.storage.tensors import write_tensors


def write_fisher(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    found = write_tensors(directory, "fisher", tensors)
    write_json(directory / "fisher.json", {"format_version": FORMAT_VERSION, "fingerprint": found})
    return directory


def some_tensors(seed: int, labels: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"body.weight": (7, 5), "body.bias": (7,), "head.weight": (labels, 7)}
    return {name: torch.randn(shape, generator=generator) ** 4 for name, shape in shapes.items()}


def test_against_whole_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.results.similarity.CHUNK", 11)  # so that tensors come in pieces
    tensors = {"a": some_tensors(0, 2), "b": some_tensors(1, 2), "c": some_tensors(2, 3)}
    tensors["b"] = {name: values.to(torch.bfloat16) for name, values in tensors["b"].items()}
    found = compare_fishers({name: write_fisher(tmp_path / name, content) for name, content in tensors.items()})
    for first, of_first in tensors.items():
        for second, of_second in tensors.items():
            names = [name for name in of_first if of_first[name].shape == of_second[name].shape]
            x, y = (
                torch.cat([content[name].double().flatten() for name in names]).numpy()
                for content in (of_first, of_second)
            )
            assert found["cosine"][first][second] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            p, q = x / x.sum(), y / y.sum()
            assert found["overlap"][first][second] == pytest.approx(np.sqrt(p * q).sum())
            entries = sum(values.numel() for values in of_first.values())
            assert found["shared"][first][second] == pytest.approx(len(x) / entries)
    assert found["tensors"]["c"]["head.weight"]["entries"] == 21
    assert found["tensors"]["b"]["body.bias"]["sum"] == pytest.approx(float(tensors["b"]["body.bias"].double().sum()))


def test_a_multiple_of_a_fisher_is_as_alike_as_can_be(tmp_path: Path) -> None:
    tensors = some_tensors(0, 2)
    trebled = {name: 3 * values for name, values in tensors.items()}
    found = compare_fishers({"a": write_fisher(tmp_path / "a", tensors), "b": write_fisher(tmp_path / "b", trebled)})
    assert found["cosine"]["a"]["b"] == pytest.approx(1, abs=1e-7)
    assert found["overlap"]["b"]["a"] == pytest.approx(1, abs=1e-7)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = write_fisher(tmp_path / "a", {"x": torch.ones(3)})
    b = write_fisher(tmp_path / "b", {"y": torch.ones(3)})
    zero = write_fisher(tmp_path / "zero", {"x": torch.zeros(3)})
    found = compare_fishers({"a": a, "b": b, "zero": zero})
    assert found["cosine"]["a"] == {"a": 1.0, "b": None, "zero": None}
    assert found["overlap"]["b"] == {"a": None, "b": 1.0, "zero": None}
    assert found["shared"]["a"] == {"a": 1.0, "b": 0.0, "zero": 1.0}
