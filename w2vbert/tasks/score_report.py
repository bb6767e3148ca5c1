"""Scores for the eye: what `w2vbert score` prints, and the files that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from w2vbert.decoding.breakdown import Group, by_length, by_speaker, find_confusions, worst_utterances
from w2vbert.decoding.normalization import Normalization
from w2vbert.decoding.scoring import write_scores
from w2vbert.files import atomic_dir, check_writable, write_json
from w2vbert.stages import Step
from w2vbert.tasks.score import System, describe
from w2vbert.tasks.score_page import render_alignments, render_page
from w2vbert.tasks.text_table import align_columns

SPEAKERS, WORST, CONFUSED = 10, 3, 8
"""Speakers, utterances and errors of each kind that are printed."""


def write_details(
    out: Path, ref: Path, hyps: Sequence[Path], systems: Sequence[System], normalization: Normalization
) -> None:
    """Writes all there is to know about the scores into a folder, which appears whole or not at all.

    For each system `recogs-`, `errs-`, `wer-summary-` and `align-NAME.txt`; `scores.json`; `report.html`.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    inputs = {"ref": ref} | {f"hyp {number}": hyp for number, hyp in enumerate(hyps, 1)}
    step = Step("score", out, {"normalization": normalization.name}, inputs)
    check_writable(out)
    step.check_out()
    results = [(system.name, system.result) for system in systems]
    with atomic_dir(out) as folder:
        for name, result in results:
            write_scores(folder, name, result, name)
            text = render_alignments(result, normalization.describe())
            (folder / f"align-{name}.txt").write_text(text, encoding="utf-8")
        write_json(folder / "scores.json", describe(systems, normalization))
        page = render_page(results, render(systems, normalization))
        (folder / "report.html").write_text(page, encoding="utf-8")
        step.finish(folder)


def render(systems: Sequence[System], normalization: Normalization) -> str:
    """Rates and, of one system, where its errors are; of several, how they differ."""
    head = f"normalization: {normalization.describe()}\n"
    if len(systems) > 1:
        return head + _render_comparison(systems)
    return head + _render_system(systems[0])


def _render_system(system: System) -> str:
    result, cer = system.result, system.cer
    low, high = cer.interval
    parts = [
        result.summary(),
        f"CER {cer.percent:.2f} % (95 % interval {low:.2f} to {high:.2f}): {cer.counts.errors} errors in "
        f"{cer.counts.length} characters: {cer.counts.insertions} insertions, {cer.counts.deletions} deletions, "
        f"{cer.counts.substitutions} substitutions",
    ]
    speakers = by_speaker(result, system.characters)
    if speakers:
        title = "speaker" if len(speakers) <= SPEAKERS else f"speaker (worst {SPEAKERS} of {len(speakers)})"
        parts += ["", *_group_table(title, speakers[:SPEAKERS])]
    parts += ["", *_group_table("words in reference", by_length(result, system.characters))]
    worst = worst_utterances(result, WORST)
    if worst:
        parts += ["", "most errors"]
    for utterance in worst:
        parts += [f"  {utterance.id} (errors: {utterance.errors}, words: {utterance.words})"]
        parts += [f"    ref: {utterance.ref}", f"    hyp: {utterance.hyp}"]
    return "\n".join([*parts, *_confusion_lines(system)]) + "\n"


def _confusion_lines(system: System) -> list[str]:
    found = find_confusions(system.result, CONFUSED)
    rows = {
        "substituted": [f"{ref} -> {hyp} ({times})" for ref, hyp, times in found.substitutions],
        "deleted": [f"{ref} ({times})" for ref, times in found.deletions],
        "inserted": [f"{hyp} ({times})" for hyp, times in found.insertions],
    }
    lines = [f"  {name}: {', '.join(errors)}" for name, errors in rows.items() if errors]
    return ["", "most frequent errors", *lines] if lines else []


def _group_table(title: str, groups: Sequence[Group]) -> list[str]:
    head = [title, "utterances", "words", "WER", "ins", "del", "sub", "CER"]
    rows = []
    for group in groups:
        words, characters = group.words, group.characters
        wer = f"{words.percent:.2f}" if words.length else "-"
        cer = f"{characters.percent:.2f}" if characters.length else "-"
        counts = [words.insertions, words.deletions, words.substitutions]
        rows.append([group.name, str(group.utterances), str(words.length), wer, *map(str, counts), cer])
    return align_columns([head, *rows])


def _render_comparison(systems: Sequence[System]) -> str:
    first = systems[0].result
    head = ["system", "WER", "95 % interval", "ins", "del", "sub", "CER"]
    head += ["difference", "95 % interval", "p", "p, segments", ""]
    rows = []
    for system in systems:
        result, difference = system.result, system.difference
        counts = [str(n) for n in (result.insertions, result.deletions, result.substitutions)]
        row = [system.name, f"{result.wer:.2f}", _span(result.interval), *counts, f"{system.cer.percent:.2f}"]
        if difference is None:
            rows.append([*row, "", "", "", "", ""])
            continue
        verdict = "may be chance" if difference.is_chance else ("better" if difference.percent < 0 else "worse")
        row += [f"{difference.percent:+.2f}", _span(difference.interval, "+"), _p(difference.p)]
        rows.append([*row, _p(difference.p_segments), verdict])
    notes = [
        f"{first.words} words in {len(first.utterances)} utterances; intervals and p by {first.units} "
        f"{first.resampled}, p of the matched-pairs test by segments.",
        f"Differences are from {systems[0].name}. p: how often chance alone makes one as large; below 0.05 it is taken "
        "for real.",
    ]
    return "\n".join([*align_columns([head, *rows]), "", *notes]) + "\n"


def _span(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "-" if interval is None else f"{interval[0]:{sign}.2f} to {interval[1]:{sign}.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
