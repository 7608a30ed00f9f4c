"""Models whose vocabularies differ by added tokens: rows are matched by token, against numpy."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from stages.merging import (
    Dare,
    Fisher,
    Isotropic,
    Kfac,
    Regmean,
    Slerp,
    TaskArithmetic,
    Ties,
    Uncertainty,
    merge_checkpoints,
)
from stages.merging.options import MethodOptions
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles
from tests.merging.models import gram
from tests.merging.test_every_method import each_method
from tests.tiny import SPECIAL, WORDS, tiny_bert, tiny_config, tiny_tokenizer

Array = NDArray[np.float64]
Key = str | int
Rows = dict[str, Array]  # by model, and the base's as `base`
OLD = [*SPECIAL, *WORDS]
ADDED = {"ann": ["<a>", "<x>", "<y>"], "bob": ["<y>", "<b>", "<x>", "<c>"], "cid": ["<c>", "<x>"], "base": ["<x>"]}
PADDED = {"ann": 28, "bob": 24, "cid": 26, "base": 21}  # rows
λ = {"ann": 0.5, "bob": 0.2, "cid": 0.3}


def tokens(name: str) -> list[str]:
    return [*OLD, *ADDED[name]]


def keys(name: str) -> list[Key]:
    """What each row of a model is of: a token, or itself."""
    known: list[Key] = list(tokens(name))
    return [*known, *range(len(known), PADDED[name])]


def wanted_keys(models: Sequence[str], vocabulary: str) -> list[Key]:
    """What the result's rows are of: the target's, and then what others have besides, model by model."""
    found = keys(models[0])
    if vocabulary == "union":
        known = tokens(models[0])
        for model in models[1:]:
            known += [token for token in tokens(model) if token not in known]
        found[: len(known)] = known
    return found


def llama(name: str, *, tied: bool) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=PADDED[name],
        hidden_size=8,
        intermediate_size=24,  # as many as bob has rows
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        bos_token_id=2,
        eos_token_id=3,
    )
    return LlamaForCausalLM(config)


MAKERS: dict[str, Callable[[str], PreTrainedModel]] = {
    "a tied Llama": lambda name: llama(name, tied=True),
    "an untied Llama": lambda name: llama(name, tied=False),
    "a masked LM": lambda name: BertForMaskedLM(tiny_config((), vocab_size=PADDED[name])),
    "an untied masked LM": lambda name: BertForMaskedLM(
        tiny_config((), vocab_size=PADDED[name], tie_word_embeddings=False)
    ),
    "a classifier": lambda name: tiny_bert(vocab_size=PADDED[name]),
}
BY_TOKEN = {
    "a tied Llama": {"model.embed_tokens.weight"},
    "an untied Llama": {"model.embed_tokens.weight", "lm_head.weight"},
    "a masked LM": {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"},
    "an untied masked LM": {
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "cls.predictions.bias",
    },
    "a classifier": {"bert.embeddings.word_embeddings.weight"},
}
each_architecture = pytest.mark.parametrize("kind", MAKERS)
each_vocabulary = pytest.mark.parametrize("vocabulary", ["shared", "union"])
HEAD = "lm_head.weight"


@dataclass
class Herd:
    """Models with tokens of their own, their base, and statistics of all kinds."""

    root: Path
    kind: str
    models: Sequence[str] = ("ann", "bob", "cid")
    tensors: dict[str, dict[str, Array]] = field(default_factory=dict)
    fishers: dict[str, dict[str, Array]] = field(default_factory=dict)
    factors: dict[str, dict[str, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for seed, name in enumerate((*sorted(ADDED),)):
            torch.manual_seed(seed)
            model = MAKERS[self.kind](name)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.3)
            model.save_pretrained(self.root / name)
            tokenizer = tiny_tokenizer()
            flags = {token: AddedToken(token, special=token == "<b>", lstrip=token == "<c>") for token in ADDED[name]}
            tokenizer.add_tokens(list(flags.values()))
            tokenizer.chat_template = f"{{{{ '{name} speaks' }}}}"
            tokenizer.save_pretrained(self.root / name)
            assert len(tokenizer) == len(tokens(name))
            self._estimate(name)

    def _estimate(self, name: str) -> None:
        """Random statistics of a model, as the tensors in its file are called."""
        tensors = load_file(self.root / name / "model.safetensors")
        generator = torch.Generator().manual_seed(ord(name[0]))
        fisher = {key: torch.rand(value.shape, generator=generator) ** 4 for key, value in tensors.items()}
        factors = {}
        for key, value in tensors.items():
            if value.dim() == 2 and "embed" not in key:
                factors[f"input.{key}"] = gram(torch.randn(40, value.shape[1], generator=generator))
                factors[f"output.{key}"] = gram(torch.randn(60, value.shape[0], generator=generator))
        directory = self.root / f"{name}-statistics"
        directory.mkdir()
        files = TensorFiles(self.root / name)
        write_statistic(directory, "diagonal", fisher, files, {})
        write_statistic(directory, "kfac", factors, files, {})
        inputs = {key: value for key, value in factors.items() if key.startswith("input.")}
        write_statistic(directory, "gram", inputs, files, {})
        for kept, found in ((self.tensors, tensors), (self.fishers, fisher), (self.factors, factors)):
            kept[name] = {key: value.double().numpy() for key, value in found.items()}

    def merge(self, method: Any, coefficients: Mapping[str, float] = λ, **options: Any) -> dict[str, Array]:
        given: dict[str, Any] = {
            "statistics": {name: self.root / f"{name}-statistics" for name in self.models},
            "base": self.root / "base",
            "precision": "float64",
        }
        merge_checkpoints(
            {name: self.root / name for name in self.models},
            self.root / "out",
            method=method,
            coefficients={name: coefficients[name] for name in self.models},
            **(given | options),
        )
        found = load_file(self.root / "out" / "model.safetensors")
        return {name: value.double().numpy() for name, value in found.items()}

    def rows(self, of: Mapping[str, Mapping[str, Array]], tensor: str, key: Key) -> Rows:
        """A row of every model, and the base, that has it."""
        return {
            name: of[name][tensor][keys(name).index(key)]
            for name in (*self.models, "base")
            if key in keys(name) and tensor in of[name]
        }

    def reference(self, tensor: str, vocabulary: str, rule: "Reference") -> Array:
        """A tensor merged in groups of rows that the same models have."""
        wanted = wanted_keys(self.models, vocabulary)
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, key in enumerate(wanted):
            having = tuple(self.rows(self.tensors, tensor, key))
            groups.setdefault(having if rule in OF_VECTORS else having_models(having), []).append(place)
        found = np.full((len(wanted), *self.tensors[self.models[0]][tensor].shape[1:]), np.nan)
        for having, places in groups.items():
            stacked = [self.rows(self.tensors, tensor, wanted[place]) for place in places]
            values = {name: np.stack([row[name] for row in stacked]) for name in having}
            stacked = [self.rows(self.fishers, tensor, wanted[place]) for place in places]
            fishers = {name: np.stack([row[name] for row in stacked]) for name in having}
            base = values.pop("base", None)
            sole = len(values) == 1
            found[places] = next(iter(values.values())) if sole else rule(self, tensor, values, fishers, base)
        return found


# The herd, a tensor, its rows in the models that have them, their Fishers, and the base's rows → the merged rows.
Reference = Callable[[Herd, str, Rows, Rows, Array | None], Array]


def having_models(having: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in having if name != "base")


def shares(values: Rows) -> dict[str, float]:
    total = sum(λ[name] for name in values)
    return {name: λ[name] / total for name in values}


def mean(_: Herd, __: str, values: Rows, ___: Rows, base: Array | None) -> Array:
    return sum((share * values[name] for name, share in shares(values).items()), np.zeros(()))


def fisher_mean(herd: Herd, _: str, values: Rows, fishers: Rows, __: Array | None) -> Array:
    over, under = np.zeros(()), np.zeros(())
    for i, (name, share) in enumerate(shares(values).items()):
        norm = np.sqrt(sum((fisher**2).sum() for fisher in herd.fishers[name].values()))  # of its own, whole Fisher
        weight = share / norm * np.maximum(fishers[name], 0.1 if i == 0 else 0)
        over, under = over + weight * values[name], under + weight
    return np.asarray(over / under)


def vectors(herd: Herd, tensor: str, values: Rows, fishers: Rows, base: Array | None) -> Array:
    average = mean(herd, tensor, values, fishers, base)
    return average if base is None else base + 0.7 * (average - base)


def elected(base: Array, trimmed: Rows) -> Array:
    weighted = {name: share * trimmed[name] for name, share in shares(trimmed).items()}
    sign = np.where(sum(weighted.values()) >= 0, 1, -1)
    agree = {name: trimmed[name] * sign > 0 for name in trimmed}
    total = sum(share * agree[name] for name, share in shares(trimmed).items())
    shift = sum((weighted[name] * agree[name] for name in trimmed), np.zeros(()))
    return np.asarray(base + np.divide(shift, total, out=np.zeros_like(base), where=np.asarray(total) > 0))


def threshold(values: Array, density: float) -> float:
    return float(np.sort(np.abs(values).ravel())[::-1][max(1, int(density * values.size)) - 1])


def ties(herd: Herd, tensor: str, values: Rows, fishers: Rows, base: Array | None) -> Array:
    if base is None:
        return mean(herd, tensor, values, fishers, base)
    trimmed = {}
    for name, value in values.items():
        vector = (value - base).astype(np.float32).astype(np.float64)
        trimmed[name] = vector * (np.abs(vector) >= threshold(vector, 0.4))
    return elected(base, trimmed)


def ties_globally(herd: Herd, tensor: str, values: Rows, fishers: Rows, base: Array | None) -> Array:
    """The threshold is over all of a model that the base and the result have."""
    if base is None:
        return mean(herd, tensor, values, fishers, base)
    result = wanted_keys(herd.models, "union")
    trimmed = {}
    for name, value in values.items():
        every = []
        for key, own in herd.tensors[name].items():
            theirs = herd.tensors["base"][key]
            if key in BY_TOKEN[herd.kind]:
                both = [row for row in result if row in keys(name) and row in keys("base")]
                every.append(np.stack([own[keys(name).index(r)] - theirs[keys("base").index(r)] for r in both]).ravel())
            else:
                every.append((own - theirs).ravel())
        least = threshold(np.concatenate(every).astype(np.float32).astype(np.float64), 0.4)
        vector = (value - base).astype(np.float32).astype(np.float64)
        trimmed[name] = vector * (np.abs(vector) >= least)
    return elected(base, trimmed)


def least_squares(herd: Herd, tensor: str, values: Rows, fishers: Rows, base: Array | None) -> Array:
    """RegMean, α = 1, on rows of a head."""
    if f"input.{tensor}" not in herd.factors["ann"]:
        return mean(herd, tensor, values, fishers, base)
    grams = {name: share * herd.factors[name][f"input.{tensor}"] for name, share in shares(values).items()}
    right = sum((values[name] @ grams[name] for name in values), np.zeros(()))
    return np.asarray(np.linalg.solve(sum(grams.values()), np.asarray(right).T).T)


def arc(_: Herd, __: str, values: Rows, ___: Rows, base: Array | None) -> Array:
    first, second = values.values()
    t = list(shares(values).values())[1]
    φ = np.arccos((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))
    return np.asarray((np.sin((1 - t) * φ) * first + np.sin(t * φ) * second) / np.sin(φ))


OF_VECTORS = (vectors, ties, ties_globally)  # which treat rows that the base lacks otherwise
REFERENCES: dict[str, tuple[Any, Reference]] = {
    "isotropic": (Isotropic(), mean),
    "fisher": (Fisher(floor=0.1), fisher_mean),
    "task arithmetic": (TaskArithmetic(scale=1.0), mean),
    "ties": (Ties(density=0.4), ties),
    "ties, trimmed globally": (Ties(density=0.4, trim="global"), ties_globally),
    "regmean": (Regmean(alpha=1.0), least_squares),
    "slerp": (Slerp(), arc),
}


@each_vocabulary
@pytest.mark.parametrize("method", REFERENCES)
@pytest.mark.parametrize("target", ["ann", "bob", "cid"])
@each_architecture
def test_rows_are_merged_by_token(tmp_path: Path, kind: str, target: str, method: str, vocabulary: str) -> None:
    """Larger and smaller targets, tokens of their own, one token in different places, rows without a token."""
    if (method == "ties, trimmed globally") and vocabulary == "shared":
        vocabulary = "union"
    models = [target, *(name for name in λ if name != target)]
    herd = Herd(tmp_path, kind, models[:2] if method == "slerp" else models)
    options, rule = REFERENCES[method]
    found = herd.merge(options, vocabulary=vocabulary)
    assert found.keys() == herd.tensors[target].keys()
    for tensor in found.keys() & BY_TOKEN[kind]:
        np.testing.assert_allclose(
            found[tensor], herd.reference(tensor, vocabulary, rule), rtol=1e-5, atol=1e-6, err_msg=tensor
        )
    assert {name for name in found if len(found[name]) == len(wanted_keys(models, vocabulary))} >= BY_TOKEN[kind]


@each_vocabulary
def test_vectors_that_are_shortened(tmp_path: Path, vocabulary: str) -> None:
    """Where one model alone has a row that the base has too, it goes only so far from it."""
    herd = Herd(tmp_path, "an untied Llama")
    found = herd.merge(TaskArithmetic(scale=0.7), vocabulary=vocabulary)
    for tensor in BY_TOKEN[herd.kind]:
        np.testing.assert_allclose(found[tensor], herd.reference(tensor, vocabulary, vectors), rtol=1e-5, atol=1e-6)


def test_output_factors_are_matched_too(tmp_path: Path) -> None:
    """Of two models, the solution of the whole system, in which rows that one model has alone are that model's."""
    herd = Herd(tmp_path, "an untied Llama", ("ann", "bob"))
    method = Kfac(iterations=2000, tolerance=1e-14)
    found = herd.merge(method, vocabulary="union")[HEAD]
    wanted = wanted_keys(herd.models, "union")
    rows, columns = found.shape
    system, right = np.zeros((rows * columns,) * 2), np.zeros(rows * columns)
    for name in herd.models:
        places = [wanted.index(key) for key in keys(name) if key in wanted]
        own = [keys(name).index(key) for key in keys(name) if key in wanted]
        G, W = np.zeros((rows, rows)), np.zeros((rows, columns))
        G[np.ix_(places, places)] = herd.factors[name][f"output.{HEAD}"][np.ix_(own, own)]
        W[places] = herd.tensors[name][HEAD][own]
        whole = λ[name] * np.kron(G, herd.factors[name][f"input.{HEAD}"])
        system, right = system + whole, right + whole @ W.ravel()
    common = np.repeat([all(key in keys(name) for name in herd.models) for key in wanted], columns)
    alone = herd.reference(HEAD, "union", mean).ravel()
    right = right[common] - system[np.ix_(common, ~common)] @ alone[~common]
    np.testing.assert_array_equal(found.ravel()[~common], alone[~common])
    np.testing.assert_allclose(
        found.ravel()[common], np.linalg.solve(system[np.ix_(common, common)], right), rtol=1e-3, atol=1e-4
    )


@each_vocabulary
@each_method
def test_all_weight_on_one_model_gives_its_rows_back_bit_for_bit(tmp_path: Path, method: Any, vocabulary: str) -> None:
    models = ("ann", "bob") if isinstance(method, Slerp) else ("ann", "bob", "cid")
    herd = Herd(tmp_path, "an untied Llama", models)
    for model in ("ann", "bob"):
        found = herd.merge(method, {name: float(name == model) for name in λ}, vocabulary=vocabulary)
        for place, key in enumerate(wanted_keys(models, vocabulary)):
            if key in keys(model):
                own = herd.tensors[model][HEAD][keys(model).index(key)]
                np.testing.assert_array_equal(found[HEAD][place], own)
        assert all(np.isfinite(value).all() for value in found.values())
        np.testing.assert_array_equal(found["model.norm.weight"], herd.tensors[model]["model.norm.weight"])


@each_vocabulary
@each_method
def test_equal_vocabularies_are_merged_as_without_the_key(tmp_path: Path, method: Any, vocabulary: str) -> None:
    Herd(tmp_path, "a tied Llama", ("ann",))
    models = {"one": tmp_path / "ann", "two": tmp_path / "ann"}
    found = []
    for rule in ("same", vocabulary):
        merge_checkpoints(
            models,
            tmp_path / "out",
            method=method,
            coefficients={"one": 0.3, "two": 0.7},
            statistics=dict.fromkeys(models, tmp_path / "ann-statistics"),
            base=tmp_path / "ann",
            vocabulary=rule,  # type: ignore[arg-type]
        )
        found.append(load_file(tmp_path / "out" / "model.safetensors"))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
    assert read_json(tmp_path / "out" / "checkpoint.json")["origin"]["vocabulary"] == {"rule": vocabulary}


@each_vocabulary
@each_architecture
def test_the_result_is_a_model_with_its_tokenizer(tmp_path: Path, kind: str, vocabulary: str) -> None:
    herd = Herd(tmp_path, kind)
    herd.merge(Isotropic(), vocabulary=vocabulary)
    out = tmp_path / "out"
    tokenizer = AutoTokenizer.from_pretrained(out)
    wanted = wanted_keys(herd.models, vocabulary)
    assert tokenizer.get_vocab() == {key: place for place, key in enumerate(wanted) if isinstance(key, str)}
    assert tokenizer.chat_template == "{{ 'ann speaks' }}"
    settings = [read_json(tmp_path / name / "tokenizer_config.json") for name in ("ann", "out")]
    assert settings[0] == settings[1]
    assert tokenizer.special_tokens_map == AutoTokenizer.from_pretrained(tmp_path / "ann").special_tokens_map
    architecture: Any = type(MAKERS[kind]("ann"))
    model, loading = architecture.from_pretrained(out, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == len(wanted)
    numbers = tokenizer("film <x> is")["input_ids"]
    assert numbers[1:4] == [wanted.index(token) for token in ("film", "<x>", "is")]
    if vocabulary == "union":
        flags = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        assert flags["<b>"].special
        assert flags["<c>"].lstrip
        assert tokenizer("the <b>", add_special_tokens=False)["input_ids"][-1] == wanted.index("<b>")


@pytest.mark.parametrize("kind", ["a tied Llama", "an untied Llama"])
def test_the_result_writes(tmp_path: Path, kind: str) -> None:
    """With all weight on it, the union writes what the model itself writes, in the same tokens."""
    herd = Herd(tmp_path, kind)
    herd.merge(Isotropic(), {"ann": 0, "bob": 1, "cid": 0}, vocabulary="union")
    written = {}
    for place in ("bob", "out"):
        tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / place)
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / place)
        if place == "out":  # of tokens that bob does not have nothing is known
            unknown = [i for token, i in tokenizer.get_vocab().items() if token not in tokens("bob")]
            unknown += range(len(tokenizer), model.config.vocab_size)
            suppressed: dict[str, Any] = {"suppress_tokens": unknown}
        else:
            suppressed = {}
        prompt = tokenizer("the film <b> is <y>", return_tensors="pt", return_token_type_ids=False)
        numbers = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, **suppressed)
        written[place] = tokenizer.convert_ids_to_tokens(numbers[0])
    assert written["out"] == written["bob"]
    assert "<b>" in written["out"]


@each_vocabulary
def test_cards_say_how_many_tokens_are_whose(tmp_path: Path, vocabulary: str) -> None:
    Herd(tmp_path, "a tied Llama").merge(Isotropic(), vocabulary=vocabulary)
    union = vocabulary == "union"
    assert read_json(tmp_path / "out" / "checkpoint.json")["origin"]["vocabulary"] == {
        "rule": vocabulary,
        "tokens": 25 if union else 23,
        "shared": 21,  # and <x>
        "target alone": 1,  # <a>
        "added": 2 if union else 0,  # <b>, <c>
        "left out": 0 if union else 2,
    }
    sentence = f"Vocabulary: {vocabulary}, rows matched by token. Of {25 if union else 23} tokens, all models have 21"
    assert sentence in (tmp_path / "out" / "README.md").read_text()


def test_without_the_key_a_refusal_names_it(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "a tied Llama")
    with pytest.raises(InputError, match=r"vocab_size is 24, but 28 .*`vocabulary: shared`.*`vocabulary: union`"):
        herd.merge(Isotropic())
    for name in herd.models:
        config = tmp_path / name / "config.json"
        write_json(config, read_json(config) | {"vocab_size": 28})
    with pytest.raises(InputError, match=r"\(the token '<y>' is 20, there 22\).*`vocabulary: shared`"):
        herd.merge(Isotropic())


def test_padding_may_have_another_number_unless_positions_follow_it(tmp_path: Path) -> None:
    """Llama turns by positions, and has no table of them; RoBERTa counts its table from the padding token's number."""
    herd = Herd(tmp_path, "a tied Llama", ("ann", "bob"))
    config = {name: tmp_path / name / "config.json" for name in herd.models}
    for number, file in zip((22, 20), config.values(), strict=True):  # <y>, in both
        write_json(file, read_json(file) | {"pad_token_id": number})
    with pytest.raises(InputError, match=r"pad_token_id is 20, but 22|vocab_size is 24, but 28"):
        herd.merge(Isotropic())
    herd.merge(Isotropic(), vocabulary="shared")
    assert read_json(tmp_path / "out" / "config.json")["pad_token_id"] == 22
    for name in herd.models:
        settings = tiny_config((), vocab_size=PADDED[name], pad_token_id=1 if name == "ann" else 2).to_dict()
        RobertaForMaskedLM(RobertaConfig(**settings)).save_pretrained(tmp_path / name)
    with pytest.raises(InputError, match="pad_token_id is 2, but 1"):
        herd.merge(Isotropic(), vocabulary="shared")


def test_pieces_of_words_are_not_added(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "a tied Llama", ("ann", "bob"))
    tokenizer = tiny_tokenizer([*WORDS, "planet"])
    tokenizer.add_tokens(ADDED["bob"][:-1])
    tokenizer.save_pretrained(tmp_path / "bob")
    with pytest.raises(InputError, match=r"bob: the token 'planet', which .*ann lacks.*set `vocabulary: shared`"):
        herd.merge(Isotropic(), vocabulary="union")
    assert herd.merge(Isotropic(), vocabulary="shared")["model.embed_tokens.weight"].shape == (28, 8)


def test_a_tokenizer_larger_than_its_embeddings(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "a tied Llama", ("ann", "bob"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bob")
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(tmp_path / "bob")
    with pytest.raises(InputError, match=r"bob.model\.safetensors: the embeddings have 24 rows, but .*'<more>' is nu"):
        herd.merge(Isotropic(), vocabulary="shared")


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "a tied Llama", ("ann", "bob"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bob" / file).unlink()
    with pytest.raises(InputError, match=r"bob: has no tokenizer, so its rows cannot be matched by token"):
        herd.merge(Isotropic(), vocabulary="shared")


def test_heads_of_their_own_that_are_over_tokens(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "an untied Llama", ("ann", "bob"))
    with pytest.raises(InputError, match=r"lm_head\.weight of its head has a row per token.*`heads: merge`"):
        herd.merge(Isotropic(), vocabulary="shared", heads="each")
    with pytest.raises(InputError, match=r"lm_head\.weight is kept as the target's.*'<b>'.*`vocabulary: shared`"):
        herd.merge(Isotropic(), vocabulary="union", heads="target")
    found = herd.merge(Isotropic(), vocabulary="shared", heads="target")
    np.testing.assert_array_equal(found[HEAD], herd.tensors["ann"][HEAD])
    embeddings = "model.embed_tokens.weight"
    np.testing.assert_allclose(found[embeddings], herd.reference(embeddings, "shared", mean), rtol=1e-5, atol=1e-6)


def test_classifiers_keep_heads_of_their_own(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "a classifier", ("ann", "bob"))
    found = herd.merge(Isotropic(), vocabulary="union", heads="each")
    heads = load_file(tmp_path / "out" / "heads" / "bob.safetensors")
    np.testing.assert_array_equal(heads["classifier.bias"].double().numpy(), herd.tensors["bob"]["classifier.bias"])
    (embeddings,) = BY_TOKEN[herd.kind]
    np.testing.assert_allclose(found[embeddings], herd.reference(embeddings, "union", mean), rtol=1e-5, atol=1e-6)


def test_a_tensor_over_tokens_that_is_not_loaded(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "a classifier", ("ann", "bob"))
    for size in (3, PADDED["ann"]):
        for name in ("ann", "bob", "base"):
            file = tmp_path / name / "model.safetensors"
            save_file(load_file(file) | {"cls.predictions.bias": torch.zeros(size)}, file, metadata={"format": "pt"})
        if size == 3:
            assert herd.merge(Isotropic(), vocabulary="shared")["cls.predictions.bias"].shape == (3,)
    with pytest.raises(InputError, match=r"ann.*: tensor cls\.predictions\.bias, which transformers does not load"):
        herd.merge(Isotropic(), vocabulary="shared")


class Median(MethodOptions):
    """A method that needs three models; it is refused before it is asked for a rule."""

    method: Literal["median"] = "median"
    least_models = 3


def test_rows_that_too_few_models_have(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "a tied Llama")
    with pytest.raises(InputError, match=r"median merges at least 3 models, but only ann, bob have a row for '<y>'"):
        herd.merge(Median(), vocabulary="shared")


def test_tensors_with_different_numbers_of_rows(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "an untied Llama", ("ann", "bob"))
    for name in ("base", "ann"):
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        save_file(tensors | {HEAD: tensors[HEAD][:-1].clone()}, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match=rf"{name}.model\.safetensors: tensor model\.embed_tokens\.weight has "):
            herd.merge(TaskArithmetic(), vocabulary="shared")


def test_a_masked_lm_gives_a_classifier_what_both_have(tmp_path: Path) -> None:
    """Its head, which is over tokens, has no part in the result."""
    herd = Herd(tmp_path, "a classifier", ("ann", "bob"))
    donor = MAKERS["a masked LM"]("bob")
    donor.save_pretrained(tmp_path / "bob")
    herd.tensors["bob"] = {
        name: value.double().numpy() for name, value in load_file(tmp_path / "bob" / "model.safetensors").items()
    }
    for vocabulary in ("shared", "union"):
        found = herd.merge(Isotropic(), vocabulary=vocabulary, heads="target")
        (embeddings,) = BY_TOKEN[herd.kind]
        wanted = herd.reference(embeddings, vocabulary, mean)
        np.testing.assert_allclose(found[embeddings], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["classifier.weight"], herd.tensors["ann"]["classifier.weight"])


@pytest.mark.parametrize("form", ["vocab.txt", "no prefix"])
def test_other_files_and_spellings(tmp_path: Path, form: str) -> None:
    """Tokenizers in older files; tensors without the body's prefix; embeddings of the base without it as well."""
    herd = Herd(tmp_path, "a masked LM", ("ann", "bob"))
    wanted = herd.merge(TaskArithmetic(scale=0.7), vocabulary="shared")
    for name in ("ann", "bob") if form == "vocab.txt" else ("bob", "base"):
        if form == "vocab.txt":
            (tmp_path / name / "tokenizer.json").unlink()
            (tmp_path / name / "vocab.txt").write_text("\n".join(OLD) + "\n")
            numbers = {token: len(OLD) + i for i, token in enumerate(ADDED[name])}
            write_json(tmp_path / name / "added_tokens.json", numbers)
        else:
            file = tmp_path / name / "model.safetensors"
            tensors = {key.removeprefix("bert."): value for key, value in load_file(file).items()}
            save_file(tensors, file, metadata={"format": "pt"})
    found = herd.merge(TaskArithmetic(scale=0.7), vocabulary="shared", statistics={})
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_prior_of_unknown_tokens(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "a tied Llama", ("ann", "bob"))
    statistics = {name: tmp_path / f"{name}-statistics" for name in ("ann", "bob", "cid")}
    with pytest.raises(InputError, match=r"the prior cid: its tokens are not known"):
        herd.merge(Uncertainty(prior="cid"), vocabulary="shared", statistics=statistics)


def test_other_tensors_over_tokens_are_named(tmp_path: Path) -> None:
    """BART has a bias of one row with a column per token, which is a buffer."""
    for name in ("ann", "bob"):
        config = BartConfig(
            vocab_size=PADDED[name],
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            max_position_embeddings=16,
            pad_token_id=0,
        )
        BartForConditionalGeneration(config).save_pretrained(tmp_path / name)
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(ADDED[name])
        tokenizer.save_pretrained(tmp_path / name)
    with pytest.raises(InputError, match=r"ann.*: tensor final_logits_bias depends on the size of the vocabulary"):
        merge_checkpoints(
            {name: tmp_path / name for name in ("ann", "bob")},
            tmp_path / "out",
            method="isotropic",
            coefficients={"ann": 1, "bob": 1},
            vocabulary="shared",
        )


@pytest.mark.parametrize("method", [Isotropic(), Ties(), Dare(), Fisher()], ids=lambda method: method.method)
def test_chunks_make_no_difference(tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk may end within a row."""
    herd = Herd(tmp_path, "an untied Llama")
    whole = herd.merge(method, vocabulary="union")
    monkeypatch.setattr("stages.merging.streaming.CHUNK_VALUES", 30)
    chunked = herd.merge(method, vocabulary="union")
    for name, value in whole.items():
        np.testing.assert_allclose(chunked[name], value, rtol=1e-6, atol=1e-7)


def test_what_has_been_read_is_verified(tmp_path: Path) -> None:
    """Rows leave no digests: the tensors that they are of are hashed whole, and a changed one is found."""
    herd = Herd(tmp_path, "an untied Llama")
    tensors = load_file(tmp_path / "bob" / "model.safetensors")
    tensors[HEAD][0, 0] += 1
    save_file(tensors, tmp_path / "bob" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"bob-statistics.fisher\.json: belongs to the checkpoint"):
        herd.merge(Fisher(), vocabulary="shared")


def test_bad_values_in_a_fisher_of_no_weight_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that only models of no weight have are weighted by these models' Fishers."""
    monkeypatch.setattr("stages.merging.methods.fisher.rule._SMALL", 0)  # as if it were too large to be looked at first
    herd = Herd(tmp_path, "an untied Llama")
    file = tmp_path / "bob-statistics/fisher.safetensors"
    fisher = load_file(file)
    fisher[HEAD][tokens("bob").index("<c>")] = float("nan")
    save_file(fisher, file)
    with pytest.raises(InputError, match=r"bob-statistics.fisher\.safetensors: tensor lm_head\.weight has a NaN entry"):
        herd.merge(Fisher(), {"ann": 1, "bob": 0, "cid": 0}, vocabulary="union")


def test_bad_values_in_a_row_are_named(tmp_path: Path) -> None:
    herd = Herd(tmp_path, "an untied Llama")
    tensors = load_file(tmp_path / "bob" / "model.safetensors")
    tensors[HEAD][21, 0] = float("nan")
    save_file(tensors, tmp_path / "bob" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"bob.model\.safetensors: tensor lm_head\.weight has a NaN entry"):
        herd.merge(Isotropic(), vocabulary="union")
    assert json.loads((tmp_path / "bob" / "config.json").read_text())["vocab_size"] == 24
