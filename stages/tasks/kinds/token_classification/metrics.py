"""Metrics of tags: how many words have the right one, and how many entities that tags mark are found.

Outputs are [N, T, K], targets the labels' positions [N, T], with `NO_OUTPUT` wherever nothing is predicted: at the end
of an example, or anywhere, as the Trainer has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from stages.tasks.metrics import NO_OUTPUT, OfSums

if TYPE_CHECKING:  # params.yaml is checked without it
    import numpy as np


def is_bio(labels: Sequence[str]) -> bool:
    """Whether labels mark entities: `O`, and `B-X` and `I-X` for types X."""
    marks = [label for label in labels if label != "O"]
    return "O" in labels and bool(marks) and all(mark[:2] in ("B-", "I-") and mark[2:] for mark in marks)


class TagAccuracy(OfSums):
    """The share of the words whose largest logit is their tag's."""

    name, title, unit, larger_is_better = "tag_accuracy", "tag accuracy", "share", True

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """How many words are right, and how many there are, [N, 2]."""
        import numpy as np

        there = targets != NO_OUTPUT
        right = (outputs.argmax(-1) == targets) & there
        return np.stack([right.sum(-1), there.sum(-1)], axis=-1)

    def of_sums(self, sums: "np.ndarray") -> "np.ndarray":
        """Right words over words, [...] of [..., 2]."""
        import numpy as np

        share: np.ndarray = sums[..., 0] / np.maximum(sums[..., 1], 1)
        return share


@dataclass(frozen=True)
class EntityF1(OfSums):
    """The F1 score of entities, each of which is right if its type and both its ends are; as seqeval's `f1_score`.

    Entities are what seqeval makes of tags: one begins at `B-X`, and at an `I-X` that continues none of the type X.

    Attributes:
        labels: what the outputs are called, in their order; sums need none.
    """

    labels: tuple[str, ...] = ()
    name, title, unit, larger_is_better = "entity_f1", "entity F1", "share", True

    def of(self, labels: Sequence[str]) -> Self:
        """The metric of outputs that are called so."""
        return type(self)(tuple(labels))

    def per_example(self, outputs: "np.ndarray", targets: "np.ndarray") -> "np.ndarray":
        """The numbers of entities that are found, that are wrongly found and that are missed, [N, 3]."""
        import numpy as np

        assert self.labels, "entities are in tags, which the task's labels are"
        there, predicted = targets != NO_OUTPUT, outputs.argmax(-1)
        rows = []
        for positions, own, wanted in zip(there, predicted, targets, strict=True):
            found, right = self._entities(own[positions]), self._entities(wanted[positions])
            rows.append([len(found & right), len(found - right), len(right - found)])
        return np.array(rows)

    def of_sums(self, sums: "np.ndarray") -> "np.ndarray":
        """2 tp / (2 tp + fp + fn), [...] of [..., 3]; zero where there is no entity."""
        import numpy as np

        found = 2 * sums[..., 0]
        f1: np.ndarray = found / np.maximum(found + sums[..., 1] + sums[..., 2], 1)
        return f1

    def _entities(self, positions: "np.ndarray") -> set[tuple[str, int, int]]:
        """Types, first and last words of the entities in the tags of a sentence."""
        from seqeval.metrics.sequence_labeling import get_entities

        return set(get_entities([self.labels[int(position)] for position in positions]))
