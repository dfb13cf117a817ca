"""A question that asks to locate something, in the official form."""

from __future__ import annotations

import re
from typing import Any

_LOCATE = re.compile(r"^\s*(?:locate|find|detect|show me)\s+", re.IGNORECASE)


def grounding_parts(question: str) -> list[dict[str, Any]]:
    """Content parts that ask to locate what a question names.

    "Locate the red circle." and "the red circle" mean the same.
    """
    return [
        {"type": "text", "text": "Locate "},
        {"type": "grounding", "query": _LOCATE.sub("", question).strip().rstrip(".?!")},
        {"type": "text", "text": " in the given image."},
    ]
