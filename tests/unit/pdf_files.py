"""Small PDFs as bytes, written by hand."""

from __future__ import annotations

from dataclasses import dataclass

FONTS = ("Helvetica", "Times-Roman", "Courier")
LATIN = "/Encoding /WinAnsiEncoding"
ENCRYPT = (
    b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <" + b"41" * 32 + b"> /U <" + b"42" * 32 + b"> >>"
)
"""Keys that no password fits."""


@dataclass(frozen=True, kw_only=True)
class PdfPage:
    """A page, and what is drawn on it in operators of PDF."""

    content: str = ""
    box: tuple[float, ...] = (0, 0, 300, 200)
    crop: tuple[float, ...] | None = None
    turned: int = 0


def show(text: str, x: float, y: float, size: float = 12, font: int = 0) -> str:
    """The operators that set a line of text with its baseline's start at (x, y)."""
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"BT /F{font} {size} Tf {x} {y} Td ({escaped}) Tj ET\n"


def pdf_of(pages: list[PdfPage], *, trailer: bytes = b"") -> bytes:
    """A whole PDF with an exact table of its objects."""
    fonts = " ".join(f"/F{n} {n + 3} 0 R" for n in range(len(FONTS)))
    first = 3 + len(FONTS)
    kids = " ".join(f"{first + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        *(
            f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} {LATIN} >>".encode()
            for name in FONTS
        ),
    ]
    for n, page in enumerate(pages):
        stream = page.content.encode("latin-1")
        crop = f"/CropBox [{' '.join(map(str, page.crop))}]" if page.crop else ""
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [{' '.join(map(str, page.box))}] {crop} "
            f"/Rotate {page.turned} /Contents {first + 2 * n + 1} 0 R "
            f"/Resources << /Font << {fonts} >> >> >>".encode(),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        ]
    return _file(objects, trailer)


def endless_pdf() -> bytes:
    """A page of forms that draw the next one 20 times each, 20 deep: nobody lives to see it."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R "
        b"/Resources << /XObject << /X 5 0 R >> >> >>",
        b"<< /Length 5 >>\nstream\n/X Do\nendstream",
    ]
    for number in range(6, 26):
        content = b"/X Do " * 20 if number < 25 else b"0 0 9 9 re f"
        objects.append(
            b"<< /Type /XObject /Subtype /Form /BBox [0 0 300 200] /Length %d "
            b"/Resources << /XObject << /X %d 0 R >> >> >>\nstream\n%s\nendstream"
            % (len(content), number, content)
        )
    return _file(objects)


def _file(objects: list[bytes], trailer: bytes = b"") -> bytes:
    data, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % place for place in places)
    data += b"trailer\n<< /Size %d /Root 1 0 R %s >>\n" % (len(objects) + 1, trailer)
    return bytes(data + b"startxref\n%d\n%%%%EOF\n" % start)


def encrypted_pdf() -> bytes:
    """A PDF that wants a password."""
    identity = b"/ID [<" + b"43" * 16 + b"> <" + b"43" * 16 + b">]"
    return pdf_of(
        [PdfPage(content=show("secret", 20, 100))], trailer=identity + b" /Encrypt " + ENCRYPT
    )
