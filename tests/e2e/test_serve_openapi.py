"""Requests drawn from the server's own OpenAPI document, valid ones and others, by schemathesis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from tests.e2e.serving import LEAK, Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("nano", "--name", "test", "engine.max_model_len=128") as running:
        yield running


def test_no_request_of_the_document_makes_the_server_fail(server: Server, full: bool):
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 9
    posts = [operation for operation in operations if operation.method == "post"]
    each = (5000 if full else 150) // (2 * len(posts)) + 1
    found: Counter[tuple[str, int]] = Counter()
    quiet = settings(
        max_examples=each,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=not full,
    )
    with requests.Session() as session:
        for operation in operations:
            modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
            for mode in modes if operation in posts else modes[:1]:
                draw = operation.as_strategy(generation_mode=mode)

                @quiet
                @given(draw)
                def ask(case: schemathesis.Case) -> None:
                    answer = case.call(session=session, timeout=60)
                    found[case.operation.label, answer.status_code] += 1
                    hasty = isinstance(case.body, dict) and "timeout" in case.body
                    if not (hasty and answer.status_code in (503, 504)):
                        assert answer.status_code < 500, answer.text
                    assert not LEAK.search(answer.content) or answer.status_code == 200
                    if answer.status_code >= 400 and case.method != "HEAD":
                        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

                ask()
    assert found.total() >= (5000 if full else 150)
    assert {status // 100 for _, status in found} >= {2, 4}
    server.check_log()
    assert server.metrics()["vl2_inflight"] == 0
