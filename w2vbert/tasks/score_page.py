"""Alignments as text and as a page of HTML."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from html import escape

from w2vbert.decoding.scoring import NOTHING, UtteranceScore, WerResult

COLUMNS = 110
"""Widest line of an alignment as text; a longer one goes on below."""
MOST_UTTERANCES = 5000
"""On a page: browsers grow slow with more."""

Pair = tuple[str, str]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }}
pre {{ overflow-x: auto; padding: .8em; border: 1px solid #8886; border-radius: 4px; font-size: 13px; }}
section {{ border-top: 1px solid #8886; padding: .5em 0; }}
h2 {{ font-size: .95em; margin: 0; }}
h2 span {{ font-weight: normal; opacity: .7; }}
p {{ margin: .2em 0; overflow-wrap: break-word; }}
b {{ font-weight: normal; opacity: .7; }}
del, ins, .sub {{ padding: 0 .15em; border-radius: 3px; text-decoration: none; }}
del {{ background: #d03b3b33; text-decoration: line-through; }}
ins {{ background: #2a78d633; }}
.sub {{ background: #eda10040; }}
.sub s {{ opacity: .65; }}
#controls {{ position: sticky; top: 0; background: Canvas; padding: .6em 0; }}
body.wrong section.right, section.hidden {{ display: none; }}
</style>
</head>
<body>
<h1>Word error rate</h1>
<pre>{summary}</pre>
<p><del>deleted</del> <ins>inserted</ins> <span class="sub"><s>reference</s> recognised instead</span></p>
<div id="controls"><label><input type="checkbox" id="wrong"> only utterances with errors</label>
<label>&emsp;search <input type="search" id="search"></label></div>
{note}
<main>
{utterances}
</main>
<script>
const wrong = document.getElementById("wrong"), search = document.getElementById("search");
wrong.onchange = () => document.body.classList.toggle("wrong", wrong.checked);
search.oninput = () => {{
  const wanted = search.value.toLowerCase();
  for (const section of document.querySelectorAll("section"))
    section.classList.toggle("hidden", !section.textContent.toLowerCase().includes(wanted));
}};
</script>
</body>
</html>
"""


def render_alignments(result: WerResult, normalization: str) -> str:
    """Every utterance with reference and hypothesis one under the other; S, D and I mark the errors."""
    lines = [result.summary(), f"normalization: {normalization}", ""]
    for utterance in result.utterances:
        counts = utterance.counts
        lines.append(
            f"{utterance.id} (errors: {counts.errors}, words: {counts.length}, ins: {counts.insertions}, "
            f"del: {counts.deletions}, sub: {counts.substitutions})"
        )
        for part in _split_wide(utterance.pairs):
            lines += [*_three_lines(part), ""]
        if not utterance.pairs:
            lines.append("")
    return "\n".join(lines)


def render_page(systems: Sequence[tuple[str, WerResult]], summary: str) -> str:
    """A page without anything from outside: the summary, and the utterances, those with the most errors first.

    systems: (name, scores), all of the same references.
    """
    rows = list(zip(*(result.utterances for _, result in systems), strict=True))
    rows.sort(key=lambda row: (-sum(u.errors for u in row), row[0].words))
    shown = rows[:MOST_UTTERANCES]
    note = f"<p>The {len(shown)} of {len(rows)} utterances with the most errors.</p>" if len(shown) < len(rows) else ""
    names = [name for name, _ in systems]
    return _PAGE.format(
        title=escape(f"WER of {', '.join(names)}"),
        summary=escape(summary),
        note=note,
        utterances="\n".join(_section(names, row) for row in shown),
    )


def _section(names: Sequence[str], row: Sequence[UtteranceScore]) -> str:
    errors = ", ".join(f"{u.errors}" for u in row)
    kind = "some" if any(u.errors for u in row) else "right"
    head = f"<h2>{escape(row[0].id)} <span>errors: {errors}, words: {row[0].words}</span></h2>"
    labels = [f"<b>{escape(name)}:</b> " if len(names) > 1 else "" for name in names]
    texts = (f"<p>{label}{_mark_up(utterance.pairs)}</p>" for label, utterance in zip(labels, row, strict=True))
    return f'<section class="{kind}">{head}{"".join(texts)}</section>'


def _mark_up(pairs: Sequence[Pair]) -> str:
    parts = []
    for ref, hyp in pairs:
        if ref == hyp:
            parts.append(escape(ref))
        elif ref == NOTHING:
            parts.append(f"<ins>{escape(hyp)}</ins>")
        elif hyp == NOTHING:
            parts.append(f"<del>{escape(ref)}</del>")
        else:
            parts.append(f'<span class="sub"><s>{escape(ref)}</s> {escape(hyp)}</span>')
    return " ".join(parts)


def _split_wide(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Parts of an alignment that fit into `COLUMNS`, or hold a single pair."""
    part: list[Pair] = []
    used = 0
    for pair in pairs:
        width = max(map(_width, pair), default=0) + 1
        if part and used + width > COLUMNS:
            yield part
            part, used = [], 0
        part.append(pair)
        used += width
    if part:
        yield part


def _three_lines(pairs: Sequence[Pair]) -> list[str]:
    lines = ["  REF:", "  HYP:", "      "]
    for ref, hyp in pairs:
        width = max(_width(ref), _width(hyp))
        mark = "" if ref == hyp else ("I" if ref == NOTHING else "D" if hyp == NOTHING else "S")
        for index, text in enumerate((ref or "*" * width, hyp or "*" * width, mark)):
            lines[index] += " " + text + " " * (width - _width(text))
    return [line.rstrip() for line in lines]


def _width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(bool(unicodedata.combining(character)) for character in text)
