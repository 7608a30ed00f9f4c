"""What a task is, one module a kind: its examples, model class, collation and likelihood.

The stages ask a kind for the following, and for nothing else of it:

- `LIKELIHOOD`: of its model's outputs, one of `stages.curvature`'s.
- `TRAIN_SAMPLING`: the order of training examples, as the Trainer's `train_sampling_strategy` names it.
- `load_model(checkpoint, labels, *, new_head=False, head=None)`: the model in a directory, in float32 on the CPU, whole
  and from safetensors, or an `InputError`. A base's head may be missing with `new_head`; `head` replaces it.
- `new_model(checkpoint, labels)`: the same by a directory's config.json, initialised at random.
- `load_processor(checkpoint)`: what makes a model's inputs of examples (a tokenizer, an image processor); its
  `save_pretrained(directory)` writes it beside a checkpoint's weights.
- `position_limit(model)`: how long an example may be, in tokens, if that is limited.
- `encode(processor, frame, task, model, seed)`: the examples of a table as a mapping of model inputs, and `labels`,
  to lists with an entry an example: numbers, lists of them or arrays. What is drawn at random in them (hidden tokens)
  comes from the seed. What cannot be the model's input is an `InputError`.
- `refuse_unknown(processor, encoded, task)`: an `InputError` if a task's training examples, so encoded, say next to
  nothing.
- `training_set(processor, encoded, seed)`: those examples to train on, perhaps drawn anew in every epoch.
- `collator(processor, model)`: makes a batch, a mapping of inputs to tensors, of a list of such examples; processor and
  model agree on what pads it from then on.
- `largest_first(encoded)`: the examples' positions, in the order in which memory runs out at once or not at all.

What kinds share is in `stages.tasks.loading` (loading), `stages.tasks.prediction` and `stages.tasks.texts`. How
`prepare` makes a kind's table is in `stages.tasks.tables`, and for images in `stages.tasks.images`.
"""

from types import ModuleType


def task_kind(kind: str) -> ModuleType:
    """The module of a task kind, imported only when asked for (it brings transformers with it)."""
    from importlib import import_module

    return import_module(f"stages.{module_of(kind)}")


def module_of(kind: str) -> str:
    """The name of a task kind's module, below `stages`."""
    return f"tasks.{kind.replace('-', '_')}"
