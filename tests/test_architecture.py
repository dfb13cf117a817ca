"""Rules about the code as a whole: sizes, public names, what is never called, links.

The order of imports is a contract in pyproject.toml, checked by import-linter in `make check`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vl2

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vl2"
CODE = sorted(
    path
    for folder in ("src", "tests", "examples", "bench", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.md")])
SHIPPED = [path for path in CODE if not path.is_relative_to(ROOT / "tests")]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_NANO_BYTES = 45 * 10**6
PUBLIC_NAMES = {
    "Batch", "Box", "Completion", "Engine", "EngineConfig", "ModelInputs", "Processor",
    "SamplingParams", "VL2Config", "__version__", "load_model",
}  # fmt: skip
EMPTY_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@each(CODE)
def test_files_and_functions_fit_a_screen(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{lines} lines: split the file by what its parts mean"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@each([path for path in CODE if path.is_relative_to(PACKAGE)])
def test_every_module_says_what_it_is(path: Path):
    assert ast.get_docstring(tree_of(path)), "no module docstring: say in one line what it is"
    assert not EMPTY_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)


def forbidden_calls(tree: ast.Module) -> Iterator[str]:
    """Calls that run text or unpickle data from outside."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}:
            yield name
        if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "marshal"}:
            yield name
        if name == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        for word in ("trust_remote_code", "shell", "allow_pickle"):
            if given.get(word, "False") != "False":
                yield f"{name}({word}={given[word]})"


@each(SHIPPED)
def test_nothing_from_outside_is_executed(path: Path):
    assert list(forbidden_calls(tree_of(path))) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "pickle.load(file)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "yaml.load(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_rule_about_execution_sees(line: str):
    assert list(forbidden_calls(ast.parse(line)))


def test_the_rule_about_execution_lets_pass():
    fine = "model.eval()\nyaml.safe_load(t)\ntorch.load(f, weights_only=True)\nrun([], shell=False)"
    assert list(forbidden_calls(ast.parse(fine))) == []


def test_public_names_are_the_documented_ones():
    assert set(vl2.__all__) == PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert getattr(vl2, name) is not None


def test_version_is_the_project_s():
    assert f'\nversion = "{vl2.__version__}"\n' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_import_needs_no_oracle():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, vl2, vl2.cli; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"transformers", "torchvision", "timm", "xformers", "pytest"} & set(loaded)


def test_embedded_model_stays_small():
    weights = PACKAGE / "assets" / "nano"
    assert sum(file.stat().st_size for file in weights.rglob("*")) <= MAX_NANO_BYTES


@each(PAGES)
def test_links_between_pages_lead_somewhere(path: Path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert missing == []
