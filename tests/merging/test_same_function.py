"""Models that compute otherwise are refused by what their config.json say; what changes nothing may differ."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from stages.merging import merge_checkpoints
from stages.merging.ingredients import Ingredients
from stages.merging.methods.isotropic.options import Isotropic
from stages.merging.methods.task_arithmetic.options import TaskArithmetic
from stages.running.errors import InputError
from tests.merging.zoo import Zoo

λ = {"ann": 0.5, "bob": 0.5}


def change_config(checkpoint: Path, changes: dict[str, Any]) -> None:
    """Change a config.json; what becomes None is taken out."""
    file = checkpoint / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo.of(tmp_path, "ann", "bob")


OTHERWISE: dict[str, Any] = {
    "num_attention_heads": 4,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
    "is_decoder": True,
    "max_position_embeddings": 48,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
    "vocab_size": 21,
}


@pytest.mark.parametrize("key", OTHERWISE)
def test_a_model_that_computes_otherwise_is_refused(zoo: Zoo, key: str) -> None:
    change_config(zoo.checkpoints["bob"], {key: OTHERWISE[key]})
    ours = json.loads((zoo.checkpoints["ann"] / "config.json").read_text())[key]
    message = rf"bob.config\.json: {key} is {json.dumps(OTHERWISE[key])}, but {json.dumps(ours)} in .*ann.config\.json"
    with pytest.raises(InputError, match=message) as caught:
        zoo.merge(λ)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", OTHERWISE)
def test_so_is_a_base(zoo: Zoo, key: str) -> None:
    Ingredients(zoo.checkpoints, TaskArithmetic(), base=zoo.base())
    change_config(zoo.base(), {key: OTHERWISE[key]})
    with pytest.raises(InputError, match=rf"base.config\.json: {key} is .*, but .* in .*ann.config\.json"):
        Ingredients(zoo.checkpoints, TaskArithmetic(), base=zoo.base())


MAY_DIFFER: list[dict[str, Any]] = [
    {"_name_or_path": "elsewhere", "transformers_version": "4.2.0", "torch_dtype": "float16", "dtype": None},
    {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.5},
    {"initializer_range": 1.0, "use_cache": False, "problem_type": "single_label_classification"},
    {"position_embedding_type": "absolute", "gradient_checkpointing": False, "model_name": "bob"},  # of older versions
    {"num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": None},  # the default
    {"max_length": 20, "do_sample": True, "num_beams": 4, "eos_token_id": 3, "bos_token_id": 2},
    {"pad_token_id": None, "output_hidden_states": True, "chunk_size_feed_forward": 8},
]


@pytest.mark.parametrize("changes", MAY_DIFFER, ids=lambda changes: next(iter(changes)))
def test_what_changes_no_output_may_differ(zoo: Zoo, changes: dict[str, Any]) -> None:
    wanted = zoo.merge(λ)
    change_config(zoo.checkpoints["bob"], changes)
    found = zoo.merge(λ)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_equal_files_are_compared_without_transformers(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge whose coefficient has been edited does not wait for its import."""

    def imported(*_: Any, **__: Any) -> None:
        raise AssertionError("transformers was asked")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", imported)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", imported)
    change_config(zoo.checkpoints["bob"], {"_name_or_path": "elsewhere", "hidden_dropout_prob": 0.0})
    Ingredients(zoo.checkpoints, Isotropic())


LLAMA: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 24, "max_position_embeddings": 32, "num_key_value_heads": 2}


def decoders(root: Path, family: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Path]:
    """Two models of the family, in directories."""
    model_class = getattr(transformers, f"{family}ForCausalLM")
    for seed, (name, more) in enumerate((("ann", ours), ("bob", theirs))):
        torch.manual_seed(seed)
        model_class(model_class.config_class(**(LLAMA | more))).save_pretrained(root / name)
    return {name: root / name for name in λ}


@pytest.mark.parametrize(
    ("family", "ours", "theirs", "key"),
    [
        ("Llama", {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, r"rope_parameters"),
        (
            "Llama",
            {},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rope_parameters",
        ),
        ("Llama", {}, {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 4}, "head_dim"),
        ("Llama", {}, {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ("Mistral", {"sliding_window": 8}, {"sliding_window": 16}, "sliding_window"),
        ("Mistral", {"sliding_window": 8}, {"sliding_window": None}, "sliding_window"),
        (
            "Mixtral",
            {"num_local_experts": 4},
            {"num_local_experts": 4, "num_experts_per_tok": 1},
            "num_experts_per_tok",
        ),
        ("Gemma2", {"head_dim": 8}, {"head_dim": 8, "attn_logit_softcapping": 10.0}, "attn_logit_softcapping"),
    ],
)
def test_what_tells_language_models_apart(
    tmp_path: Path, family: str, ours: dict[str, Any], theirs: dict[str, Any], key: str
) -> None:
    checkpoints = decoders(tmp_path, family, ours, theirs)
    with pytest.raises(InputError, match=rf"bob.config\.json: {key}\S* is .*, but .* in .*ann.config\.json"):
        Ingredients(checkpoints, Isotropic())
    assert Ingredients(decoders(tmp_path / "alike", family, ours, ours), Isotropic())


@pytest.mark.parametrize(
    "older",
    [
        {"rope_parameters": None, "rope_theta": 5000.0},
        {"rope_parameters": None, "rope_theta": 5000.0, "rope_scaling": None},
        {"rope_parameters": None, "rope_theta": 5000.0, "head_dim": None, "attention_bias": None, "pretraining_tp": 2},
    ],
)
def test_other_versions_files_say_the_same(tmp_path: Path, older: dict[str, Any]) -> None:
    """rope_theta was a key of its own, and defaults were left out or written."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    checkpoints = decoders(tmp_path, "Llama", rope, rope)
    if "pretraining_tp" in older:
        change_config(checkpoints["ann"], {"pretraining_tp": 2})
    change_config(checkpoints["bob"], older)
    Ingredients(checkpoints, Isotropic())
    change_config(checkpoints["bob"], {"rope_theta": 6000.0})
    with pytest.raises(InputError, match=r"rope_parameters\S* is"):
        Ingredients(checkpoints, Isotropic())


def test_nested_configurations(tmp_path: Path) -> None:
    tower: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    checkpoints = {}
    for name in λ:
        config = transformers.CLIPConfig(
            text_config=tower | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 1},
            vision_config=tower | {"image_size": 8, "patch_size": 4},
            projection_dim=8,
        )
        transformers.CLIPModel(config).save_pretrained(tmp_path / name)
        checkpoints[name] = tmp_path / name
    Ingredients(checkpoints, Isotropic())
    content = json.loads((tmp_path / "bob/config.json").read_text())
    content["vision_config"]["attention_dropout"] = 0.5
    (tmp_path / "bob/config.json").write_text(json.dumps(content))
    Ingredients(checkpoints, Isotropic())
    content["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "bob/config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"vision_config\.hidden_act is \"gelu\", but \"quick_gelu\" in"):
        Ingredients(checkpoints, Isotropic())


def test_architectures_that_transformers_does_not_know(tmp_path: Path) -> None:
    for name in λ:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "ours", "heads": 2, "dropout": 0.1}')
        save_file({"a.weight": torch.ones(3)}, tmp_path / name / "model.safetensors")
    checkpoints = {name: tmp_path / name for name in λ}
    change_config(tmp_path / "bob", {"dropout": 0.2})
    Ingredients(checkpoints, Isotropic())
    for heads in (4, None):
        change_config(tmp_path / "bob", {"heads": heads})
        with pytest.raises(InputError, match=rf"heads is {heads or 'not set'}, but 2 in .*ann"):
            Ingredients(checkpoints, Isotropic())


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            {},
            r"bob.config\.json: quantization_config: the model is quantised \(gptq\); .*dequantize",
        ),
        (
            {},
            {"classifier.weight": torch.zeros(2, 16, dtype=torch.int8)},
            r"tensor classifier\.weight is quantised \(int8\)",
        ),
        (
            {},
            {"bert.pooler.dense.weight": torch.zeros(128, 1, dtype=torch.uint8)},
            r"dense\.weight is quantised \(uint8\)",
        ),
        ({}, {"bert.pooler.dense.qweight": torch.zeros(2, 16, dtype=torch.int32)}, r"qweight is quantised \(int32\)"),
        (
            {},
            {
                "bert.pooler.dense.experts_blocks": torch.zeros(2, dtype=torch.uint8),
                "bert.pooler.dense.experts_scales": torch.zeros(2, dtype=torch.uint8),
            },
            r"experts_blocks is quantised \(uint8\)",
        ),
        (
            {},
            {"classifier.weight": torch.zeros(2, 16).to(torch.float8_e4m3fn)},
            r"classifier\.weight is quantised \(F8_E4M3\)",
        ),
    ],
)
def test_quantised_models_are_refused(zoo: Zoo, changes: dict[str, Any], tensors: Any, message: str) -> None:
    """Of a model and of a base: averages of codes are codes of nothing."""
    for checkpoint in (zoo.base(), zoo.checkpoints["bob"]):
        change_config(checkpoint, changes)
        file = checkpoint / "model.safetensors"
        save_file(load_file(file) | tensors, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match=message.replace("bob", checkpoint.name)):
            Ingredients(zoo.checkpoints, TaskArithmetic(), base=zoo.base())


def test_an_adapter_without_a_type_or_a_base_is_refused(zoo: Zoo) -> None:
    (zoo.checkpoints["bob"] / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"bob/adapter_config.json: does not say the adapter's type \(peft_type\)"):
        merge_checkpoints(zoo.checkpoints, zoo.root / "out", method="isotropic", coefficients=λ)
    (zoo.checkpoints["bob"] / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match=r"the adapter's base, None, is no directory here; give the directory of"):
        merge_checkpoints(zoo.checkpoints, zoo.root / "out", method="isotropic", coefficients=λ)
