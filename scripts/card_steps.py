"""What one card is asked by scripts/card_check.py: each step gives figures, or fails."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import vl2
from vl2.benchmarks.prompts import text_prompt
from vl2.config import VL2Config
from vl2.engine.graphs import why_not_captured
from vl2.ops.moe import Routing, expert_mlp, expert_mlp_ref, has_grouped_matmul

Record = dict[str, Any]

ROOT = Path(__file__).parents[1]
NO_CARD = 2
KERNELS = 12
"""Kernels of a profile that are printed, the longest first."""
GRADIENT_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest error of a gradient, relative to its norm."""


def load(path: str) -> ModuleType:
    """A script of the repository as a module."""
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


gpu: Any = load("bench/gpu.py")
training: Any = load("bench/training.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What every step knows; `dry` shrinks everything."""

    device: torch.device
    dry: bool
    out: Path

    def case(self, name: str, form: str = "none", *, layers: int | None = None, **more: Any) -> Any:
        """A model as bench/gpu.py measures it, with the machine's bounds."""
        bounds = gpu.Bounds(bandwidth=1e9, flops=1e9)
        if not self.dry:
            bounds = gpu.measure_bounds(self.device)
        else:
            gpu.PROMPT, gpu.LONG_PROMPT = 20, 40
        words = ["--rounds", "1", "--sequences", "3"] if self.dry else ["--rounds", "3"]
        options = gpu.arguments(words)
        options.layers = None if self.dry else layers
        options.compile = more.get("compile", False) and not self.dry
        preset = f"debug_{name}" if self.dry else name
        return gpu.build(preset, form, self.device, bounds, options)


def versions(run: Run) -> Iterator[Record]:
    """What runs here."""
    if run.device.type == "cuda" and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} finds no CUDA device here", file=sys.stderr)
        os._exit(NO_CARD)
    found = gpu.describe(run.device)
    if run.device.type == "cuda":
        found["capability"] = torch.cuda.get_device_capability(run.device)
        found["cudnn"] = torch.backends.cudnn.version()
        found["built_for"] = torch.cuda.get_arch_list()
    query = torch.ones(1, 4, 64, 128, device=run.device, dtype=torch.bfloat16)
    for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        found[backend.lower()] = _runs(query, SDPBackend.__members__[backend])
    experts = torch.ones(4, 64, 128, device=run.device, dtype=torch.bfloat16)
    found["grouped_products"] = has_grouped_matmul(query[0, 0], experts)
    yield {"bench": "versions", **found}


def _runs(query: torch.Tensor, backend: SDPBackend) -> bool | str:
    """Whether an attention kernel takes it, or what it says."""
    try:
        with sdpa_kernel([backend]):
            scaled_dot_product_attention(query, query, query, is_causal=True)
    except RuntimeError as error:
        return str(error).splitlines()[0][:120]
    return True


def gradients(run: Run) -> Iterator[Record]:
    """Gradients of grouped products against the plain ones; experts without tokens get zeros."""
    total, inner, hidden = 8, 64, 128
    routings = {"half_empty": [0, 2, 4, 6], "one_expert": [3], "last_only": [7], "no_rows": []}
    wrong: list[str] = []
    for dtype, bound in GRADIENT_ERROR.items():
        for name, used in routings.items():
            generator = torch.Generator().manual_seed(0)
            rows = 40 if used else 0  # a rank of expert parallelism may get none
            shapes = ((rows, hidden), *[(total, inner, hidden)] * 2, (total, hidden, inner))
            drawn = [torch.randn(shape, generator=generator).mul(0.2) for shape in shapes]
            chosen = torch.tensor([used[n % len(used)] for n in range(rows)], dtype=torch.int64)
            ones = torch.ones(rows, 1, device=run.device)
            routing = Routing(chosen[:, None].to(run.device), ones, ones.expand(-1, total))
            found = [
                _gradients(mlp, [t.to(run.device, dtype) for t in drawn], routing)
                for mlp in (expert_mlp, expert_mlp_ref)
            ]
            worst = max(
                float((a - b).norm() / b.norm().clamp(min=1e-9))
                for a, b in zip(*found, strict=True)
            )
            empty = [n for n in range(total) if n not in used]
            left = max(float(grad[empty].abs().sum()) for grad in found[0][1:])
            yield {
                "bench": "gradients",
                "routing": name,
                "dtype": str(dtype).removeprefix("torch."),
                "worst": worst,
                "bound": bound,
                "of_empty_experts": left,
            }
            if not worst <= bound:  # NaN is off, too
                wrong.append(f"{name}: gradients of {dtype} are {worst:.1e} off")
            if left != 0.0:
                wrong.append(f"{name}: experts without tokens have gradients in {dtype}")
    assert not wrong, "; ".join(wrong)


def _gradients(
    mlp: Callable[..., torch.Tensor], tensors: list[torch.Tensor], routing: Routing
) -> list[torch.Tensor]:
    x, *weights = (tensor.detach().requires_grad_() for tensor in tensors)
    mlp(x, routing, *weights).float().square().sum().backward()
    grads = [tensor.grad for tensor in (x, *weights)]
    return [grad.float() for grad in grads if grad is not None]


def tests(run: Run) -> Iterator[Record]:
    """The tests that only a card can run; a dry run asks pytest for its version."""
    for name, marks in (("gpu", "gpu and not compiled"), ("gpu_compiled", "gpu and compiled")):
        disabled = {"JAXTYPING_DISABLE": "1"} if name == "gpu_compiled" else {}
        words = ["--version"] if run.dry else ["-rfE"]
        command = [sys.executable, "-m", "pytest", "-q", "-m", marks, *words]
        log = run.out / f"tests-{name}.txt"
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **disabled}, stdout=file, check=False
            )
        lines = log.read_text(encoding="utf-8").splitlines() or [""]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        yield {"bench": "tests", "marks": marks, "summary": lines[-1], "failed": failed}
        assert done.returncode in (0, 5), f"{marks}: {lines[-1]}"
        if run.dry:
            return


def bounds(run: Run) -> Iterator[Record]:
    """The machine's bounds, the CPU's answers, attention."""
    sizes = {"copied": 2**20, "width": 64} if run.dry else {}
    found = gpu.measure_bounds(run.device, **sizes)
    yield {"bench": "machine", "bandwidth": found.bandwidth, "flops": found.flops}
    with torch.inference_mode():
        yield from gpu.measure_attention(run.device, [(2, 8)] if run.dry else [(1, 512), (64, 512)])
    parity = gpu.measure_parity(run.device)
    yield parity
    assert parity["equal"] == parity["answers"], "the card's answers are not the CPU's"


def model(name: str, form: str = "none", **more: Any) -> Callable[[Run], Iterator[Record]]:
    """A step that measures a model as bench/gpu.py does."""

    def step(run: Run) -> Iterator[Record]:
        case = run.case(name, form, **more)
        yield from ({**row, "compiled": case.compile} for row in gpu.measure_model(case))

    return step


def ragged(run: Run) -> Iterator[Record]:
    """Prompts of unequal length in one engine, whose sizes it chooses itself."""
    case = run.case("tiny")
    many, long, tokens = (6, 100, 4) if run.dry else (64, 4000, 32)
    rng = random.Random(0)
    lengths = [long, *(rng.randint(4, long // 4) for _ in range(many - 1))]
    prompts = [text_prompt(case.processor, length, n) for n, length in enumerate(lengths)]
    engine = vl2.Engine(case.model, case.processor)
    params = vl2.SamplingParams(max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    answers = engine.generate(prompts, params)
    seconds = time.perf_counter() - start
    alone = [engine.generate([prompts[n]], params)[0] for n in (0, 1)]
    yield {
        "bench": "ragged",
        "prompt_tokens": sum(lengths),
        "longest": long,
        "seconds": round(seconds, 2),
        "answer_tokens_per_s": round(many * tokens / seconds, 1),
        "num_blocks": engine.blocks.num_blocks,
        "max_num_seqs": engine.max_num_seqs,
        "preemptions": engine.stats.preemptions,
        "peak_gib": _peak_gib(run.device),
        "first_tokens_as_alone": [
            a.token_ids[0] == answers[n].token_ids[0] for n, a in enumerate(alone)
        ],
    }
    failed = [answer.error for answer in answers if answer.error]
    assert not failed, f"{len(failed)} of {many} failed: {failed[0]}"


def _peak_gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 1)


def profile(run: Run) -> Iterator[Record]:
    """The kernels of a prompt's step and of a decoded token's."""
    case = run.case("tiny")
    config = vl2.EngineConfig(max_num_seqs=1, num_blocks=300, max_model_len=1000)
    engine = vl2.Engine(case.model, case.processor, config)
    params = vl2.SamplingParams(max_tokens=4, ignore_eos=True)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if run.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    for round_ in range(2):  # the first one warms up
        engine.add_request(round_, text_prompt(case.processor, gpu.PROMPT, round_), params)
        for what in ("prompt", "token"):
            start = time.perf_counter()
            with torch.profiler.profile(activities=kinds) as found:
                engine.step()
                gpu.settle(run.device)
            if round_:
                yield {
                    "bench": "profile",
                    "of": what,
                    "ms": round(1e3 * (time.perf_counter() - start), 2),
                    "not_recorded_because": why_not_captured(case.model),
                    "kernels": _longest(found, run.device),
                }
        while engine.has_unfinished_requests:
            engine.step()


def _longest(found: torch.profiler.profile, device: torch.device) -> list[Record]:
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, field))[:KERNELS]
    return [
        {"kernel": e.key[:80], "calls": e.count, "us": round(getattr(e, field), 1)} for e in events
    ]


def int4(run: Run) -> Iterator[Record]:
    """Four bits: the same answers as on the CPU, and what a step takes."""
    parity = gpu.measure_parity(run.device, "int4")
    yield parity
    yield from model("tiny", "int4", layers=4)(run)
    assert not parity["errors"], parity["errors"][0]
    assert parity["equal"] >= parity["answers"] - 1, "the card's answers are not the CPU's"


def train(run: Run) -> Iterator[Record]:
    """Training steps of Tiny's shapes on random text; the loss must fall."""
    config = VL2Config.preset("debug_tiny" if run.dry else "tiny")
    batch = training.text_batch(config, 2, 16 if run.dry else 4096, str(run.device))
    step = training.Step(config, torch.bfloat16, str(run.device))
    taken, losses = [], []
    for _ in range(3 if run.dry else 6):
        taken.append(step(batch))
        losses.append(float(step.task.accumulate([batch]).loss))
        step.optimizers.zero_grad()
    yield {
        "bench": "training",
        "tokens_per_s": round(batch.tokens / min(taken)),
        "losses": [round(loss, 4) for loss in losses],
        "peak_gib": _peak_gib(run.device),
    }
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"


def resume(run: Run) -> Iterator[Record]:
    """Stop and go on; each leg is forked before it uses the card."""
    check: Any = load("scripts/resume_check.py")

    def leg(folder: Path, arguments: list[str]) -> int:
        child = os.fork()
        if not child:
            os._exit(check.main(["--leg", str(folder), *arguments]))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    check.in_new_process = leg
    with tempfile.TemporaryDirectory() as folder:
        steps, stops = (2, [1]) if run.dry else (4, [2, 3])
        found = check.check(steps, stops, [0], Path(folder))
    yield {"bench": "resume", **found}
    assert found["bitwise_equal"], f"first difference: {found['first_difference']}"


STEPS: dict[str, tuple[Callable[[Run], Iterator[Record]], int]] = {
    "versions": (versions, 60),
    "gradients": (gradients, 45),
    "tests": (tests, 180),
    "bounds": (bounds, 60),
    "tiny": (model("tiny"), 90),
    "float8": (model("tiny", "float8"), 90),
    "ragged": (ragged, 75),
    "training": (train, 75),
    "resume": (resume, 120),
    "profile": (profile, 60),
    "int4": (int4, 75),
    "small": (model("small"), 120),
    "compiled": (model("tiny", compile=True), 120),
}
"""What runs and how many seconds it may take; what is worth most comes first."""
