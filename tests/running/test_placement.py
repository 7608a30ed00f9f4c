"""Where stages compute, and that a GPU's bits are the same each time."""

import pytest
import torch

from stages.running.errors import InputError
from stages.running.placement import compute_device, reproducible

GPU = torch.device("cuda")  # no tensor is put there


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHER_DEVICE", "cpu")
    assert compute_device() == torch.device("cpu")
    monkeypatch.setenv("FISHER_DEVICE", "auto")
    assert (compute_device().type == "cuda") == torch.cuda.is_available()
    monkeypatch.setenv("FISHER_DEVICE", "tpu")
    with pytest.raises(InputError, match="FISHER_DEVICE=tpu: must be auto, cpu or cuda"):
        compute_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHER_DEVICE", "cuda")
    with pytest.raises(InputError, match="torch sees no GPU here"):
        compute_device()


def put() -> None:
    """What torch has no deterministic implementation of, on any device."""
    torch.zeros(3).put_(torch.zeros(3, dtype=torch.long), torch.ones(3))


def test_on_a_gpu_only_what_gives_the_same_bits_is_done() -> None:
    with reproducible(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
    with reproducible(GPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(InputError, match=r"put_ gives other bits .* FISHER_REPRODUCIBLE=no"), reproducible(GPU):
        put()
    assert not torch.are_deterministic_algorithms_enabled()


def test_or_anything_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHER_REPRODUCIBLE", "no")
    with reproducible(GPU):
        put()
    monkeypatch.setenv("FISHER_REPRODUCIBLE", "maybe")
    with pytest.raises(InputError, match="FISHER_REPRODUCIBLE=maybe: must be yes or no"), reproducible(GPU):
        pass


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="something else"), reproducible(GPU):
        raise RuntimeError("something else")
