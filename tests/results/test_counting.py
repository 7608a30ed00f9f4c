"""FLOPs against a count by hand."""

from pathlib import Path

import pandas as pd

from stages.results.counting import forward_flops
from stages.tasks.data import TaskData
from stages.tasks.kinds.text_classification.settings import TextClassification
from tests.tasks.in_memory import write_task
from tests.tiny import tiny_bert, tiny_config, tiny_tokenizer


def test_a_forward_pass_counts_its_matrix_products(tmp_path: Path) -> None:
    """Twelve texts of one length, so that there is no padding."""
    tiny_bert().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    words = ["good", "bad", "fine", "dull", "plot", "book", "film", "day", "the", "a", "is", "great"]
    frame = pd.DataFrame({"text": [f"{word} film" for word in words], "label": [0, 1] * 6})
    task = TextClassification(source="s", file="f.csv", labels=["bad", "good"], max_length=16)
    (tmp_path / "task").mkdir()
    write_task(tmp_path / "task", task, {"train": frame, "validation": frame, "test": frame}, {})
    config, tokens = tiny_config(("bad", "good")), 4  # [CLS], two words, [SEP]
    hidden, wide = config.hidden_size, config.intermediate_size
    layer = 2 * tokens * (4 * hidden * hidden + 2 * hidden * wide) + 2 * 2 * tokens * tokens * hidden
    by_hand = config.num_hidden_layers * layer + 2 * (hidden * hidden + hidden * 2)  # pooler and classifier: one token
    assert forward_flops(tmp_path / "model", tmp_path / "task") == by_hand
    assert TaskData.open(tmp_path / "task").kind == "text-classification"
