"""Rows of a tensor under a name of their own, read whole and chunk by chunk."""

from pathlib import Path

import pytest
import torch

from stages.merging.streaming import chunks
from stages.storage.tensors import Selection, TensorFiles, TensorSpec, fingerprint, write_tensors

WIDE, SQUARE, FLAT = torch.arange(24.0).view(6, 4), torch.arange(36.0).view(6, 6), torch.arange(6.0)
ROWS = torch.tensor([4, 0, 5])


@pytest.fixture
def files(tmp_path: Path) -> TensorFiles:
    write_tensors(tmp_path, "model", {"wide": WIDE, "square": SQUARE, "flat": FLAT})
    return TensorFiles(tmp_path).called({"w": "wide", "square": "square", "flat": "flat"})


def test_rows_and_rows_with_their_columns(files: TensorFiles) -> None:
    view = files.with_selections(
        {
            "some": Selection("w", ROWS),
            "both": Selection("square", ROWS, square=True),
            "bias": Selection("flat", ROWS),
            "all": Selection("w", None),
        }
    )
    wanted = {"some": WIDE[ROWS], "both": SQUARE[ROWS][:, ROWS], "bias": FLAT[ROWS], "all": WIDE, "w": WIDE}
    for name, values in wanted.items():
        assert torch.equal(view.read(name), values)
        assert view.specs[name] == TensorSpec("float32", tuple(values.shape))
    assert view.stored_name("some") == "wide"
    assert files.specs.keys() == {"w", "square", "flat"}


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100])
def test_chunks_may_end_within_a_row(files: TensorFiles, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.merging.streaming.CHUNK_VALUES", size)
    view = files.with_selections({"some": Selection("w", ROWS), "all": Selection("w", None)})
    for name, values in (("some", WIDE[ROWS]), ("all", WIDE)):
        pieces = [piece.clone() for (piece,) in chunks([(view, name)], torch.float64)]
        assert torch.equal(torch.cat(pieces), values.double().reshape(-1))
        assert len(pieces) == -(-values.numel() // size)


def test_rows_leave_no_digest_of_the_tensor_that_they_are_of(files: TensorFiles) -> None:
    view = files.with_selections({"some": Selection("w", ROWS)})
    assert len(list(chunks([(view, "some"), (view, "some")], torch.float32))) == 1
    assert not view.digests
    list(chunks([(view, "w")], torch.float32))
    assert files.digests.keys() == {"wide"}
    assert fingerprint(view) == fingerprint(TensorFiles(files.directory))
