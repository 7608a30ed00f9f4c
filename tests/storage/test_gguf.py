"""GGUF files as sources: tiny ones, written here, against gguf's numpy code and the models that they were made from."""

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from stages.running.errors import InputError
from stages.storage.checkpoint import Checkpoint
from stages.storage.digests import tree_sha256
from stages.storage.source import Source
from stages.storage.sources import fetch_source
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.training.finished import bring_in
from tests.gguf_files import BYTES, CHAT, MARKS, MERGES, TOKENS, TYPES, tiny_model, write_gguf
from tests.language import made_task

F16, BF16 = GGMLQuantizationType.F16, GGMLQuantizationType.BF16
MIXED = {
    "embed_tokens.weight": GGMLQuantizationType.Q8_0,
    "q_proj.weight": GGMLQuantizationType.Q4_0,
    "k_proj.weight": GGMLQuantizationType.Q8_0,
    "v_proj.weight": F16,
    "o_proj.weight": BF16,
    "gate_proj.weight": GGMLQuantizationType.Q4_1,
    "up_proj.weight": GGMLQuantizationType.Q5_0,
}


def fetch(file: Path, out: Path, **settings: Any) -> Path:
    fetch_source(Source(path=str(file), sha256=tree_sha256(file), gguf=file.name, **settings), out)
    return out


def loaded(directory: Path) -> Any:
    both: Any = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    model, info = both
    assert not any(info.values()), info
    return model.eval()


def same(model: Any, values: Mapping[str, np.ndarray]) -> bool:
    found = model.state_dict()
    return all(np.array_equal(found[name].float().numpy(), value) for name, value in values.items())


def test_every_value_is_what_gguf_de_quantises(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "tiny.gguf", tiny_model(), types=MIXED)
    out = fetch(tmp_path / "tiny.gguf", tmp_path / "out")
    model = loaded(out)
    assert model.dtype == torch.float32
    assert model.state_dict().keys() == values.keys() | {"lm_head.weight"}
    assert same(model, values)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_it_is_the_model_that_the_file_was_made_from(tmp_path: Path, architecture: str, tied: bool) -> None:
    before = tiny_model(architecture, tied=tied)
    write_gguf(tmp_path / "tiny.gguf", before, architecture)
    after = loaded(fetch(tmp_path / "tiny.gguf", tmp_path / "out"))
    assert same(after, {name: values.numpy() for name, values in before.state_dict().items()})
    ids = torch.arange(12).reshape(2, 6) * 7
    with torch.inference_mode():
        assert torch.equal(after(ids).logits, before(ids).logits)
    assert after.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in Checkpoint(tmp_path / "out").tensors.specs) is not tied


def test_bfloat16(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "tiny.gguf", tiny_model(), types=MIXED)
    model = loaded(fetch(tmp_path / "tiny.gguf", tmp_path / "out", dtype="bfloat16"))
    assert model.dtype == torch.bfloat16
    assert same(model, {name: torch.tensor(value).bfloat16().float().numpy() for name, value in values.items()})


def test_the_checkpoint_is_whole(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_model(), types=MIXED, changes={"tokenizer.ggml.eot_token_id": 1})
    out = fetch(tmp_path / "tiny.gguf", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja",
        "checkpoint.json",
        "config.json",
        "contents.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    checkpoint = Checkpoint(out)
    checkpoint.verify()
    assert checkpoint.base_model_prefix == "model"
    assert checkpoint.card["origin"] == {
        "method": "dequantised",
        "file": "tiny.gguf",
        "sha256": sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest(),
        "types": {"BF16": 2, "F16": 2, "F32": 7, "Q4_0": 2, "Q4_1": 2, "Q5_0": 2, "Q8_0": 3},
        "dtype": "float32",
    }
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert str(tmp_path) not in (out / "config.json").read_text() + (out / "tokenizer_config.json").read_text()
    generation = GenerationConfig.from_pretrained(out)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, [2, 1], 0)


def test_it_is_a_models_base(tmp_path: Path) -> None:
    """As `finetune: false` takes it, all that belongs to the checkpoint goes along."""
    values = write_gguf(tmp_path / "tiny.gguf", tiny_model(), types=MIXED)
    base = fetch(tmp_path / "tiny.gguf", tmp_path / "base")
    settings = CausalLM.model_validate(
        {"kind": "causal-lm", "source": "s", "file": "f.csv", "text": "t", "max_length": 16}
    )
    task = made_task(tmp_path / "task", settings, {"text": ["the ab", "a the", "ab", "the a", "b", "the"]}, 2)
    (tmp_path / "taken").mkdir()
    bring_in(base, task, tmp_path / "taken")
    assert same(loaded(tmp_path / "taken"), values)
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "taken" / name).read_bytes() == (base / name).read_bytes()
    origin = Checkpoint(tmp_path / "taken").card["origin"]
    assert origin == {"method": "brought in", "base": "base"}


def test_past_a_shards_size_there_are_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.storage.tensors.TensorWriter.__init__.__defaults__", (100_000,))
    values = write_gguf(tmp_path / "tiny.gguf", tiny_model(), types=MIXED)
    out = fetch(tmp_path / "tiny.gguf", tmp_path / "out")
    assert (out / "model.safetensors.index.json").is_file()
    assert same(loaded(out), values)


def test_the_tokenizer(tmp_path: Path) -> None:
    """Its special tokens and template are the file's, and it splits texts as the model's own does: digit by digit."""
    write_gguf(tmp_path / "tiny.gguf", tiny_model())
    tokenizer = AutoTokenizer.from_pretrained(fetch(tmp_path / "tiny.gguf", tmp_path / "out"))
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    assert ids == (1, 2, 0, None)
    assert tokenizer.chat_template == CHAT
    assert tokenizer.model_max_length == 48
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == TOKENS
    assert tokenizer.tokenize("the ab  20") == ["the", "Ġab", "ĠĠ", "2", "0"]
    assert tokenizer.tokenize("<|im_start|>a<think>b") == ["<|im_start|>", "a", "<think>", "b"]
    assert tokenizer("ab")["input_ids"] == [TOKENS.index("ab")]
    assert tokenizer.decode(tokenizer("the ab  20 é")["input_ids"]) == "the ab  20 é"


@pytest.mark.parametrize(
    ("split", "text", "tokens"),
    [
        ("gpt-2", "a  20", ["a", "Ġ", "Ġ", "2", "0"]),
        ("qwen2", "a  20 e\u0301", ["a", "Ġ", "Ġ", "2", "0", "Ġ", "Ã", "©"]),
        ("llama-bpe", "a 20", ["a", "Ġ", "2", "0"]),
    ],
)
def test_other_splits(tmp_path: Path, split: str, text: str, tokens: list[str]) -> None:
    changes = {"tokenizer.ggml.pre": split, "tokenizer.ggml.add_bos_token": split == "llama-bpe"}
    write_gguf(tmp_path / "tiny.gguf", tiny_model(), changes=changes)
    tokenizer = AutoTokenizer.from_pretrained(fetch(tmp_path / "tiny.gguf", tmp_path / "out"))
    assert tokenizer.tokenize(text) == tokens
    assert (tokenizer("a")["input_ids"][0] == 1) is (split == "llama-bpe")


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "smollm"])
def test_a_tokenizer_whose_class_splits_by_itself_is_refused(tmp_path: Path, split: str) -> None:
    """transformers reads what was written for Qwen2 with a class that is always Qwen2's; for Qwen3 it has none."""
    changes = {"tokenizer.ggml.pre": split, "tokenizer.ggml.add_bos_token": split == "llama-bpe"}
    write_gguf(tmp_path / "tiny.gguf", tiny_model("qwen2"), "qwen2", changes=changes)
    with pytest.raises(InputError, match=rf"^tiny\.gguf: tokenizer\.ggml\.pre is '{split}', but .* Qwen2Tokenizer for"):
        fetch(tmp_path / "tiny.gguf", tmp_path / "out")
    write_gguf(tmp_path / "tiny.gguf", tiny_model("qwen3"), "qwen3", changes=changes)
    tokenizer = AutoTokenizer.from_pretrained(fetch(tmp_path / "tiny.gguf", tmp_path / "out"))
    alone = {"gpt-2": ["Ġ20"], "llama-bpe": ["Ġ", "20"], "smollm": ["Ġ", "2", "0"]}[split]
    assert [part for part, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(" 20")] == alone


def with_control(position: int, kind: int, token: str | None = None) -> dict[str, Any]:
    """An edit of the vocabulary."""
    types, tokens = list(TYPES), list(TOKENS)
    types[position] = kind
    tokens[position] = token or tokens[position]
    return {"tokenizer.ggml.token_type": types, "tokenizer.ggml.tokens": tokens}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"general.type": "adapter"}, "is of the type 'adapter', not a model"),
    ({"split.count": 2}, "is one of 2 parts of a model; join them"),
    ({"llama.rope.scaling.type": "linear"}, r"has the settings llama\.rope\.scaling\.type, which the checkpoint would"),
    ({"llama.attention.sliding_window": 8}, r"llama\.attention\.sliding_window, which the checkpoint would lose"),
    ({"general.name": "mistral"}, r"is of the architecture llama, but transformers takes mistral"),
    ({"llama.context_length": None}, r"does not say its llama\.context_length$"),
    ({"llama.attention.layer_norm_rms_epsilon": None}, r"does not say its llama\.attention\.layer_norm_rms_epsilon$"),
    ({"llama.attention.key_length": 8}, r"llama\.attention\.key_length is 8, but transformers takes 16 for it"),
    (
        {"llama.attention.head_count_kv": None},
        r"tensor blk\.0\.attn_k\.weight has the shape \[32, 64\], not \[64, 64\]",
    ),
    ({"llama.feed_forward_length": 64}, r"tensor blk\.0\.ffn_gate\.weight has the shape \[96, 64\], not \[64, 64\]"),
    ({"tokenizer.ggml.model": "llama"}, r"tokenizer\.ggml\.model is 'llama', a kind of tokenizer that has not been"),
    ({"tokenizer.ggml.pre": "default"}, r"tokenizer\.ggml\.pre is 'default', a way of splitting texts that has not"),
    ({"tokenizer.ggml.pre": None}, r"tokenizer\.ggml\.pre is None"),
    ({"tokenizer.ggml.mystery": 1}, r"has the settings tokenizer\.ggml\.mystery, which the tokenizer would lose"),
    ({"tokenizer.ggml.add_space_prefix": True}, r"add_space_prefix is true, which BPE of bytes has not"),
    (with_control(3, 3, "<th ink>"), r"token 3 is '<th ink>' of the type 3, which the tokenizer does not have so"),
    (with_control(3, 4, "<th ink>"), r"token 3 is '<th ink>' of the type 4, which the tokenizer does not have so"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_the_checkpoint_would_lose_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_model(), changes=changes)
    with pytest.raises(InputError, match=rf"^tiny\.gguf: .*({message})"):
        fetch(tmp_path / "tiny.gguf", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf"]


def test_what_a_file_does_not_say_is_llama_cpps_default(tmp_path: Path) -> None:
    changes = {"llama.rope.freq_base": None, "tokenizer.ggml.add_bos_token": None}
    write_gguf(tmp_path / "tiny.gguf", tiny_model(), changes=changes)
    out = fetch(tmp_path / "tiny.gguf", tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["rope_parameters"]["rope_theta"] == 10000
    assert AutoTokenizer.from_pretrained(out)("ab")["input_ids"] == [TOKENS.index("ab")]


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(message: str, **edits: Any) -> None:
        file = tmp_path / "tiny.gguf"
        write_gguf(file, model, **edits)
        with pytest.raises(InputError, match=rf"^tiny\.gguf: {message}"):
            fetch(file, tmp_path / "out")

    model = tiny_model()
    factors = {"rope_freqs.weight": np.ones(8, np.float32)}  # of Llama 3.1's longer contexts
    refused(r"has the tensors rope_freqs\.weight, which LlamaForCausalLM has no place for", further=factors)
    refused(r"has no model\.norm\.weight$", without=["model.norm.weight"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    refused(r"tensor blk\.1\.ffn_up\.weight has a NaN or an infinity$")


def test_what_is_no_whole_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_model())
    content = (tmp_path / "tiny.gguf").read_bytes()
    no_text = content.replace(b"Tiny", b"\xff\xff\xff\xff")
    for part in (content[:-5000], content[:3000], content[:10], b"PK" + content[2:], b"", no_text):
        (tmp_path / "part.gguf").write_bytes(part)
        with pytest.raises(InputError, match=r"^part\.gguf: is no whole GGUF file that can be read"):
            fetch(tmp_path / "part.gguf", tmp_path / "out")


def test_an_unknown_architecture(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_model(), changes={"general.architecture": "gemma2"})
    with pytest.raises(InputError, match=r"is of the architecture 'gemma2', whose .* known: llama, qwen2, qwen3$"):
        fetch(tmp_path / "tiny.gguf", tmp_path / "out")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_model())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"^tiny\.gguf: .* not installed: `pip install 'fisher-merging\[gguf\]'`$"):
        fetch(tmp_path / "tiny.gguf", tmp_path / "out")


def test_only_the_named_file_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "more").mkdir(parents=True)
    write_gguf(folder / "more/tiny[1].gguf", tiny_model())
    (folder / "tiny1.gguf").write_text("another")
    (folder / "config.json").write_text("another")
    source = Source(path=str(folder), sha256=tree_sha256(folder), gguf="more/tiny[1].gguf", files=["*.gguf"])
    fetch_source(source, tmp_path / "out")
    assert loaded(tmp_path / "out").config.model_type == "llama"
    assert not list((tmp_path / "out").rglob("*.gguf"))
    assert not (tmp_path / "out/.gguf").exists()
    for name, message in {
        "x.gguf": "there is no such file in the source",
        "config.json": "is not among the source's",
    }.items():
        with pytest.raises(InputError, match=rf"^{name}: {message}"):
            fetch_source(source.model_copy(update={"gguf": name}), tmp_path / "other")


def test_the_vocabulary_is_of_bytes() -> None:
    """Or the tests above would say little."""
    assert len(BYTES) == 256
    assert len(TOKENS) == len(MARKS) + 256 + len(MERGES) == len(set(TOKENS))
