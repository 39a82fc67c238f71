"""Pieces of Markdown, with texts from settings and file names made harmless."""

import html
import re
import urllib.parse
from collections.abc import Iterable, Sequence


def plain(text: str) -> str:
    """A text that is shown as it is, on one line."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def code(text: object) -> str:
    """A text in the letters of code, on one line, fit for tables too."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def code_block(text: str, language: str = "") -> str:
    """Lines of code."""
    return f"```{language}\n{text}\n```"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(words: str, path: str) -> str:
    """A picture of the folder that the text lies in."""
    return f"![{plain(words)}]({urllib.parse.quote(path)})"


def paragraphs(*parts: str | None) -> str:
    """The parts that there are, with a line between them."""
    return "\n\n".join(part for part in parts if part)
