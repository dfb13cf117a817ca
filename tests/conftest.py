"""Fixtures and rules that every test shares."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import is_hypothesis_test, settings
from torch import Tensor

log = logging.getLogger(__name__)

# Property tests draw the same examples each time, so that a failure is the change's; `make
# check-long` draws MORE_EXAMPLES times as many, other ones each time.
settings.register_profile("check", derandomize=True, deadline=None)
settings.register_profile("long", deadline=None, print_blob=True)
settings.load_profile("check")
MORE_EXAMPLES = 30


def pytest_configure(config: pytest.Config) -> None:
    """Hide the card from tests that did not ask for it: "auto" means the CPU in all of them.

    It is asked for by `-m gpu`. PyTorch looks for cards when it is first asked about CUDA, which
    importing it is not, and processes that tests start inherit the environment.
    """
    if not asked_for(config, "gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # Windows takes an empty value for none


def asked_for(config: pytest.Config, mark: str) -> bool:
    """Whether tests of a mark were asked for by `-m`."""
    return bool(re.search(rf"(?<!not )\b{mark}\b", str(config.getoption("markexpr"))))


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """Compile the C functions first: it is announced on stderr, which tests of commands compare."""
    from vl2.ops.native import kernels  # after the hook that checks shapes

    kernels.functions()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that need what is not here, and draw more examples under `long`.

    Tests marked `scale` or `aarch64` run, and fail where what they need is missing, if they are
    asked for.
    """
    tests = [item for item in items if isinstance(item, pytest.Function)]
    for item in tests:
        if "full" in item.fixturenames:
            item.add_marker("full")
    if config.getoption("--hypothesis-profile") == "long":
        # Cases of one test share its function.
        for test in filter(is_hypothesis_test, {item.function for item in tests}):
            draw_more(test)
    for mark, reason in absent(config).items():
        for item in items:
            if item.get_closest_marker(mark):  # keywords hold the names of cases, too
                item.add_marker(pytest.mark.skip(reason=reason))


def absent(config: pytest.Config) -> dict[str, str]:
    """Marks whose tests do not run, and why."""
    found = {} if torch.cuda.is_available() else {"gpu": "needs a CUDA device and -m gpu"}
    for mark, needed in (("scale", "Ray or vLLM"), ("aarch64", "an emulator")):
        if not asked_for(config, mark):
            found[mark] = f"needs {needed}: run make {mark}"
    return found


@pytest.fixture
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let values of wrong types into functions, as they come in where no test watches."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def draw_more(test: Any) -> None:
    """Multiply the examples of a property test, also where it states their number itself."""
    given = test._hypothesis_internal_use_settings  # a second decorator `settings` is refused
    more = settings(given, max_examples=MORE_EXAMPLES * given.max_examples)
    test._hypothesis_internal_use_settings = more


@pytest.fixture(autouse=True)
def quiet() -> logging.Logger:
    """vl2's logger as a new process has it, whatever commands ran in this one before."""
    logger = logging.getLogger("vl2")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    return logger


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch before each test: a result does not depend on the order of tests."""
    torch.manual_seed(0)
    return 0


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether a test with small counts runs all of them, as `make check-long` wants."""
    return request.config.getoption("--hypothesis-profile") == "long"


@dataclass(frozen=True)
class Comparison:
    """Comparisons with one oracle: the figure is recorded first, then held against its bound.

    `python bench/parity.py` collects the records; `pytest --log-cli-level=INFO` shows them.
    """

    oracle: str
    record: Callable[[str, object], None]

    def close(self, what: str, ours: Tensor, theirs: Tensor, *, within: float) -> None:
        """Largest absolute difference."""
        assert ours.shape == theirs.shape, f"{what}: {ours.shape} against {theirs.shape}"
        error = (ours.double() - theirs.double()).abs().max().item()
        self.at_most(what, error, within, largest=theirs.abs().max().item())

    def at_most(self, what: str, error: float, bound: float, **more: float) -> None:
        """An error that the test has computed."""
        self._keep(what, {"worst": error, "bound": bound, **more})
        assert math.isfinite(error), f"{what}: error is {error}"
        assert error <= bound, f"{what}: error {error:.2e} exceeds {bound:.0e} ({self.oracle})"

    def equal(self, what: str, ours: Tensor | Sequence, theirs: Tensor | Sequence) -> None:
        """Elements that are exactly the same; all must be."""
        a, b = (list(x.flatten().tolist() if isinstance(x, Tensor) else x) for x in (ours, theirs))
        same = sum(x == y for x, y in zip(a, b, strict=False))
        self._keep(what, {"equal": same, "of": max(len(a), len(b))})
        assert a == b, f"{what}: {same} of {len(b)} are equal ({self.oracle})"

    def _keep(self, what: str, figures: dict[str, float]) -> None:
        shown = " ".join(f"{name} {value:.3g}" for name, value in figures.items())
        log.info("%s, %s: %s", self.oracle, what, shown)
        self.record("parity", json.dumps({"oracle": self.oracle, "what": what, **figures}))


@pytest.fixture
def against(request: pytest.FixtureRequest) -> Callable[[str], Comparison]:
    """`against("transformers sam").close("features", ours, theirs, within=1e-5)`."""

    def record(name: str, value: object) -> None:
        # What the fixture record_property does, which refuses the default family of JUnit files.
        request.node.user_properties.append((name, value))

    def make(oracle: str) -> Comparison:
        return Comparison(oracle, record)

    return make
