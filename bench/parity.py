"""How far the code is from each oracle: runs the comparisons among the tests, prints JSON lines.

`tests/golden` compares with recordings of the official code, `tests/parity` with transformers and
with plain twins. Each comparison records its figure through the fixture `against`
(tests/conftest.py); this script runs those folders and gathers the records. The first line names
machine and versions; then one line per oracle and quantity:

    {"oracle": "transformers sam", "what": "encoder and first neck",
     "worst": 2.1e-06, "bound": 1e-05, "largest": 11.4, "tests": 3, "ok": true}

`worst` is the largest absolute difference, `largest` the largest absolute value of the oracle,
`bound` what the tests accept, `tests` how many tests contributed. Exact comparisons have `equal`
and `of`. A comparison that could not run is a line with `skipped`. The exit code is that of pytest.

    python bench/parity.py                # everything
    python bench/parity.py tests/parity   # some folders or files
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from vl2.benchmarks.machine import cpu_name

ROOT = Path(__file__).parents[1]
FOLDERS = ("tests/golden", "tests/parity")


def run_tests(folders: Iterable[str], report: Path) -> int:
    """Run pytest, its own output on stderr; returns its exit code."""
    command = [sys.executable, "-m", "pytest", "-q", *folders, f"--junitxml={report}"]
    command += ["-o", "junit_family=xunit1"]  # the one that has properties
    return subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode


def records(report: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Test name and record of every comparison, and one record per skipped test."""
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        for entry in case.iter("property"):
            if entry.get("name") == "parity":
                yield name, json.loads(entry.get("value", ""))
        for skipped in case.iter("skipped"):
            yield name, {"skipped": name, "reason": skipped.get("message")}


def gather(found: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per oracle and quantity: worst of the errors, sum of the counts."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    names: dict[tuple[str, str], set[str]] = {}
    for name, record in found:
        key = (record.get("oracle", ""), record.get("what", name))
        rows[key] = merge(rows[key], record) if key in rows else record
        names.setdefault(key, set()).add(name)
    return [{**rounded(row), **verdict(row, len(names[key]))} for key, row in rows.items()]


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two records of the same quantity."""
    if "equal" in a:
        return {**a, "equal": a["equal"] + b["equal"], "of": a["of"] + b["of"]}
    larger = {name: max(a[name], b[name]) for name in ("worst", "bound", "largest") if name in a}
    return {**a, **larger}


def verdict(row: dict[str, Any], tests: int) -> dict[str, Any]:
    """Whether the row holds, and from how many tests it comes."""
    if "skipped" in row:
        return {}
    ok = row["equal"] == row["of"] if "equal" in row else row["worst"] <= row["bound"]
    return {"tests": tests, "ok": ok}


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Three digits of every float."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items()}


def main() -> int:
    """Print the lines; see the module's docstring."""
    folders = sys.argv[1:] or FOLDERS
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = run_tests(folders, report)
        rows = gather(records(report)) if report.exists() else []
    machine = {
        "command": " ".join(["python bench/parity.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": f"{cpu_name()}, {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "seconds": round(time.perf_counter() - start, 1),
    }
    for row in (machine, *rows):
        print(json.dumps(row))
    return code


if __name__ == "__main__":
    sys.exit(main())
