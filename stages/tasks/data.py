"""A prepared task: `data/tasks/T/` with its splits and `task.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stages.running.errors import DamagedError, InputError
from stages.storage.cards import FORMAT_VERSION, read_json
from stages.storage.digests import verify_contents
from stages.tasks.kinds import metric_named
from stages.tasks.task import Split

if TYPE_CHECKING:
    import pandas as pd

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

    def read(self, split: Split) -> "pd.DataFrame":
        """One split: the columns of an example, and `label`, if there is one: what is to be predicted.

        An example is a `text`, perhaps with a `text_pair`, or an image; its label is a position in `labels`, or what
        else its kind predicts. See `stages/tasks/kinds/NAME/reading.py`.
        """
        import pandas as pd

        file = self.directory / f"{split}.parquet"
        try:
            frame = pd.read_parquet(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
            raise DamagedError(f"{file}: cannot be read ({' '.join(str(error).split())})", self.directory) from None
        if frame.empty:
            raise InputError(f"{file}: the split is empty")
        positions = single_labels(frame) if self.labels else None
        if positions is not None and not positions.between(0, len(self.labels) - 1).all():
            raise DamagedError(f"{file}: has labels outside the task's {len(self.labels)}", self.directory)
        if examples_fingerprint(frame) != self.fingerprints[split]:
            raise DamagedError(f"{file}: its contents are not what {TASK_CARD} says", self.directory)
        return frame


def single_labels(frame: "pd.DataFrame") -> "pd.Series | None":
    """The examples' labels, if they have one each, a position."""
    from pandas.api.types import is_integer_dtype

    return frame["label"] if "label" in frame and is_integer_dtype(frame["label"]) else None


def draw_examples(frame: "pd.DataFrame", examples: int | None, seed: int) -> "pd.DataFrame":
    """`examples` rows drawn at random without replacement, in the table's order; all rows if there are no more."""
    if examples is None or examples >= len(frame):
        return frame
    return frame.sample(examples, random_state=seed).sort_index().reset_index(drop=True)


def examples_fingerprint(frame: "pd.DataFrame") -> str:
    """SHA-256 of the examples' columns, their contents and any labels, in their order."""
    rows: Sequence[Sequence[object]] = frame.to_numpy(dtype=object).tolist()
    return _sha256([list(frame.columns), rows])


def encoding_fingerprint(encoded: Mapping[str, Sequence[object]]) -> str:
    """SHA-256 of encoded examples: lists of numbers, or arrays."""
    return _sha256(encoded)


def _sha256(content: object) -> str:
    import json

    return sha256(json.dumps(content, ensure_ascii=False, default=_buffer_sha256).encode()).hexdigest()


def _buffer_sha256(buffer: Any) -> list[object]:
    """In place of bytes or an array, which JSON cannot hold: their shape, type and digest."""
    view = memoryview(buffer)
    return [view.shape, view.format, sha256(view).hexdigest()]
