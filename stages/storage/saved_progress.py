"""What a long stage has reached, on disk, so that a killed one goes on where it was."""

import glob
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.storage.outputs import PARTIAL_PREFIX, writing
from stages.storage.tensors import tensor_digest

if TYPE_CHECKING:
    import torch

SAVE_SECONDS = 60.0  # at most so much work is repeated after a kill


@dataclass(frozen=True)
class Reached:
    """Saved tensors, and the numbers that say where they stand."""

    tensors: dict[str, "torch.Tensor"]
    position: dict[str, int]


class Progress:
    """One file beside a stage's output, replaced as a whole.

    Args:
        output: the stage's output, for example models/fishers/tweets.
        part: names the file among those of several processes.
        identity: all that the tensors depend on; a file of another identity is not used.
    """

    def __init__(self, output: Path, part: str, identity: Mapping[str, Any]) -> None:
        self.file = output.parent / f"{PARTIAL_PREFIX}{output.name}.{part}.safetensors"
        self._identity = json.dumps(identity, sort_keys=True)
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def load(self) -> Reached | None:
        """What was last saved; None if nothing was, or it is damaged or of another identity."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError):
            return None
        if about.get("identity") != self._identity or about.get("digest") != _digest(tensors):
            return None
        return Reached(tensors, json.loads(about["position"]))

    def save(self, tensors: Mapping[str, "torch.Tensor"], position: Mapping[str, int]) -> None:
        """Replace the file."""
        from safetensors.torch import save_file

        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about = {"identity": self._identity, "digest": _digest(stored), "position": json.dumps(position)}
        written = self.file.with_suffix(f".{os.getpid()}")
        with writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file(stored, written, metadata=about)
                written.replace(self.file)
            finally:
                written.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """The output is complete: remove the file, and what processes have left that were killed while saving."""
        for file in self.file.parent.glob(f"{glob.escape(self.file.stem)}.*"):
            file.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, "torch.Tensor"]) -> str:
    return json.dumps({name: tensor_digest(tensor) for name, tensor in sorted(tensors.items())})
