"""Adapters' models: their weights against float64 NumPy and peft's unmerged layers, their identity, what is refused."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from stages.merging import merge_checkpoints
from stages.running.errors import InputError
from stages.storage.checkpoint import Checkpoint
from stages.storage.tensors import TensorFiles, fingerprint
from stages.storage.weights import open_weights, verify_checkpoint
from stages.tasks.loading import load_pretrained
from tests.adapters import (
    TOKENS,
    adapter_tensors,
    base_arrays,
    change_config,
    change_tensors,
    config_of,
    ia3_reference,
    logits,
    lora_reference,
    write_adapter,
)
from tests.language import save, tiny_bart, tiny_gpt2, tiny_llama, tiny_t5
from tests.tiny import tiny_bert, tiny_tokenizer

QV = ["q_proj", "v_proj"]
ARCHITECTURES: dict[str, Any] = {
    "tied": AutoModelForCausalLM,
    "untied": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "bert": AutoModelForSequenceClassification,
}
PATTERNS: dict[str, Any] = {"rank_pattern": {"layers.0.*q_proj": 2}, "alpha_pattern": {"v_proj": 5}}
TIED_CASES: dict[str, dict[str, Any]] = {
    "embeddings": {"target_modules": [*QV, "embed_tokens"]},
    "embeddings, tied": {"target_modules": [*QV, "embed_tokens"], "ensure_weight_tying": True},
    "head": {"target_modules": [*QV, "lm_head"]},
    "both": {"target_modules": [*QV, "embed_tokens", "lm_head"]},
    "saved head": {"target_modules": QV, "modules_to_save": ["lm_head"]},
    "saved embeddings": {"target_modules": QV, "modules_to_save": ["embed_tokens"]},
    "saved embeddings, tied": {
        "target_modules": QV,
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "tokens": {"target_modules": QV, "trainable_token_indices": [4, 9]},
}
LORA: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("tied", {"target_modules": QV}),
    "alpha": ("tied", {"target_modules": "all-linear", "lora_alpha": 3}),
    "rslora": ("tied", {"target_modules": QV, "lora_alpha": 6, "use_rslora": True}),
    "dora": ("tied", {"target_modules": [*QV, "down_proj"], "lora_alpha": 6, "use_dora": True}),
    "patterns": ("tied", {"target_modules": QV, **PATTERNS}),
    "all biases": ("bert", {"target_modules": ["query", "value"], "bias": "all"}),
    "biases of layers": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "DoRA of Conv1D": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "a norm": ("tied", {"target_modules": QV, "modules_to_save": ["input_layernorm"]}),
    "a new head": ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "untied embeddings": ("untied", {"target_modules": [*QV, "embed_tokens"]}),
    "tied embeddings": ("tied", TIED_CASES["embeddings"]),
}
OTHERS: dict[str, tuple[str, Any]] = {
    "lora_bias": ("bert", LoraConfig(r=4, target_modules=["query"], lora_bias=True)),
    "lora_bias of Conv1D": ("gpt2", LoraConfig(r=4, target_modules=["c_attn"], lora_bias=True)),
    "tokens, untied": ("untied", LoraConfig(r=4, target_modules=QV, trainable_token_indices=[4, 15])),
    "LoHa": ("tied", LoHaConfig(r=4, target_modules=QV)),
}
IA3: dict[str, tuple[str, IA3Config]] = {
    "llama": ("tied", IA3Config(target_modules=[*QV, "down_proj"], feedforward_modules=["down_proj"])),
    "bert": ("bert", IA3Config(target_modules=["value", "output.dense"], feedforward_modules=["output.dense"])),
    "gpt2": (
        "gpt2",
        IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True),
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    save(tiny_llama(0, tied=True), root / "tied")
    save(tiny_llama(0), root / "untied")
    save(tiny_gpt2(0), root / "gpt2")
    save(tiny_bert(), root / "bert", tiny_tokenizer())
    return root


def loaded(directory: Path, base: str) -> Any:
    """The adapter's model as the stages load it."""
    return load_pretrained(ARCHITECTURES[base], "a model", directory, {}, headless=False, poolerless=False)


def make(bases: Path, base: str, config: Any, out: Path, **how: Any) -> Any:
    return write_adapter(ARCHITECTURES[base], bases / base, config, out, **how)


def assert_model(directory: Path, base: str, unmerged: Any) -> None:
    """The model that is loaded computes what peft does without merging, in every row of the embeddings too."""
    found = loaded(directory, base)
    torch.testing.assert_close(logits(found), logits(unmerged), rtol=1e-4, atol=2e-5)


def assert_weights(directory: Path, expected: dict[str, np.ndarray]) -> None:
    """Each weight, in float32 and in float64; the base's are the base's bits."""
    weights = open_weights(directory)
    assert weights.specs.keys() == expected.keys()
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
        for name, values in expected.items():
            found = weights.read_as(name, dtype)
            np.testing.assert_allclose(found.double().numpy(), values, rtol=tolerance, atol=tolerance)
            assert weights.specs[name].shape == values.shape


@pytest.mark.parametrize("case", LORA)
def test_weights_of_lora(bases: Path, tmp_path: Path, case: str) -> None:
    base, settings = LORA[case]
    unmerged = make(bases, base, LoraConfig(**({"r": 4, "lora_alpha": 8} | settings)), tmp_path / "a")
    expected = lora_reference(bases / base, tmp_path / "a")
    if case == "tied embeddings":  # the head stays the base's
        expected["lm_head.weight"] = base_arrays(bases / base)["model.embed_tokens.weight"]
    assert_weights(tmp_path / "a", expected)
    assert_model(tmp_path / "a", base, unmerged)
    original = TensorFiles(bases / base)
    changed = Checkpoint(tmp_path / "a").adapted
    assert changed is not None
    same = original.specs.keys() - changed.changed
    assert same
    assert all(torch.equal(changed.read(name), original.read(name)) for name in same)


@pytest.mark.parametrize("case", OTHERS)
def test_models_of_other_adapters(bases: Path, tmp_path: Path, case: str) -> None:
    base, config = OTHERS[case]
    assert_model(tmp_path / "a", base, make(bases, base, config, tmp_path / "a"))


@pytest.mark.parametrize("case", IA3)
def test_weights_of_ia3(bases: Path, tmp_path: Path, case: str) -> None:
    base, config = IA3[case]
    unmerged = make(bases, base, config, tmp_path / "a")
    assert_weights(tmp_path / "a", ia3_reference(bases / base, tmp_path / "a"))
    assert_model(tmp_path / "a", base, unmerged)


@pytest.mark.parametrize("case", TIED_CASES)
@pytest.mark.parametrize("said", [None, True, False])
def test_tied_embeddings_are_what_the_unmerged_model_has(
    bases: Path, tmp_path: Path, case: str, said: bool | None
) -> None:
    """Whatever a config.json beside the adapter says; peft's own merge changes the other of the two as well."""
    unmerged = make(bases, "tied", LoraConfig(r=4, **TIED_CASES[case]), tmp_path / "a")
    if said is not None:
        config = json.loads((bases / "tied/config.json").read_text())
        (tmp_path / "a/config.json").write_text(json.dumps(config | {"tie_word_embeddings": said}))
    assert_model(tmp_path / "a", "tied", unmerged)
    alike = "tied" in case or case == "tokens"
    checkpoint = Checkpoint(tmp_path / "a")
    assert ("lm_head.weight" in checkpoint.tensors.specs) is not alike
    assert checkpoint.config["tie_word_embeddings"] is alike
    if case == "embeddings":
        wrong = unmerged.merge_and_unload()
        assert (logits(wrong) - logits(loaded(tmp_path / "a", "tied"))).abs().max() > 0.1


def test_a_configuration_beside_an_adapter_does_not_untie(tmp_path: Path) -> None:
    """Nor where the base's says nothing of it, since its architecture ties."""
    config = json.loads((save(tiny_gpt2(0), tmp_path / "base") / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    settings = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    unmerged = write_adapter(AutoModelForCausalLM, tmp_path / "base", settings, tmp_path / "a")
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    merge_checkpoints({"a": tmp_path / "a"}, tmp_path / "out", method="isotropic", coefficients={"a": 1})
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(unmerged), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", ["embed_tokens", "shared", "lm_head", "tokens", "saved shared", "saved lm_head"])
@pytest.mark.parametrize("base", ["t5", "bart"])
def test_embeddings_that_are_tied_in_four_places(tmp_path: Path, base: str, case: str) -> None:
    """Of an encoder and a decoder: one is changed, and the others stay; in memory, and in a merge that is written."""
    save(tiny_t5(0) if base == "t5" else tiny_bart(0), tmp_path / "base")
    targets = ["q" if base == "t5" else "q_proj"]
    settings: dict[str, Any] = {"target_modules": [*targets, case]}
    if case == "tokens":
        settings = {"target_modules": targets, "trainable_token_indices": {"embed_tokens": [4, 9]}}
    elif case.startswith("saved"):
        settings = {"target_modules": targets, "modules_to_save": [case.split()[1]]}
    unmerged = write_adapter(AutoModelForSeq2SeqLM, tmp_path / "base", LoraConfig(r=4, **settings), tmp_path / "a")
    one = load_pretrained(AutoModelForSeq2SeqLM, "a model", tmp_path / "a", {}, headless=False, poolerless=False)
    merge_checkpoints({"a": tmp_path / "a"}, tmp_path / "out", method="isotropic", coefficients={"a": 1})
    other = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    for found in (one, other):
        with torch.no_grad():
            theirs, ours = (
                model.eval()(input_ids=TOKENS, decoder_input_ids=TOKENS[:, :4]).logits for model in (unmerged, found)
            )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_a_bfloat16_base(bases: Path, tmp_path: Path) -> None:
    """Values are computed in float32 and keep the base's type in what is said of them."""
    save(tiny_llama(0, tied=True).bfloat16(), tmp_path / "base")
    write_adapter(AutoModelForCausalLM, tmp_path / "base", LoraConfig(r=4, target_modules=QV), tmp_path / "a")
    expected = lora_reference(tmp_path / "base", tmp_path / "a")
    weights = open_weights(tmp_path / "a")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert {spec.dtype for spec in weights.specs.values()} == {"bfloat16"}
    for dtype in (torch.bfloat16, torch.float32):
        found = weights.read_as(name, dtype)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected[name], rtol=1e-6, atol=1e-6)
    assert loaded(tmp_path / "a", "tied").dtype == torch.float32


def test_identity(bases: Path, tmp_path: Path) -> None:
    """Of what decides a value of the model, and of nothing else."""

    def made(name: str) -> Path:
        make(bases, "tied", LoraConfig(r=4, target_modules=QV), tmp_path / name)
        return tmp_path / name

    def identity(directory: Path) -> str:
        return fingerprint(open_weights(directory))

    first = identity(made("first"))
    change_config(made("order"), target_modules=QV[::-1], inference_mode=False, task_type="CAUSAL_LM")
    assert identity(tmp_path / "order") == first
    save(tiny_llama(0, tied=True), tmp_path / "elsewhere")
    change_config(made("path"), base_model_name_or_path=str(tmp_path / "elsewhere"))
    assert identity(tmp_path / "path") == first
    change_config(made("alpha"), lora_alpha=9)
    save(tiny_llama(1, tied=True), tmp_path / "other")
    change_config(made("base"), base_model_name_or_path=str(tmp_path / "other"))
    change_tensors(made("tensor"), lambda tensors: min(tensors.items())[1].mul_(1.001))
    assert len({first, *(identity(tmp_path / name) for name in ("alpha", "base", "tensor"))}) == 4


def test_a_changed_base_is_noticed(bases: Path, tmp_path: Path) -> None:
    """A card's fingerprint is of base and adapter together."""
    save(tiny_llama(0, tied=True), tmp_path / "base")
    write_adapter(AutoModelForCausalLM, tmp_path / "base", LoraConfig(r=4, target_modules=QV), tmp_path / "a")
    found = fingerprint(open_weights(tmp_path / "a"))
    (tmp_path / "a/checkpoint.json").write_text(f'{{"format_version": 1, "fingerprint": "{found}"}}')
    verify_checkpoint(tmp_path / "a")
    tiny_llama(1, tied=True).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"its contents are not what checkpoint\.json says"):
        verify_checkpoint(tmp_path / "a")


def test_layers_replaced_by_others_are_told_by_name(bases: Path, tmp_path: Path) -> None:
    """Prompts change no weight; other types change biases, or hold tensors that are not known."""
    configs: dict[str, tuple[str, Any, str]] = {
        "prompt": (
            "tied",
            peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
            "a PROMPT_TUNING adapter changes no weight of its base",
        ),
        "prefix": (
            "tied",
            peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
            "a PREFIX_TUNING adapter changes no weight of its base",
        ),
        "alora": (
            "tied",
            LoraConfig(r=4, target_modules=QV, alora_invocation_tokens=[4], task_type="CAUSAL_LM"),
            "q_proj.weight: cannot be merged: aLoRA does not support merging",
        ),
        "road": (
            "bert",
            peft.RoadConfig(target_modules=["query"], group_size=4),
            r"the adapter changes bert.*query\.bias too",
        ),
        "norms": (
            "tied",
            peft.LNTuningConfig(target_modules=["input_layernorm"]),
            r"LN_TUNING adapter's layer model.*layernorm \(LlamaRMSNorm\) is not the change of a weight",
        ),
        "copies": (
            "tied",
            LoraConfig(r=4, target_modules=QV, layer_replication=[(0, 2), (1, 2)]),
            r"lacks the tensor model\.layers\.2",
        ),
    }
    for name, (base, config, message) in configs.items():
        make(bases, base, config, tmp_path / name)
        assert_refused(partial(loaded, tmp_path / name, base), message)
        assert_refused(partial(read_all, tmp_path / name), message)


def test_adapters_of_a_base_that_peft_changes(bases: Path, tmp_path: Path) -> None:
    """Their tensors are no change of the base that they name, or not alone."""
    lora: Any = partial(LoraConfig, r=4, target_modules=QV)
    configs: dict[str, tuple[Any, str]] = {
        "pissa": (lora(init_lora_weights="pissa"), "init_lora_weights is 'pissa': the adapter's base is no longer"),
        "fast": (lora(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4'"),
        "olora": (lora(init_lora_weights="olora"), "init_lora_weights is 'olora'"),
        "gradients": (lora(init_lora_weights="lora_ga"), "init_lora_weights is 'lora_ga'"),
        "kasa": (lora(kasa_config=peft.KasaConfig()), "the LORA adapter changes model.*q_proj of its base before"),
        "osf": (peft.OSFConfig(target_modules=QV), "what OSF adapters make of weights is not known here"),
        "psoft": (peft.PsoftConfig(target_modules=QV, r=4), "what PSOFT adapters make of weights is not known here"),
    }
    for name, (config, message) in configs.items():
        make(bases, "tied", config, tmp_path / name)
        assert_refused(partial(loaded, tmp_path / name, "tied"), message)
        assert_refused(partial(read_all, tmp_path / name), message)
    for start in ("gaussian", "eva", "orthogonal"):
        unmerged = make(bases, "tied", lora(init_lora_weights=start), tmp_path / start)
        assert_model(tmp_path / start, "tied", unmerged)


def test_settings_that_the_installed_peft_does_not_know(bases: Path, tmp_path: Path) -> None:
    """It leaves them out, with a warning; what is said to be unset, as by an older one, decides nothing."""
    unmerged = make(bases, "tied", LoraConfig(r=4, target_modules=QV), tmp_path / "a")
    change_config(tmp_path / "a", merge_weights=False, enable_lora=None)
    assert_model(tmp_path / "a", "tied", unmerged)
    change_config(tmp_path / "a", use_lengths=True)
    assert_refused(
        partial(loaded, tmp_path / "a", "tied"), "use_lengths is True, which the installed peft does not know of LORA"
    )


def read_all(directory: Path) -> None:
    """As a merge reads an adapter's model."""
    tensors = Checkpoint(directory).tensors
    for name in tensors.specs:
        tensors.read(name)


def assert_refused(what: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as error:
        what()
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_a_layer_whose_merge_is_something_else(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of peft's, in which the unmerged layer computes a hundredth of the change more."""
    make(bases, "tied", LoraConfig(r=4, target_modules=QV), tmp_path / "a", noise=0.01)
    original = peft.tuners.lora.Linear.get_delta_weight

    def other(self: Any, adapter: str) -> torch.Tensor:
        return original(self, adapter) * 1.01

    monkeypatch.setattr(peft.tuners.lora.Linear, "get_delta_weight", other)
    assert_refused(
        lambda: loaded(tmp_path / "a", "tied"),
        "q_proj.weight is not what it computes once it is merged into the weight",
    )


def without_the_first(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[min(tensors)]


def with_another(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 16)


def of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name] = torch.zeros(*tensors[name].shape[:-1], tensors[name].shape[-1] + 2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without_the_first, r"adapter_model\.safetensors: lacks the tensor base_model.*q_proj\.lora_A\.weight; fetch"),
        (with_another, r"the tensor base_model.*up_proj\.lora_A\.weight is no part of what the adapter computes"),
        (of_another_shape, r"size mismatch.*it is no adapter of this base"),
    ],
)
def test_tensors_that_are_not_the_configurations(bases: Path, tmp_path: Path, edit: Any, message: str) -> None:
    make(bases, "tied", LoraConfig(r=4, target_modules=QV), tmp_path / "a")
    change_tensors(tmp_path / "a", edit)
    assert_refused(lambda: open_weights(tmp_path / "a"), message)


def test_what_is_refused(bases: Path, tmp_path: Path) -> None:
    for name in ("rank", "wide", "nowhere", "nobody", "cut", "garbled", "typeless"):
        make(bases, "tied", LoraConfig(r=4, target_modules=QV), tmp_path / name)
    change_config(tmp_path / "rank", r=0)
    assert_refused(lambda: open_weights(tmp_path / "rank"), r"rank: .*`?r`? should be a positive integer")
    save(tiny_llama(0, tied=True, hidden_size=32), tmp_path / "larger")
    change_config(tmp_path / "wide", base_model_name_or_path=str(tmp_path / "larger"))
    assert_refused(lambda: open_weights(tmp_path / "wide"), "size mismatch.*it is no adapter of this base")
    change_config(tmp_path / "nowhere", base_model_name_or_path="org/model")
    assert_refused(lambda: open_weights(tmp_path / "nowhere"), "the adapter's base, 'org/model', is no directory here")
    assert open_weights(tmp_path / "nowhere", bases / "tied").specs
    change_config(tmp_path / "nobody", base_model_name_or_path=str(tmp_path / "cut"))
    assert_refused(lambda: open_weights(tmp_path / "nobody"), "cut: is an adapter, and no base of another")
    file = tmp_path / "cut/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert_refused(lambda: open_weights(tmp_path / "cut"), "not a whole safetensors file")
    (tmp_path / "garbled/adapter_config.json").write_text("{")
    assert_refused(lambda: open_weights(tmp_path / "garbled"), r"adapter_config\.json")
    config = config_of(tmp_path / "typeless")
    change_config(tmp_path / "typeless", peft_type=None)
    assert_refused(lambda: open_weights(tmp_path / "typeless"), r"does not say the adapter's type")
    change_config(tmp_path / "typeless", peft_type="NEWEST", **{k: v for k, v in config.items() if k == "r"})
    assert_refused(lambda: open_weights(tmp_path / "typeless"), r"typeless: .*NEWEST.*it is no adapter of this base")


def test_values_that_are_no_numbers(bases: Path, tmp_path: Path) -> None:
    """NaN is neither hidden nor taken for a layer that cannot be merged without a word."""
    make(bases, "tied", LoraConfig(r=4, target_modules=QV), tmp_path / "a")
    change_tensors(tmp_path / "a", lambda tensors: min(tensors.items())[1].view(-1)[:1].fill_(float("nan")))
    assert all(name in adapter_tensors(tmp_path / "a") for name in [min(adapter_tensors(tmp_path / "a"))])
    assert_refused(
        lambda: loaded(tmp_path / "a", "tied"),
        "q_proj.weight: the adapter or its base has NaN or infinite entries there",
    )
