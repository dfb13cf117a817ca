"""Who may use a server: every route is closed without a key, and no page of elsewhere may ask."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.serving import Server, request, serving

from vl2.serve.config import Keys

KEY, OTHER = "sk-first-0123456789", "sk-second-9876543210"
COUNTED = ("sk-third-0123456789", "sk-fourth-9876543210")
"""Keys that only the test of rates uses: a minute may hold several tests."""
TRUSTED = "sk-trusted-0123456789"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
OPEN = ("/", "/health/live", "/health/ready", "/web/index.html", "/web/none.js")
UNKNOWN = (
    "/metrics/",
    "/v1",
    "/v1/",
    "/docs",
    "/redoc",
    "/admin",
    "/health",
    "/WEB/x",
    "/.env",
)
PER_MINUTE = 30


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    words = ["--api-key", KEY, "--api-key", OTHER, "--trusted-api-key", TRUSTED]
    words += [word for key in COUNTED for word in ("--api-key", key)]
    words += [f"limits.requests_per_minute={PER_MINUTE}"]
    with serving("nano", "--name", "test", *words) as running:
        yield running


@pytest.fixture(scope="module")
def open_server() -> Iterator[Server]:
    with serving("nano", "--name", "test", "--allowed-host", "Proxy.Example") as running:
        yield running


def test_nothing_answers_without_a_key(server: Server):
    with server.client(KEY) as client:
        paths = list(client.get("/openapi.json").json()["paths"])
    paths = [path.replace("{name}", "test") for path in paths]
    assert {"/metrics", "/tokenize", "/v1/chat/completions", "/v1/models/test"} <= set(paths)
    asked = refused = 0
    keys = (None, KEY[:-1], KEY + "x", KEY.upper(), "-")
    with server.client() as client:
        for path in {*paths, *UNKNOWN, "/openapi.json"} - set(OPEN):
            for method in METHODS:
                key = keys[asked % len(keys)]
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                answer = client.request(method, path, headers=headers)
                asked += 1
                refused += answer.status_code == 401
                assert answer.headers.get("www-authenticate") == "Bearer", (method, path)
                if method != "HEAD":
                    assert answer.json()["error"]["code"] == "unauthorized"
        for path in OPEN:
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert client.request(method, path).status_code == 401, (method, path)
            assert client.get(path).status_code in (200, 404)
    assert refused == asked >= 8 * 17


def test_raw_prompts_need_a_trusted_key(server: Server):
    body = {"model": "test", "prompt": "<|User|>: Hi\n\n<|Assistant|>:", "max_tokens": 2}
    statuses = []
    for key in (KEY, TRUSTED):
        with server.client(key) as client:
            answer = client.post("/v1/completions", json=body)
            statuses.append(answer.status_code)
    assert statuses == [403, 200]


@pytest.mark.parametrize(
    "path",
    ["//metrics", "/web/../metrics", "/web/%2e%2e/%2e%2e/serve/app.py", "/./metrics", "/%6detrics"],
)
def test_other_spellings_of_a_path_open_nothing(server: Server, path: str):
    assert server.raw(request(path))[0] in (401, 404)


@pytest.mark.parametrize("scheme", ["Basic", "bearer", "Token", "Bearer Bearer"])
def test_only_a_bearer_s_key_counts(server: Server, scheme: str):
    with server.client() as client:
        answer = client.get("/metrics", headers={"authorization": f"{scheme} {KEY}"})
    assert answer.status_code == (200 if scheme == "bearer" else 401)


def test_bytes_that_are_no_text_are_no_key(server: Server):
    for value in (b"Bearer \xff\xfe", b"Bearer", b"", b"\xa0", b"Bearer " + b"x" * 8000):
        head = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        status, _ = server.raw(head + b"authorization: " + value + b"\r\n\r\n")
        assert status == 401, value


ORIGINS = (
    "https://evil.example",
    "null",
    "http://localhost.evil.example",
    "http://localhost@evil.example",
    "http://localhost:1",
    "http://[",
    "http://[::1",
    "file://",
    "\xff",
    "",
)


@pytest.mark.parametrize("origin", ORIGINS)
def test_pages_of_elsewhere_may_not_ask(open_server: Server, server: Server, origin: str):
    for running, key in ((open_server, ""), (server, KEY)):
        more = {"authorization": f"Bearer {key}"} if key else {}
        for body in (None, {}):
            status, data = running.raw(request("/v1/models", body, origin=origin, **more))
            assert status == 403, data
            assert b"forbidden_origin" in data
            assert b"pass on the Host header" in data
            assert b"access-control" not in data.lower()


def test_pages_of_this_server_may_ask(open_server: Server):
    host = f"localhost:{open_server.port}"
    status, data = open_server.raw(request("/v1/models", host=host, origin=f"http://{host}"))
    assert status == 200
    assert b"access-control" not in data.lower()
    assert b"content-security-policy: default-src 'self'" in data


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]", "x:y", "[", ":"],
)
def test_a_name_that_is_not_its_own_is_refused(open_server: Server, host: str):
    status, data = open_server.raw(request("/health/live", host=host))
    assert status == 403
    assert b"forbidden_host" in data


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "proxy.example", "PROXY.example:9"],
)
def test_its_own_names_are_known(open_server: Server, host: str):
    assert open_server.raw(request("/health/live", host=host))[0] == 200


def test_where_there_are_keys_any_name_will_do(server: Server):
    """As behind a balancer; a page must still be of the host that the request names."""
    told = {"host": "api.example.org", "authorization": f"Bearer {KEY}"}
    assert server.raw(request("/v1/models", **told))[0] == 200
    assert server.raw(request("/v1/models", origin="https://api.example.org", **told))[0] == 200
    assert server.raw(request("/v1/models", origin="https://page.example.org", **told))[0] == 403


def test_each_key_has_its_own_rate(server: Server):
    first, second = (server.client(key) for key in COUNTED)
    with first, second:
        for client in (first, second):
            codes = [client.post("/tokenize", json={}).status_code for _ in range(PER_MINUTE)]
            assert set(codes) == {400}
            late = client.post("/tokenize", json={})
            assert late.status_code == 429
            assert late.json()["error"]["code"] == "rate_limited"
            assert 1 <= int(late.headers["retry-after"]) <= 2
        assert first.get("/health/ready").status_code == 200
        told = first.get("/metrics").text
    assert 'vl2_rejected_total{reason="rate_limited"} 2.0' in told


def test_every_digest_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch):
    """Keys themselves are never compared, and no comparison is left out."""
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda *two: compared.append(two) or compare(*two))
    keys = Keys.of([KEY, OTHER, TRUSTED])
    for key in (KEY, TRUSTED, KEY[:-1], "", "\xff"):
        compared.clear()
        assert (keys.name_of(key) is not None) == (key in (KEY, TRUSTED))
        assert [len(a) for a, _ in compared] == [32] * 3
        assert {b for _, b in compared} == set(keys.digests)


def test_only_the_server_listens_and_only_at_its_port(open_server: Server):
    pids = [open_server.process.pid, *open_server.children()]
    inodes = {
        link.removeprefix("socket:[").rstrip("]")
        for pid in pids
        for link in (str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir())
        if link.startswith("socket:[")
    }
    lines = [
        line.split()
        for kind in ("tcp", "tcp6", "udp", "udp6")
        if (table := Path(f"/proc/net/{kind}")).exists()
        for line in table.read_text().splitlines()[1:]
    ]
    open_sockets = [words for words in lines if words[9] in inodes]
    listening = [words[1] for words in open_sockets if words[3] in ("0A", "07")]
    assert listening == [f"0100007F:{open_server.port:04X}"]


def test_no_key_is_logged(server: Server):
    with server.client() as client:
        client.get("/metrics", headers={"authorization": "Bearer sk-a-wrong-guess"})
    log = "".join(server.log)
    assert log.count('"request"') > 50
    for key in (KEY, OTHER, "sk-a-wrong-guess", "sk-"):
        assert key not in log


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "give --api-key"),
        (["--host", "::"], "give --api-key"),
        (["--host", "192.0.2.1"], "give --api-key"),
        (["--host", "example.org"], "give --api-key"),
        (["--host", ""], "give --api-key"),
        (["--api-key", "short"], "8 visible ASCII characters"),
        (["--api-key", "with a space in it"], "8 visible ASCII characters"),
        (["--port", "70000"], "--port is 70000"),
        (["--port", "abc"], "--port is 'abc': expected a whole number"),
        (["--port=1.5"], "--port is '1.5': expected a whole number"),
        (["--image-host", "https://a.example/"], "--image-host is 'https://a.example/': expected"),
        (["--image-host", "*"], "--image-host is '*': expected"),
        (["--image-host", ""], "--image-host is '': expected"),
        (["--allowed-host", "a.example:80"], "--allowed-host is 'a.example:80': expected"),
        (["limits.max_image_count=3"], "did you mean 'max_image' or 'max_images'?"),
        (["limits.max_n=0"], "max_n"),
        (["limits.header_timeout=nan"], "header_timeout"),
    ],
)
def test_what_would_be_unsafe_does_not_start(vl2_command, words: list[str], told: str):
    code, _, stderr = vl2_command("serve", "nano", *words)
    assert code == 2
    assert told in stderr
    assert stderr.count("\n") == 1
    assert "with a space in it" not in stderr


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"sk-first-0123\n\n  \nmy secret\nsk-other-0123\n", "keys.txt line 4 is unfit"),
        (b"sk-first-0123\r\nsecret\r\n", "keys.txt line 2 is unfit"),
        (b"sk-first-0123\nsecr\xc3\xa9t-0123456789\n", "keys.txt line 2 is unfit"),
        (b"secret\xff\xfe", "keys.txt cannot be read"),
        (b"\n\n", "keys.txt holds no key"),
    ],
)
def test_a_bad_line_of_a_key_file_is_named_and_not_shown(
    vl2_command, tmp_path: Path, data: bytes, told: str
):
    file = tmp_path / "keys.txt"
    file.write_bytes(data)
    code, _, stderr = vl2_command("serve", "nano", "--api-key-file", file)
    assert (code, stderr.count("\n")) == (2, 1)
    assert told in stderr
    assert "secr" not in stderr


def test_a_bad_key_of_the_environment_is_named(vl2_command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VL2_API_KEY", "short")
    code, _, stderr = vl2_command("serve", "nano")
    assert (code, "VL2_API_KEY is unfit" in stderr, "short" in stderr) == (2, True, False)


def test_a_model_that_does_not_exist_is_told_in_one_line(
    vl2_command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, stderr = vl2_command("serve", "nosuch/model", "--port", "0")
    assert (code, out) == (2, "")
    loading, error = stderr.splitlines()
    assert loading == "loading nosuch/model ..."
    assert error.startswith("error: no model at nosuch/model: there is no such folder, and HF_HUB_")
    assert len(error) < 200


def test_probes_may_ask_for_the_head_alone(open_server: Server):
    with open_server.client() as client:
        for path in ("/health/live", "/health/ready"):
            answer = client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
