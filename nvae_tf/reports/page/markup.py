"""Pieces of HTML; whatever comes from a file goes through `escaped`."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def escaped(value: object) -> str:
    """Text as it stands between tags and in attributes."""
    return html.escape(str(value), quote=True)


def paragraph(text: str) -> str:
    """A sentence, not yet escaped."""
    return f"<p>{escaped(text)}</p>"


def command(line: str) -> str:
    """A command that a reader can copy, not yet escaped."""
    return f'<pre class="command">{escaped(line)}</pre>'


def figure(caption: str, content: str, kind: str = "chart") -> str:
    """A picture or chart below its caption, both HTML."""
    return f'<figure class="{kind}"><figcaption>{caption}</figcaption>{content}</figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "figures") -> str:
    """A table whose first column names the row; cells are not yet escaped, empty ones stay empty."""
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escaped(first)}</th>' + "".join(f"<td>{escaped(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f'<div class="wide"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def picture(pixels: np.ndarray, title: str, about: str) -> str:
    """A figure with a picture that is part of the page.

    Args:
      pixels: uint8 `[height, width, channels]`, as `image_grid` gives it.
      title: what is seen, in some words.
      about: more of it.
    """
    height, width, channels = pixels.shape
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    img = f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escaped(title)}">'
    return figure(f"<b>{escaped(title)}</b> {escaped(about)}", img, "picture")
