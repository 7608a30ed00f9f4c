"""Texts as models read them: tokenizers that are none, padding, positions, and tokens without embeddings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import is_sentencepiece_available

from stages.curvature import diagonal_fisher
from stages.running.errors import InputError
from stages.tasks.data import TaskData
from stages.tasks.kinds.text_classification.kind import KIND
from stages.tasks.loading import Model
from stages.tasks.texts import collator, embedding_rows, position_limit, refuse_unknown
from tests.tiny import tiny_bert, tiny_tokenizer

LABELS = ["bad", "good"]
SIZES = {  # of any architecture, by whichever of these its config has
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"), 16
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 24),
    "head_dim": 8,
    "vocab_size": 260,
}


def tiny(model_type: str, architecture: Any = AutoModelForSequenceClassification, **changes: Any) -> Model:
    """A random model of a type, of ordinary weights, in float32."""
    own = AutoConfig.for_model(model_type)
    names = {*SIZES} - {*own.attribute_map} if hasattr(own, "attribute_map") else {*SIZES}
    fixed = {"falcon": {"head_dim"}, "xlnet": {"max_position_embeddings"}}.get(model_type, set())
    sizes = {name: SIZES[name] for name in names - fixed if hasattr(own, name)}
    torch.manual_seed(0)
    model = architecture.from_config(type(own)(**(sizes | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def byte_level(directory: Path, **special: Any) -> None:
    """A tokenizer of bytes with the token <|end|>, number 0, like GPT-2's; without a padding token unless named."""
    vocabulary = {"<|end|>": 0} | {c: i + 1 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    settings = {"model_input_names": ["input_ids", "attention_mask"], "eos_token": "<|end|>", "bos_token": "<|end|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(settings | special)).save_pretrained(directory)


def of_texts(directory: Path, texts: Sequence[str], max_length: int = 24) -> tuple[pd.DataFrame, TaskData]:
    frame = pd.DataFrame({"text": texts, "label": [0] * len(texts)})
    return frame, TaskData(directory / "task", "text-classification", tuple(LABELS), max_length, {})


CAUSAL = ["gpt2", "llama", "mistral", "opt", "gpt_neox", "qwen2", "gemma", "phi", "bloom", "xlnet"]
TEXTS = ["a fine film", "dull", "a<|end|>poor <|end|>book", "great"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", CAUSAL)
def test_padding_changes_nothing_without_a_padding_token(tmp_path: Path, model_type: str, side: str) -> None:
    """Logits and Fishers of a batch are those of its texts one by one; the token that pads may stand in a text too."""
    changes = {"pad_token_id": None, "eos_token_id": 0, "bos_token_id": 0}
    model = tiny(model_type, **changes)
    byte_level(tmp_path, padding_side=side)
    tokenizer = KIND.load_processor(tmp_path)
    assert tokenizer.pad_token is None
    frame, task = of_texts(tmp_path, TEXTS)
    encoded = KIND.encode(tokenizer, frame, task, model, seed=0)
    collate = collator(tokenizer, model)
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    examples = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    alone = [{key: torch.tensor([value]) for key, value in row.items() if key != "labels"} for row in examples]
    together = {key: value for key, value in collate(examples).items() if key != "labels"}
    with torch.no_grad():
        found = model(**together).logits
        last = [model(**one).logits[0] for one in alone]
        # Of the whole text: the last token is no padding, so the head without a padding token reads it too.
        model.config.pad_token_id = None
        plain = [model(**one).logits[0] for one in alone]
        model.config.pad_token_id = 0
    torch.testing.assert_close(found, torch.stack(last), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, torch.stack(plain), rtol=1e-4, atol=1e-5)
    fisher, wanted = diagonal_fisher(model, [together]), diagonal_fisher(model, alone)
    assert fisher.keys() == wanted.keys()
    noise = 1e-10 * max(float(value.max()) for value in wanted.values())  # keys' biases have none but that
    for name, value in wanted.items():
        torch.testing.assert_close(fisher[name], value, rtol=1e-3, atol=1e-6 * float(value.max()) + noise)
    assert wanted[next(name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight)][
        0
    ].any()


def test_the_models_padding_token_counts_before_the_tokenizers(tmp_path: Path) -> None:
    """A head that was trained looks for the token that its config names; numbers that no embedding has are none."""
    byte_level(tmp_path, pad_token="!", additional_special_tokens=["?"])
    tokenizer = KIND.load_processor(tmp_path)
    own, question = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("?")
    for named, wanted in ((question, question), (-1, own), (9999, own), (None, own)):
        model = tiny("gpt2", pad_token_id=None)
        model.config.pad_token_id = named
        batch = collator(tokenizer, model)([{"input_ids": [5, 6], "labels": 0}, {"input_ids": [7], "labels": 1}])
        assert batch["input_ids"].tolist() == [[5, 6], [7, wanted]]
        assert batch["labels"].tolist() == [0, 1]
        assert model.config.pad_token_id == wanted
        assert tokenizer.pad_token == "!"


def test_a_padding_token_that_was_added_without_an_embedding(tmp_path: Path) -> None:
    byte_level(tmp_path, pad_token="[PAD]")
    tokenizer = KIND.load_processor(tmp_path)
    model = tiny("gpt2", vocab_size=257, pad_token_id=None)
    assert tokenizer.pad_token_id == 257
    batch = collator(tokenizer, model)([{"input_ids": [5, 6]}, {"input_ids": [7]}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert tokenizer.pad_token == "<|end|>"


def test_nothing_to_pad_with(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    for role in ("pad_token", "unk_token", "eos_token"):
        setattr(tokenizer, role, None)
    with pytest.raises(InputError, match="has no token to pad with; name one of its tokens as `pad_token`"):
        collator(tokenizer, tiny("gpt2", pad_token_id=None))


def test_a_masked_batch_is_padded_at_its_end(tmp_path: Path) -> None:
    """What is to predict is counted from a text's first token, on whichever side a tokenizer would pad."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    model = tiny_bert()
    batch = collator(tokenizer, model)(
        [{"input_ids": [2, 9, 3], "attention_mask": [1, 1, 1]}, {"input_ids": [2, 3], "attention_mask": [1, 1]}]
    )
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def reads(model: Model, length: int) -> bool:
    """Whether a forward pass over so many tokens works."""
    ids = torch.randint(10, 200, (1, length))
    if model.config.is_encoder_decoder:
        ids[:, -1] = model.config.eos_token_id
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


ROBERTAS = ["roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "longformer", "mpnet", "data2vec-text", "ibert"]
OTHERS = [
    "bert",
    "albert",
    "electra",
    "distilbert",
    "gpt2",
    "opt",
    "bart",
    "mbart",
    "biogpt",
    "nystromformer",
    "fnet",
    "xlm",
]


@pytest.mark.parametrize(
    "model_type", [*ROBERTAS, "roberta-prelayernorm", "markuplm", *OTHERS, "deberta-v2", "roformer"]
)
def test_the_last_position_is_read_and_one_beyond_is_not(model_type: str) -> None:
    changes = {"attention_window": [8]} if model_type == "longformer" else {}
    model = tiny(model_type, **changes)
    limit = position_limit(model)
    assert limit == (
        22 if model_type in (*ROBERTAS, "roberta-prelayernorm") else 23 if model_type == "markuplm" else 24
    )
    if model_type == "fnet":
        model.forward = lambda input_ids, attention_mask: type(model).forward(model, input_ids)
    assert reads(model, limit)
    assert not reads(model, limit + 1)


def test_masked_lm_models_of_robertas_kind() -> None:
    model = tiny("esm", AutoModelForMaskedLM, position_embedding_type="absolute", pad_token_id=1, mask_token_id=2)
    assert position_limit(model) == 22
    assert reads(model, 22)
    assert not reads(model, 23)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("deberta-v2", {"relative_attention": True, "position_biased_input": False}),
        ("deberta-v2", {"relative_attention": True, "position_biased_input": False, "position_buckets": 8}),
        ("deberta", {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]}),
        ("falcon", {"alibi": True, "num_kv_heads": 2}),
        ("bloom", {}),
        ("xlnet", {"d_inner": 24}),
        ("mt5", {"num_heads": 2, "d_kv": 8, "d_ff": 24, "num_layers": 1}),
    ],
)
def test_relative_positions_have_no_limit(model_type: str, changes: dict[str, Any]) -> None:
    model = tiny(model_type, **changes)
    assert position_limit(model) is None
    assert reads(model, 24 * 7)


def test_rotary_positions_end_where_the_config_says() -> None:
    """They could be computed beyond, but the model has not been made for them."""
    assert position_limit(tiny("llama")) == 24


def test_a_token_beyond_the_embeddings_is_named(tmp_path: Path) -> None:
    tiny_tokenizer(["film", "is", "unicorn"]).save_pretrained(tmp_path)
    tokenizer = KIND.load_processor(tmp_path)
    model = tiny_bert(vocab_size=7)
    frame, task = of_texts(tmp_path, ["film is film", "film is unicorn"])
    wanted = (
        r"makes the token 'unicorn', number 7, but the model has embeddings of 7 tokens; .* resize_token_embeddings"
    )
    with pytest.raises(InputError, match=wanted):
        KIND.encode(tokenizer, frame, task, model, seed=0)
    KIND.encode(tokenizer, frame[:1], task, model, seed=0)  # a token that no text has does no harm
    assert embedding_rows(tiny("canine")) is None


def test_inputs_that_a_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    frame, task = of_texts(tmp_path, ["good film"])
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    for model_type, wanted in (("bert", {"token_type_ids", "attention_mask"}), ("distilbert", {"attention_mask"})):
        found = KIND.encode(tokenizer, frame, task, tiny(model_type), seed=0)
        assert found.keys() == {"input_ids", "labels"} | wanted
    assert KIND.encode(tokenizer, frame, task, tiny("fnet"), seed=0).keys() == {"input_ids", "token_type_ids", "labels"}


@pytest.mark.parametrize("unknown", [0, 1, 2, 4])
def test_texts_of_which_most_is_unknown_are_refused(tmp_path: Path, unknown: int) -> None:
    frame, task = of_texts(tmp_path, ["good film is fine", *["xx yy zz vv"] * unknown])
    tokenizer = tiny_tokenizer()
    encoded = KIND.encode(tokenizer, frame, task, tiny_bert(), seed=0)
    if unknown < 2:
        refuse_unknown(tokenizer, encoded, task)
        return
    count, total = 4 * unknown, 4 * (unknown + 1)
    with pytest.raises(InputError, match=rf"does not know {count} of the {total} tokens \(\d+%\).* '\[UNK\]'"):
        refuse_unknown(tokenizer, encoded, task)


def test_a_token_that_is_everything_is_not_the_unknown_one(tmp_path: Path) -> None:
    byte_level(tmp_path, unk_token="<|end|>")
    tokenizer = KIND.load_processor(tmp_path)
    refuse_unknown(tokenizer, {"input_ids": [[0, 0, 0, 5]]}, of_texts(tmp_path, [])[1])


def test_a_text_without_a_token(tmp_path: Path) -> None:
    byte_level(tmp_path)
    frame, task = of_texts(tmp_path, ["fine", ""])
    with pytest.raises(InputError, match="makes no token of the text '' of task"):
        KIND.encode(KIND.load_processor(tmp_path), frame, task, tiny("gpt2"), seed=0)


TYPES = [
    "bert",
    "roberta",
    "gpt2",
    "t5",
    "deberta-v2",
    "albert",
    "xlm-roberta",
    "llama",
    "qwen2",
    "mbart",
    "gemma",
    "xlnet",
]


@pytest.mark.parametrize(
    "model_type", [*TYPES, "distilbert", "electra", "splinter", "opt", "mistral", "esm", "bart", "bloom"]
)
@pytest.mark.parametrize("with_config", [True, False])
def test_no_tokenizer_is_refused(tmp_path: Path, model_type: str, with_config: bool) -> None:
    """Transformers makes one of special tokens alone for many of them."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if with_config:
        (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"(has no tokenizer|its tokenizer knows no words).* beside its config\.json"):
        KIND.load_processor(tmp_path)


@pytest.mark.parametrize("model_type", ["canine", "perceiver"])
def test_a_tokenizer_that_needs_no_files(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert len(KIND.load_processor(tmp_path)("good film")["input_ids"]) > 8


@pytest.mark.skipif(is_sentencepiece_available(), reason="sentencepiece is installed")
@pytest.mark.parametrize(
    ("model_type", "file", "content", "packages"),
    [
        ("deberta-v2", "spm.model", b"\n\x0e", "packages sentencepiece and protobuf"),
        ("xlm-roberta", "sentencepiece.bpe.model", b"\n\x0e\n\x05<unk>", "packages sentencepiece and protobuf"),
        ("t5", "spiece.model", b"\n\x0e\n\x05<pad>", "packages sentencepiece and protobuf"),
        ("llama", "tokenizer.model", b"\n\x0e\n\x05<unk>", "packages sentencepiece and protobuf"),
        ("llama", "tokenizer.model", b"IQ== 0\nIg== 1\nIw== 2\n", "package tiktoken"),
    ],
)
def test_what_a_tokenizers_file_needs(
    tmp_path: Path, model_type: str, file: str, content: bytes, packages: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"is in {file} alone, which needs the {packages}; .*json"):
        KIND.load_processor(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_named(checkpoint: Path, file: str) -> None:
    (checkpoint / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 9\n")
    with pytest.raises(InputError, match=rf"{file}: is a Git LFS pointer, not the file itself; run `git lfs pull`"):
        KIND.load_processor(checkpoint)
    if file == "config.json":
        with pytest.raises(InputError, match="is a Git LFS pointer"):
            KIND.load_model(checkpoint, LABELS)
    (checkpoint / "pytorch_model.bin").write_bytes((checkpoint / file).read_bytes())


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "bart"])
def test_what_a_base_was_trained_for_does_not_decide_the_loss(
    tmp_path: Path, problem_type: str, model_type: str
) -> None:
    tiny(model_type, problem_type=problem_type, pad_token_id=1, num_labels=2).save_pretrained(tmp_path)
    model = KIND.load_model(tmp_path, LABELS, new_head=True).eval()
    ids = torch.randint(10, 200, (3, 7))
    if model.config.is_encoder_decoder:
        ids[:, -1] = model.config.eos_token_id
    outputs = model(input_ids=ids, labels=torch.tensor([1, 0, 1]))
    wanted = torch.nn.functional.cross_entropy(outputs.logits.double(), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(outputs.loss.double(), wanted, rtol=1e-5, atol=0)
