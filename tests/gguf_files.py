"""Tiny GGUF files as llama.cpp's converter writes them, with gguf's own writer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as t
from transformers.convert_slow_tokenizer import bytes_to_unicode

CONTROL, NORMAL, USER_DEFINED = 3, 1, 4
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
BYTES = list(bytes_to_unicode().values())
MERGES = ["Ġ a", "Ġ Ġ", "a b", "Ġa b", "t h", "th e"]
TOKENS = [*MARKS, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
TYPES = [CONTROL] * 3 + [USER_DEFINED] + [NORMAL] * (len(TOKENS) - 4)
CHAT = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
MODELS = {
    "llama": (t.LlamaConfig, t.LlamaForCausalLM),
    "qwen2": (t.Qwen2Config, t.Qwen2ForCausalLM),
    "qwen3": (t.Qwen3Config, t.Qwen3ForCausalLM),
}
TINY = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 48,
    "rms_norm_eps": float(np.float32(1e-5)),
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {"qwen3": {"head_dim": 128}}  # the only size that transformers takes such a file to have


def tiny_model(architecture: str = "llama", *, tied: bool = True) -> Any:
    """A model with random values everywhere, biases and norms too."""
    config, model = MODELS[architecture]
    torch.manual_seed(0)
    made = model(config(**TINY | HEADS.get(architecture, {}), tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def gguf_name(name: str) -> str:
    """What llama.cpp calls a parameter."""
    module, _, kind = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{kind}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{kind}"


def places_of_rows(heads: int, size: int) -> np.ndarray:
    """Which row of llama.cpp's a row of the model's is: there, the halves of a head's rows are interleaved."""
    half = size // 2
    within = [2 * (row % half) + row // half for row in range(size)]
    return np.concatenate([head * size + np.array(within) for head in range(heads)])


def as_llama_cpp(name: str, values: np.ndarray, architecture: str) -> np.ndarray:
    """A parameter's values in llama.cpp's order."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if architecture != "llama" or heads is None:
        return values
    found = np.empty_like(values)
    found[places_of_rows(heads, 16)] = values
    return found


def metadata(architecture: str) -> dict[str, Any]:
    """What a file says beside its tensors."""
    own = {
        "context_length": 48,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 5000.0,
    }
    own |= {"llama": {"rope.dimension_count": 16}, "qwen3": {"attention.key_length": 128}}.get(architecture, {})
    return {f"{architecture}.{name}": value for name, value in own.items()} | {
        "general.name": "Tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm" if architecture == "llama" else "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT,
    }


def write_gguf(
    file: Path,
    model: Any,
    architecture: str = "llama",
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    changes: Mapping[str, Any] | None = None,
    further: Mapping[str, np.ndarray] | None = None,
    without: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Write a model as a GGUF file.

    Args:
        file: to be written.
        model: in transformers.
        architecture: in llama.cpp's words.
        types: end of a parameter's name → how it is stored; others are F32.
        changes: of the metadata; None removes a key.
        further: tensors.
        without: the parameters that are left out.

    Returns:
        the values that the model then has, by its own names, as gguf's own numpy code de-quantises them.
    """
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in (metadata(architecture) | dict(changes or {})).items():
        if value is not None:
            add(writer, key, value)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    stored = {}
    for name, parameter in model.state_dict().items():
        if name in tied or name in without:
            continue
        kind = next((kind for end, kind in (types or {}).items() if name.endswith(end)), gguf.GGMLQuantizationType.F32)
        values = as_llama_cpp(name, parameter.float().numpy(), architecture)
        content = gguf.quantize(values, kind)
        writer.add_tensor(gguf_name(name), content, raw_dtype=kind)
        read = gguf.dequantize(content, kind)
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]) if architecture == "llama" else None
        stored[name] = read if heads is None else read[places_of_rows(heads, 16)]
    for name, values in (further or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add an entry in the type that llama.cpp gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
