"""A statistic's card that says something else and bears its seal, as whoever made the damage would have written it."""

from pathlib import Path
from typing import Any

from stages.storage.cards import read_json, write_json
from stages.storage.statistics import SEAL, card_seal
from stages.storage.tensors import TensorFiles, fingerprint


def rewrite_card(directory: Path, changes: dict[str, Any]) -> None:
    """Change the card of the Fisher in `directory`."""
    card = read_json(directory / "fisher.json") | changes
    write_json(directory / "fisher.json", card | {SEAL: card_seal(card)})


def reseal(directory: Path) -> None:
    """Let the card of the Fisher in `directory` say that its tensors are as they should be."""
    rewrite_card(directory, {"fingerprint": fingerprint(TensorFiles(directory, "fisher"))})
