"""Ask about a picture, then ask again: python examples/chat.py [PICTURE [MODEL]]."""

import sys

import vl2

QUESTIONS = ("How many shapes are there?", "What colour is the circle?")


def main(picture: str = "examples/sample.png", model: str = "nano") -> None:
    """Hold a conversation of two questions, printing the answers while they are made."""
    engine = vl2.Engine(vl2.load_model(model), vl2.Processor.from_pretrained(model))
    messages: list[dict] = []
    for question in QUESTIONS:
        content: list[dict] = [{"type": "text", "text": question}]
        if not messages:
            content.insert(0, {"type": "image", "image": picture})
        messages.append({"role": "user", "content": content})
        print(f"> {question}")
        [answer] = engine.generate(
            [messages],
            vl2.SamplingParams(max_tokens=64),
            on_token=lambda index, text: print(text, end="", flush=True),
        )
        print(f"\n  ({answer.usage.prompt_tokens} prompt tokens, {answer.finish_reason})")
        messages.append({"role": "assistant", "content": answer.text})


if __name__ == "__main__":
    main(*sys.argv[1:])
