"""The exact Fisher on small random models of many families, against the float64 loop."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor, nn

from stages.curvature import TokenCategorical, UnsupportedModelError, diagonal_fisher
from tests.curvature.reference import assert_same_fisher, reference_fisher

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}


def labels(classes: int) -> dict[str, Any]:
    return {"id2label": {k: f"label {k}" for k in range(classes)}}


def texts(decoder: bool = False) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for lengths in ([7, 4, 6], [5, 3]):
        ids = torch.randint(3, 40, (len(lengths), 7), generator=generator)
        mask = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask})
    return batches


def images() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator)} for rows in (3, 2)]


def deberta(k: int) -> nn.Module:
    settings: dict[str, Any] = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 4,
        "share_att_key": True,
    }
    return t.DebertaV2ForSequenceClassification(t.DebertaV2Config(**SMALL, **settings, **labels(k)))


def modernbert(k: int) -> nn.Module:
    config = t.ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2, local_attention=4, **labels(k))
    return t.ModernBertForSequenceClassification(config)


def gpt2(k: int) -> nn.Module:
    config = t.GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **labels(k),
    )
    return t.GPT2ForSequenceClassification(config)


def resnet(k: int) -> nn.Module:
    config = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", hidden_act="gelu", **labels(k)
    )
    model = t.ResNetForImageClassification(config)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_()
    return model


def clip(k: int) -> nn.Module:
    config = t.CLIPConfig(vision_config={**IMAGE, "projection_dim": 8}, **labels(k))
    return t.CLIPForImageClassification(config)


TEXT_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "bert": lambda k: t.BertForSequenceClassification(t.BertConfig(**SMALL, **labels(k))),
    "roberta": lambda k: t.RobertaForSequenceClassification(t.RobertaConfig(**SMALL, **labels(k))),
    "distilbert": lambda k: t.DistilBertForSequenceClassification(
        t.DistilBertConfig(
            vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32, **labels(k)
        )
    ),
    "albert": lambda k: t.AlbertForSequenceClassification(t.AlbertConfig(**SMALL, embedding_size=8, **labels(k))),
    "electra": lambda k: t.ElectraForSequenceClassification(t.ElectraConfig(**SMALL, embedding_size=8, **labels(k))),
    "deberta-v2": deberta,
    "modernbert": modernbert,
    "gpt2": gpt2,
    "llama": lambda k: t.LlamaForSequenceClassification(t.LlamaConfig(**SMALL, num_key_value_heads=1, **labels(k))),
}
IMAGE_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "vit": lambda k: t.ViTForImageClassification(t.ViTConfig(**IMAGE, **labels(k))),
    "clip": clip,
    "resnet": resnet,
}


def randomised(model: nn.Module) -> nn.Module:
    """Away from zero biases and unit norms, and from predictions that hardly depend on the input."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("family", [*TEXT_MODELS, *IMAGE_MODELS])
def test_exact(family: str, classes: int) -> None:
    torch.manual_seed(0)
    make, batches = (TEXT_MODELS[family], texts()) if family in TEXT_MODELS else (IMAGE_MODELS[family], images())
    model = randomised(make(classes))
    with warnings.catch_warnings():
        if family != "deberta-v2":  # its relative positions are computed once for all examples
            warnings.simplefilter("error")
        found = diagonal_fisher(model, batches)
    assert_same_fisher(found, reference_fisher(model, batches))


def assert_exact_by_hooks(model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    """Exact, and no parameter was left to the slow path, which warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = diagonal_fisher(model, batches)
    assert_same_fisher(found, reference_fisher(model, batches))


@pytest.mark.parametrize("classes", [2, 3])
def test_shared_layers_and_tied_weights(classes: int) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 6)
            self.layer = nn.Linear(6, 6)
            self.norm = nn.LayerNorm(6)
            self.out = nn.Linear(6, 9, bias=False)
            self.out.weight = self.embedding.weight
            self.head = nn.Linear(9, classes)

        def forward(self, ids: Tensor) -> Tensor:
            h = self.embedding(ids)
            for _ in range(3):
                h = self.norm(h + self.layer(h).tanh())
            return self.head(self.out(h).mean(1))

    torch.manual_seed(0)
    model = Tied()
    batches = [{"ids": torch.randint(9, (4, 5))}, {"ids": torch.randint(9, (3, 7))}]
    assert_exact_by_hooks(model, batches)


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_outputs_that_are_written_into_and_positions_without_gradient(pool: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 6)
            self.mix, self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(8, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, ids: Tensor) -> Tensor:
            h = self.embedding(ids)
            h = h + self.mix(h).mean(1, keepdim=True)
            h = h + self.down(self.up(h).relu_()).tanh_()
            return self.head(h[:, 0] if pool == "first" else h.mean(1))

    torch.manual_seed(0)
    batches = [{"ids": torch.randint(9, (4, 5))}, {"ids": torch.randint(9, (3, 7))}]
    assert_exact_by_hooks(Block(), batches)


def test_a_parameter_used_behind_the_modules_back_is_exact_and_announced() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)
            self.scale = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x).tanh() @ self.layer.weight) * self.scale

    torch.manual_seed(0)
    model = Sly()
    batches = [{"x": torch.randn(5, 4)}]
    with pytest.warns(UserWarning, match=r"parameters are not used in the usual way \(first: layer\.weight\)"):
        found = diagonal_fisher(model, batches)
    assert_same_fisher(found, reference_fisher(model, batches))


def test_a_module_that_does_not_map_over_examples() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight if float(x.detach().abs().sum()) > 0 else x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Stubborn(), nn.Linear(4, 3))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    named = Named()
    batches = [{"x": torch.randn(5, 4)}]
    assert_exact_by_hooks(named, batches)


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_adapters(adapter: str) -> None:
    from peft import IA3Config, LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = t.BertForSequenceClassification(t.BertConfig(**SMALL, **labels(3)))
    configs: dict[str, Any] = {
        "lora": LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "dense"]),
        "ia3": IA3Config(
            task_type="SEQ_CLS", target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]
        ),
    }
    model = randomised(get_peft_model(base, configs[adapter]))
    adapters = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapters
    with warnings.catch_warnings():
        if adapter == "lora":
            warnings.simplefilter("error")
        found = diagonal_fisher(model, texts(), parameters=adapters)
    wanted = reference_fisher(model, texts())
    assert_same_fisher(found, {name: wanted[name] for name in adapters})


class Experts(nn.Module):
    """Every position goes through one of the experts, by the sign of its first entry."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 4)
        out = torch.zeros_like(tokens)
        for expert, chosen in zip(self.experts, (tokens[:, 0] > 0, tokens[:, 0] <= 0, tokens[:, 0] > 99), strict=True):
            if chosen.any():
                out = out.index_put((chosen.nonzero()[:, 0],), expert(tokens[chosen]))
        return self.head(out.reshape(x.shape).tanh().mean(1))


SIGNS = {
    "one position each": [[1, -1], [1, -1], [1, -1], [1, -1]],
    "the first example at one expert only": [[1, 1], [-1, 1], [-1, -1], [1, -1]],
    "as many positions as examples, but not one each": [[1, 1], [-1, -1], [1, 1], [-1, -1]],
}


@pytest.mark.parametrize("signs", SIGNS.values(), ids=SIGNS.keys())
def test_experts_that_see_some_positions_only(signs: list[list[int]]) -> None:
    x = torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(1))
    x[:, :, 0] = torch.tensor(signs) * 1.0
    model = Experts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = diagonal_fisher(model, [{"x": x}])
    wanted = reference_fisher(model, [{"x": x}])
    assert float(wanted["experts.2.weight"].max()) == 0
    assert float(wanted["experts.1.weight"].max()) > 0
    assert_same_fisher(found, wanted)


def routed(signs: list[list[int]]) -> dict[str, Tensor]:
    x = torch.randn(len(signs), 2, 4, generator=torch.Generator().manual_seed(1))
    x[:, :, 0] = torch.tensor(signs) * 1.0
    return {"x": x}


def test_an_expert_whose_use_changes_is_refused_by_name() -> None:
    """In the first batch an expert sees a position of each example; in the next, not of each, or not as many."""
    first = routed([[1, -1]] * 3)
    with pytest.raises(UnsupportedModelError, match=r"the module of experts\.\d\.bias sees each example once in one"):
        diagonal_fisher(Experts(), [first, routed([[1, 1], [-1, 1], [-1, -1], [-1, -1]])])
    with pytest.raises(
        UnsupportedModelError, match=r"the module of experts\.\d\.bias gets rows that were picked by what"
    ):
        diagonal_fisher(Experts(), [first, routed([[1, 1], [-1, 1], [-1, -1]])])


def test_an_expert_that_sees_as_many_positions_of_each_example_is_exact() -> None:
    batches = [routed([[1, -1]] * 3), routed([[1, 1]] * 3)]
    model = Experts()
    assert_same_fisher(diagonal_fisher(model, batches), reference_fisher(model, batches))


def test_parameters_that_are_never_used_cost_nothing() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    torch.manual_seed(0)
    assert_exact_by_hooks(Spare(), [{"x": torch.randn(5, 4)}])


def test_what_a_module_keeps_of_its_result_stays_as_it_is() -> None:
    """Of one token, T5's attention keeps the biases that it hands on for its own backward pass."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 9, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    sizes |= {"decoder_start_token_id": 0, "pad_token_id": 0}
    model = randomised(t.T5ForConditionalGeneration(t.T5Config(**sizes)))
    batches = [{"input_ids": torch.tensor([ids]), "labels": torch.tensor([[3, 1]])} for ids in ([4, 5, 6], [4])]

    def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
        log_p = torch.log_softmax(z, -1)
        return [(1.0, log_p[torch.arange(2), batch["labels"][0]].sum())]

    found = diagonal_fisher(model, batches, likelihood=TokenCategorical(), estimator="empirical")
    made = [batch | {"decoder_input_ids": torch.tensor([[0, 3]])} for batch in batches]
    assert_same_fisher(found, reference_fisher(model, made, observed))
