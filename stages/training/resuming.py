"""How far a training has come, on disk, so that a killed one goes on where it was and ends with the same bits."""

import json
import shutil
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.storage.digests import tree_sha256
from stages.storage.saved_progress import SAVE_SECONDS

POSITION = "position.safetensors"  # what the Trainer's own checkpoint lacks
SEAL = "seal"  # written last: a digest of all the other files and of the identity
KEPT = 2  # states; the older one for the case that the newest is damaged


class TrainingProgress(TrainerCallback):
    """Lets a Trainer save its state every minute into its `output_dir`, and go on from the last one.

    A state is the Trainer's own checkpoint and what is missing from it: the random state that the epoch's order of the
    examples was drawn from (the Trainer would draw another order for the rest of the epoch), and the losses since the
    last logged step and since the start. It counts only with the right seal; a kill may have left it incomplete.

    Args:
        trainer: ready to train for whole epochs; evaluates after each of them, and saves nothing of its own accord.
        identity: all that the result depends on; a state of another identity is not used.
    """

    def __init__(self, trainer: Trainer, identity: Mapping[str, Any]) -> None:
        self._trainer = trainer
        self._directory = Path(str(trainer.args.output_dir))
        self._identity = json.dumps(identity, sort_keys=True)
        self._position: dict[str, torch.Tensor] | None = None  # where to go on, until the Trainer is there
        self._order = torch.empty(0)  # the random state at the epoch's beginning
        self._saved = time.monotonic()

    def train(self) -> None:
        """Train, or go on with it; the Trainer's state is then that of an undisturbed training."""
        latest = self.latest()
        self._position = load_file(latest / POSITION) if latest else None
        self._trainer.add_callback(self)
        # The Trainer unpickles with weights_only, and only what matches its seal.
        self._trainer.train(resume_from_checkpoint=str(latest) if latest else None)

    def latest(self) -> Path | None:
        """The newest state that is intact and ours; newer ones are removed."""
        for saved in self._states():
            try:
                if (saved / SEAL).read_bytes() == self._seal(saved).encode():
                    return saved
            except OSError:
                pass  # unfinished
            shutil.rmtree(saved, ignore_errors=True)
        return None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put back the losses, which the Trainer starts from zero."""
        if self._position is not None:
            self._trainer._tr_loss.copy_(self._position["loss"])
            self._trainer._total_loss_scalar = self._position["logged_loss"].item()
            self._trainer._globalstep_last_logged = int(self._position["logged_step"])
            self._trainer._initial_global_step = 0  # the mean loss is of all steps

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let the epoch that was interrupted have its order again; the Trainer restores the random state after it."""
        if self._position is not None:
            torch.set_rng_state(self._position["order"])
            self._position = None
        self._order = torch.get_rng_state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save within an epoch; the state after its last step would go on without the evaluation."""
        control.should_save = self._due and not _between_epochs(state)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save between epochs, after the evaluation.

        Not after the last: a forward pass leaves its mark in a model's config, so a resumed training needs one.
        """
        control.should_save = self._due and state.global_step < state.max_steps

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete and seal the Trainer's checkpoint; remove older ones."""
        saved = self._directory / f"checkpoint-{state.global_step}"
        position = {
            "order": torch.get_rng_state() if _between_epochs(state) else self._order,
            "loss": self._trainer._tr_loss.cpu(),
            "logged_loss": torch.tensor(self._trainer._total_loss_scalar, dtype=torch.float64),
            "logged_step": torch.tensor(self._trainer._globalstep_last_logged),
        }
        save_file(position, saved / POSITION)
        (saved / SEAL).write_text(self._seal(saved))
        for old in self._states()[KEPT:]:
            shutil.rmtree(old)
        self._saved = time.monotonic()

    @property
    def _due(self) -> bool:
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def _states(self) -> list[Path]:
        """Newest first."""
        return sorted(self._directory.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name), reverse=True)

    def _seal(self, saved: Path) -> str:
        files = sorted(file for file in saved.iterdir() if file.name != SEAL)
        lines = [self._identity, *(f"{tree_sha256(file)}  {file.name}" for file in files)]
        return sha256("\n".join(lines).encode()).hexdigest()


def _between_epochs(state: TrainerState) -> bool:
    return float(state.epoch).is_integer()
