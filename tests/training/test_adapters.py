"""Adapters trained in memory: what their files hold, the same bits each time, and goes on after it was killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertModel,
)

from stages.estimation.estimate import estimate
from stages.merging import merge_checkpoints
from stages.params import FinetuneSettings, FisherSettings
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint import Checkpoint
from stages.storage.digests import tree_sha256
from stages.storage.weights import verify_checkpoint
from stages.tasks.data import TaskData
from stages.tasks.kinds.causal_lm.kind import KIND as LANGUAGE
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.tasks.kinds.image_classification.kind import KIND as IMAGES
from stages.tasks.kinds.text_classification.kind import KIND
from stages.training.finetuning import train
from stages.training.finished import bring_in, bring_in_adapter
from tests.adapters import (
    adapter_tensors,
    change_tensors,
    config_of,
    ia3_reference,
    logits,
    lora_reference,
    write_adapter,
)
from tests.language import in_order, made_task, save, tiny_llama, words
from tests.project import ROOT
from tests.tasks.test_image_classification import image_task
from tests.test_finetune import make_task, outputs
from tests.tiny import save_base, save_vit, tiny_bert, tiny_config, tiny_tokenizer
from tests.training.test_resuming import make_project, run

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 4, "targets": ["query", "value"], "dropout": 0.1},
    "rslora": {"type": "lora", "rank": 4, "alpha": 6, "targets": ["query", "value"], "rslora": True},
    "dora": {"type": "lora", "rank": 2, "dora": True},
    "ia3": {"type": "ia3", "targets": ["key", "value", "output.dense"], "feedforward": ["output.dense"]},
}
HEAD = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return make_task(tmp_path / "reviews", ["bad", "good"])


def settings(adapter: dict[str, Any] | None, **changes: Any) -> FinetuneSettings:
    given: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "adapter": adapter}
    return FinetuneSettings.model_validate(given | changes)


def trained(base: Path, task: TaskData, adapter: dict[str, Any] | None, root: Path, name: str, **changes: Any) -> Path:
    out, curves, progress = outputs(root, name)
    train(base, task, settings(adapter, **changes), out, curves, progress)
    return out


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_and_its_new_head_are_all_that_is_written(tmp_path: Path, task: TaskData, kind: str) -> None:
    """On a body without a head. The model is that of the formulas, and of peft's unmerged layers."""
    save_base(tmp_path / "base")
    before = tree_sha256(tmp_path / "base")
    out = trained(tmp_path / "base", task, ADAPTERS[kind], tmp_path, "one")
    assert tree_sha256(tmp_path / "base") == before
    assert not list(out.glob("model*.safetensors"))
    own = adapter_tensors(out)
    assert own.keys() >= HEAD
    inner = [".ia3_l"] if kind == "ia3" else [".lora_A.", ".lora_B.", *([".lora_magnitude"] if kind == "dora" else [])]
    rest = own.keys() - HEAD
    assert all(any(part in name for part in inner) or ".pooler." in name for name in rest)
    moved = [tensor for name, tensor in own.items() if ".lora_B." in name]
    moved += [tensor - 1 for name, tensor in own.items() if name.endswith(".ia3_l")]
    assert moved
    assert all(tensor.any() for tensor in moved)
    config = config_of(out)
    assert config["base_model_name_or_path"] == (tmp_path / "base").as_posix()
    if kind != "ia3":
        assert (config["lora_alpha"], config["use_rslora"]) == (
            6 if kind == "rslora" else 2 * config["r"],
            kind == "rslora",
        )
    verify_checkpoint(out)
    card = read_json(out / "checkpoint.json")
    assert card["fingerprint"] == Checkpoint(out).tensors.fingerprint()
    assert card["origin"]["adapter"]["type"] == ADAPTERS[kind]["type"]
    body = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    body.save_pretrained(tmp_path / "whole")  # the names of the references are those of a whole model
    unmerged = peft.PeftModel.from_pretrained(body, out)
    model = KIND.load_model(out, task.labels)
    torch.testing.assert_close(logits(model), logits(unmerged), rtol=1e-4, atol=1e-6)
    expected = (ia3_reference if kind == "ia3" else lora_reference)(tmp_path / "whole", out)
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values.double(), torch.tensor(expected[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_base_with_the_head_is_not_stored_again(tmp_path: Path, task: TaskData, kind: str) -> None:
    """Only where it is for other labels."""
    save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    out = trained(tmp_path / "base", task, ADAPTERS[kind], tmp_path, "one", epochs=1)
    assert not adapter_tensors(out).keys() & HEAD
    save(tiny_bert(labels=("awful", "great")), tmp_path / "other", tiny_tokenizer())
    out = trained(tmp_path / "other", task, ADAPTERS[kind], tmp_path, "two", epochs=1)
    assert adapter_tensors(out).keys() >= HEAD
    assert KIND.load_model(out, task.labels).config.id2label == {0: "bad", 1: "good"}


PROGRAM = """
import sys
from pathlib import Path
from stages.tasks.data import TaskData
from stages.training.finetuning import train
root, name, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
from tests.test_finetune import outputs
from tests.training.test_adapters import ADAPTERS, settings
train(Path("base"), TaskData.open(root / "reviews"), settings(ADAPTERS[kind]), *outputs(root, name))
"""


def test_the_same_bits_in_every_process(tmp_path: Path, task: TaskData) -> None:
    """Whatever order sets of targets have there."""
    save_base(tmp_path / "base")
    made = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), f"out-{seed}", "rslora"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        made.append(tree_sha256(tmp_path / f"out-{seed}"))
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("stages.training.resuming.SAVE_SECONDS", 0.0)
    made = []
    for name, kills in (("whole", ()), ("project", (3, 5))):
        root = tmp_path / name
        root.mkdir()
        make_project(root)
        params = YAML(typ="safe").load(root / "params.yaml")
        params["finetune"]["adapter"] = ADAPTERS[kind]
        del params["models"]["books"]["fisher"]
        YAML().dump(params, root / "params.yaml")
        monkeypatch.chdir(root)
        start = 0
        for steps in kills:
            assert run(steps) == list(range(start, start + steps))
            start += steps
        assert run() == list(range(start, 14))
        made.append([tree_sha256(root / "models/finetuned/books"), tree_sha256(root / "results/training/books")])
        assert not list(root.rglob(".partial-*"))
    assert made[0] == made[1]


def test_bfloat16_bases(tmp_path: Path, task: TaskData) -> None:
    """A whole model has its base's type again; an adapter is trained in float32, and the base stays."""
    torch.manual_seed(0)
    BertModel(tiny_config(("bad", "good"))).bfloat16().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    whole = load_file(trained(tmp_path / "base", task, None, tmp_path, "whole", epochs=1) / "model.safetensors")
    assert {tensor.dtype for tensor in whole.values()} == {torch.bfloat16}
    before = tree_sha256(tmp_path / "base")
    out = trained(tmp_path / "base", task, ADAPTERS["lora"], tmp_path, "adapter", epochs=1)
    assert {tensor.dtype for tensor in adapter_tensors(out).values()} == {torch.float32}
    assert tree_sha256(tmp_path / "base") == before
    assert Checkpoint(out).tensors.specs["bert.pooler.dense.weight"].dtype == "bfloat16"


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"type": "lora", "targets": ["q_proj"]}, r"finetune\.adapter: No modules were targeted for adaptation"),
        ({"type": "lora", "targets": ["LayerNorm"]}, r"finetune\.adapter: Target module LayerNorm.* is not supported"),
        ({"type": "ia3", "targets": ["nothing"]}, r"finetune\.adapter: No modules were targeted for adaptation"),
        (
            {"type": "ia3", "targets": ["key"], "feedforward": ["value"]},
            r"finetune\.adapter: .*feedforward_modules.* should be a subset of .*target_modules",
        ),
        ({"type": "lora", "save": ["nothing"]}, r"finetune\.adapter\.save: the model has no module 'nothing'"),
    ],
)
def test_targets_that_are_none(tmp_path: Path, task: TaskData, adapter: dict[str, Any], message: str) -> None:
    save_base(tmp_path / "base")
    with pytest.raises(InputError, match=message) as error:
        trained(tmp_path / "base", task, adapter, tmp_path, "one")
    assert "\n" not in str(error.value)


def test_a_finished_adapter_is_brought_in(tmp_path: Path, task: TaskData) -> None:
    """As it is, with the configuration of its whole model; what is none, or has no head, is refused."""
    save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    config = peft.LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"], bias="lora_only")
    unmerged = write_adapter(AutoModelForSequenceClassification, tmp_path / "base", config, tmp_path / "a")
    out = tmp_path / "out"
    out.mkdir()
    bring_in_adapter(tmp_path / "a", tmp_path / "base", task, out)
    theirs, ours = (directory / "adapter_model.safetensors" for directory in (tmp_path / "a", out))
    assert ours.read_bytes() == theirs.read_bytes()
    torch.testing.assert_close(logits(KIND.load_model(out, task.labels)), logits(unmerged), rtol=1e-4, atol=1e-6)
    assert read_json(out / "checkpoint.json")["fingerprint"] == Checkpoint(out).tensors.fingerprint()
    named = str(tmp_path / "base")
    assert "adapter_of" not in read_json(out / "checkpoint.json")["origin"]
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match=r"a/adapter_config\.json: is an adapter of '.*base', not of org/model; if"):
        bring_in_adapter(tmp_path / "a", tmp_path / "base", task, tmp_path / "again", ["org/model"])
    bring_in_adapter(tmp_path / "a", tmp_path / "base", task, tmp_path / "again", ["org/model", named])
    assert read_json(tmp_path / "again/checkpoint.json")["origin"]["adapter_of"] == named
    message = r"is a PEFT adapter, and no base; name it as the model's `adapter`"
    with pytest.raises(InputError, match=message):
        bring_in(tmp_path / "a", task, out)
    with pytest.raises(InputError, match=message):
        trained(tmp_path / "a", task, None, tmp_path, "on")
    with pytest.raises(InputError, match=r"is no PEFT adapter \(it has no adapter_config\.json\)"):
        bring_in_adapter(tmp_path / "base", tmp_path / "base", task, out)
    save_base(tmp_path / "body")
    plain = peft.LoraConfig(r=4, target_modules=["query"])
    write_adapter(AutoModelForSequenceClassification, tmp_path / "body", plain, tmp_path / "headless")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"lacks the tensor classifier"):
        bring_in_adapter(tmp_path / "headless", tmp_path / "body", task, tmp_path / "none")


def test_a_tied_head_that_its_embeddings_leave(tmp_path: Path) -> None:
    """Embeddings are adapted, and the head that was tied to them stays: in what is trained and in what is read."""
    save(tiny_llama(0, tied=True), tmp_path / "base")
    examples = {"text": [in_order(word) for word in words(24)]}
    task = made_task(tmp_path / "task", CausalLM(source="s", file="f", text="text", max_length=16), examples)
    adapter = {"type": "lora", "rank": 4, "targets": ["q_proj", "embed_tokens"]}
    out = trained(tmp_path / "base", task, adapter, tmp_path, "one", learning_rate=5e-2)
    unmerged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), out)
    torch.testing.assert_close(logits(LANGUAGE.load_model(out, [])), logits(unmerged), rtol=1e-4, atol=1e-5)
    merge_checkpoints({"one": out}, tmp_path / "out", method="isotropic", coefficients={"one": 1})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(unmerged), rtol=1e-4, atol=1e-5)
    merge_checkpoints({"one": out}, tmp_path / "low", method="isotropic", coefficients={"one": 1}, rank=4)
    torch.testing.assert_close(
        logits(LANGUAGE.load_model(tmp_path / "low", [])), logits(unmerged), rtol=1e-4, atol=1e-4
    )
    verify_checkpoint(tmp_path / "low")
    estimate("diagonal", out, task, FisherSettings(estimator="sketch", examples=4), tmp_path / "fisher")
    found = load_file(tmp_path / "fisher/fisher.safetensors")
    assert found.keys() == {"model.embed_tokens.weight", *(f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))}


def adapter_of(base: Path, out: Path, **config: Any) -> Path:
    """A random LoRA adapter of a classifier."""
    settings: dict[str, Any] = {"r": 4, "target_modules": ["query"]} | config
    write_adapter(AutoModelForSequenceClassification, base, peft.LoraConfig(**settings), out)
    return out


def brought_in(adapter: Path, base: Path, task: TaskData, root: Path) -> Path:
    out = root / f"{adapter.name}-in"
    out.mkdir()
    bring_in_adapter(adapter, base, task, out)
    return out


def test_a_brought_in_adapters_outputs_must_be_the_tasks(tmp_path: Path, task: TaskData) -> None:
    """By its own configuration, or by its base's where the head is that; one that has none is its user's word."""
    base = save(tiny_bert(labels=("good", "bad")), tmp_path / "base", tiny_tokenizer())
    message = r"the labels are \['good', 'bad'\], but the task reviews has \['bad', 'good'\]"
    with pytest.raises(InputError, match=rf"base/config\.json: {message}"):
        brought_in(adapter_of(base, tmp_path / "headless"), base, task, tmp_path)
    saved = adapter_of(base, tmp_path / "saved", modules_to_save=["classifier"])
    out = brought_in(saved, base, task, tmp_path)
    assert KIND.load_model(out, task.labels).config.id2label == {0: "bad", 1: "good"}
    named = adapter_of(base, tmp_path / "named", modules_to_save=["classifier"])
    (named / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(InputError, match=rf"named/config\.json: {message}"):
        brought_in(named, base, task, tmp_path)


def test_a_brought_in_adapters_card_says_of_which_base_it_is(tmp_path: Path, task: TaskData) -> None:
    base = save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    model = tiny_bert()
    torch.nn.init.normal_(model.get_parameter("bert.pooler.dense.weight"))
    other = save(model, tmp_path / "other", tiny_tokenizer())
    adapter = trained(base, task, ADAPTERS["lora"], tmp_path, "one", epochs=1)
    with pytest.raises(
        InputError, match=r"one/checkpoint/checkpoint\.json: is of another model than the adapter makes of .*other"
    ):
        brought_in(adapter, other, task, tmp_path)
    copy = save(tiny_bert(), tmp_path / "copy", tiny_tokenizer())
    shutil.rmtree(tmp_path / "checkpoint-in")
    out = brought_in(adapter, copy, task, tmp_path)
    assert read_json(out / "checkpoint.json")["fingerprint"] == read_json(adapter / "checkpoint.json")["fingerprint"]


def test_a_brought_in_adapters_own_generation_is_kept(tmp_path: Path) -> None:
    """Before its base's."""
    base = save(tiny_llama(0), tmp_path / "base")
    write_json(base / "generation_config.json", {"temperature": 0.5})
    task = made_task(
        tmp_path / "task",
        CausalLM(source="s", file="f", text="text", max_length=16),
        {"text": [in_order(word) for word in words(24)]},
    )
    for own in ({"temperature": 0.25}, None):
        adapter = tmp_path / f"adapter-{own is None}"
        write_adapter(AutoModelForCausalLM, base, peft.LoraConfig(r=4, target_modules=["q_proj"]), adapter)
        if own is not None:
            write_json(adapter / "generation_config.json", own)
        out = brought_in(adapter, base, task, tmp_path)
        assert read_json(out / "generation_config.json") == (own or {"temperature": 0.5})


def test_a_brought_in_adapter_with_values_that_are_no_numbers(tmp_path: Path, task: TaskData) -> None:
    base = save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    adapter = adapter_of(base, tmp_path / "a")
    change_tensors(adapter, lambda tensors: min(tensors.items())[1].view(-1)[:1].fill_(float("nan")))
    with pytest.raises(
        InputError, match=r"a/adapter_model\.safetensors: tensor base_model.* has NaN or infinite entries"
    ):
        brought_in(adapter, base, task, tmp_path)


def test_an_adapter_of_a_model_for_images(tmp_path: Path) -> None:
    """Its configuration knows no embeddings of words that might be tied."""
    save_vit(tmp_path / "base")
    task = image_task(tmp_path / "stripes")
    out = trained(tmp_path / "base", task, {"type": "lora", "rank": 4}, tmp_path, "one", epochs=1)
    pixels = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    unmerged = peft.PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(tmp_path / "base"), out)
    with torch.no_grad():
        theirs, ours = (each.eval()(pixels).logits for each in (unmerged, IMAGES.load_model(out, task.labels)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_could_not_be_written_is_not_trained(
    tmp_path: Path, task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution's change is none of a weight that can be merged."""
    monkeypatch.setattr("stages.training.finetuning.TrainingProgress", None)
    save_vit(tmp_path / "vit")
    with pytest.raises(InputError, match=r"the LORA adapter's layer .*projection \(Conv2d\) is not the change of"):
        trained(
            tmp_path / "vit", image_task(tmp_path / "i"), {"type": "lora", "targets": ["projection"]}, tmp_path, "one"
        )


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_passes_in_bfloat16_on_bases_of_two_bytes(tmp_path: Path, task: TaskData, stored: torch.dtype) -> None:
    """Weights of float16 are float32 in memory: these passes could not take them as they are."""
    torch.manual_seed(0)
    body: Any = BertModel(tiny_config(("bad", "good")))
    body.to(stored).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    out = trained(tmp_path / "base", task, ADAPTERS["lora"], tmp_path, "one", epochs=1, precision="bfloat16")
    assert {tensor.dtype for tensor in adapter_tensors(out).values()} == {torch.float32}
