"""How often each kind of made picture is drawn, by stage."""

SEE_KINDS = {
    "words": 0.16,
    "lines": 0.3,
    "blocks": 0.12,
    "pages": 0.1,
    "pdfs": 0.12,
    "papers": 0.06,
    "tables": 0.05,
    "signs": 0.04,
    "screens": 0.03,
    "charts": 0.02,
}
"""For the tower: what has many legible characters."""
READ_KINDS = {
    "words": 0.1,
    "lines": 0.13,
    "blocks": 0.06,
    "pages": 0.05,
    "pdfs": 0.1,
    "papers": 0.1,
    "tables": 0.08,
    "charts": 0.08,
    "screens": 0.07,
    "shapes": 0.06,
    "signs": 0.05,
    "things": 0.05,
    "diagrams": 0.02,
    "plans": 0.02,
    "notes": 0.02,
    "scenes": 0.01,
}
