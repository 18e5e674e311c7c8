"""What a report's page is made of beside its charts: the style sheet and tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

STYLE = """\
:root { --ground: #fff; --ink: #1b1f24; --soft: #667180; --rule: #e3e7ec; --blue: #2563c9; --violet: #7a3fc0;
  --orange: #c2570c; --gray: #98a2af; --good: #1a7f4b; --bad: #c0262d; --dim: #8a6100; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --ink: #e6e9ed; --soft: #98a2af; --rule: #2b3138;
  --blue: #6ea2f5; --violet: #b48cf0; --orange: #f0965a; --gray: #6d7783; --good: #4cc38a; --bad: #f2777d;
  --dim: #d9a93a; --card: #1c2127; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 32px 40px 48px; }
h1 { font-size: 21px; line-height: 1.3; margin: 0 0 4px; } h2 { font-size: 15px; margin: 34px 0 8px; }
p { margin: 0; } .soft, .how { color: var(--soft); } .how { font-size: 13px; margin-bottom: 6px; }
.verdict { display: flex; gap: 14px; align-items: baseline; padding: 14px 18px; margin: 20px 0; border-radius: 8px;
  background: var(--card); border-left: 5px solid var(--dim); }
.verdict b { font-size: 17px; white-space: nowrap; color: var(--dim); }
.verdict.pass { border-color: var(--good); } .verdict.pass b { color: var(--good); }
.verdict.fail { border-color: var(--bad); } .verdict.fail b { color: var(--bad); }
dl.figures { display: grid; grid-template-columns: repeat(6, 1fr); gap: 10px; margin: 0; }
dl.figures div { background: var(--card); border-radius: 8px; padding: 10px 14px; }
dl.figures dt { color: var(--soft); font-size: 12.5px; } dl.figures dd { margin: 0; font-size: 20px; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap; } dl.figures small { font-size: 12.5px; font-weight: 400; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); } th, td { padding: 5px 12px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); } .number { text-align: right; white-space: nowrap; }
.held { color: var(--good); } .broken { color: var(--bad); font-weight: 600; } .unknown { color: var(--dim); }
svg { width: 100%; height: auto; display: block; } svg text { font: 11.5px system-ui, sans-serif; }
.grid { stroke: var(--rule); } .tick { fill: var(--soft); } .line { fill: none; stroke-width: 1.8;
  stroke-linejoin: round; } .bar { fill: var(--bad); opacity: .55; }
.line.blue { stroke: var(--blue); } .line.violet { stroke: var(--violet); } .line.orange { stroke: var(--orange); }
.line.gray { stroke: var(--gray); stroke-dasharray: 5 4; } circle { stroke: none; }
.name.blue, circle.blue { fill: var(--blue); } .name.violet, circle.violet { fill: var(--violet); }
.name.orange, circle.orange { fill: var(--orange); } .name.gray, circle.gray { fill: var(--gray); }
.share { background: var(--blue); height: 11px; margin-top: 5px; min-width: 1px; border-radius: 2px; }
td:has(.share) { width: 60%; } td span { display: block; }
.deep1 { padding-left: 16px; } .deep2 { padding-left: 32px; color: var(--soft); }
code { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; }
@media (max-width: 720px) { main { padding: 20px 16px; } dl.figures { grid-template-columns: repeat(3, 1fr); }
  table { display: block; overflow-x: auto; } td:has(.share) { min-width: 160px; } }
.bound { stroke: var(--bad); stroke-dasharray: 2 3; } .bound-name { fill: var(--bad); }
"""

_RIGHT = "\0"
"""Before a cell that is a number; no text has it."""


def right(text: str) -> str:
    return f"{_RIGHT}{text}"


def rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    lines = [_row("th", head)] if head else []
    return "\n".join(["<table>", *lines, *(_row("td", row) for row in rows), "</table>"])


def _row(tag: str, cells: Iterable[str]) -> str:
    written = (
        f'<{tag} class="number">{cell.removeprefix(_RIGHT)}</{tag}>'
        if cell.startswith(_RIGHT)
        else f"<{tag}>{cell}</{tag}>"
        for cell in cells
    )
    return f"<tr>{''.join(written)}</tr>"
