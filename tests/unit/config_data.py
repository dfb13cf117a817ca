"""Contents of config.json for tests, and how one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vl2.config import VL2Config


def inside(section: str, **fields: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(VL2Config.base().to_dict()))
    (data[section] if section else data).update(fields)
    return data


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        VL2Config.from_dict(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)
