"""The runner of the long checks, on tables of small ones; its own table names files that exist."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import grimp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import conftest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_long.py"
PASSES = """print('begun'); print('{"figure": 1.5}')"""


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("check_long", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_long"] = module  # where its dataclass looks for its names
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_long"]


@pytest.fixture
def call(runner, tmp_path: Path):
    """Run a table of programs that both cover `code/`, and `counted` counts the runs of each."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "part.py").write_text("one")

    def start(words: list[str], **programs: str) -> int:
        for name, program in programs.items():
            count = f"open({name!r} + '.runs', 'a').write('x')\n"
            (tmp_path / f"{name}.py").write_text(count + program)
        checks = [
            runner.Check(name=name, command=f"{name}.py", covers=("code",)) for name in programs
        ]
        return runner.main(words, checks, tmp_path)

    return start


def runs(root: Path, name: str) -> int:
    file = root / f"{name}.runs"
    return len(file.read_text()) if file.exists() else 0


def recorded(root: Path) -> list[dict]:
    [file] = (root / "bench" / "results").glob("20??-??-??-check-long.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_check_is_recorded_with_its_figures(call, tmp_path: Path, capsys):
    assert call([], good=PASSES) == 0
    [record] = recorded(tmp_path)
    assert (record["name"], record["passed"], record["exit_code"]) == ("good", True, 0)
    assert record["command"] == "python good.py"
    assert record["figures"] == [{"figure": 1.5}]
    assert 0 <= record["seconds"] < 60
    assert {"cpu", "cores", "torch", "python"} <= set(record["machine"])
    assert {"commit", "clean", "date"} <= set(record)
    printed = capsys.readouterr()
    assert printed.err == "begun\n"
    assert "1 of 1 long checks hold" in printed.out


def test_what_passed_is_not_run_again_until_its_files_change(call, tmp_path: Path):
    assert call([], good=PASSES) == call([], good=PASSES) == 0
    assert runs(tmp_path, "good") == 1
    cache = tmp_path / "code" / "__pycache__"
    cache.mkdir()
    (cache / "part.pyc").write_text("made by Python")
    call([], good=PASSES)
    assert runs(tmp_path, "good") == 1
    (tmp_path / "code" / "part.py").write_text("two")
    call([], good=PASSES)
    assert runs(tmp_path, "good") == 2
    (tmp_path / "code" / "new.py").write_text("")
    call([], good=PASSES)
    assert runs(tmp_path, "good") == 3
    call(["--all"], good=PASSES)
    assert runs(tmp_path, "good") == 4


def test_a_failure_is_one_and_is_run_again(call, tmp_path: Path, capsys):
    table = {"bad": "raise SystemExit(3)", "good": PASSES}
    assert call([], **table) == 1
    assert "failed: bad" in capsys.readouterr().out
    assert [(r["passed"], r["exit_code"]) for r in recorded(tmp_path)] == [(False, 3), (True, 0)]
    assert call([], **table) == 1
    assert (runs(tmp_path, "bad"), runs(tmp_path, "good")) == (2, 1)
    assert call([], bad="", good=PASSES) == 0


def test_a_pass_does_not_count_if_files_changed_meanwhile(call, tmp_path: Path, capsys):
    assert call([], good="open('code/part.py', 'w').write('three')") == 1
    assert not recorded(tmp_path)[0]["passed"]
    assert "changed while it ran" in capsys.readouterr().err


def test_one_is_chosen_and_all_are_listed(call, tmp_path: Path, capsys):
    table = {"good": PASSES, "other": PASSES}
    assert call(["--only", "other"], **table) == 0
    assert (runs(tmp_path, "good"), runs(tmp_path, "other")) == (0, 1)
    capsys.readouterr()
    assert call(["--list"], **table) == 0
    good, _, other, covers = capsys.readouterr().out.splitlines()
    assert good.split() == ["good", "to", "run", "python", "good.py"]
    assert other.startswith("other           passed 20")
    assert covers.split() == ["covers", "1", "files"]
    assert (runs(tmp_path, "good"), runs(tmp_path, "other")) == (0, 1)
    with pytest.raises(SystemExit, match="2"):
        call(["--only", "another"], **table)


def test_a_pattern_without_files_is_refused(runner, tmp_path: Path):
    check = runner.Check(name="lost", command="", covers=("nowhere/*.py",))
    with pytest.raises(ValueError, match=r"check lost covers 'nowhere/\*.py', which does not"):
        runner.hash_of(check, tmp_path)


STOPPED = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("check_long", sys.argv[1])
check_long = importlib.util.module_from_spec(spec)
sys.modules["check_long"] = check_long
spec.loader.exec_module(check_long)
checks = [check_long.Check(name=n, command=f"{n}.py", covers=("*.py",)) for n in ("good", "slow")]
sys.exit(check_long.main([], checks, Path()))
"""
SLOW = """
import subprocess, sys, tempfile, time
from pathlib import Path
with tempfile.TemporaryDirectory(dir=".") as folder:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path("child.part").write_text(str(child.pid))
    Path("child.part").rename("child")
    time.sleep(600)
"""


def test_an_interrupted_check_leaves_nothing_and_the_next_call_goes_on(tmp_path: Path):
    (tmp_path / "good.py").write_text(PASSES)
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-c", STOPPED, str(SCRIPT)]
    runner = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "child").exists():
        assert runner.poll() is None
        time.sleep(0.02)
    runner.send_signal(signal.SIGINT)
    out, _ = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert "rerun the same command to resume" in out
    assert [record["name"] for record in recorded(tmp_path)] == ["good"]
    assert [path for path in tmp_path.iterdir() if path.name.startswith("tmp")] == []
    child = Path("/proc") / (tmp_path / "child").read_text()
    assert not child.exists() or "(zombie)" in (child / "status").read_text()


def modules_of(command: str) -> set[str]:
    """Modules of the package that a script imports, at its top or inside."""
    script = (ROOT / command.split()[0]).read_text(encoding="utf-8").splitlines()
    lines = [line.split() for line in script]
    found = {words[1] for words in lines if words[:1] in (["from"], ["import"]) and len(words) > 1}
    return {name for name in found if name.split(".")[0] == "vl2"}


def test_checks_cover_all_that_their_scripts_import(runner):
    """Otherwise a change could pass unchecked."""
    graph = grimp.build_graph("vl2", cache_dir=None)
    for check in runner.CHECKS:
        covered = set(runner.covered_files(check, ROOT))
        if check.command.startswith("-m"):
            continue
        script, *_ = check.command.split()
        assert ROOT / script in covered
        for name in modules_of(check.command):
            for module in {name, *graph.find_upstream_modules(name)}:
                path = ROOT.joinpath("src", *module.split("."))
                file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                assert file in covered, f"{check.name}: {file}"


def test_names_of_checks_are_different(runner):
    names = [check.name for check in runner.CHECKS]
    assert len(names) == len(set(names))


def test_the_long_profile_multiplies_examples():
    seen = []

    @settings(max_examples=3, database=None)
    @given(st.integers())
    def test(number: int):
        seen.append(number)

    test()
    assert len(seen) == 3
    conftest.draw_more(test)
    test()
    assert len(seen) == 3 + 3 * conftest.MORE_EXAMPLES
