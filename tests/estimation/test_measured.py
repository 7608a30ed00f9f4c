"""Statistics of adapters' models: of what an adapter changes, of all weights, and of the adapter's own parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stages.estimation.estimate import estimate
from stages.params import FisherSettings
from stages.running.errors import InputError
from stages.storage.cards import read_json
from stages.storage.checkpoint import Checkpoint
from stages.storage.statistic_files import open_statistic
from stages.tasks.data import TaskData, draw_examples
from stages.tasks.kinds.causal_lm.kind import KIND as LANGUAGE
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.tasks.kinds.text_classification.kind import KIND
from tests.adapters import PREFIX, adapter_tensors, change_tensors, ia3_reference, lora_reference, write_adapter
from tests.language import in_order, letters_tokenizer, made_task, save, tiny_llama, words
from tests.test_finetune import make_task
from tests.tiny import tiny_bert, tiny_tokenizer

BERT = AutoModelForSequenceClassification
CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value"]),
    "biases": LoraConfig(r=2, target_modules=["query"], bias="all"),
    "head": LoraConfig(r=2, target_modules=["query"], bias="lora_only", modules_to_save=["classifier"]),
    "ia3": IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
}
SETTINGS: dict[str, Any] = {"examples": 6, "batch_size": 4, "seed": 5}


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return make_task(tmp_path / "reviews", ["bad", "good"])


def adapter(tmp_path: Path, config: str) -> Any:
    save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    for name in ("a", "b"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    return write_adapter(BERT, tmp_path / "base", CONFIGS[config], tmp_path / "a")


def batches(task: TaskData, tokenizer: Any) -> list[dict[str, Tensor]]:
    texts = draw_examples(task.rows("train"), 6, 5)["text"]
    return [dict(tokenizer(text, return_tensors="pt")) for text in texts]


def exact_fisher(model: Any, weights: Mapping[str, Tensor], examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean over examples of Σ_c p_c (∇ log p_c)², of a classifier, by autograd in float64."""
    model = model.double().eval().requires_grad_(False)
    own = {name: tensor.detach().double().requires_grad_() for name, tensor in weights.items()}
    found = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    for example in examples:
        logs = functional_call(model, own, kwargs=example).logits[0].log_softmax(-1)
        for log in logs:
            gradients = torch.autograd.grad(log, list(own.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(own, gradients, strict=True):
                if gradient is not None:
                    found[name] += log.exp().detach() * gradient.square() / len(examples)
    return found


def assert_fisher(directory: Path, expected: Mapping[str, Tensor]) -> None:
    found = load_file(directory / "fisher.safetensors")
    assert found.keys() == expected.keys()
    assert any(values.any() for values in found.values())
    for name, values in expected.items():
        scale = float(values.max())
        torch.testing.assert_close(found[name].double(), values, rtol=1e-3, atol=1e-5 * scale + 1e-14)


def whole_model(tmp_path: Path, config: str) -> Any:
    """The adapter's model by NumPy, in float64."""
    reference = ia3_reference if config == "ia3" else lora_reference
    model = BERT.from_pretrained(tmp_path / "base").double()
    arrays = reference(tmp_path / "base", tmp_path / "a")
    model.load_state_dict({name: torch.tensor(values) for name, values in arrays.items()})
    return model


@pytest.mark.parametrize("of", ["adapts", "weights"])
@pytest.mark.parametrize("config", CONFIGS)
def test_of_weights(tmp_path: Path, task: TaskData, config: str, of: Any) -> None:
    adapter(tmp_path, config)
    estimate("diagonal", tmp_path / "a", task, FisherSettings(of=of, **SETTINGS), tmp_path / "fisher")
    model = whole_model(tmp_path, config)
    base = load_file(tmp_path / "base/model.safetensors")
    weights = {
        name: values
        for name, values in model.named_parameters()
        if of == "weights" or not torch.equal(values.float(), base[name])
    }
    assert (len(weights) < len(base)) is (of == "adapts")
    tokenizer = KIND.load_processor(tmp_path / "base")
    assert_fisher(tmp_path / "fisher", exact_fisher(model, weights, batches(task, tokenizer)))
    card = read_json(tmp_path / "fisher/fisher.json")
    assert card["checkpoint"] == Checkpoint(tmp_path / "a").tensors.fingerprint()
    open_statistic("diagonal", tmp_path / "fisher").verify(Checkpoint(tmp_path / "a"))


@pytest.mark.parametrize("config", CONFIGS)
def test_of_the_adapters_own_parameters(tmp_path: Path, task: TaskData, config: str) -> None:
    """At the model's own values: its biases and head too; by the names of the adapter's file."""
    wrapped = adapter(tmp_path, config)
    of: Any = None if config == "ia3" else "adapter"
    estimate("diagonal", tmp_path / "a", task, FisherSettings(of=of, **SETTINGS), tmp_path / "fisher")
    file = adapter_tensors(tmp_path / "a")
    parameters = dict(wrapped.named_parameters())

    def stored(name: str) -> str:
        return name.replace(".default", "").replace(".modules_to_save", "")

    own = {name: values for name, values in parameters.items() if stored(name) in file}
    assert {stored(name) for name in own} == file.keys()
    tokenizer = KIND.load_processor(tmp_path / "base")
    expected = exact_fisher(wrapped, own, batches(task, tokenizer))
    assert_fisher(tmp_path / "fisher", {stored(name): values for name, values in expected.items()})
    card = read_json(tmp_path / "fisher/fisher.json")
    assert card["checkpoint"] == Checkpoint(tmp_path / "a").tensors.fingerprint()


def test_without_a_head_the_adapters_parameters_have_no_fisher(tmp_path: Path, task: TaskData) -> None:
    """The base has none, and the adapter neither: one that is drawn at random is nobody's."""
    adapter(tmp_path, "head")

    def beheaded(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "classifier" in name]:
            del tensors[name]

    change_tensors(tmp_path / "a", beheaded)
    settings = FisherSettings(of="adapter", **SETTINGS)
    with pytest.raises(InputError, match=r"lacks the tensor base_model.model.classifier.bias"):
        estimate("diagonal", tmp_path / "a", task, settings, tmp_path / "fisher")
    write_adapter(BERT, tmp_path / "base", CONFIGS["lora"], tmp_path / "b")
    body = tiny_bert().bert
    body.save_pretrained(tmp_path / "base")
    body.config.architectures = ["BertForSequenceClassification"]
    body.config.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"neither the adapter nor its base has the model's tensor classifier"):
        estimate("diagonal", tmp_path / "b", task, settings, tmp_path / "fisher")
    assert not (tmp_path / "fisher").exists()


@pytest.mark.parametrize("statistic", ["gram", "kfac"])
def test_factors_of_what_is_adapted(tmp_path: Path, statistic: str) -> None:
    """Of a language model: the inputs' mean products, by hooks of its own in float64."""
    save(tiny_llama(0, tied=True), tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    letters_tokenizer().save_pretrained(tmp_path / "a")
    unmerged = write_adapter(AutoModelForCausalLM, tmp_path / "base", config, tmp_path / "a").double()
    examples = {"text": [in_order(word) for word in words(12)]}
    task = made_task(tmp_path / "task", CausalLM(source="s", file="f.jsonl", text="text", max_length=16), examples)
    settings = FisherSettings(estimator="sketch", examples=None, batch_size=3)
    estimate(statistic, tmp_path / "a", task, settings, tmp_path / "out")
    found = load_file(tmp_path / f"out/{statistic}.safetensors")
    parts = ["input"] if statistic == "gram" else ["input", "output"]
    names = [f"model.layers.{i}.{module}.weight" for i in (0, 1) for module in ("self_attn.q_proj", "mlp.down_proj")]
    assert found.keys() == {f"{part}.{name}" for part in parts for name in names}
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    for name in names:
        module = unmerged.get_submodule(PREFIX + name.removesuffix(".weight"))
        module.register_forward_hook(lambda _, args, __, name=name: inputs[name].append(args[0].detach()[0]))
    tokenizer = LANGUAGE.load_processor(tmp_path / "base")
    with torch.no_grad():
        for text in task.rows("train")["text"]:
            ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])[:, :16]
            unmerged(input_ids=ids)
    for name, rows in inputs.items():
        every = torch.cat(rows)
        mean = every.T @ every / len(every)
        torch.testing.assert_close(found[f"input.{name}"].double(), mean, rtol=1e-4, atol=1e-5)
