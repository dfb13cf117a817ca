"""Locate something in a picture: python examples/grounding.py [PICTURE [QUERY [MODEL]]]."""

import sys

import vl2


def main(
    picture: str = "examples/sample.png", query: str = "the red circle", model: str = "nano"
) -> None:
    """Print the boxes in pixels of the picture, with the model's confidence."""
    engine = vl2.Engine(vl2.load_model(model), vl2.Processor.from_pretrained(model))
    content = [
        {"type": "image", "image": picture},
        {"type": "text", "text": "Locate "},
        {"type": "grounding", "query": query},
        {"type": "text", "text": " in the given image."},
    ]
    params = vl2.SamplingParams(max_tokens=128)
    [answer] = engine.generate([[{"role": "user", "content": content}]], params)
    print(answer.text)
    for box in answer.boxes:
        print(f"{box.label}: ({box.x1}, {box.y1}) to ({box.x2}, {box.y2}), {box.score:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
