"""The tokenizer that a GGUF file has in its metadata, as a checkpoint has it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.running.errors import InputError, first_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KIND = "gpt2"  # of tokenizer.ggml.model: BPE of bytes
# How texts are split before BPE (tokenizer.ggml.pre), as llama.cpp has it and the models' own tokenizers.
DIGITS_APART = ("smollm", "starcoder")
SPLITS = ("gpt-2", "qwen2", "llama-bpe", *DIGITS_APART)
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # transformers' word → llama.cpp's
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type: tokens that no text is cut within
KNOWN = {  # of tokenizer.…; what is not among them might change what a text is read as
    "chat_template",
    *(f"ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges", "scores")),
    *(f"ggml.{name}" for name in ("add_bos_token", "add_eos_token", "add_space_prefix")),
    *(f"ggml.{name}_token_id" for name in SPECIAL.values()),
    # Tokens that llama.cpp ends its answers with too, or fills gaps between texts with: no text is read otherwise.
    *(
        f"ggml.{name}_token_id"
        for name in ("eot", "eom", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
    ),
    *(f"ggml.{name}_token_id" for name in ("prefix", "suffix", "middle")),
}


def write_tokenizer(file: Path, metadata: Mapping[str, Any], out: Path) -> None:
    """Write the tokenizer of a GGUF file, with its chat template, into a checkpoint's directory.

    Args:
        file: the GGUF file.
        metadata: all that it says.
        out: the directory, which has the checkpoint's config.json.

    Raises:
        InputError: the file has a tokenizer that is not known here, or what was written is another one.
    """
    import transformers

    said = {name.removeprefix("tokenizer."): value for name, value in metadata.items() if name.startswith("tokenizer.")}
    _check_kind(file, said)
    found = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    backend = found.backend_tokenizer
    _split(backend, said["ggml.pre"])
    special = {f"{name}_token": getattr(found, f"{name}_token") for name in SPECIAL}
    length = metadata[f"{metadata['general.architecture']}.context_length"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **special)
    tokenizer.chat_template = said.get("chat_template")
    tokenizer.save_pretrained(out)
    read = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    _check(file, said, read)
    _check_steps(file, said["ggml.pre"], tokenizer.backend_tokenizer, read)


def _check_kind(file: Path, said: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that is not known here."""
    kind, split = said.get("ggml.model"), said.get("ggml.pre")
    if kind != KIND:
        raise InputError(
            f"{file.name}: tokenizer.ggml.model is {kind!r}, a kind of tokenizer that has not been verified; "
            f"known: {KIND}"
        )
    if split not in SPLITS:
        raise InputError(
            f"{file.name}: tokenizer.ggml.pre is {split!r}, a way of splitting texts that has not been verified; "
            f"known: {', '.join(SPLITS)}"
        )
    if unknown := sorted(f"tokenizer.{name}" for name in said.keys() - KNOWN):
        raise InputError(f"{file.name}: has the settings {first_names(unknown)}, which the tokenizer would lose")
    if said.get("ggml.add_space_prefix"):
        raise InputError(f"{file.name}: tokenizer.ggml.add_space_prefix is true, which BPE of bytes has not")
    if missing := sorted({"ggml.tokens", "ggml.merges", "ggml.token_type"} - said.keys()):
        raise InputError(f"{file.name}: has no tokenizer.{missing[0]}")


def _split(backend: "Tokenizer", split: str) -> None:
    """Let texts be split as the model's own tokenizer does it, where transformers' reading of the file does not."""
    from tokenizers import normalizers, pre_tokenizers

    if split in DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()
    if split == "llama-bpe":
        backend.model.ignore_merges = True


def _check(file: Path, said: Mapping[str, Any], tokenizer: Any) -> None:
    """Refuse a tokenizer that was written if it is another one than the file's."""
    for name, own in SPECIAL.items():
        found, wanted = getattr(tokenizer, f"{name}_token_id"), said.get(f"ggml.{own}_token_id")
        if found != wanted:
            raise InputError(f"{file.name}: tokenizer.ggml.{own}_token_id is {wanted}, but the tokenizer has {found}")
    _check_vocabulary(file, said["ggml.tokens"], said["ggml.token_type"], tokenizer)
    if tokenizer.chat_template != said.get("chat_template"):
        raise InputError(f"{file.name}: tokenizer.chat_template is not what the tokenizer has")
    around = tokenizer("a")["input_ids"]
    for name, place in (("bos", 0), ("eos", -1)):
        default = name == "bos" and said["ggml.pre"] == "llama-bpe"  # llama.cpp's
        wanted = bool(said.get(f"ggml.add_{name}_token", default))
        if wanted != (around[place] == getattr(tokenizer, f"{name}_token_id")):
            raise InputError(
                f"{file.name}: tokenizer.ggml.add_{name}_token is {wanted}, but the tokenizer does otherwise"
            )


def _check_steps(file: Path, split: str, written: "Tokenizer", read: Any) -> None:
    """Refuse a tokenizer that is read otherwise than it was written: a class of the model's own may split by itself."""
    wanted, found = (json.loads(backend.to_str()) for backend in (written, read.backend_tokenizer))
    if other := sorted(key for key in wanted if found[key] != wanted[key]):
        raise InputError(
            f"{file.name}: tokenizer.ggml.pre is {split!r}, but transformers takes its {type(read).__name__} for this "
            f"architecture, which has its own {first_names(other)}"
        )


def _check_vocabulary(file: Path, tokens: Sequence[str], types: Sequence[int], tokenizer: Any) -> None:
    """Refuse another vocabulary, or one of whose control tokens texts may be cut within."""
    whole = tokenizer.get_added_vocab()
    found = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if len(found) != len(tokens):
        raise InputError(f"{file.name}: has {len(tokens)} tokens, but the tokenizer {len(found)}")
    for position, (token, own, kind) in enumerate(zip(tokens, found, types, strict=True)):
        apart = kind in (CONTROL, USER_DEFINED)
        if own != token or (whole.get(token) == position) != apart:
            raise InputError(
                f"{file.name}: token {position} is {token!r} of the type {kind}, which the tokenizer does not have so"
            )
