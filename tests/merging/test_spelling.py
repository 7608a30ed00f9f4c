"""What transformers loads as the same model is the same model in every merge, however its files spell it."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from stages.merging import Dare, Fisher, Slerp, TaskArithmetic, merge_checkpoints
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint_files import CHECKPOINT_CARD
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles
from tests.merging.models import gram
from tests.merging.test_every_method import each_method
from tests.tiny import tiny_bert, tiny_tokenizer

Tensors = dict[str, Tensor]
Spelling = Callable[[Tensors], Tensors]


def renaming(rename: Callable[[str], str]) -> Spelling:
    return lambda tensors: {rename(name): value for name, value in tensors.items()}


def old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def positions(tensors: Tensors) -> Tensors:
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    return tensors | {f"{prefix}embeddings.position_ids": torch.arange(24)[None]}


SPELLINGS: dict[str, Spelling] = {
    "gamma and beta": renaming(old_norms),
    "no prefix": renaming(lambda name: name.removeprefix("bert.")),
    "no prefix, gamma and beta": renaming(lambda name: old_norms(name.removeprefix("bert."))),
    "position_ids": positions,
    "a left-over head": lambda tensors: tensors | {"cls.predictions.bias": torch.zeros(20)},
}


class Herd:
    """Models with random statistics of all kinds, and their base, each of which can be spelled otherwise."""

    def __init__(self, root: Path, make: Callable[[int], PreTrainedModel], names: tuple[str, ...]) -> None:
        self.root = root
        self.checkpoints = {name: root / name for name in names}
        self.statistics = {name: [root / f"{name}-statistics"] for name in names}
        self.base = root / "base"
        self._tensors: dict[str, Tensors] = {}
        for seed, name in enumerate((*names, "base")):
            model = make(seed)
            model.save_pretrained(root / name)
            tiny_tokenizer().save_pretrained(root / name)
            self._tensors[name] = load_file(root / name / "model.safetensors")
            self.spell(name, dict)

    def spell(self, name: str, spelling: Spelling) -> None:
        """Let a model, or the base, be spelled in this way, and its statistics under the names of its file."""
        tensors = self._tensors[name]
        spelled = spelling(tensors)
        save_file(
            {key: value.clone() for key, value in spelled.items()},
            self.root / name / "model.safetensors",
            metadata={"format": "pt"},
        )
        if name == "base":
            return
        directory = self.root / f"{name}-statistics"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        generator = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
        fisher, inputs, outputs = {}, {}, {}
        for key, value in tensors.items():
            (own,) = [k for k in spelling({key: value}) if k in spelled and spelled[k].is_floating_point()][:1]
            fisher[own] = torch.rand(value.shape, generator=generator)
            if value.dim() == 2 and "emb" not in key and "wte" not in key and "shared" not in key:
                inputs[f"input.{own}"] = gram(torch.randn(40, value.shape[1], generator=generator))
                outputs[f"output.{own}"] = gram(torch.randn(40, value.shape[0], generator=generator))
        files = TensorFiles(self.root / name)
        write_statistic(directory, "diagonal", fisher, files, {})
        write_statistic(directory, "kfac", inputs | outputs, files, {})
        write_statistic(directory, "gram", inputs, files, {})

    def merge(self, method: Any, **options: Any) -> Tensors:
        λ = dict(zip(self.checkpoints, (0.5, 0.2, 0.3), strict=False))
        given: dict[str, Any] = {"statistics": self.statistics, "base": self.base} | options
        merge_checkpoints(self.checkpoints, self.root / "out", method=method, coefficients=λ, **given)
        return load_file(self.root / "out" / "model.safetensors")


def names_for(method: Any) -> tuple[str, ...]:
    return ("ann", "bob") if isinstance(method, Slerp) else ("ann", "bob", "cid")


def bert(seed: int) -> PreTrainedModel:
    return tiny_bert(seed=seed)


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@each_method
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_model_and_a_base_in_another_spelling(tmp_path: Path, method: Any, spelling: str) -> None:
    herd = Herd(tmp_path, bert, names_for(method))
    wanted = herd.merge(method)
    herd.spell("bob", SPELLINGS[spelling])
    assert_same(herd.merge(method), wanted)
    herd.spell("base", SPELLINGS[spelling])
    assert_same(herd.merge(method), wanted)
    herd.spell("ann", SPELLINGS[spelling])
    found = herd.merge(method)
    if not isinstance(method, Dare):  # whose masks are drawn by the tensors' names in the target's file
        assert_same(
            {name: found[next(iter(SPELLINGS[spelling]({name: value})))] for name, value in wanted.items()}, wanted
        )
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out")
    if not isinstance(method, Dare):
        assert_same(loaded.state_dict(), wanted)


@each_method
@pytest.mark.parametrize("heads", ["target", "each"])
def test_heads_are_told_from_bodies_in_any_spelling(tmp_path: Path, method: Any, heads: str) -> None:
    herd = Herd(tmp_path, bert, names_for(method))
    wanted = herd.merge(method, heads=heads)
    for name in ("bob", "base"):
        herd.spell(name, SPELLINGS["no prefix, gamma and beta"])
    assert_same(herd.merge(method, heads=heads), wanted)
    if heads == "each":
        head = load_file(tmp_path / "out/heads/bob.safetensors")
        assert_same(head, {k: v for k, v in load_file(tmp_path / "bob/model.safetensors").items() if "classifier" in k})


def small(name: str, **more: Any) -> Callable[[int], PreTrainedModel]:
    """Models of an architecture in its smallest form, with values that differ from each other everywhere."""
    model_class = getattr(transformers, name)

    def make(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = model_class(model_class.config_class(**more))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        return model

    return make


TEXT: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 24, "max_position_embeddings": 24}
GPT2: dict[str, Any] = {"vocab_size": 20, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
T5: dict[str, Any] = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
VIT: dict[str, Any] = {k: v for k, v in TEXT.items() if "size" in k or "num" in k} | {"image_size": 8, "patch_size": 4}

# Architecture → how it is spelled elsewhere; the models' files are as transformers saves them.
ELSEWHERE: dict[str, tuple[Callable[[int], PreTrainedModel], Spelling]] = {
    "RoBERTa with a pooler and positions": (
        small("RobertaForSequenceClassification", **TEXT),
        lambda tensors: (
            tensors
            | {
                "roberta.embeddings.position_ids": torch.arange(24)[None],
                "roberta.pooler.dense.weight": torch.ones(16, 16),
            }
        ),
    ),
    "ELECTRA, gamma and beta": (small("ElectraForSequenceClassification", **TEXT), renaming(old_norms)),
    "GPT-2 of old": (
        small("GPT2LMHeadModel", **GPT2),
        lambda tensors: (
            {name.removeprefix("transformer."): value for name, value in tensors.items()}
            | {"h.0.attn.bias": torch.ones(1, 1, 16, 16), "h.0.attn.masked_bias": torch.tensor(-1e4)}
        ),
    ),
    "Llama with its rotary frequencies": (
        small("LlamaForCausalLM", **TEXT),
        lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4)},
    ),
    "GPT-NeoX with its masks": (
        small("GPTNeoXForCausalLM", **TEXT),
        lambda tensors: (
            tensors
            | {
                "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 24, 24, dtype=torch.bool),
                "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
            }
        ),
    ),
    "ViT as it is in memory": (
        small("ViTForImageClassification", **VIT),
        renaming(
            lambda name: (
                name.replace("encoder.layer.", "layers.")
                .replace("attention.attention.query", "attention.q_proj")
                .replace("attention.attention.key", "attention.k_proj")
                .replace("attention.attention.value", "attention.v_proj")
                .replace("attention.output.dense", "attention.o_proj")
                .replace("intermediate.dense", "mlp.fc1")
                .replace("output.dense", "mlp.fc2")
            )
        ),
    ),
}


@pytest.mark.parametrize("architecture", ELSEWHERE)
@pytest.mark.parametrize("method", ["isotropic", "fisher", "regmean", "ties"])
def test_architectures_as_they_are_published(tmp_path: Path, architecture: str, method: str) -> None:
    make, spelling = ELSEWHERE[architecture]
    herd = Herd(tmp_path, make, ("ann", "bob"))
    model_class = type(make(0))
    before = model_class.from_pretrained(tmp_path / "bob").state_dict()
    wanted = herd.merge(method)
    herd.spell("bob", spelling)
    assert_same(model_class.from_pretrained(tmp_path / "bob").state_dict(), before)  # one and the same model
    herd.spell("base", spelling)
    assert_same(herd.merge(method), wanted)


def test_what_has_no_counterpart_is_refused_with_a_remedy(tmp_path: Path) -> None:
    herd = Herd(tmp_path, bert, ("ann", "bob"))
    key = "bert.encoder.layer.0.output.dense.weight"
    herd.spell("bob", renaming(lambda name: name.replace(key, f"{key}s")))
    with pytest.raises(InputError, match=rf"bob.*: lacks the tensor {key}, which ann has; .*`save_pretrained`"):
        herd.merge("isotropic", statistics=None)
    with pytest.raises(InputError, match=rf"ann.*: lacks the tensor {key}s, which bob has; .*`save_pretrained`"):
        herd.merge("isotropic", statistics=None, heads="target")


def test_experts_of_another_layout_are_refused_with_a_remedy(tmp_path: Path) -> None:
    """One file has the experts' matrices apart, the other as the model has them in memory."""
    herd = Herd(
        tmp_path, small("MixtralForCausalLM", **TEXT, num_local_experts=2, num_key_value_heads=2), ("ann", "bob")
    )
    herd.merge("isotropic")
    fused = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "bob")
    save_file(fused.state_dict(), tmp_path / "bob/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the tensor model\.layers\.0\..*experts.*`save_pretrained`"):
        herd.merge("isotropic")


# Tied tensors: architecture → what is a copy of what, in files that hold both.
TIED: dict[str, tuple[Callable[[int], PreTrainedModel], dict[str, str]]] = {
    "Llama": (
        small("LlamaForCausalLM", **TEXT, tie_word_embeddings=True),
        {"lm_head.weight": "model.embed_tokens.weight"},
    ),
    "GPT-2": (small("GPT2LMHeadModel", **GPT2), {"lm_head.weight": "transformer.wte.weight"}),
    "BERT": (
        small("BertForMaskedLM", **TEXT),
        {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    ),
    "T5": (
        small("T5ForConditionalGeneration", **T5),
        {f"{name}.weight": "shared.weight" for name in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens")},
    ),
}


def twice(copies: Mapping[str, str]) -> Spelling:
    return lambda tensors: tensors | {copy: tensors[own] for copy, own in copies.items() if own in tensors}


@each_method
@pytest.mark.parametrize("architecture", TIED)
def test_tied_is_tied_whichever_way_it_is_stored(tmp_path: Path, method: Any, architecture: str) -> None:
    make, copies = TIED[architecture]
    herd = Herd(tmp_path, make, names_for(method))
    wanted = herd.merge(method)
    for stored_twice in (["bob"], ["base"], ["ann", "base"], [*herd.checkpoints], [*herd.checkpoints, "base"]):
        for name in (*herd.checkpoints, "base"):
            herd.spell(name, twice(copies) if name in stored_twice else dict)
        found = herd.merge(method)
        assert_same({name: found[name] for name in wanted}, wanted)
        for copy in found.keys() - wanted.keys():
            assert torch.equal(found[copy], wanted[copies[copy]])
        loaded = type(make(0)).from_pretrained(tmp_path / "out")
        for copy, own in copies.items():
            assert loaded.get_parameter(copy) is loaded.get_parameter(own)


@pytest.mark.parametrize("architecture", ["Llama", "GPT-2"])
def test_only_the_head_of_the_tied_is_stored(tmp_path: Path, architecture: str) -> None:
    make, copies = TIED[architecture]
    herd = Herd(tmp_path, make, ("ann", "bob"))
    wanted = herd.merge(Fisher())
    ((copy, own),) = copies.items()
    head_only = renaming(lambda name: copy if name == own else name)
    herd.spell("bob", head_only)
    assert_same(herd.merge(Fisher()), wanted)
    herd.spell("ann", head_only)
    assert_same(herd.merge(Fisher()), head_only(wanted))
    loaded = type(make(0)).from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.get_parameter(own), wanted[own])


def test_copies_that_differ_are_tensors_of_their_own(tmp_path: Path) -> None:
    """As transformers loads them: not tied, whatever config.json says; never beside models whose copies are one."""
    make, copies = TIED["Llama"]
    herd = Herd(tmp_path, make, ("ann", "bob"))
    ((copy, own),) = copies.items()

    def apart(tensors: Tensors) -> Tensors:
        return tensors | ({copy: 2 * tensors[own]} if own in tensors else {})

    herd.spell("bob", apart)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"bob.*tensor lm_head\.weight is tied to .* other values, while ann's are"
        ):
            herd.merge("isotropic")
        herd.spell("ann", twice(copies))
    herd.spell("ann", apart)
    found = herd.merge("isotropic")
    stored = {name: load_file(tmp_path / name / "model.safetensors") for name in ("ann", "bob", "base")}
    for name in (own, copy):
        torch.testing.assert_close(found[name], (5 * stored["ann"][name] + 2 * stored["bob"][name]) / 7)
    # A base whose embeddings are tied has the head's tensor too: it is none that the base lacks.
    found = herd.merge(TaskArithmetic(scale=0.5))
    vector = (5 * stored["ann"][copy] + 2 * stored["bob"][copy]) / 7 - stored["base"][own]
    torch.testing.assert_close(found[copy], stored["base"][own] + vector / 2)


def test_a_fisher_of_both_copies_is_refused(tmp_path: Path) -> None:
    make, copies = TIED["GPT-2"]
    herd = Herd(tmp_path, make, ("ann", "bob"))
    herd.spell("bob", twice(copies))
    directory = herd.statistics["bob"][0]
    fisher = load_file(directory / "fisher.safetensors")
    ((copy, own),) = copies.items()
    write_statistic(directory, "diagonal", fisher | {copy: fisher[own].clone()}, TensorFiles(tmp_path / "bob"), {})
    with pytest.raises(InputError, match=r"has two tensors, .* of one tied parameter"):
        herd.merge("fisher")


def test_a_base_of_another_class(tmp_path: Path) -> None:
    """A body alone, or a masked-LM model in old spelling, is the base of classifiers as it is in transformers."""
    herd = Herd(tmp_path, bert, ("ann", "bob"))
    masked = small("BertForMaskedLM", **read_shape(tmp_path / "base"))(7)
    masked.save_pretrained(tmp_path / "masked")
    wanted = herd.merge("task_arithmetic", base=tmp_path / "masked")
    file = tmp_path / "masked/model.safetensors"
    save_file(renaming(old_norms)(load_file(file)), file, metadata={"format": "pt"})
    assert_same(herd.merge("task_arithmetic", base=tmp_path / "masked"), wanted)


def read_shape(checkpoint: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(checkpoint / "config.json").items() if key in TEXT}


def test_an_unknown_architecture_is_merged_by_its_names_alone(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", {"model_type": "ours", "architectures": ["Ours"]})
        write_json(tmp_path / name / CHECKPOINT_CARD, {"base_model_prefix": "a"})
        save_file({"a.weight": torch.rand(3)}, tmp_path / name / "model.safetensors")
    λ = {"ann": 0.5, "bob": 0.5}
    both = {name: tmp_path / name for name in λ}
    merge_checkpoints(both, tmp_path / "out", method="isotropic", coefficients=λ)
    save_file({"a.w": torch.rand(3)}, tmp_path / "bob/model.safetensors")
    with pytest.raises(InputError, match=r"ann.*: lacks the tensor a\.w, which bob has"):
        merge_checkpoints(both, tmp_path / "out", method="isotropic", coefficients=λ)
