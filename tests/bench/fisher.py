"""The exact diagonal Fisher against a training step on the same batches, and a loop over examples and classes."""

from collections.abc import Callable
from functools import partial

import torch
from transformers import BertConfig, BertForSequenceClassification

from stages.curvature import diagonal_fisher
from tests.bench.timing import medians, table

EXAMPLES = 128


def minilm(classes: int) -> BertForSequenceClassification:
    """A random model of MiniLM-L6's shape."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            id2label={k: str(k) for k in range(classes)},
        )
    ).eval()


def make_batches(batch_size: int) -> list[dict[str, torch.Tensor]]:
    """Batches of random ids, in lengths as tweets have them, sorted and padded to each batch's longest."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 40, (EXAMPLES,), generator=generator).sort(descending=True).values
    made = []
    for part in lengths.split(batch_size):
        ids = torch.randint(1000, 30000, (len(part), int(part.max())), generator=generator)
        mask = (torch.arange(ids.shape[1]) < part[:, None]).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask})
    return made


def bench(repeats: int) -> str:
    """Tables for 2 and for 4 classes, in batches of 16 and 32."""
    tables = []
    for classes in (2, 4):
        model = minilm(classes)
        for batch_size in (16, 32):
            batches = make_batches(batch_size)
            candidates: dict[str, Callable[[], object]] = {
                "training step": partial(training_step, model, batches),
                "exact Fisher": partial(diagonal_fisher, model, batches),
                "sketched Fisher": partial(diagonal_fisher, model, batches, estimator="sketch"),
                "loop over examples and classes": partial(loop, model, batches),
            }
            seconds = medians(candidates, repeats)
            title = f"{EXAMPLES} sentences, {classes} classes, batches of {batch_size}"
            tables.append(table(title, seconds, "training step"))
    return "\n\n".join(tables)


def training_step(model: BertForSequenceClassification, batches: list[dict[str, torch.Tensor]]) -> None:
    """Forward and backward pass of every batch, without the optimizer's update."""
    for batch in batches:
        labels = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
    model.zero_grad()


def loop(model: BertForSequenceClassification, batches: list[dict[str, torch.Tensor]]) -> None:
    """The definition, one example and one class at a time."""
    parameters = list(model.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            used = int(batch["attention_mask"][row].sum())
            log_p = model(**{key: value[row : row + 1, :used] for key, value in batch.items()}).logits.log_softmax(-1)
            for log_p_y in log_p[0]:
                gradients = torch.autograd.grad(log_p_y, parameters, retain_graph=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    total.add_(gradient.square(), alpha=float(log_p_y.exp().detach()))
