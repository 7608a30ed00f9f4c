"""The exact diagonal Fisher against a training step on the same batches, and a loop over examples and classes."""

import torch
from transformers import BertConfig, BertForSequenceClassification

from stages.curvature import diagonal_fisher
from tests.bench.timing import medians, table

EXAMPLES, BATCH = 64, 16


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


def make_batches() -> list[dict[str, torch.Tensor]]:
    """Batches of random ids, in lengths as tweets have them, sorted and padded to each batch's longest."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 40, (EXAMPLES,), generator=generator).sort(descending=True).values
    made = []
    for part in lengths.split(BATCH):
        ids = torch.randint(1000, 30000, (len(part), int(part.max())), generator=generator)
        mask = (torch.arange(ids.shape[1]) < part[:, None]).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask})
    return made


def bench(repeats: int) -> str:
    """A table for 2 and for 4 classes."""
    tables = []
    batches = make_batches()
    for classes in (2, 4):
        model = minilm(classes)

        def training_step(model: BertForSequenceClassification = model) -> None:
            for batch in batches:
                labels = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
                model(**batch, labels=labels).loss.backward()

        def loop(model: BertForSequenceClassification = model) -> None:
            parameters = list(model.parameters())
            sums = [torch.zeros_like(parameter) for parameter in parameters]
            for batch in batches:
                for row in range(len(batch["input_ids"])):
                    used = int(batch["attention_mask"][row].sum())
                    log_p = model(
                        **{key: value[row : row + 1, :used] for key, value in batch.items()}
                    ).logits.log_softmax(-1)
                    for log_p_y in log_p[0]:
                        for total, gradient in zip(
                            sums, torch.autograd.grad(log_p_y, parameters, retain_graph=True), strict=True
                        ):
                            total.add_(gradient.square(), alpha=float(log_p_y.exp().detach()))

        seconds = medians(
            {
                "training step": training_step,
                "exact Fisher": lambda model=model: diagonal_fisher(model, batches),  # type: ignore[misc]
                "loop over examples and classes": loop,
            },
            repeats,
        )
        tables.append(table(f"{EXAMPLES} sentences, batches of {BATCH}, {classes} classes", seconds, "training step"))
    return "\n\n".join(tables)
