"""Tiny real models, tokenizers and tasks, made on the spot; nothing is downloaded."""

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FISHER_DEVICE", "cpu")
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_bert, tiny_tokenizer

torch.set_num_threads(1)  # two test processes share two cores


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny BERT classifier's checkpoint directory, labels `bad` and `good`."""
    directory = tmp_path / "checkpoint"
    tiny_bert(labels=("bad", "good")).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `tests.workshop`, which is imported here: most tests have no need of it."""
    from tests.workshop import build

    root = tmp_path_factory.mktemp("workshop")
    build(root)
    return root


@pytest.fixture
def inside(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a copy of the workshop."""
    root = tmp_path / "project"
    shutil.copytree(workshop, root)
    monkeypatch.chdir(root)
    return root
