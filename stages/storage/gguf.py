"""A GGUF file (llama.cpp's), de-quantised once to an ordinary checkpoint.

Tensor names, llama.cpp's reordering of heads and the configuration are transformers' knowledge, the formats of numbers
are that of the package gguf. What the file says and these leave out, or read otherwise, is refused by name.
"""

from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from stages.running.errors import InputError, first_names
from stages.storage.cards import write_json
from stages.storage.checkpoint_files import CHECKPOINT_CARD, STEM, checkpoint_card
from stages.storage.digests import tree_sha256
from stages.storage.gguf_tokenizer import write_tokenizer
from stages.storage.tensors import TensorSpec, TensorWriter

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader, ReaderTensor

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # in llama.cpp's words; of which the tests compare the values
MODEL = ("model", None)  # of general.type
NEEDED = (  # of the settings: those without which transformers would take values of its own
    *("context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("attention.head_count", "attention.layer_norm_rms_epsilon"),
)
ROPE_THETA = 10000.0  # llama.cpp's, where a file does not say it
Model = Any  # a transformers model


def dequantise(file: Path, out: Path, dtype: str) -> None:
    """Write a GGUF file's model as a checkpoint: weights, configurations, tokenizer with its chat template, and card.

    One tensor at a time is in memory.

    Args:
        file: the GGUF file.
        out: a directory.
        dtype: of the weights: float32, which holds every value exactly, or bfloat16.

    Raises:
        InputError: the file is no whole GGUF, of an architecture that is not known here, or has a tensor or a setting
            that the checkpoint would not have.
    """
    import torch
    import transformers

    reader, metadata = _opened(file)
    _check_kind(file, metadata)
    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    _check_config(file, metadata, config)
    config.dtype = dtype
    if hasattr(config, "_model_name_or_path"):  # the name that the file gives its model
        del config._model_name_or_path
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    config.architectures = [type(model).__name__]
    tensors = _named(file, reader, model)
    config.save_pretrained(out)
    ends = dict.fromkeys(metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    transformers.GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[end for end in ends if end is not None] or None,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(out)
    write_tokenizer(file, metadata, out)
    fingerprint = _write_weights(file, tensors, model, out, getattr(torch, dtype))
    origin = {
        "method": "dequantised",
        "file": file.name,
        "sha256": tree_sha256(file),
        "types": dict(sorted(Counter(tensor.tensor_type.name for tensor in reader.tensors).items())),
        "dtype": dtype,
    }
    write_json(out / CHECKPOINT_CARD, checkpoint_card(fingerprint, model.base_model_prefix, None, None, origin))


def refuse_without_package(name: str) -> None:
    """Raise `InputError` if the package that reads a GGUF file is missing, before the file is fetched."""
    if find_spec("gguf") is None:
        raise InputError(
            f"{name}: is read by the package gguf, which is not installed: `pip install 'fisher-merging[gguf]'`"
        )


def _opened(file: Path) -> "tuple[GGUFReader, dict[str, Any]]":
    """A GGUF file, and all that it says beside its tensors. Raises `InputError` if it is none that is whole."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file.name}: is no whole GGUF file that can be read ({reason})") from None


def _check_kind(file: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse what is no model of a known architecture, or a part of one."""
    if metadata.get("general.type") not in MODEL:
        raise InputError(f"{file.name}: is of the type {metadata['general.type']!r}, not a model")
    if metadata.get("split.count", 1) > 1:
        raise InputError(
            f"{file.name}: is one of {metadata['split.count']} parts of a model; join them with llama.cpp's "
            "`llama-gguf-split --merge`"
        )
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{file.name}: is of the architecture {architecture!r}, whose de-quantised values have not been verified; "
            f"known: {', '.join(ARCHITECTURES)}"
        )


def _check_config(file: Path, metadata: Mapping[str, Any], config: Any) -> None:
    """Refuse a file that says of its model's shape what the configuration does not."""
    architecture = metadata["general.architecture"]
    if config.model_type != architecture:
        raise InputError(
            f"{file.name}: is of the architecture {architecture}, but transformers takes {config.model_type}"
        )
    prefix = f"{architecture}."
    said = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
    if missing := [f"{prefix}{name}" for name in NEEDED if name not in said]:
        raise InputError(f"{file.name}: does not say its {first_names(missing)}")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    understood = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "vocab_size": config.vocab_size,
    }
    if unknown := said.keys() - understood.keys():
        raise InputError(
            f"{file.name}: has the settings {first_names(sorted(prefix + name for name in unknown))}, which the "
            "checkpoint would lose"
        )
    defaults = {"attention.head_count_kv": said.get("attention.head_count"), "rope.freq_base": ROPE_THETA}
    for name, value in (defaults | said).items():
        if value != understood[name]:
            raise InputError(
                f"{file.name}: {prefix}{name} is {value}, but transformers takes {understood[name]} for it"
            )


def _named(file: Path, reader: "GGUFReader", model: Model) -> "dict[str, ReaderTensor]":
    """The file's tensors by the model's names: all of them, and all that the model stores."""
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    names = get_gguf_hf_weights_map(model, _processor(model))
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else {}
    stored = model.state_dict().keys() - set(tied)
    found = {names.get(tensor.name, ""): tensor for tensor in reader.tensors}
    if unknown := [tensor.name for tensor in reader.tensors if names.get(tensor.name) not in stored]:
        raise InputError(
            f"{file.name}: has the tensors {first_names(unknown)}, which {type(model).__name__} has no place for"
        )
    if missing := sorted(stored - found.keys()):
        raise InputError(f"{file.name}: has no {first_names(missing)}")
    return found


def _processor(model: Model) -> Any:
    """What undoes llama.cpp's reordering of a tensor's values."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    return TENSOR_PROCESSORS.get(model.config.model_type, TensorProcessor)(config=model.config.to_dict())


def _write_weights(
    file: Path, tensors: "Mapping[str, ReaderTensor]", model: Model, out: Path, dtype: "torch.dtype"
) -> str:
    """Write the values; returns the fingerprint."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    specs = {name: TensorSpec(str(dtype).removeprefix("torch."), shapes[name]) for name in tensors}
    processor = _processor(model)
    with TensorWriter(out, STEM, specs) as writer:
        for name, tensor in tqdm(tensors.items(), desc="de-quantise", unit="tensor", delay=2):
            values = _values(file, tensor, processor)
            if tuple(values.shape) != shapes[name]:
                raise InputError(
                    f"{file.name}: tensor {tensor.name} has the shape {list(values.shape)}, not {list(shapes[name])}"
                )
            writer.write(name, values.to(dtype=dtype))
        return writer.fingerprint()


def _values(file: Path, tensor: "ReaderTensor", processor: Any) -> "torch.Tensor":
    """A tensor's values as the model has them, in float32."""
    import numpy as np
    import torch
    from gguf import dequantize

    try:
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    except NotImplementedError:
        raise InputError(
            f"{file.name}: tensor {tensor.name} is of the type {tensor.tensor_type.name}, which the package gguf does "
            "not de-quantise"
        ) from None
    if not np.isfinite(values).all():
        raise InputError(f"{file.name}: tensor {tensor.name} has a NaN or an infinity")
    return torch.from_numpy(np.ascontiguousarray(processor.process(values, tensor.name).weights))
