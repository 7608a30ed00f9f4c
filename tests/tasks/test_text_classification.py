"""Checkpoints of others: what is loaded, and what never is."""

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.running.errors import InputError
from stages.tasks.kinds.text_classification.kind import KIND

LABELS = ["bad", "good"]


def edited(file: str, **changes: Any) -> Callable[[Path], object]:
    """An edit of a JSON file of the checkpoint."""

    def edit(checkpoint: Path) -> None:
        content = json.loads((checkpoint / file).read_text())
        (checkpoint / file).write_text(json.dumps(content | changes))

    return edit


def written(file: str, content: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / file).write_text(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (written("config.json", "null"), r"config\.json: holds a NoneType"),
        (edited("config.json", hidden_size="x"), "cannot be loaded as a classifier"),
        (edited("config.json", quantization_config=5), "cannot be loaded as a classifier"),
        (edited("config.json", vocab_size=10**12), "cannot be loaded as a classifier"),
        (written("model.safetensors", "xx"), "cannot be loaded as a classifier"),
        (edited("config.json", attn_implementation="org/kernel"), "'org/kernel' is code from elsewhere"),
        (
            edited("config.json", text_config={"_attn_implementation": "org/kernel"}),
            "'org/kernel' is code from elsewhere",
        ),
        (written("adapter_config.json", "{}"), "does not say the adapter's type"),
        (
            written("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "x"}'),
            "base, 'x', is no directory here",
        ),
    ],
)
def test_broken_checkpoints(checkpoint: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(checkpoint)
    with pytest.raises(InputError, match=message):
        KIND.load_model(checkpoint, LABELS)


@pytest.mark.parametrize("content", ["null", "[]", "5", "{", "{}", "", '{"model": 1}'])
def test_broken_tokenizers(checkpoint: Path, content: str) -> None:
    (checkpoint / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
        KIND.load_processor(checkpoint)


class Canary:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "adapter_model.bin", "training_args.bin"])
@pytest.mark.parametrize("beside", [True, False])
def test_pickles_are_not_opened(checkpoint: Path, tmp_path: Path, name: str, beside: bool) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps({"bert.pooler.dense.bias": Canary(canary)})
    (checkpoint / name).write_bytes(content)
    if beside:
        KIND.load_model(checkpoint, LABELS)
    else:
        (checkpoint / "model.safetensors").unlink()
        with pytest.raises(InputError, match="cannot be loaded as a classifier"):
            KIND.load_model(checkpoint, LABELS)
    assert not canary.exists()
    pickle.loads(content)
    assert canary.exists()


@pytest.mark.parametrize("model_type", ["bert", "own"])
def test_a_checkpoints_code_is_not_run(checkpoint: Path, tmp_path: Path, model_type: str) -> None:
    canary = tmp_path / "canary"
    for module in ("modeling_x", "configuration_x", "tokenization_x"):
        (checkpoint / f"{module}.py").write_text(f"open({str(canary)!r}, 'w')\nclass X: pass\n")
    model_map = {"AutoConfig": "configuration_x.X", "AutoModelForSequenceClassification": "modeling_x.X"}
    edited("config.json", auto_map=model_map, model_type=model_type)(checkpoint)
    tokenizer_map = {"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"]}
    edited("tokenizer_config.json", auto_map=tokenizer_map, tokenizer_class="X")(checkpoint)
    for load in (lambda: KIND.load_model(checkpoint, LABELS), lambda: KIND.load_processor(checkpoint)):
        with suppress(InputError):
            load()
    assert not canary.exists()


def test_transformers_is_asked_for_safetensors_and_no_code(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def from_pretrained(*_: Any, **options: Any) -> None:
        asked.append(options)
        raise OSError("enough")

    for loader in ("text_classifier.AutoModelForSequenceClassification", "texts.AutoTokenizer"):
        monkeypatch.setattr(f"stages.tasks.{loader}.from_pretrained", from_pretrained)
    for load in (lambda: KIND.load_model(checkpoint, LABELS), lambda: KIND.load_processor(checkpoint)):
        with pytest.raises(InputError, match="enough"):
            load()
    assert [options["trust_remote_code"] for options in asked] == [False, False]
    assert [options["local_files_only"] for options in asked] == [True, True]
    assert asked[0]["use_safetensors"] is True


def test_a_head_for_other_labels_is_made_anew(checkpoint: Path) -> None:
    """Of a base that is a classifier itself, body and head go on; its head only where the labels are the same."""
    saved = load_file(checkpoint / "model.safetensors")
    same = KIND.load_model(checkpoint, LABELS, new_head=True).state_dict()
    assert all(torch.equal(same[name], value) for name, value in saved.items())
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        other = KIND.load_model(checkpoint, ["yes", "no"], new_head=True).state_dict()
        assert {name for name, value in saved.items() if not torch.equal(other[name], value)} == {
            "classifier.weight",
            "classifier.bias",
        }
        heads.append(other["classifier.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
