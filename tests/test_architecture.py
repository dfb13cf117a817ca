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
    "AsyncEngine", "Batch", "Box", "Completion", "Engine", "EngineConfig", "ModelInputs",
    "Processor", "RepetitionGuard", "SamplingParams", "StructuredOutputsParams",
    "VL2Config", "__version__", "load_model",
}  # fmt: skip
ONE_THING = {
    "Box", "Decoder", "Guard", "Layout", "Link", "Origin", "Picture", "Pictures", "Place",
    "Planner", "Prompt", "Record", "Row", "SCHEMES", "Sample", "Source", "Turn",
    "check_layout", "check_target", "picture_size", "pictures_of", "reason_of", "write_file",
}  # fmt: skip
"""Names that several modules once gave to different things."""
EMPTY_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path), filename=str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_fit_in_a_reading():
    lines = {name_of(path): len(text_of(path).splitlines()) for path in CODE}
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_functions_fit_a_screen():
    lines = {
        f"{name_of(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in CODE
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name: count for name, count in lines.items() if count > MAX_FUNCTION_LINES} == {}


def test_modules_have_a_docstring_and_a_telling_name():
    modules = [path for path in CODE if path.is_relative_to(PACKAGE)]
    assert [name_of(path) for path in modules if not ast.get_docstring(tree_of(path))] == []
    assert [name_of(path) for path in modules if EMPTY_NAMES & {path.stem, path.parent.name}] == []


def names_defined(tree: ast.Module) -> Iterator[str]:
    """Names that a module gives to a class, a function or a value of its own."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def test_a_name_means_one_thing():
    modules = [tree_of(path) for path in CODE if path.is_relative_to(PACKAGE)]
    found = [name for tree in modules for name in names_defined(tree) if name in ONE_THING]
    assert sorted(found) == sorted(ONE_THING)


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


def test_nothing_from_outside_is_executed():
    found = {name_of(path): list(forbidden_calls(tree_of(path))) for path in SHIPPED}
    assert {name: calls for name, calls in found.items() if calls} == {}


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
    assert f'\nversion = "{vl2.__version__}"\n' in text_of(ROOT / "pyproject.toml")


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


def targets(page: str) -> list[str]:
    """Relative targets of a page's links; code is no link."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)
    return [t for t in re.findall(r"\]\(([^)#\s]+)", prose) if "://" not in t]


def test_links_between_pages_lead_somewhere():
    links = [(path, target) for path in PAGES for target in targets(text_of(path))]
    assert links
    assert [(name_of(p), t) for p, t in links if not (p.parent / t).exists()] == []


def test_few_places_ask_for_the_class_of_a_layer():
    """How a matrix is held, or adapted, is the layer's own affair: ADR 0024."""
    classes = r"\b(Linear|Experts|Held|LoraLinear|LoraExperts|(Int8|Int4|Float8)Weight)\b"
    asks = re.compile(rf"isinstance\([^\n]*{classes}")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if asks.search(line)
    ]
    assert len(found) <= 6, "\n".join(found)
