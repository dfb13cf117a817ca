"""Greedy tokens of vLLM: run in its own environment, as `python vllm_side.py FOLDER DTYPE MENDED`.

MENDED: "no" leaves vLLM as it is; "yes" mends what differs from the official code:
- the vision tower takes 384 pixels as 27 x 27 patches instead of 28 x 28 with resampled positions;
- queries of latent attention are rotated by PyTorch: the kernel for CPUs mistakes heads for tokens.

stdin: JSON, a list of {"prompt": text with <image>, "images": [files], "tokens": how many}.
stdout's last line: JSON, a list of {"prompt_ids", "ids", "logprobs"} in the same order.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def main(folder: str, dtype: str, mended: str) -> None:
    """Answer the requests of stdin."""
    requests = json.load(sys.stdin)
    import timm
    from PIL import Image
    from vllm import LLM, SamplingParams
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    if mended == "yes":
        create = timm.create_model
        grid = {"dynamic_img_size": False, "dynamic_img_pad": False}
        timm.create_model = lambda *words, **options: create(*words, **{**options, **grid})
        RotaryEmbedding.forward_cpu = RotaryEmbedding.forward_native

    pictures = max(len(request["images"]) for request in requests)
    llm = LLM(
        model=folder,
        dtype=dtype,
        max_model_len=4096,
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": pictures},
    )
    answers = []
    for request in requests:
        prompt: dict[str, Any] = {"prompt": request["prompt"]}
        if request["images"]:
            images = [Image.open(file).convert("RGB") for file in request["images"]]
            prompt["multi_modal_data"] = {"image": images}
        greedy = SamplingParams(
            temperature=0, max_tokens=request["tokens"], ignore_eos=True, logprobs=1
        )
        [output] = llm.generate([prompt], greedy, use_tqdm=False)
        answer = output.outputs[0]
        ids = list(answer.token_ids)
        told = [each[token].logprob for each, token in zip(answer.logprobs, ids, strict=True)]
        prompt_ids = list(output.prompt_token_ids)
        answers.append({"prompt_ids": prompt_ids, "ids": ids, "logprobs": told})
    print(json.dumps(answers))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
