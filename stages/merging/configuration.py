"""Whether models compute the same function of their weights: what their config.json say must agree, with exceptions.

Two files are first compared as they are. Where they differ transformers reads both, which fills in the defaults and
unifies what its versions have written in different ways (rope_theta and rope_parameters, for instance).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.merging.token_tensors import positions_may_follow_padding
from stages.merging.vocabulary import MATCH_BY_TOKEN
from stages.running.errors import InputError
from stages.storage.checkpoint_files import config_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What may differ, at any depth, and why.
_MAY_DIFFER = {
    "how this copy was found, saved or is run": r"_.*|transformers_version|auto_map|unsloth_.*",
    "the type it is stored in: merges compute in their own": r"(torch_)?dtype|use_bfloat16",
    "the class with its head: heads are compared by their tensors": r"architectures",
    "labels: heads of other labels are not merged": r"id2label|label2id|num_labels",
    "the loss": r"problem_type|finetuning_task|label_smoothing|router_(aux_loss|z_loss)_.*|.*_loss_coef(ficient)?",
    "noise of training": r".*(dropout|drop_path|drop_prob|drop_rate|layerdrop|layer_drop|pdrop|jitter_noise).*",
    "where training began": r".*initializer.*|.*init_std|.*init_scale|(layer_?scale_)?(init_)?values?",
    "what is returned, and memory against time": (
        r"output_.*|(use_)?return_dict|torchscript|use_cache|chunk_size_feed_forward|gradient_checkpointing"
    ),
    "where generated text begins and ends": r"((forced_)?(bos|eos)|decoder_start)_token_id",
}
_EXEMPT = re.compile("|".join(f"(?:{pattern})" for pattern in _MAY_DIFFER.values()))
# Unset where a tokenizer has no padding; in some architectures it decides positions, so two that are set must agree.
_PADDING = "pad_token_id"
_TIES = "tie_word_embeddings"
# Defaults of `generate`, which earlier transformers wrote here; of no effect where a configuration's class has none.
_GENERATION = re.compile(
    "task_specific_params|prefix|max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|"
    "diversity_penalty|temperature|top_k|top_p|typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|"
    "encoder_no_repeat_ngram_size|bad_words_ids|num_return_sequences|exponential_decay_length_penalty|"
    "(begin_)?suppress_tokens|remove_invalid_values"
)

Facts = dict[str, Any]


def refuse_other_function(
    first: Path,
    ours: Mapping[str, Any],
    other: Path,
    theirs: Mapping[str, Any],
    *,
    any_vocabulary: bool = False,
    any_ties: bool = False,
) -> None:
    """Refuse a model that computes otherwise than the first one does, by what their configurations say.

    Args:
        first: where the first model's config.json is.
        ours: what it says.
        other: where another model's is.
        theirs: what that says.
        any_vocabulary: whether the number of tokens may differ, and that of padding where it decides no positions.
        any_ties: whether one may tie embeddings and the other not.

    Raises:
        InputError: with the key, both values and both files.
    """
    if _stated(ours) == _stated(theirs):
        return
    for key, our_value, their_value in _differences(first, ours, other, theirs):
        last = key.split(".")[-1]
        of_tokens = last == "vocab_size"
        if any_vocabulary and (of_tokens or (last == _PADDING and not positions_may_follow_padding(first))):
            continue
        if any_ties and last == _TIES:
            continue
        remedy = f"; {MATCH_BY_TOKEN}" if of_tokens else ""
        raise InputError(
            f"{config_file(other)}: {key} is {_shown(their_value)}, but {_shown(our_value)} in "
            f"{config_file(first)}; the same weights mean something else there, so these models cannot be "
            f"merged{remedy}"
        )


def _differences(
    first: Path, ours: Mapping[str, Any], other: Path, theirs: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Keys that differ, with both values, after transformers has read both files, or as they are if it cannot."""
    if ours.get("model_type") != theirs.get("model_type"):
        yield "model_type", ours.get("model_type"), theirs.get("model_type")
        return
    one, another = _loaded(first), _loaded(other)
    if one is None or another is None:
        known: tuple[Facts, Facts] = _stated(ours), _stated(theirs)
        unknown: tuple[Facts, Facts] = {}, {}
    else:
        known, unknown = (one[0], another[0]), (one[1], another[1])
    for key in sorted(known[0].keys() | known[1].keys()):
        values = known[0].get(key), known[1].get(key)
        if values[0] != values[1] and not (key.split(".")[-1] == _PADDING and None in values):
            yield key, *values
    # What the class does not know has no known default, so only two values that are stated tell anything.
    for key in sorted(unknown[0].keys() & unknown[1].keys()):
        values = unknown[0][key], unknown[1][key]
        if values[0] != values[1] and not _GENERATION.fullmatch(key.split(".")[-1]):
            yield key, *values


def _stated(config: Mapping[str, Any], prefix: str = "") -> Facts:
    """What a config.json says, flat, without what may differ and without what is null."""
    found: Facts = {}
    for key, value in config.items():
        if _EXEMPT.fullmatch(key) or value is None:
            continue
        if isinstance(value, dict):
            found |= _stated(value, f"{prefix}{key}.") or {f"{prefix}{key}": {}}
        else:
            found[f"{prefix}{key}"] = value
    return found


def _loaded(checkpoint: Path) -> tuple[Facts, Facts] | None:
    """What transformers makes of a config.json, flat: what the class knows, and what it does not.

    None if transformers cannot read it.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
        return _facts(config, json.loads(config.to_json_string(use_diff=False)), "")
    except Exception:  # whatever transformers makes of a configuration that it does not know
        return None


def _facts(config: "PreTrainedConfig", content: Mapping[str, Any], prefix: str) -> tuple[Facts, Facts]:
    from transformers import PreTrainedConfig

    declared = {field.name for field in fields(config)} if is_dataclass(config) else set(vars(type(config)()))
    known: Facts = {}
    unknown: Facts = {}
    for key, value in content.items():
        if _EXEMPT.fullmatch(key):
            continue
        inner = getattr(config, key, None)
        if isinstance(inner, PreTrainedConfig):
            more = _facts(inner, value, f"{prefix}{key}.")
            known |= more[0]
            unknown |= more[1]
        else:
            (known if key in declared else unknown)[f"{prefix}{key}"] = value
    return known, unknown


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
