"""Where a Fisher's mass lies: its tensors, grouped by layer and by what they are in the layer.

Architectures are not known here. The layer is the first number in a tensor's name, and what it is in there follows
from the words that Transformers' models use.
"""

import re
from collections.abc import Mapping

# The first pattern that a name holds decides.
KINDS = {
    "LayerNorm": r"layer_?norm|(^|[._])ln(_?\w+)?\.|(^|[._])norm\d?\.|_norm\.|rms_?norm|batch_?norm",
    "embeddings": r"embed|(^|\.)(wte|wpe|shared)\.|(^|\.)(cls|class)_token$|relative_attention_bias",
    "query, key, value": r"c_attn|qkv|in_proj|query_key_value",
    "query": r"(^|\.)(query|q|q_proj|q_lin|query_proj)\.",
    "key": r"(^|\.)(key|k|k_proj|k_lin|key_proj)\.",
    "value": r"(^|\.)(value|v|v_proj|v_lin|value_proj)\.",
    "attention output": r"atten\w*\.(output|o)\b|attn\.c_proj|(^|\.)(o|o_proj|out_proj|out_lin)\.",
    "intermediate": r"intermediate|(^|\.)(fc1|lin1|c_fc|up_proj|gate_proj|wi|wi_\d)\.",
    "output": r"output|(^|\.)(fc2|lin2|c_proj|down_proj|wo)\.",
    "pooler": r"pooler|pre_classifier",
    "head": r"(^|\.)(classifier|score|lm_head|head|cls|qa_outputs|classification_head)\.",
}
SHOWN_KINDS = (
    "embeddings",
    "query",
    "key",
    "value",
    "query, key, value",
    "attention output",
    "intermediate",
    "output",
    "LayerNorm",
    "other",
    "pooler",
    "head",
)
ORDER = {place: position for position, place in enumerate(["embeddings", "", "other", "pooler", "head"])}


def mass_by_layer(tensors: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float]:
    """The share of a Fisher's mass, the sum of its entries, by layer and kind of tensor.

    Args:
        tensors: tensor name → `sum` of its entries.

    Returns:
        (layer, kind) → share, summing to 1 (or all 0); layers in the model's order, kinds in `SHOWN_KINDS`'s. What is
        in no layer is in a place of its own name: embeddings, pooler, head, other.
    """
    containers = sorted({found[0] for found in map(_numbered, tensors) if found is not None})
    total = sum(entry["sum"] for entry in tensors.values())
    shares: dict[tuple[int, int, str, int], float] = {}
    for name, entry in tensors.items():
        kind = kind_of(name)
        numbered = _numbered(name)
        if numbered is None:
            layer = _place_outside(name, kind)
            position = (ORDER[layer], 0, layer)
        else:
            container, index = numbered
            layer = f"layer {index}" if len(containers) == 1 else f"{container} {index}"
            position = (ORDER[""], 10**6 * containers.index(container) + index, layer)
        key = (*position, SHOWN_KINDS.index(kind))
        shares[key] = shares.get(key, 0.0) + (entry["sum"] / total if total else 0.0)
    return {
        (layer, SHOWN_KINDS[kind]): shares[first, second, layer, kind] for first, second, layer, kind in sorted(shares)
    }


def kind_of(tensor: str) -> str:
    """What a tensor is, by its name: a key of `KINDS`, or `other`."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, tensor, re.IGNORECASE)), "other")


def _numbered(name: str) -> tuple[str, int] | None:
    """The container and number of the layer that a tensor is in: `bert.encoder.layer`, 3."""
    parts = name.split(".")
    if kind_of(name) == "head":
        return None  # a head made of numbered layers is a head
    index = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    return (".".join(parts[:index]), int(parts[index])) if index else None


def _place_outside(name: str, kind: str) -> str:
    """Where a tensor is that is in no layer; a LayerNorm beside the embeddings is with them."""
    if kind in ORDER:
        return kind
    return "embeddings" if "embed" in name.lower() else "other"
