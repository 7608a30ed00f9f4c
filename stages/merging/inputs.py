"""What goes into a merge: checkpoint directories and Fisher directories, checked against each other."""

from collections.abc import Collection, Mapping
from pathlib import Path

from stages.artifacts import CHECKPOINT_CARD, FISHER_CARD, FORMAT_VERSION, TensorFiles, fingerprint, read_json
from stages.errors import InputError


class Checkpoint:
    """A Hugging Face checkpoint directory.

    Attributes:
        directory: where it is.
        tensors: its weights, mapped.
        config: its config.json.
        card: its checkpoint.json, empty where there is none (a checkpoint that this pipeline did not make).
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise InputError(f"{directory}: no such checkpoint directory")
        self.directory = directory
        self.config = read_json(directory / "config.json")
        self.tensors = TensorFiles(directory)
        card = directory / CHECKPOINT_CARD
        self.card = read_json(card) if card.is_file() else {}

    @property
    def labels(self) -> list[str] | None:
        """The label names, in the order of the outputs, if the checkpoint has any."""
        names = self.config.get("id2label")
        if not isinstance(names, dict):
            return None
        return [str(names[key]) for key in sorted(names, key=int)]

    @property
    def base_model_prefix(self) -> str:
        """What the body's parameter names begin with; what lies outside is the head."""
        if isinstance(prefix := self.card.get("base_model_prefix"), str):
            return prefix
        import transformers  # seconds, so only for a foreign checkpoint

        architecture = (self.config.get("architectures") or ["(none)"])[0]
        model_class = getattr(transformers, str(architecture), None)
        if model_class is None or not hasattr(model_class, "base_model_prefix"):
            raise InputError(f"{self.directory / 'config.json'}: unknown architecture {architecture!r}")
        return str(model_class.base_model_prefix)

    def head(self) -> set[str]:
        """The names of the head's tensors: those outside the body."""
        prefix = f"{self.base_model_prefix}."
        return {name for name in self.tensors.specs if not name.startswith(prefix)}

    def vocabulary(self) -> object:
        """The tokenizer's vocabulary, in any comparable form; None where there is no tokenizer.json."""
        file = self.directory / "tokenizer.json"
        if not file.is_file():
            return None
        tokenizer = read_json(file)
        return tokenizer.get("model", {}).get("vocab"), tokenizer.get("added_tokens")


def open_fisher(directory: Path, checkpoint: Checkpoint) -> tuple[TensorFiles, dict[str, object]]:
    """A Fisher directory's tensors and card, after checking that it is `checkpoint`'s and whole.

    Raises:
        InputError: it is missing, of another format or another checkpoint, or its tensors are not those of its card.
    """
    card_file = directory / FISHER_CARD
    card = read_json(card_file)
    if card.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{card_file}: has format_version {card.get('format_version')}, not {FORMAT_VERSION}; estimate it again"
        )
    tensors = TensorFiles(directory, "fisher")
    if card.get("checkpoint") != (found := fingerprint(checkpoint.tensors)):
        raise InputError(
            f"{card_file}: this Fisher belongs to the checkpoint {str(card.get('checkpoint'))[:12]}…, but "
            f"{checkpoint.directory} is {found[:12]}…; estimate the Fisher of this checkpoint"
        )
    if card.get("fingerprint") != fingerprint(tensors):
        raise InputError(f"{tensors.file}: its contents are not what {card_file.name} says; estimate or fetch it again")
    return tensors, card


def check_same_body(checkpoints: Mapping[str, Checkpoint], heads: Collection[str]) -> None:
    """Refuse checkpoints whose architecture, tensors outside `heads`, or vocabulary differ from the first one's.

    Raises:
        InputError: with the model, the tensor and what differs.
    """
    (first_name, first), *others = checkpoints.items()
    for name, other in others:
        if other.config.get("model_type") != first.config.get("model_type"):
            raise InputError(
                f"{other.directory}: is a {other.config.get('model_type')} model, but {first_name} is a "
                f"{first.config.get('model_type')} model; only models of one architecture can be merged"
            )
        ours, theirs = first.tensors.specs, other.tensors.specs
        for tensor in sorted((ours.keys() | theirs.keys()) - set(heads)):
            if tensor not in theirs:
                raise InputError(f"{other.tensors.file}: lacks the tensor {tensor}, which {first_name} has")
            if tensor not in ours:
                raise InputError(f"{first.tensors.file}: lacks the tensor {tensor}, which {name} has")
            if ours[tensor].shape != theirs[tensor].shape:
                raise InputError(
                    f"{other.tensors.file}: tensor {tensor} has the shape {list(theirs[tensor].shape)}, but "
                    f"{first_name}'s has {list(ours[tensor].shape)}"
                )
        vocabularies = first.vocabulary(), other.vocabulary()
        if None not in vocabularies and vocabularies[0] != vocabularies[1]:
            raise InputError(
                f"{other.directory / 'tokenizer.json'}: has another vocabulary than {first_name}'s; the same token "
                "would mean different words in the models, so they cannot be merged"
            )
