"""The live model has the weights that a merge writes, whatever the file calls them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from stages.estimation.estimate import estimate
from stages.merging import merge_checkpoints
from stages.merging.ingredients import Ingredients
from stages.merging.merged_tensors import merging_at
from stages.merging.methods.isotropic.options import Isotropic
from stages.params import FisherSettings, parse_params
from stages.pipeline.needs import base_directory, statistics_directories
from stages.running.errors import InputError
from stages.searching.live_model import LiveModel, expert_score
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint_files import CHECKPOINT_CARD
from stages.storage.tensors import TensorFiles, fingerprint
from stages.tasks.data import TaskData
from stages.tasks.kinds import metric_named
from stages.training.finished import bring_in
from tests.test_finetune import make_task, make_texts
from tests.tiny import tiny_bert, tiny_masked_lm, tiny_tokenizer
from tests.workshop import accuracy_of, merged_with, params_of, searched

ACCURACY = metric_named("accuracy")


@pytest.mark.parametrize(
    "method",
    [
        {"method": "isotropic"},
        {"method": "fisher"},
        {"method": "uncertainty", "prior": "cid"},
        {"method": "task_arithmetic", "scale": 0.7},
        {"method": "slerp"},
    ],
    ids=lambda method: method["method"],
)
@pytest.mark.parametrize("λ", [{"ann": 0.3, "bob": 0.7}, {"ann": 0.0, "bob": 1.0}], ids=str)
def test_the_live_model_has_the_weights_that_a_merge_writes(
    inside: Path, method: dict[str, Any], λ: dict[str, float]
) -> None:
    params = params_of({"ann": 1, "bob": 1}, {"sampler": "grid"}, **method)
    merge = params.merges["it"]
    ingredients = Ingredients(
        {model: Path("models/finetuned") / model for model in merge.models},
        merge.options,
        statistics_directories(merge),
        base_directory(merge, params),
    )
    live = LiveModel(ingredients, "merge", {TaskData.open(Path("data/tasks/books")): "ann"}, ACCURACY)
    live.load(merging_at(ingredients, {"ann": 0.9, "bob": 0.1}))  # of which nothing may be left
    live.load(merging_at(ingredients, λ))
    wanted = load_file(merged_with(params, λ) / "model.safetensors")
    assert live._parameters.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(live._parameters[name], value), name


@pytest.mark.parametrize("vocabulary", ["shared", "union"])
def test_models_with_tokens_of_their_own_are_searched(inside: Path, vocabulary: str) -> None:
    """Scored as the checkpoint that the merge writes, whose tokenizer reads two words as one."""
    tiny_bert(seed=3, noise=0.5, vocab_size=22).save_pretrained("sources/eve")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["the film", "is dull"])
    tokenizer.save_pretrained("sources/eve")
    films, eve = TaskData.open(Path("data/tasks/films")), Path("models/finetuned/eve")
    assert films.read("validation")["text"].str.contains("the film|is dull").any()
    eve.mkdir()
    bring_in(Path("sources/eve"), films, eve)
    estimate("diagonal", eve, films, FisherSettings(examples=12), Path("models/fishers/eve"))
    content = params_of({"ann": 1, "bob": 1}, {"sampler": "grid"}).model_dump(exclude={"merges"})
    content["models"]["eve"] = {"base": "base", "task": "films"}
    search = {"sampler": "grid", "points": 4, "tasks": ["films"]}
    merge = {"method": "fisher", "coefficients": {"ann": 1, "eve": 1}, "search": search, "vocabulary": vocabulary}
    params = parse_params(content | {"merges": {"it": merge}})
    _, sweep = searched(params)
    for point, score in zip(sweep["λ eve"], sweep["films accuracy"], strict=True):
        merged = merged_with(params, {"ann": 1 - point, "eve": point})
        rows = load_file(merged / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
        assert len(rows) == (22 if vocabulary == "union" else 20)
        assert score == accuracy_of(merged, "films")
    tokens = {"the film", "is dull"} & transformers.AutoTokenizer.from_pretrained("merged").get_vocab().keys()
    assert len(tokens) == (2 if vocabulary == "union" else 0)


def test_a_masked_lm_donor_is_searched_for_what_it_shares(inside: Path) -> None:
    """Its body goes into a classifier whose pooler and head stay; scored as the checkpoint that the merge writes."""
    tiny_masked_lm(seed=3, noise=0.5).save_pretrained("sources/eve")
    tiny_tokenizer().save_pretrained("sources/eve")
    texts, eve = make_texts(Path("data/tasks/texts")), Path("models/finetuned/eve")
    eve.mkdir()
    bring_in(Path("sources/eve"), texts, eve)
    estimate("diagonal", eve, texts, FisherSettings(estimator="sketch", examples=12), Path("models/fishers/eve"))
    content = params_of({"ann": 1, "bob": 1}, {"sampler": "grid"}).model_dump(exclude={"merges"})
    content["tasks"]["texts"] = {"kind": "masked-lm", "source": "base", "file": "f.csv", "max_length": 16}
    content["models"]["eve"] = {"base": "base", "task": "texts", "fisher": {"estimator": "sketch"}}
    search = {"sampler": "grid", "points": 5, "tasks": ["books"]}
    merge = {"method": "fisher", "coefficients": {"ann": 1, "eve": 1}, "search": search, "heads": "target"}
    params = parse_params(content | {"merges": {"it": merge}})
    found, sweep = searched(params)
    for point, score in zip(sweep["λ eve"], sweep["books accuracy"], strict=True):
        λ = {"ann": 1 - point, "eve": point}
        assert score == pytest.approx(accuracy_of(merged_with(params, λ), "books"))
    assert sweep["books accuracy"].nunique() > 1
    assert found["coefficients"]["eve"] < 1
    alone = Ingredients({"ann": Path("models/finetuned/ann")}, Isotropic())
    with pytest.raises(InputError, match=r"predicts \['bad', 'good'\], but the task texts has \[\]; list other tasks"):
        LiveModel(alone, "target", {texts: "eve"}, ACCURACY)


def test_parameters_may_have_older_names_in_the_file(inside: Path) -> None:
    """A merge works on the file's names, transformers on its own: the search scores the same models by either."""
    params = params_of({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 3}, method="isotropic")
    _, wanted = searched(params, Path("results/wanted"))
    for name in ("ann", "bob"):
        file = Path("models/finetuned") / name / "model.safetensors"
        tensors = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        card = file.with_name(CHECKPOINT_CARD)
        write_json(card, read_json(card) | {"fingerprint": fingerprint(TensorFiles(file.parent))})
    _, sweep = searched(params)
    assert sweep.equals(wanted)


def test_parameters_that_no_merge_fills_are_refused(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if transformers had no place in memory for what the file holds: a part of the model would stay as it was."""
    monkeypatch.setattr("stages.searching.live_model.places", lambda *_: {})
    with pytest.raises(InputError, match=r"have no tensor for the parameter bert\.embeddings\..* cannot be searched"):
        searched(params_of({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 3}, method="isotropic"))


@pytest.mark.parametrize(
    "respelled",
    [
        ("ann",),
        ("bob",),
        ("ann", "bob"),
    ],
    ids=str,
)
def test_a_search_scores_the_same_models_in_any_spelling(inside: Path, respelled: tuple[str, ...]) -> None:
    """Without prefix, with gamma and beta, with what transformers leaves out: of the target, of the other, of both."""
    params = params_of({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 3}, method="isotropic")
    _, wanted = searched(params, Path("results/wanted"))
    for name in respelled:
        file = Path("models/finetuned") / name / "model.safetensors"
        tensors = {
            key.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): value
            for key, value in load_file(file).items()
        }
        more = {"embeddings.position_ids": torch.arange(24)[None], "cls.predictions.bias": torch.rand(20)}
        save_file(tensors | more, file, metadata={"format": "pt"})
        card = file.with_name(CHECKPOINT_CARD)
        write_json(card, read_json(card) | {"fingerprint": fingerprint(TensorFiles(file.parent))})
    _, sweep = searched(params)
    assert sweep.equals(wanted)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe"])
def test_experts_that_the_files_have_one_by_one(inside: Path, family: str) -> None:
    model_class = getattr(transformers, f"{family}ForSequenceClassification")
    shape: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 24, "num_key_value_heads": 2, "pad_token_id": 0, "tie_word_embeddings": False}
    shape |= {"num_experts_per_tok": 2, "moe_intermediate_size": 8} if family == "Qwen2Moe" else {}
    shape |= {"num_experts" if family == "Qwen2Moe" else "num_local_experts": 3}
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    checkpoints = {}
    for seed, name in enumerate(("eve", "fay")):
        torch.manual_seed(seed)
        checkpoints[name] = Path("models/finetuned") / name
        model_class(model_class.config_class(**shape, **labels)).save_pretrained(checkpoints[name])
        tiny_tokenizer().save_pretrained(checkpoints[name])
    λ = {"eve": 0.25, "fay": 0.75}
    merge_checkpoints(checkpoints, Path("merged"), method="isotropic", coefficients=λ)
    ingredients = Ingredients(checkpoints, Isotropic())
    live = LiveModel(ingredients, "merge", {TaskData.open(Path("data/tasks/books")): "eve"}, ACCURACY)
    live.load(merging_at(ingredients, {"eve": 0.9, "fay": 0.1}))
    live.load(merging_at(ingredients, λ))
    for name, value in model_class.from_pretrained("merged").state_dict().items():
        assert torch.equal(live._body.state_dict()[name], value), name
    assert all(math.isfinite(score) for score in live.scores())


def test_texts_that_are_longer_than_the_model_reads_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_task(tmp_path / "long", ["bad", "good"], max_length=64)
    tiny_bert(["bad", "good"], max_position_embeddings=6).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert expert_score(tmp_path / "model", task, ACCURACY) > 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "long: the model reads 6 tokens of its texts, which may have 64"
