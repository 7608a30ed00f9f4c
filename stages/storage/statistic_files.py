"""A statistic in files: its tensors and card, checked against each other and against the checkpoint it is of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.running.errors import DamagedError, InputError
from stages.storage.cards import FORMAT_VERSION, read_card
from stages.storage.checkpoint import Checkpoint
from stages.storage.statistic import StatisticKind
from stages.storage.statistics import SEAL, STATISTICS, TRANSPOSED, card_seal
from stages.storage.tensors import TensorFiles, check_fingerprint, fingerprint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StatisticFiles:
    """A statistic's tensors and card, in a directory of its own; see `stages.storage.statistics`."""

    kind: StatisticKind
    tensors: TensorFiles
    card: Mapping[str, Any]
    card_file: Path

    def norm(self, name: str) -> float | None:
        """‖F‖₂ of the tensor `name` by a sealed card; None where there is none, or it does not say it."""
        summary = self.card.get("tensors", {}).get(self.tensors.stored_name(name), {}) if SEAL in self.card else {}
        return summary.get("norm")

    def is_transposed(self, name: str) -> bool:
        """Whether the weight `name` is stored as [in, out]."""
        stored = {self.kind.keys(weight)[0] for weight in self.card.get(TRANSPOSED, [])}
        return self.tensors.stored_name(self.kind.keys(name)[0]) in stored

    def check_cards(self, checkpoint: Checkpoint) -> None:
        """Refuse a statistic of another checkpoint, as far as the cards say; it costs nothing."""
        if "fingerprint" in checkpoint.card:
            self._check_checkpoint(str(checkpoint.card["fingerprint"]), checkpoint)

    def verify(self, checkpoint: Checkpoint | None) -> None:
        """Check contents by fingerprints; quick for what has been read whole already.

        Raises:
            InputError: the tensors are not those of the card, or the card's checkpoint is not this one.
        """
        if checkpoint is not None:
            self._check_checkpoint(fingerprint(checkpoint.tensors), checkpoint)
        check_fingerprint(self.tensors, {"fingerprint": None, **self.card}, self.card_file.name)

    def _check_checkpoint(self, found: str, checkpoint: Checkpoint) -> None:
        if self.card.get("checkpoint") != found:
            raise InputError(
                f"{self.card_file}: belongs to the checkpoint {str(self.card.get('checkpoint'))[:12]}…, but "
                f"{checkpoint.directory} is {found[:12]}…; estimate the {self.tensors.stem} of this checkpoint"
            )


def open_statistic(statistic: str, directories: Path | Sequence[Path]) -> StatisticFiles:
    """The statistic of that name, in whichever of a model's directories it lies.

    Raises:
        InputError: it is in none of them, of another format, cut short, or its card has been changed.
    """
    kind = STATISTICS[statistic]
    stem = kind.stem
    places = [directories] if isinstance(directories, Path) else list(directories)
    directory = next((place for place in places if (place / f"{stem}.json").is_file()), places[0])
    card_file = directory / f"{stem}.json"
    card = read_card(card_file)
    if card.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{card_file}: has format_version {card.get('format_version')}, not {FORMAT_VERSION}; estimate it again"
        )
    if SEAL in card and card[SEAL] != card_seal(card):
        raise DamagedError(f"{card_file}: is not as it was written", directory)
    return StatisticFiles(kind, TensorFiles(directory, stem), card, card_file)


def bad_value(values: "torch.Tensor") -> str:
    """In words: the kind of value that should not be there."""
    import torch

    if torch.isnan(values).any():
        return "a NaN"
    return "an infinite" if torch.isinf(values).any() else "a negative"
