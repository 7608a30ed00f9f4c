"""A prepared task: `data/tasks/T/` with its splits and `task.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

from stages.artifacts import FORMAT_VERSION, read_json, write_json
from stages.contents import verify_contents
from stages.errors import InputError, anew
from stages.params import Split, Task

if TYPE_CHECKING:
    import pandas as pd

TASK_CARD = "task.json"


@dataclass(frozen=True)
class TaskData:
    """A prepared task: where it is, what kind it is, its label names, and the length texts are cut to, in tokens.

    A task that has no labels has no label names either.

    `fingerprints` are those of the splits, by `examples_fingerprint`.
    """

    directory: Path
    kind: str
    labels: tuple[str, ...]
    max_length: int
    fingerprints: Mapping[str, str] = field(compare=False)

    @property
    def name(self) -> str:
        """The task's name in params.yaml."""
        return self.directory.name

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Read the task's card. Raises `InputError` if there is none, it is of another format or damaged."""
        verify_contents(directory, [TASK_CARD])
        card = read_json(directory / TASK_CARD)
        if card.get("format_version") != FORMAT_VERSION:
            raise InputError(f"{directory / TASK_CARD}: unknown format_version; prepare the task again")
        return cls(directory, card["kind"], tuple(card["labels"]), card["max_length"], card["fingerprints"])

    def read(self, split: Split) -> "pd.DataFrame":
        """One split: columns `text`, perhaps `text_pair`, and with labels `label` (a position in `labels`)."""
        import pandas as pd

        file = self.directory / f"{split}.parquet"
        try:
            frame = pd.read_parquet(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
            raise InputError(
                f"{file}: cannot be read ({' '.join(str(error).split())}); {anew(self.directory)}"
            ) from None
        if frame.empty:
            raise InputError(f"{file}: the split is empty")
        if self.labels and not frame["label"].between(0, len(self.labels) - 1).all():
            raise InputError(f"{file}: has labels outside the task's {len(self.labels)}; {anew(self.directory)}")
        if examples_fingerprint(frame) != self.fingerprints[split]:
            raise InputError(f"{file}: its contents are not what {TASK_CARD} says; {anew(self.directory)}")
        return frame


def write_task(directory: Path, task: Task, splits: Mapping[Split, "pd.DataFrame"], dropped: Mapping[str, int]) -> None:
    """Write a task's splits and card into `directory`."""
    labels = list(task.labels)
    for split, frame in splits.items():
        frame.to_parquet(directory / f"{split}.parquet", index=False)
    counts = {
        split: {label: int((frame["label"] == position).sum()) for position, label in enumerate(labels)}
        if labels
        else len(frame)
        for split, frame in splits.items()
    }
    write_json(
        directory / TASK_CARD,
        {
            "format_version": FORMAT_VERSION,
            "kind": task.kind,
            "labels": labels,
            "max_length": task.max_length,
            "counts": counts,
            "dropped": dict(dropped),
            "fingerprints": {split: examples_fingerprint(frame) for split, frame in splits.items()},
        },
    )


def draw_examples(frame: "pd.DataFrame", examples: int | None, seed: int) -> "pd.DataFrame":
    """`examples` rows drawn at random without replacement, in the table's order; all rows if there are no more."""
    if examples is None or examples >= len(frame):
        return frame
    return frame.sample(examples, random_state=seed).sort_index().reset_index(drop=True)


def examples_fingerprint(frame: "pd.DataFrame") -> str:
    """SHA-256 of the examples' columns, texts and any labels, in their order."""
    import json

    rows: Sequence[Sequence[object]] = frame.to_numpy(dtype=object).tolist()
    return sha256(json.dumps([list(frame.columns), rows], ensure_ascii=False).encode()).hexdigest()
