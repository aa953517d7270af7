"""Web pages that need only a browser: one HTML file, light or dark as the browser prefers, and images in files beside it."""

import html

import console

STYLE = """
:root { color-scheme: light dark; --back: #fcfcfb; --card: #fff; --text: #1b1c1e; --faint: #6a6d73; --line: #dedfe2;
  --link: #1f6fc4 }
@media (prefers-color-scheme: dark) { :root { --back: #16181b; --card: #1e2125; --text: #e6e7e9; --faint: #9a9ea6; --line: #34383e;
  --link: #6cb0f5 } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76em; margin: 1.5em auto; padding: 0 1em; background: var(--back);
  color: var(--text) }
h1 { font-size: 1.5em; margin: 0 0 .2em } h2 { font-size: 1.15em; margin: 1.8em 0 .6em }
p { max-width: 62em } .faint { color: var(--faint) } a { color: var(--link) } img { max-width: 100% }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid var(--line) }
td:first-child, th:first-child, table.texts td, table.texts th { text-align: left } table.texts td + td { overflow-wrap: anywhere }
"""

RELOAD = '<meta http-equiv="refresh"'  # only in pages that reload


def document(title: str, body: str, *, style: str = "", reload_seconds: int | None = None) -> str:
    """A page of HTML.

    Args:
        title: plain text, also the first heading.
        body: HTML below the heading.
        style: CSS in addition to `STYLE`.
        reload_seconds: seconds after which the page reloads; None for never.
    """
    reload = f'{RELOAD} content="{reload_seconds}">' if reload_seconds else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<link rel="icon" href="data:,">{reload}<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )


def number_table(columns: dict[str, dict[str, float]]) -> str:
    """A table of numbers, with a column for each name. More than a few columns do not fit on the page."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(console.number(column[name]) if name in column else "" for column in columns.values())] for name in names]
    return _table("numbers", ["", *columns], rows)


def text_table(head: list[str], rows: list[list[str]]) -> str:
    """A table of texts under a row of headings."""
    return _table("texts", head, rows)


def _table(kind: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [
        "".join(f"<th>{html.escape(cell)}</th>" for cell in head),
        *("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows),
    ]
    return f'<div class="scroll"><table class="{kind}">{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
