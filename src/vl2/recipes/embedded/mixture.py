"""How often each kind of made picture is drawn, by stage."""

SEE_KINDS = {
    "words": 0.2,
    "lines": 0.35,
    "blocks": 0.15,
    "pages": 0.12,
    "papers": 0.06,
    "tables": 0.06,
    "screens": 0.04,
    "charts": 0.02,
}
"""For the tower: what has many legible characters."""
READ_KINDS = {
    "words": 0.16,
    "lines": 0.2,
    "blocks": 0.08,
    "pages": 0.06,
    "papers": 0.12,
    "tables": 0.1,
    "charts": 0.1,
    "screens": 0.08,
    "shapes": 0.1,
}
