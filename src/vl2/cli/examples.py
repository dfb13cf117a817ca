"""The examples at the end of each command's help; tests parse every one of them."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "ask": (
        'vl2 ask photo.png "How many squares are there?"',
        'vl2 ask photo.png "the red circle" --ground --save boxes.png',
        'vl2 ask photos/ "Read the text." --each --csv > answers.csv',
    ),
    "chat": (
        "vl2 chat photo.png",
        "vl2 chat --model tiny --quantization int8",
    ),
    "serve": (
        "vl2 serve",
        "vl2 serve tiny --quantization int8 --port 8080 limits.max_images=4",
        "vl2 serve base --host 0.0.0.0 --api-key-file keys.txt --adapter invoices=out/adapters",
    ),
    "batch": (
        "vl2 batch requests.jsonl -o answers.jsonl",
        "vl2 batch requests.jsonl -o answers.jsonl --model tiny --json engine.max_num_seqs=16",
    ),
    "tiles": (
        "vl2 tiles photo.png --save layout.png",
        "vl2 tiles photo.png page.png --model tiny --json",
    ),
    "inspect": (
        "vl2 inspect tiny",
        "vl2 inspect runs/debug_sft/model --json",
    ),
    "plan model": (
        "vl2 plan tiny --memory 8GiB",
        "vl2 plan base --memory 24GiB --context 2000",
    ),
    "plan train": (
        "vl2 plan train base_pretrain --gpus 336 --gpu a100",
        "vl2 plan train base_sft --gpus 8 --gpu h200 --layout expert=8",
    ),
    "train": (
        "vl2 train debug_align",
        "vl2 train nano_lora data.sources.0.path=labels.json",
        "vl2 train base_pretrain --dry-run",
    ),
    "convert": (
        "vl2 convert tiny out/tiny-int8 --quantization int8",
        "vl2 convert runs/tiny_lora out/tuned",
    ),
    "data make": (
        "vl2 data make lines -n 1000 -o lines",
        "vl2 data make charts -n 50 --seed 7 --heldout -o charts --sheet charts.png",
    ),
    "bench": (
        "vl2 bench summary --model tiny --quick",
        "vl2 bench decode --model nano --quantization int8 --json",
    ),
    "doctor": (
        "vl2 doctor",
        "vl2 doctor nano --prompts 8 --no-compiled",
    ),
}


def examples_of(command: str) -> str:
    """The end of a command's help, in lines that are kept as they are."""
    return "\n".join(("\b\nExamples:", *(f"  {line}" for line in EXAMPLES[command])))
