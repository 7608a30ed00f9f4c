"""Masked-LM tasks: what is hidden, what is predicted, and the Fisher of it against independent references."""

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as t
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM

from stages.curvature import TokenCategorical, curvature_statistics, diagonal_fisher
from stages.curvature.vectors import Estimator
from stages.estimation.estimate import estimate
from stages.params import FisherSettings
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.storage.cards import read_json
from stages.tasks.data import TaskData
from stages.tasks.encoding import encode
from stages.tasks.kinds.masked_lm.kind import KIND, Masking, select_positions
from stages.tasks.kinds.text_classification import kind as text_classification
from stages.tasks.prediction import batches
from tests.curvature.reference import assert_same_fisher, reference_fisher, tokens
from tests.curvature.test_architectures import SMALL, randomised
from tests.curvature.test_architectures import texts as sentences
from tests.test_finetune import make_texts
from tests.tiny import SPECIAL, WORDS, save_base, tiny_masked_lm, tiny_tokenizer

VOCABULARY = len(SPECIAL) + len(WORDS)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny masked-LM model."""
    tiny_masked_lm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def texts(tmp_path: Path) -> TaskData:
    return make_texts(tmp_path / "texts")


def test_tokens_are_hidden_as_in_berts_training() -> None:
    masking = Masking(tiny_tokenizer(), seed=3)
    ids = [2, *range(5, 20), 1, 1, 1, 1, 1, 3]  # [CLS], known words, unknown ones, [SEP]
    fates: Counter[str] = Counter()
    places: Counter[int] = Counter()
    drawn: Counter[int] = Counter()
    for example in range(4000):
        found = masking.masked(ids, example)
        shown, positions, labels = found["input_ids"], found["output_positions"], found["labels"]
        assert len(positions) == len(set(positions)) == 3  # 15 % of 20
        assert labels == [ids[position] for position in positions]
        assert [token for place, token in enumerate(shown) if place not in positions] == [
            token for place, token in enumerate(ids) if place not in positions
        ]
        places.update(positions)
        for position, label in zip(positions, labels, strict=True):
            token = shown[position]
            fates["mask" if token == 4 else "same" if token == label else "other"] += 1
            if token not in (4, label):
                drawn[token] += 1
    assert set(places) == set(range(1, 21))
    assert min(places.values()) > 0.85 * 600
    assert fates["mask"] / 12000 == pytest.approx(0.8 + 0.1 / VOCABULARY, abs=0.012)
    assert fates["same"] / 12000 == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.012)
    assert set(drawn) == set(range(VOCABULARY)) - {4}


def test_what_is_hidden_belongs_to_seed_example_and_epoch() -> None:
    tokenizer, ids = tiny_tokenizer(), [2, *range(5, 20), 3]
    first = Masking(tokenizer, 0)
    found = [first.masked(ids, example) for example in range(9)]
    assert found == [Masking(tokenizer, 0).masked(ids, example) for example in range(9)]
    assert found[4] == Masking(tokenizer, 0).masked(ids, 4, epoch=0)
    for other in (
        [Masking(tokenizer, 1).masked(ids, example) for example in range(9)],
        [first.masked(ids, example, epoch=1) for example in range(9)],
        [first.masked(ids, example + 1) for example in range(9)],
    ):
        assert found != other
    assert first.masked([2, 7, 3], 0)["output_positions"] == [1]


def test_training_texts_are_hidden_anew_in_every_epoch(texts: TaskData) -> None:
    tokenizer, frame = tiny_tokenizer(), texts.read("train")
    encoded = KIND.encode(tokenizer, frame, texts, tiny_masked_lm(), seed=5)
    plain = tokenizer(frame["text"].tolist(), truncation=True, max_length=16)["input_ids"]
    examples = KIND.training_set(tokenizer, encoded, seed=5)
    assert len(examples) == 40
    assert [examples[row]["input_ids"] for row in range(40)] == encoded["input_ids"]
    seen = set()
    for epoch in (0, 1, 2):
        examples.set_epoch(epoch)
        for row in range(40):
            example = examples[row]
            ids = np.array(example["input_ids"])
            ids[example["output_positions"]] = example["labels"]
            assert ids.tolist() == plain[row]
        seen.add(str([examples[row]["output_positions"] for row in range(40)]))
    assert len(seen) == 3


def test_texts_without_tokens_are_left_out(texts: TaskData) -> None:
    frame = pd.DataFrame({"text": ["good film", "\u2003", "bad book"]})
    encoded = KIND.encode(tiny_tokenizer(), frame, texts, tiny_masked_lm(), seed=0)
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 4]
    with pytest.raises(InputError, match=r"texts: the tokenizer makes no tokens of its texts"):
        encode(KIND, tiny_tokenizer(), Dataset.from_pandas(frame[1:2]), texts, tiny_masked_lm(), seed=0)
    with pytest.raises(InputError, match=r"tasks\.texts\.max_length = 16: the model reads at most 9 tokens"):
        KIND.encode(tiny_tokenizer(), frame, texts, tiny_masked_lm(max_position_embeddings=9), seed=0)


def whole(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with labels [B, T], as transformers takes them."""
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (positions, found) in enumerate(zip(batch["output_positions"], batch["labels"], strict=True)):
        used = positions >= 0
        labels[row, positions[used]] = found[used]
    return {key: value for key, value in batch.items() if key != "output_positions"} | {"labels": labels}


def made_batches(texts: TaskData, rows: int, batch_size: int) -> list[dict[str, Tensor]]:
    encoded = KIND.encode(tiny_tokenizer(), texts.read("train")[:rows], texts, tiny_masked_lm(), seed=0)
    return list(
        batches(
            KIND.collator(tiny_tokenizer(), tiny_masked_lm()),
            encoded,
            KIND.largest_first(encoded),
            batch_size,
            Placement(),
        )
    )


def test_logits_and_loss_are_those_at_the_hidden_positions(checkpoint: Path, texts: TaskData) -> None:
    (batch,) = made_batches(texts, 12, 12)
    assert batch["output_positions"].min() == -1  # some have less to predict than others
    with torch.no_grad():
        found = KIND.load_model(checkpoint, []).eval()(**batch)
        wanted = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()(**whole(batch))
    torch.testing.assert_close(found.loss, wanted.loss)
    assert found.logits.shape == (*batch["labels"].shape, VOCABULARY)
    for row, positions in enumerate(batch["output_positions"]):
        used = positions >= 0
        torch.testing.assert_close(found.logits[row, used], wanted.logits[row, positions[used]])
    example = {"input_ids": [2, 4, 3], "attention_mask": [1, 1, 1], "output_positions": [1], "labels": [7]}
    assert KIND.collator(tiny_tokenizer(), tiny_masked_lm())([example]).keys() == {
        "input_ids",
        "attention_mask",
        "output_positions",
        "labels",
    }


def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """The labels that are there, as the only outcome."""
    log_p, labels = torch.log_softmax(z, -1), batch["labels"][0]
    positions = labels.ne(-100).nonzero()[:, 0]
    return [(1.0, log_p[positions, labels[positions]].sum())]


def test_the_empirical_fisher_is_exact_whatever_the_batches(
    tmp_path: Path, checkpoint: Path, texts: TaskData, recwarn: pytest.WarningsRecorder
) -> None:
    """Tied embeddings and the head's shared bias too, by the stage's way from table to file."""
    found = []
    for batch_size in (1, 5):
        settings = FisherSettings(estimator="empirical", examples=None, batch_size=batch_size)
        estimate("diagonal", checkpoint, texts, settings, tmp_path / f"fisher-{batch_size}")
        found.append(load_file(tmp_path / f"fisher-{batch_size}/fisher.safetensors"))
    assert not any("one example at a time" in str(warning.message) for warning in recwarn)
    batch = [whole(batch) for batch in made_batches(texts, 40, 7)]
    model = AutoModelForMaskedLM.from_pretrained(checkpoint)
    wanted = reference_fisher(model, batch, observed)
    for fisher in found:
        assert_same_fisher(fisher, wanted)
    card = read_json(tmp_path / "fisher-1/fisher.json")
    assert (card["likelihood"], card["examples"]) == ("token", 40)


FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: t.BertForMaskedLM(t.BertConfig(**SMALL)),
    "roberta": lambda: t.RobertaForMaskedLM(t.RobertaConfig(**SMALL)),
    "distilbert": lambda: t.DistilBertForMaskedLM(
        t.DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32)
    ),
    "albert": lambda: t.AlbertForMaskedLM(t.AlbertConfig(**SMALL, embedding_size=8)),
    "electra": lambda: t.ElectraForMaskedLM(t.ElectraConfig(**SMALL, embedding_size=8)),
    "modernbert": lambda: t.ModernBertForMaskedLM(
        t.ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2, local_attention=4)
    ),
}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_heads_of_all_families_see_the_hidden_positions_only(family: str, recwarn: pytest.WarningsRecorder) -> None:
    """With a Fisher as exact as of all positions, and no parameter left to the slow way."""
    torch.manual_seed(0)
    model = randomised(FAMILIES[family]())
    batches = []
    for batch in sentences():
        rows = len(batch["input_ids"])
        positions = torch.tensor([[1, 2], [2, -1], [0, 1]])[:rows]
        labels = torch.randint(3, 40, (rows, 2)).masked_fill(positions < 0, -100)
        batches.append({**batch, "output_positions": positions, "labels": labels})
    wanted = reference_fisher(copy.deepcopy(model), [whole(batch) for batch in batches], observed)
    select_positions(model)
    found = diagonal_fisher(model, batches, likelihood=TokenCategorical(), estimator="empirical")
    assert_same_fisher(found, wanted)
    assert not any("one example at a time" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_drawn_fishers_are_unbiased(checkpoint: Path, texts: TaskData, estimator: Estimator) -> None:
    """The mean over many draws lies within 5 standard errors of the float64 sum over all outcomes, per tensor."""
    (batch,) = made_batches(texts, 3, 3)
    exact = reference_fisher(AutoModelForMaskedLM.from_pretrained(checkpoint), [whole(batch)], tokens)
    model = KIND.load_model(checkpoint, [])
    draws = [
        diagonal_fisher(model, [batch], likelihood=TokenCategorical(), estimator=estimator, samples=2, seed=seed)
        for seed in range(80)
    ]
    rounding = 1e-12 * sum(float(value.sum()) for value in exact.values())  # all that BERT's key biases have
    for name, value in exact.items():
        sums = torch.tensor([float(draw[name].double().sum()) for draw in draws], dtype=torch.float64)
        error = float(sums.mean() - value.sum())
        assert abs(error) <= 5 * float(sums.std()) / len(draws) ** 0.5 + 1e-5 * float(value.sum()) + rounding, name


@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_draws_do_not_depend_on_the_batches(
    tmp_path: Path, checkpoint: Path, texts: TaskData, estimator: Estimator
) -> None:
    fishers = []
    for batch_size in (1, 6):
        settings = FisherSettings(estimator=estimator, examples=13, batch_size=batch_size, seed=2)
        estimate("diagonal", checkpoint, texts, settings, tmp_path / f"fisher-{batch_size}")
        fishers.append(load_file(tmp_path / f"fisher-{batch_size}/fisher.safetensors"))
    for name, value in fishers[0].items():
        torch.testing.assert_close(fishers[1][name], value, rtol=1e-4, atol=1e-9 + 1e-6 * float(value.max()))


def test_an_exact_fisher_is_refused(tmp_path: Path, checkpoint: Path, texts: TaskData) -> None:
    with pytest.raises(InputError, match=r"the exact Fisher of .* takes .* passes; use estimator='sketch'"):
        estimate("diagonal", checkpoint, texts, FisherSettings(), tmp_path / "fisher")


def test_factors_of_the_head_leave_padding_out(checkpoint: Path, texts: TaskData) -> None:
    """A of a Linear in the head is a mean over the hidden positions, one text at a time or padded together."""
    model, name = KIND.load_model(checkpoint, []), "cls.predictions.transform.dense.weight"
    alone, together = (
        curvature_statistics(model, made_batches(texts, 12, size), likelihood=TokenCategorical(), statistics=["gram"])
        for size in (1, 12)
    )
    torch.testing.assert_close(together.input_factors[name], alone.input_factors[name], rtol=1e-4, atol=1e-5)


def test_a_base_has_no_head_and_gets_one_from_the_seed(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(KIND.load_model(tmp_path / "base", [], new_head=True))
    weights = [model.cls.predictions.transform.dense.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert models[0].cls.predictions.decoder.weight is models[0].bert.embeddings.word_embeddings.weight
    with pytest.raises(InputError, match=r"lacks the tensor cls\.predictions"):
        KIND.load_model(tmp_path / "base", [])


def test_what_is_not_loaded(tmp_path: Path, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the tensor bert\.encoder\.layer\.1\.output\.dense\.weight"):
        KIND.load_model(broken, [], new_head=True)
    (broken / "model.safetensors").write_text("xx")
    with pytest.raises(InputError, match="cannot be loaded as a masked-LM model"):
        KIND.load_model(broken, [])
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(broken)
    with pytest.raises(InputError, match=r"its tokenizer has no mask token"):
        KIND.load_processor(broken)
    with pytest.raises(InputError, match=r"lacks the tensor bert\.pooler\.dense\.bias"):
        text_classification.KIND.load_model(checkpoint, ["bad", "good"], head={"classifier.bias": torch.zeros(2)})


def test_nothing_is_scored() -> None:
    with pytest.raises(InputError, match="tasks of the kind masked-lm are not evaluated"):
        KIND.targets({"labels": [[1]]})
