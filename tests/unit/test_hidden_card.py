"""Tests that do not ask for a card run as on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONFTEST = Path(__file__).parents[1] / "conftest.py"
PROGRAM = """
import importlib.util, json, os, sys
import pytest

conftest, file, *expressions = sys.argv[1:]
spec = importlib.util.spec_from_file_location("rules", conftest)
rules = sys.modules["rules"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rules)
found = {}

class Watch:
    def pytest_collection_finish(self):
        import torch
        seen[:] = [os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.is_initialized()]

for marks in expressions:
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    seen = []
    pytest.main(["-q", "-c", os.devnull, "-m", marks, file], plugins=[rules, Watch()])
    found[marks] = seen
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, list]:
    file = tmp_path_factory.mktemp("card") / "test_one.py"
    file.write_text("def test_one():\n    pass\n")
    marks = ["", "not compiled", "compiled", "not gpu", "slow and not gpu", "gpu", "gpu or slow"]
    command = [sys.executable, "-c", PROGRAM, str(CONFTEST), str(file), *marks]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=file.parent)
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("marks", ["", "not compiled", "compiled", "not gpu", "slow and not gpu"])
def test_the_card_is_hidden_before_it_is_looked_for(seen, marks):
    assert seen[marks] == ["-1", False]


@pytest.mark.parametrize("marks", ["gpu", "gpu or slow"])
def test_tests_of_the_card_see_it(seen, marks):
    assert seen[marks] == ["0", False]


def test_this_run_and_its_children_are_under_the_rule(request):
    if request.config.getoption("markexpr") in ("", "not compiled"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
        assert not torch.cuda.is_available()
