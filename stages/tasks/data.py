"""A prepared task: `data/tasks/T/` with its splits and `task.json`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stages.running.errors import DamagedError, InputError
from stages.storage.cards import FORMAT_VERSION, read_json
from stages.storage.digests import verify_contents
from stages.tasks.kinds import metric_named
from stages.tasks.task import Split

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    from stages.tasks.metrics import Metric

TASK_CARD = "task.json"


@dataclass(frozen=True)
class TaskData:
    """A prepared task.

    Attributes:
        directory: where it is.
        kind: what kind it is.
        labels: what its models' outputs are called, in their order; empty where they have no names.
        max_length: what texts are cut to, in tokens; 0 where there are no texts.
        fingerprints: of the splits, by `examples_fingerprint`.
        card: all that its card says, for its kind.
    """

    directory: Path
    kind: str
    labels: tuple[str, ...]
    max_length: int
    fingerprints: Mapping[str, str] = field(compare=False)
    card: Mapping[str, Any] = field(compare=False, default_factory=dict)

    @property
    def name(self) -> str:
        """The task's name in params.yaml."""
        return self.directory.name

    @property
    def metrics(self) -> "tuple[Metric, ...]":
        """The metrics that mean something of its models' outputs, in its kind's order; none if it is not evaluated.

        Which of them counts is told to evaluations and searches, so that another one re-runs only these.
        """
        return tuple(metric_named(name).of(self.labels) for name in self.card["metrics"])

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Read the task's card. Raises `InputError` if there is none, it is of another format or damaged."""
        verify_contents(directory, [TASK_CARD])
        card = read_json(directory / TASK_CARD)
        if card.get("format_version") != FORMAT_VERSION:
            raise InputError(f"{directory / TASK_CARD}: unknown format_version; prepare the task again")
        labels = tuple(card["labels"])
        return cls(directory, card["kind"], labels, card.get("max_length", 0), card["fingerprints"], card)

    def rows(self, split: Split) -> "Dataset":
        """One split, memory-mapped: the columns of an example, and `label`, if there is one: what is to be predicted.

        An example is a `text`, perhaps with a `text_pair`, or an image; its label is a position in `labels`, or what
        else its kind predicts. See `stages/tasks/kinds/NAME/reading.py`.

        Raises:
            DamagedError: it cannot be read, or is not what the card says.
            InputError: it is empty.
        """
        from stages.tasks.arrow import frames, open_rows

        file = self.directory / split_file(split)
        try:
            rows = open_rows(file)
            fingerprint = examples_fingerprint(rows)
        except Exception as error:  # whatever pyarrow makes of what is damaged
            raise DamagedError(f"{file}: cannot be read ({' '.join(str(error).split())})", self.directory) from None
        if not len(rows):
            raise InputError(f"{file}: the split is empty")
        if self.labels and "label" in rows.column_names:
            for frame in frames(rows.select_columns(["label"])):
                positions = single_labels(frame)
                if positions is not None and not positions.between(0, len(self.labels) - 1).all():
                    raise DamagedError(f"{file}: has labels outside the task's {len(self.labels)}", self.directory)
        if fingerprint != self.fingerprints[split]:
            raise DamagedError(f"{file}: its contents are not what {TASK_CARD} says", self.directory)
        return rows

    def read(self, split: Split) -> "pd.DataFrame":
        """One split as a table; see `rows`."""
        from stages.tasks.arrow import frame

        return frame(self.rows(split))


def split_file(split: Split) -> str:
    """Where a split is, in a task's directory."""
    return f"{split}.arrow"


def single_labels(frame: "pd.DataFrame") -> "pd.Series | None":
    """The examples' labels, if they have one each, a position."""
    from pandas.api.types import is_integer_dtype

    return frame["label"] if "label" in frame and is_integer_dtype(frame["label"]) else None


def draw_examples(rows: "Dataset", examples: int | None, seed: int) -> "Dataset":
    """`examples` rows drawn at random without replacement, in their order; all rows if there are no more."""
    import pandas as pd

    if examples is None or examples >= len(rows):
        return rows
    return rows.select(pd.Series(range(len(rows))).sample(examples, random_state=seed).sort_index())


def examples_fingerprint(rows: "Dataset | pd.DataFrame") -> str:
    """SHA-256 of the examples' columns, their contents and any labels, in their order.

    It is of texts alone, a line of JSON for the columns and one for each row, so it depends neither on how a file keeps
    the rows nor on the version of a library. Bytes are there as their own SHA-256.
    """
    import pandas as pd

    from stages.tasks.arrow import frames

    columns = list(rows.columns if isinstance(rows, pd.DataFrame) else rows.column_names)
    tables = [rows] if isinstance(rows, pd.DataFrame) else frames(rows)
    return _sha256([columns], (row for table in tables for row in table.to_numpy(dtype=object).tolist()))


def encoding_fingerprint(encoded: Mapping[str, Sequence[object]]) -> str:
    """SHA-256 of encoded examples, row by row, as `examples_fingerprint` has it."""
    return _sha256([list(encoded)], zip(*encoded.values(), strict=True))


def _sha256(*parts: Iterable[object]) -> str:
    import json

    digest = sha256()
    for line in chain(*parts):
        digest.update(f"{json.dumps(line, ensure_ascii=False, default=_as_json)}\n".encode())
    return digest.hexdigest()


def _as_json(value: Any) -> object:
    """What stands for a value that JSON cannot hold: an array's numbers, the digest of bytes."""
    return {"sha256": sha256(value).hexdigest()} if isinstance(value, bytes) else value.tolist()
