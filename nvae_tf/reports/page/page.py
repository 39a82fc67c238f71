"""The frame of the page: head, style, contents, sections. One file, no script, nothing from the network."""

from collections.abc import Sequence
from typing import NamedTuple

from nvae_tf.reports.page.markup import escaped


class Section(NamedTuple):
    """A part of the page: the end of its address, its title, and its HTML."""

    key: str
    title: str
    body: str


def whole_page(title: str, heading: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
      title: of the window, not yet escaped.
      heading: HTML at the top.
      sections: below, in this order.
    """
    links = "".join(f'<a href="#{part.key}">{escaped(part.title)}</a>' for part in sections)
    body = "\n".join(
        f'<section id="{part.key}">\n<h2>{escaped(part.title)}</h2>\n{part.body}\n</section>' for part in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escaped(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
{heading}
<nav aria-label="Contents">{links}</nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


_STYLE = """
:root { --paper: #ffffff; --ink: #1b1f24; --faint: #59636e; --rule: #d5dae0; --shade: #f4f6f8;
  --line0: #0a63c4; --line1: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --faint: #9aa4b0; --rule: #343b44;
  --shade: #1d2228; --line0: #6cb2ff; --line1: #ff9d66; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0.5rem 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 0.75rem; padding-top: 0.75rem; border-top: 1px solid var(--rule); font-size: 1.25rem; }
p { max-width: 46rem; margin: 0.5rem 0; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; margin-top: 1rem; }
a { color: var(--line0); }
.charts, .pictures { display: grid; gap: 1.25rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { margin-bottom: 0.4rem; font-size: 0.9rem; color: var(--faint); }
figcaption b { color: var(--ink); }
figure svg { display: block; width: 100%; height: auto; max-width: 40rem; }
.key { display: inline-block; margin-right: 1rem; color: var(--ink); }
figure .key svg { display: inline-block; width: 26px; height: 8px; margin-right: 0.35rem; }
svg text { font: 12.5px system-ui, sans-serif; fill: var(--faint); }
rect { shape-rendering: crispEdges; }
.grid { stroke: var(--rule); fill: none; }
.axis { stroke: var(--faint); fill: none; }
.line { fill: none; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
.line0 { stroke: var(--line0); --own: var(--line0); }
.line1 { stroke: var(--line1); --own: var(--line1); }
path.line1 { stroke-dasharray: 5 4; }
.dot { fill: var(--own); stroke: none; }
.spot { fill: transparent; stroke: none; }
.dot:hover, .spot:hover { fill: var(--own); stroke: var(--own); stroke-width: 4; }
img { display: block; max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; }
th, td { padding: 0.2rem 0.75rem 0.2rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; font-weight: normal; }
thead th { color: var(--faint); }
.figures td, .figures thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
.figures td { white-space: nowrap; }
.figures th:first-child { min-width: 9rem; }
.facts th { color: var(--faint); }
.facts td { overflow-wrap: anywhere; }
details { margin: 0.4rem 0; padding: 0.4rem 0.75rem; border: 1px solid var(--rule); border-radius: 6px; }
summary { cursor: pointer; }
.note { padding-left: 0.75rem; border-left: 3px solid var(--line1); }
.command { margin: 0.5rem 0; padding: 0.5rem 0.75rem; background: var(--shade); border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  .charts, .pictures { grid-template-columns: 1fr 1fr; }
  details::details-content { content-visibility: visible; height: auto; }
  svg rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  :root { --paper: #ffffff; --ink: #000000; --faint: #444444; --rule: #bbbbbb; --shade: #f2f2f2; --line0: #0a63c4;
    --line1: #c2410c; } h2 { break-after: avoid; } }
"""
