"""Answering: sampling parameters, the generation loop, completions with boxes."""
