"""Tiny language models and a tokenizer of letters, made on the spot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.tasks.data import TaskData
from stages.tasks.task import Task
from tests.tasks.in_memory import write_task

PAD, END, UNKNOWN, BEGIN = "<pad>", "</s>", "<unk>", "<s>"
MARKS = [PAD, END, UNKNOWN, BEGIN, "<|system|>", "<|user|>", "<|assistant|>"]
LETTERS = "abcdefgh "
VOCABULARY = len(MARKS) + len(LETTERS)
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKED_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '</s>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '</s>' }}{% endif %}{% endfor %}"
)


def letters_tokenizer(chat_template: str | None = None, **special: Any) -> PreTrainedTokenizerFast:
    """A token for each letter; it puts nothing around a text unless the special tokens say so."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*MARKS, *LETTERS])}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(MARKS)
    given = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN, "bos_token": BEGIN} | special
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **given
    )
    found.chat_template = chat_template
    return found


def randomised(model: Any, seed: int = 0, noise: float = 0.1) -> Any:
    """The model, its biases and norms random too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model.eval()


def tiny_llama(seed: int = 0, *, tied: bool = False, **changes: Any) -> t.LlamaForCausalLM:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 3,
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(seed)
    model: t.LlamaForCausalLM = randomised(t.LlamaForCausalLM(t.LlamaConfig(**(sizes | changes))), seed)
    return model


def tiny_gpt2(seed: int = 0, **changes: Any) -> t.GPT2LMHeadModel:
    """Its embeddings are tied, its positions have embeddings, and it has no padding token."""
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    ends = {"bos_token_id": 3, "eos_token_id": 1}
    torch.manual_seed(seed)
    model: t.GPT2LMHeadModel = randomised(t.GPT2LMHeadModel(t.GPT2Config(**(sizes | ends | changes))), seed)
    return model


def tiny_t5(seed: int = 0, **changes: Any) -> t.T5ForConditionalGeneration:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    torch.manual_seed(seed)
    return t.T5ForConditionalGeneration(t.T5Config(**(sizes | changes))).eval()


def tiny_bart(seed: int = 0, **changes: Any) -> t.BartForConditionalGeneration:
    """Its generation_config would search by beams, if it were asked."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 24,
        "dropout": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 3,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
    }
    torch.manual_seed(seed)
    model = t.BartForConditionalGeneration(t.BartConfig(**(sizes | changes))).eval()
    assert model.generation_config is not None
    model.generation_config.num_beams = 3
    return model


def save(model: Any, directory: Path, tokenizer: Any = None) -> Path:
    """A checkpoint with its tokenizer."""
    model.save_pretrained(directory)
    (tokenizer or letters_tokenizer()).save_pretrained(directory)
    return directory


def words(count: int, seed: int = 0, longest: int = 3, letters: str = "abcdefgh") -> list[str]:
    """Distinct words."""
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(random.choice(list(letters), random.integers(1, longest + 1)))] = None
    return list(found)


def in_order(word: str) -> str:
    """A word's letters in the order of the alphabet, each once: what tiny models learn in seconds."""
    return "".join(sorted(set(word)))


def made_task(directory: Path, settings: Task, examples: Mapping[str, Sequence[Any]], held: int = 4) -> TaskData:
    """A prepared task of these columns, of which the last rows are the validation and the test split."""
    directory.mkdir(parents=True)
    frame = pd.DataFrame(examples)
    parts = {"train": frame[: -2 * held], "validation": frame[-2 * held : -held], "test": frame[-held:]}
    write_task(
        directory,
        settings,
        {split: part.reset_index(drop=True) for split, part in parts.items()},  # type: ignore[misc]
        {},
    )
    return TaskData.open(directory)
