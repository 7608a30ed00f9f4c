"""What params.yaml may say of adapters, and how errors are told."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from stages.params import parse_params
from stages.params.adapters import Ia3, Lora
from stages.running.errors import InputError
from tests.params.test_params import CONTENT

Content = dict[str, Any]
LORA = {"type": "lora", "rank": 4}


def edited(edit: Callable[[Content], object]) -> Content:
    content = copy.deepcopy(CONTENT)
    content["sources"]["theirs"] = {"path": "theirs", "sha256": 64 * "1"}
    edit(content)
    return content


def globally(**adapter: Any) -> Callable[[Content], object]:
    return lambda content: content["finetune"].update(adapter=adapter)


def of_two(**adapter: Any) -> Callable[[Content], object]:
    return lambda content: content["models"]["two"].update(finetune={"adapter": adapter})


def as_two(**model: Any) -> Callable[[Content], object]:
    """The model `two` is this one."""
    return lambda content: content["models"].update(two={"base": "base", "task": "reviews", **model})


def named_adapter(**model: Any) -> Callable[[Content], object]:
    """A model has the name of a key."""
    return lambda content: content["models"].update(adapter={"base": "base", "task": "reviews", **model})


def on_an_adapter(content: Content) -> None:
    content["models"]["one"]["finetune"] = {"adapter": LORA}
    content["models"]["two"]["base"] = "one"


def on_a_finished_one(content: Content) -> None:
    content["models"]["one"]["adapter"] = "theirs"
    content["models"]["two"]["base"] = "one"


def merged_as(rank: Any, *adapters: str, **merge: Any) -> Callable[[Content], object]:
    """The merge is an adapter again; these of its models are adapters."""

    def edit(content: Content) -> None:
        for name in adapters:
            content["models"][name] = {"base": "base", "task": "reviews", "finetune": {"adapter": LORA}}
        content["merges"]["both"] |= {"adapter": {"rank": rank}} | merge

    return edit


def of_vectors(content: Content) -> None:
    merged_as(4, "one")(content)
    content["models"]["two"]["finetune"] = {"adapter": {"type": "ia3"}}


def both_of_vectors(content: Content) -> None:
    content["finetune"]["adapter"] = {"type": "ia3"}
    content["merges"]["both"]["adapter"] = {"rank": 4}


def measured(adapter: dict[str, Any], of: str) -> Callable[[Content], object]:
    """The model `two` is trained as an adapter, and its Fisher is of these parameters."""
    return lambda content: content["models"]["two"].update(finetune={"adapter": adapter}, fisher={"of": of})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (globally(type="lota"), "finetune.adapter.type = 'lota': unknown type; allowed: ia3, lora"),
        (of_two(type="lota"), "models.two.finetune.adapter.type = 'lota': unknown type; allowed: ia3, lora"),
        (globally(rank=4), "finetune.adapter.type: missing; allowed: ia3, lora"),
        (of_two(rank=4), "models.two.finetune.adapter.type: missing; allowed: ia3, lora"),
        (globally(type="lora", rang=4), r"finetune.adapter.rang: unknown key; allowed: .*\(did you mean rank\?\)"),
        (of_two(type="lora", rsLora=True), r"models.two.finetune.adapter.rsLora: unknown.*\(did you mean rslora\?\)"),
        (globally(type="ia3", rank=4), "finetune.adapter.rank: unknown key; allowed: "),
        (globally(type="lora", rank=0), "finetune.adapter.rank = 0: input should be greater than or equal to 1"),
        (of_two(type="lora", alpha=0), "models.two.finetune.adapter.alpha = 0: input should be greater than"),
        (globally(type="lora", dropout=1), "finetune.adapter.dropout = 1: input should be less than 1"),
        (globally(type="lora", targets=[]), r"finetune.adapter.targets = \[\]: list should have at least 1 item"),
        (globally(type="lora", save=[""]), "finetune.adapter.save.0 = '': string should have at least 1 character"),
        (globally(type="lora", targets="q_proj"), "finetune.adapter.targets = 'q_proj': .*'all-linear'"),
        (
            lambda content: content["finetune"].update(adapter=LORA, from_scratch=True),
            "finetune: `adapter` is trained on a base's weights; leave out `from_scratch`",
        ),
        (as_two(adapter="thiers"), r"models.two.adapter: unknown source 'thiers'; known: .*\(did you mean theirs\?\)"),
        (
            as_two(adapter="theirs", finetune={"epochs": 2}),
            "models.two: `adapter` is a finished one, so there is nothing to fine-tune; leave out `finetune`",
        ),
        (on_an_adapter, "models.two.base: one is an adapter, and no base of another model"),
        (on_a_finished_one, "models.two.base: one is an adapter, and no base of another model"),
        (
            as_two(finetune={"adapter": LORA}, fisher={"estimator": "adam"}),
            "models.two.fisher.estimator = 'adam': the optimizer has moments of the adapter's parameters only",
        ),
        (as_two(adapter_of="org/model"), "models.two: `adapter_of` is for a finished adapter, which `adapter` names"),
        (as_two(fisher={"of": "weights"}), "models.two.fisher.of: is for models that are adapters; remove it"),
        (as_two(fisher={"of": "layers"}), "models.two.fisher.of = 'layers': input should be 'adapts', 'weights' or"),
        (merged_as(0, "one", "two"), "merges.both.adapter.rank = 0: input should be greater than or equal to 1"),
        (
            lambda content: content["merges"]["both"].update(adapter={"rang": 4}),
            r"merges.both.adapter.rang: unknown key; allowed: rank",
        ),
        (merged_as(4, "one"), "merges.both.adapter: is for merges of adapters, and two is a whole model; remove it"),
        (
            merged_as(4, "one", "two", search={"sampler": "grid"}),
            "merges.both: `search` scores merges as they are before `adapter` cuts them .*without `adapter`",
        ),
        (
            lambda content: (globally(**LORA)(content), content["merges"]["both"].update(vocabulary="union")),
            "merges.both.vocabulary: (one|two) is an adapter, whose rows are not matched by token; remove it",
        ),
        (
            named_adapter(finetune={"adapter": {"type": "lora", "rang": 4}}),
            r"models.adapter.finetune.adapter.rang: unkn",
        ),
        (
            named_adapter(finetune={"adapter": {"rank": 4}}),
            "models.adapter.finetune.adapter.type: missing; allowed: ia3",
        ),
        (
            lambda content: content["merges"].update(adapter={"method": "fishr", "coefficients": {"one": 1}}),
            "merges.adapter.method = 'fishr': unknown method; allowed: dare, ",
        ),
        (of_vectors, "merges.both.adapter: is for merges of LoRA adapters, and two is one of vectors"),
        (both_of_vectors, "merges.both.adapter: is for merges of LoRA adapters, and one is one of vectors"),
        (
            measured(LORA, "adapter"),
            "merges.both: fisher needs another Fisher of two than that `of: adapter`; put `of: adapts` or",
        ),
        (
            measured({"type": "ia3"}, "weights"),
            "merges.both: fisher needs another Fisher of two than that `of: weights`; put `of: adapter` there",
        ),
    ],
)
def test_errors(edit: Callable[[Content], object], message: str) -> None:
    with pytest.raises(InputError, match=f"^params.yaml: .*{message}") as error:
        parse_params(edited(edit))
    assert "\n" not in str(error.value)


def test_what_is_allowed() -> None:
    params = parse_params(edited(merged_as(4, "one", "two")))
    assert params.finetune_settings("one").adapter == Lora(type="lora", rank=4)
    assert params.merges["both"].adapter is not None
    assert params.is_adapter("one")
    params = parse_params(edited(as_two(adapter="theirs", finetune=False, fisher={"of": "weights"})))
    assert params.is_adapter("two")
    assert not params.is_adapter("one")
    assert params.names_of_base("two") is None, "nothing says what a path's base is called"
    content = edited(as_two(adapter="theirs", adapter_of="else/model"))
    content["sources"]["base"] = {"hub": "org/model", "revision": 40 * "0"}
    assert parse_params(content).names_of_base("two") == ["org/model", "else/model"]
    params = parse_params(edited(globally(type="ia3")))
    assert params.finetune_settings("two").adapter == Ia3(type="ia3")
    content = edited(globally(type="lora"))
    content["models"]["two"] = {"base": "base", "task": "reviews", "finetune": {"adapter": None}}
    params = parse_params(content)
    assert (params.is_adapter("one"), params.is_adapter("two")) == (True, False)


def test_settings_without_adapters_say_nothing_of_them() -> None:
    params = parse_params(copy.deepcopy(CONTENT))
    assert "adapter" not in params.finetune_settings("one").model_dump()
    assert "of" not in params.fisher_settings("one").model_dump()
    assert "adapter" not in params.models["one"].model_dump()
    assert "adapter" not in params.merges["both"].model_dump()
