"""Why stored keys are not the model's: what wrappers and other tools make of names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "module": "DataParallel",
}
"""Part of a key -> what puts it there when the wrapper is saved instead of the model in it."""

_WRAPPED = re.compile(rf"(?<![^.])(?:{'|'.join(WRAPPERS)})\.")
_ADAPTED = re.compile(r"\.lora_[AB]\b|\.base_layer\.|\.modules_to_save\.")
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|absmax|weight_packed|weight_scale|weight_scale_inv)\b"
)


def unwrapped(key: str) -> tuple[str, str]:
    """The key without the parts that wrappers add, and the first of them ("" if there is none)."""
    found = _WRAPPED.search(key)
    return _WRAPPED.sub("", key), found[0] if found else ""


def cause_in_names(stored: Collection[str], wanted: Collection[str]) -> str | None:
    """Why the stored keys differ from the wanted ones, with the remedy; None if names do not tell.

    Args:
        stored: keys of the files.
        wanted: keys of the model.
    """
    known = frozenset(wanted)
    foreign = sorted(key for key in stored if key not in known)
    for pattern, cause in (
        (_ADAPTED, "it has adapters that are not merged: merge them with the tool that made them"),
        (_PACKED, "another tool quantised it: give the checkpoint in floats that it was made from"),
    ):
        found = next((key for key in foreign if pattern.search(key)), None)
        if found:
            return f"{found!r:.200} is not a key of a DeepSeek-VL2: {cause}"
    added = Counter(word for key in foreign if (word := _added(key, known)))
    if not added and foreign and len(foreign) == len(stored):
        return (
            f"none of its {len(stored)} tensors, such as {foreign[0]!r:.200}, belongs to a "
            "DeepSeek-VL2: the weights are of another architecture"
        )
    if not added:
        return None
    (word, count), *_ = added.most_common(1)
    wrapper = next((WRAPPERS[part] for part in word.split(".") if part in WRAPPERS), "a wrapper")
    return (
        f"{count} of {len(stored)} keys have {word!r} before the model's own names, as {wrapper} "
        f"writes them: save the model that it wraps, or take {word!r} out of the keys"
    )


def _added(key: str, known: Collection[str]) -> str:
    """What was put in front of a known key or, by a wrapper, into it; "" if neither."""
    plain, wrapper = unwrapped(key)
    for candidate in (key, plain):
        parts = candidate.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in known:
                return wrapper if candidate != key else ".".join(parts[:start]) + "."
    return ""
