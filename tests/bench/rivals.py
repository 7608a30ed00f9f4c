"""Other libraries' diagonal Fisher of a Hugging Face BERT classifier, each used the way its documentation recommends.

Every function takes the model and batches and returns parameter name → mean over examples of the diagonal. A parameter
that the library has no rule for is absent. What a library cannot do it says itself: its exceptions are not caught.

- Every function works on a copy of the model, since most libraries leave hooks behind.
- The generalized Gauss-Newton matrix of a categorical likelihood is its Fisher, so a diagonal of either counts.
- Libraries that square the gradients of a loss get one backward pass per class y, with the loss
  Σ_n √p(y|x_n) log p(y|x_n), the root taken as a constant.
- Libraries that work layer by layer get position and token type ids with one row per example. Without them BERT looks
  the positions up once for the whole batch, and the rules for embeddings cannot tell the examples apart.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification

Batch = dict[str, Tensor]
Diagonal = dict[str, Tensor]
Rival = Callable[[BertForSequenceClassification, Sequence[Batch]], Diagonal]

VMAP_ROWS = 4  # examples whose gradients are held at once; more is not faster
OPACUS_ROWS = 2  # the same; more is slower
MATRIX_PRODUCTS = 4  # of the stochastic estimate of a diagonal


def loop(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """The definition in plain PyTorch: a backward pass per example and class, without padding."""
    model, sums = _copy(model)
    parameters = list(model.parameters())
    for batch in batches:
        for example in _rows(batch, 1):
            used = int(example["attention_mask"].sum())
            log_p = model(**{key: value[:, :used] for key, value in example.items()}).logits.log_softmax(-1)
            for log_p_y in log_p[0]:
                gradients = torch.autograd.grad(log_p_y, parameters, retain_graph=True)
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    total.add_(gradient.square(), alpha=float(log_p_y.exp().detach()))
    return _mean(sums, batches)


def vmap_grad(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """torch.func: vmap(grad) over examples, once per class (faster here than one forward pass for all classes).

    The mask is given for pairs of positions, as transformers derives it from the usual one by looking at its values,
    which vmap forbids.
    """
    model, sums = _copy(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def weighted(own: Diagonal, example: Batch, y: int) -> Tensor:
        one = {key: value[None] for key, value in example.items()}
        return _class_losses(torch.func.functional_call(model, own, kwargs=one).logits)[y]

    gradients = torch.func.vmap(torch.func.grad(weighted), in_dims=(None, 0, None))
    for batch in batches:
        pairs = batch["attention_mask"].bool()[:, None, None].expand(-1, 1, batch["attention_mask"].shape[1], -1)
        for rows in _rows({**batch, "attention_mask": pairs}, VMAP_ROWS):
            for y in range(model.classifier.out_features):
                for name, gradient in gradients(parameters, rows, y).items():
                    sums[name] += gradient.square_().sum(0)
    return _mean(sums, batches)


def laplace_asdl(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """laplace-torch, backend AsdlGGN.

    Another quantity: ASDL squares the gradients of every token of an example on their own.
    """
    from laplace.curvature import AsdlGGN

    return _laplace(AsdlGGN, model, batches, map(_with_row_ids, batches))


def laplace_curvlinops(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """laplace-torch, its default backend CurvlinopsGGN, whose diagonal is taken from every example's full Jacobian.

    A batch of B examples costs B K backward passes of the whole batch, so the examples are given one by one.
    """
    from laplace.curvature import CurvlinopsGGN

    return _laplace(CurvlinopsGGN, model, batches, (example for batch in batches for example in _rows(batch, 1)))


def laplace_backpack(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """laplace-torch, backend BackPackGGN."""
    from laplace.curvature import BackPackGGN

    return _laplace(BackPackGGN, model, batches, map(_with_row_ids, batches))


def curvlinops_hutchinson(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """curvlinops: Hutchinson's stochastic estimate, from products with the GGN matrix; it has no exact diagonal."""
    from curvlinops import GGNLinearOperator, hutchinson_diag

    model, sums = _copy(model)
    model.set_attn_implementation("eager")  # the fused attention has no forward-mode derivative
    operator = GGNLinearOperator(
        _LogitsOf(model),
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(batch, _any_labels(batch)) for batch in batches],
        check_deterministic=False,
        batch_size_fn=_size,
    )
    torch.manual_seed(0)
    return _unflattened(hutchinson_diag(operator, num_matvecs=MATRIX_PRODUCTS), sums)


def nngeometry_all(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """NNGeometry: FIM of `classif_logits` as PMatDiag, of all layers of the kinds that it knows."""
    from nngeometry.layercollection import LayerCollection

    model, _ = _copy(model)
    return _nngeometry(model, batches, LayerCollection.from_model(model, ignore_unsupported_layers=True))


def nngeometry_head(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """NNGeometry: the same of the layers that see one vector per example, pooler and classifier."""
    from nngeometry.layercollection import LayerCollection

    model, _ = _copy(model)
    layers = LayerCollection()
    for name in ("bert.pooler.dense", "classifier"):
        layers.add_layer_from_model(model, model.get_submodule(name))
    return _nngeometry(model, batches, layers)


def backpack_second_order(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """BackPACK: DiagGGNExact, which needs a rule for everything between a parameter and the loss.

    Only modules without children are extended: BackPACK's hooks store a module's `output`, a child's name in BERT.
    """
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact

    model, sums = _copy(model)
    parameters: dict[str, Any] = dict(model.named_parameters())
    for module in model.modules():
        if not list(module.children()):
            extend(module)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    for batch in map(_with_row_ids, batches):
        with backpack(DiagGGNExact()):
            loss(model(**batch).logits, _any_labels(batch)).backward()
        for name, parameter in parameters.items():
            sums[name] += parameter.diag_ggn_exact
            del parameter.diag_ggn_exact
    return _mean(sums, batches)


def backpack_first_order(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """BackPACK: BatchGrad of the modules it has rules for, linear ones and embeddings without a padding index."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model, sums = _copy(model)
    known: Diagonal = {}
    owned: dict[nn.Module, dict[str, Any]] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Embedding) and module.padding_idx is None):
            extend(module)
            owned[module] = {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}
            known |= {name: sums[name] for name in owned[module]}

    def square(module: nn.Module) -> None:
        for name, parameter in owned[module].items():
            known[name] += parameter.grad_batch.square_().sum(0)
            del parameter.grad_batch

    for batch in map(_with_row_ids, batches):
        losses = _class_losses(model(**batch).logits)
        for y, loss in enumerate(losses):
            more = y + 1 < len(losses)
            with backpack(BatchGrad(), extension_hook=square, retain_graph=more):
                loss.backward(retain_graph=more)
    return _mean(known, batches)


def opacus_hooks(model: BertForSequenceClassification, batches: Sequence[Batch]) -> Diagonal:
    """Opacus: GradSampleModule's per-example gradients, from a forward and a backward pass per class.

    It records in training mode only: the modules that own parameters are put in it, but no dropout.
    """
    from opacus import GradSampleModule

    model, sums = _copy(model)
    for module in model.modules():
        module.training = next(module.parameters(recurse=False), None) is not None
    parameters: dict[str, Any] = dict(model.named_parameters())
    recording = GradSampleModule(model, loss_reduction="sum")
    for batch in batches:
        for rows in _rows(_with_row_ids(batch), OPACUS_ROWS):
            for y in range(model.classifier.out_features):
                _class_losses(recording(**rows).logits)[y].backward()
                for name, parameter in parameters.items():
                    sums[name] += parameter.grad_sample.square_().sum(0)
                recording.zero_grad()
    return _mean(sums, batches)


class _LogitsOf(nn.Module):
    """A model that is called with one dict and returns logits: what laplace-torch and curvlinops ask for."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(**batch).logits
        return logits


def _laplace(
    backend: Callable[..., Any],
    model: BertForSequenceClassification,
    batches: Sequence[Batch],
    inputs: Iterable[Batch],
) -> Diagonal:
    """The sum of the backend's diagonals of `inputs`, over the number of examples in `batches`."""
    model, sums = _copy(model)
    curvature = backend(_LogitsOf(model), "classification")
    for batch in inputs:
        _, diagonal = curvature.diag(batch, _any_labels(batch))
        for name, part in _unflattened(diagonal, sums).items():
            sums[name] += part
    return _mean(sums, batches)


def _nngeometry(model: BertForSequenceClassification, batches: Sequence[Batch], layers: Any) -> Diagonal:
    """It asks for the gradient of the first input, so that is the words' embeddings in place of `input_ids`."""
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    def logits(words: Tensor, mask: Tensor) -> Tensor:
        return model(inputs_embeds=words, attention_mask=mask).logits

    modules, _ = layers.get_layerid_module_maps(model)
    sums = {name: torch.zeros_like(parameter) for name, parameter in layers.named_parameters(modules)}
    for batch in batches:
        words = model.get_input_embeddings()(batch["input_ids"]).detach()
        examples = (words, batch["attention_mask"])
        fisher = FIM(model, examples, PMatDiag, "classif_logits", function=logits, layer_collection=layers)
        for name, part in _unflattened(fisher.get_diag(), sums).items():
            sums[name] += part * _size(batch)
    return _mean(sums, batches)


def _copy(model: BertForSequenceClassification) -> tuple[BertForSequenceClassification, Diagonal]:
    """A copy of the model, and zeros of its parameters' shapes."""
    copied = deepcopy(model)
    return copied, {name: torch.zeros_like(parameter) for name, parameter in copied.named_parameters()}


def _mean(sums: Diagonal, batches: Sequence[Batch]) -> Diagonal:
    examples = sum(map(_size, batches))
    return {name: total.detach().div_(examples) for name, total in sums.items()}


def _size(batch: Batch) -> int:
    return len(batch["input_ids"])


def _rows(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in parts of `count` examples."""
    for start in range(0, _size(batch), count):
        yield {key: value[start : start + count] for key, value in batch.items()}


def _with_row_ids(batch: Batch) -> Batch:
    ids = batch["input_ids"]
    return {
        **batch,
        "position_ids": torch.arange(ids.shape[1], device=ids.device).expand_as(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def _any_labels(batch: Batch) -> Tensor:
    """Labels for a loss whose GGN does not depend on them."""
    return torch.zeros(_size(batch), dtype=torch.long, device=batch["input_ids"].device)


def _class_losses(logits: Tensor) -> Tensor:
    """Per class y: Σ_n √p(y|x_n) log p(y|x_n), the root taken as a constant."""
    log_p = logits.log_softmax(-1)
    return (log_p * (log_p.detach() / 2).exp()).sum(0)


def _unflattened(vector: Tensor, like: Diagonal) -> Diagonal:
    """A vector of all parameters in order, in parts of their names and shapes."""
    parts = vector.detach().split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for (name, value), part in zip(like.items(), parts, strict=True)}


RIVALS: dict[str, Rival] = {
    "loop over examples and classes": loop,
    "torch.func vmap(grad)": vmap_grad,
    "Opacus GradSampleModule": opacus_hooks,
    "BackPACK BatchGrad": backpack_first_order,
    "BackPACK DiagGGNExact": backpack_second_order,
    "NNGeometry PMatDiag": nngeometry_all,
    "NNGeometry PMatDiag, head": nngeometry_head,
    "laplace-torch CurvlinopsGGN": laplace_curvlinops,
    "laplace-torch AsdlGGN": laplace_asdl,
    "laplace-torch BackPackGGN": laplace_backpack,
    "curvlinops hutchinson_diag": curvlinops_hutchinson,
}

# What cannot be installed from PyPI, and why.
UNAVAILABLE: dict[str, str] = {
    "curvlinops GGNDiagonalLinearOperator": "in its repository, but not in 3.0.1, the newest release",
    "laplace-torch AsdfghjklGGN": "it imports asdfghjkl, and the package of that name, 0.1a4, is the module asdl",
}
