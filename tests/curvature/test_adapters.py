"""The Fisher of PEFT's adapters, and of models as PEFT's training leaves them."""

import warnings
from typing import Any

import peft
import pytest
import torch
import transformers as t
from torch import Tensor, nn

from stages.curvature import TokenCategorical, diagonal_fisher
from tests.curvature.reference import assert_same_fisher, reference_fisher
from tests.curvature.test_architectures import SMALL, labels, randomised, texts

TASK: dict[str, Any] = {"task_type": "SEQ_CLS"}
AT_FULL_SPEED: dict[str, Any] = {
    "lora": peft.LoraConfig(**TASK, r=2, target_modules=["query", "dense"]),
    "lora on embeddings": peft.LoraConfig(**TASK, r=2, target_modules=["query", "word_embeddings"]),
    "dora": peft.LoraConfig(**TASK, r=2, target_modules=["query"], use_dora=True),
    "trainable tokens": peft.LoraConfig(
        **TASK, r=2, target_modules=["query"], trainable_token_indices={"word_embeddings": [5, 6]}
    ),
    "ia3": peft.IA3Config(**TASK, target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
    "adalora": peft.AdaLoraConfig(**TASK, target_modules=["query"], init_r=3, target_r=2, total_step=10),
    "loha": peft.LoHaConfig(**TASK, r=2, target_modules=["query"]),
    "lokr": peft.LoKrConfig(**TASK, r=2, target_modules=["query"]),
    "oft": peft.OFTConfig(**TASK, r=0, oft_block_size=4, target_modules=["query"]),
    "vera": peft.VeraConfig(**TASK, r=4, target_modules=["query"]),
    "hra": peft.HRAConfig(**TASK, r=2, target_modules=["query"]),
    "layer norms": peft.LNTuningConfig(**TASK, target_modules=["LayerNorm"]),
    "prefix tuning": peft.PrefixTuningConfig(**TASK, num_virtual_tokens=3),
}
SLOW_IN_PART: dict[str, Any] = {  # what is learnt stands before the first module
    "prompt tuning": peft.PromptTuningConfig(**TASK, num_virtual_tokens=3),
    "p-tuning": peft.PromptEncoderConfig(**TASK, num_virtual_tokens=3, encoder_hidden_size=8),
}


def adapted(config: Any) -> tuple[nn.Module, list[str]]:
    torch.manual_seed(0)
    base = t.BertForSequenceClassification(t.BertConfig(**SMALL, **labels(3)))
    model = randomised(peft.get_peft_model(base, config))
    return model, [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def assert_exact(model: nn.Module, names: list[str], announced: bool = False) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = diagonal_fisher(model, texts(), parameters=names)
    assert any("one example at a time" in str(warning.message) for warning in said) == announced
    wanted = reference_fisher(model, texts())
    assert names
    assert_same_fisher(found, {name: wanted[name] for name in names})


@pytest.mark.parametrize("kind", AT_FULL_SPEED)
def test_exact_at_full_speed(kind: str) -> None:
    assert_exact(*adapted(AT_FULL_SPEED[kind]))


@pytest.mark.parametrize("kind", SLOW_IN_PART)
def test_exact_and_announced(kind: str) -> None:
    assert_exact(*adapted(SLOW_IN_PART[kind]), announced=True)


@pytest.mark.parametrize("setting", ["gradient_checkpointing_enable", "enable_input_require_grads"])
@pytest.mark.parametrize("everything", [False, True], ids=["adapters", "all parameters"])
def test_as_training_leaves_it(setting: str, everything: bool) -> None:
    model, adapters = adapted(AT_FULL_SPEED["lora"])
    getattr(model, setting)()
    names = [name for name, _ in model.named_parameters()] if everything else adapters
    assert_exact(model, names)


def test_offloaded_models_are_refused_by_name() -> None:
    from accelerate import cpu_offload

    model, names = adapted(AT_FULL_SPEED["lora"])
    cpu_offload(model, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"parameter \S+ is not in memory \(on the device `meta`, as with offloading\)"
    ):
        diagonal_fisher(model, texts(), parameters=names)


def test_prompts_before_the_tokens_of_a_language_model_need_labels() -> None:
    """The outputs have more positions than the mask, so that it cannot be told which of them are padding."""
    config = t.LlamaConfig(**SMALL)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(t.LlamaForCausalLM(config), prompts)
    with pytest.raises(ValueError, match=r"outputs have shape \[3, 10, 40\] and `attention_mask` \[3, 7\]"):
        diagonal_fisher(
            model,
            texts(),
            likelihood=TokenCategorical(shift=True),
            estimator="sampled",
            parameters=["prompt_encoder.default.embedding.weight"],
        )


def test_batches_of_other_things_than_tensors_by_example() -> None:
    torch.manual_seed(0)
    model = randomised(t.LlamaForSequenceClassification(t.LlamaConfig(**SMALL, **labels(3))))
    batch = texts()[0]
    wanted = reference_fisher(randomised_copy(model), [batch])
    more: dict[str, Any] = {"position_ids": torch.arange(7)[None], "use_cache": False, "output_attentions": None}
    assert_same_fisher(diagonal_fisher(model, [{**more, **batch}]), wanted)
    with pytest.raises(ValueError, match=r"a batch is a tuple; it must be a dict"):
        diagonal_fisher(model, (tuple(batch.values()) for _ in range(2)))  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"'attention_mask' has 2 rows where others have 3"):
        diagonal_fisher(model, [batch | {"attention_mask": batch["attention_mask"][:2]}])
    with pytest.raises(ValueError, match="a batch has no tensors"):
        diagonal_fisher(model, [{"use_cache": False}])


def randomised_copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def test_a_sequence_to_sequence_model_with_labels_only() -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    config = t.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, **settings)
    model = t.T5ForConditionalGeneration(config)
    ids = torch.randint(3, 40, (3, 7))
    labelled: dict[str, Tensor] = {"input_ids": ids, "labels": ids[:, :5]}
    shifted = torch.cat([torch.zeros(3, 1, dtype=torch.long), ids[:, :4]], dim=1)
    arguments: dict[str, Any] = {"likelihood": TokenCategorical(), "estimator": "empirical"}
    found = diagonal_fisher(model, [labelled], **arguments)
    wanted = diagonal_fisher(model, [labelled | {"decoder_input_ids": shifted}], **arguments)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
