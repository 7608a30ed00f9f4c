"""Models whose outputs have no names of the task's: of a vocabulary, or of the choices of each example."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from stages.tasks.kind import Kind, ProcessorT
from stages.tasks.loading import Architecture, Model, load_pretrained, new_pretrained, take_head


class UnlabelledKind(Kind[ProcessorT]):
    """A kind whose tasks have no labels; how its models are loaded and made."""

    @abstractmethod
    def architecture_of(self, checkpoint: Path) -> tuple[Architecture, str]:
        """Transformers' class of the model in a checkpoint directory, and what it is, for messages."""

    def prepared(self, model: Model, checkpoint: Path) -> Model:
        """The model as the kind calls it. Raises `InputError` if it is none of this kind."""
        return model

    def load_model(
        self,
        checkpoint: Path,
        labels: Sequence[str],
        *,
        new_head: bool = False,
        head: Mapping[str, Tensor] | None = None,
    ) -> Model:
        """The model in a checkpoint directory; see `stages.tasks.kind`.

        A new head has the embeddings for its weight, if the architecture ties them; the pooler before it may be
        missing too.
        """
        assert not labels
        architecture, what = self.architecture_of(checkpoint)
        headless = new_head or head is not None
        model = load_pretrained(architecture, what, checkpoint, {}, headless=headless, poolerless=new_head)
        if head is not None:
            take_head(model, checkpoint, head)
        return self.prepared(model, checkpoint)

    def new_model(self, checkpoint: Path, labels: Sequence[str]) -> Model:
        """A model by a directory's config.json, initialised at random; see `stages.tasks.loading`."""
        assert not labels
        architecture, what = self.architecture_of(checkpoint)
        return self.prepared(new_pretrained(architecture, what, checkpoint, {}), checkpoint)
