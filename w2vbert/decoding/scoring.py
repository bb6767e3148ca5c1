"""Word error rate with its interval, and the files that hold it.

Words are what stands between white space, compared as they are: no case folding, no other normalisation.
Alignments cost 4 for a substitution and 3 for an insertion or deletion, as sclite's do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kaldialign
import numpy as np
from numpy.typing import NDArray

from w2vbert.errors import UserError
from w2vbert.files import atomic_file

NOTHING = ""  # stands in an alignment where a word has no partner
RESAMPLES = 2000
SEED = 20210814
NAMED = 3  # ids that an error message names


@dataclass(frozen=True)
class UtteranceScore:
    """The alignment of one utterance and its counts."""

    id: str
    pairs: tuple[tuple[str, str], ...]
    """Reference and hypothesis word side by side; an empty string where there is none."""

    @property
    def words(self) -> int:
        """Words of the reference."""
        return sum(ref != NOTHING for ref, _ in self.pairs)

    @property
    def insertions(self) -> int:
        return sum(ref == NOTHING for ref, _ in self.pairs)

    @property
    def deletions(self) -> int:
        return sum(hyp == NOTHING for _, hyp in self.pairs)

    @property
    def substitutions(self) -> int:
        return sum(NOTHING not in (ref, hyp) and ref != hyp for ref, hyp in self.pairs)

    @property
    def errors(self) -> int:
        return sum(ref != hyp for ref, hyp in self.pairs)


@dataclass(frozen=True)
class WerResult:
    """Word error rate of a set."""

    errors: int
    insertions: int
    deletions: int
    substitutions: int
    words: int
    """Words of the references."""
    wer: float
    """Percent: 100 * errors / words."""
    interval: tuple[float, float]
    """95 % bootstrap interval of `wer`, percent."""
    resampled: str
    """What the bootstrap drew: `speakers`, or `utterances` where fewer than two speakers are known."""
    units: int
    """How many of these there are."""
    utterances: tuple[UtteranceScore, ...]

    @property
    def wrong_utterances(self) -> int:
        """Utterances with an error."""
        return sum(utterance.errors > 0 for utterance in self.utterances)

    def to_dict(self) -> dict[str, Any]:
        """All but the alignments, for JSON."""
        return {
            "wer": self.wer,
            "interval": list(self.interval),
            "resampled": self.resampled,
            "units": self.units,
            "errors": self.errors,
            "insertions": self.insertions,
            "deletions": self.deletions,
            "substitutions": self.substitutions,
            "words": self.words,
            "utterances": len(self.utterances),
            "wrong_utterances": self.wrong_utterances,
        }

    def summary(self) -> str:
        """The counts on one line."""
        low, high = self.interval
        return (
            f"WER {self.wer:.2f} % (95 % interval {low:.2f} to {high:.2f}, by {self.units} {self.resampled}): "
            f"{self.errors} errors in {self.words} words: {self.insertions} insertions, {self.deletions} deletions, "
            f"{self.substitutions} substitutions; {self.wrong_utterances} of {len(self.utterances)} utterances wrong"
        )


def score_pairs(refs: Mapping[str, str], hyps: Mapping[str, str], groups: Mapping[str, str] | None = None) -> WerResult:
    """Scores hypotheses against references.

    Args:
        refs: id -> text; may hold empty texts, but not only these.
        hyps: id -> text, for exactly the same ids.
        groups: id -> speaker, for all ids; the bootstrap then draws speakers, whose errors hang together.

    Raises:
        UserError: ids that stand on one side only, or no word to be recognised.
    """
    _check_ids(refs, hyps)
    utterances = tuple(UtteranceScore(id, _align(text.split(), hyps[id].split())) for id, text in refs.items())
    words = sum(utterance.words for utterance in utterances)
    if words == 0:
        raise UserError("the references hold no words, so there is no word error rate")
    errors = sum(utterance.errors for utterance in utterances)
    speakers = [u.id if groups is None else groups[u.id] for u in utterances]
    resampled = "speakers" if groups is not None and len(set(speakers)) > 1 else "utterances"
    units = speakers if resampled == "speakers" else [u.id for u in utterances]
    return WerResult(
        errors=errors,
        insertions=sum(utterance.insertions for utterance in utterances),
        deletions=sum(utterance.deletions for utterance in utterances),
        substitutions=sum(utterance.substitutions for utterance in utterances),
        words=words,
        wer=100.0 * errors / words,
        interval=_bootstrap(units, utterances),
        resampled=resampled,
        units=len(set(units)),
        utterances=utterances,
    )


def write_scores(folder: Path, set_name: str, result: WerResult, settings: str) -> None:
    """Writes recogs-SET.txt, errs-SET.txt and wer-summary-SET.txt, as icefall's decoding leaves them.

    settings: name of the decoding method, for the summary.
    """
    low, high = result.interval
    row = f"{settings}\t{result.wer:.2f}\t{low:.2f}\t{high:.2f}"
    texts = {
        f"recogs-{set_name}.txt": _recogs(result),
        f"errs-{set_name}.txt": _errs(result),
        f"wer-summary-{set_name}.txt": f"settings\tWER\tlow\thigh\n{row}\n",
    }
    for name, text in texts.items():
        with atomic_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def _check_ids(refs: Mapping[str, str], hyps: Mapping[str, str]) -> None:
    missing = [id for id in refs if id not in hyps]
    unknown = [id for id in hyps if id not in refs]
    if missing:
        raise UserError(f"{len(missing)} of {len(refs)} references have no hypothesis: {_name_some(missing)}")
    if unknown:
        raise UserError(f"{len(unknown)} of {len(hyps)} hypotheses have no reference: {_name_some(unknown)}")
    if not refs:
        raise UserError("there are no utterances to score")


def _name_some(ids: list[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def _align(ref: list[str], hyp: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple(kaldialign.align(ref, hyp, NOTHING, sclite_mode=True))


def _bootstrap(units: list[str], utterances: tuple[UtteranceScore, ...]) -> tuple[float, float]:
    """95 % percentile interval of the error rate (percent), drawing units with replacement.

    units: the unit (speaker) of each utterance. Source: Bisani and Ney, "Bootstrap estimates for confidence intervals
    in ASR performance evaluation", ICASSP 2004. The seed is fixed, so equal data give equal intervals.
    """
    names, unit = np.unique(units, return_inverse=True)
    errors = np.bincount(unit, weights=[utterance.errors for utterance in utterances])  # (units,)
    words = np.bincount(unit, weights=[utterance.words for utterance in utterances])
    generator = np.random.default_rng(SEED)
    rates: list[NDArray[np.float64]] = []
    chunk = max(1, 5_000_000 // len(names))  # bounds the memory
    for start in range(0, RESAMPLES, chunk):
        draws = generator.multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=min(chunk, RESAMPLES - start)
        )
        drawn_words = draws @ words
        rates.append((draws @ errors)[drawn_words > 0] / drawn_words[drawn_words > 0])
    low, high = np.percentile(np.concatenate(rates), [2.5, 97.5])
    return 100.0 * float(low), 100.0 * float(high)


def _recogs(result: WerResult) -> str:
    lines = []
    for utterance in result.utterances:
        lines.append(f"{utterance.id}:\tref={[ref for ref, _ in utterance.pairs if ref != NOTHING]}\n")
        lines.append(f"{utterance.id}:\thyp={[hyp for _, hyp in utterance.pairs if hyp != NOTHING]}\n")
    return "".join(lines)


def _errs(result: WerResult) -> str:
    """The counts, every alignment, then each kind of error and each word, the most frequent first."""
    pairs = Counter(pair for utterance in result.utterances for pair in utterance.pairs)
    correct = sum(count for (ref, hyp), count in pairs.items() if ref == hyp)
    lines = [
        f"%WER = {result.wer:.2f}",
        f"Errors: {result.insertions} insertions, {result.deletions} deletions, {result.substitutions} substitutions, "
        f"over {result.words} reference words ({correct} correct)",
        result.summary(),
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, "
        "PER-WORD STATS:",
        "",
        "PER-UTT DETAILS: corr or (ref->hyp)",
        *(f"{utterance.id}:\t{' '.join(map(_mark, utterance.pairs))}" for utterance in result.utterances),
    ]
    wrong = {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
    substitutions = {f"{ref} -> {hyp}": count for (ref, hyp), count in wrong.items() if NOTHING not in (ref, hyp)}
    lines += ["", "SUBSTITUTIONS: count ref -> hyp", *_ranked(substitutions)]
    lines += ["", "DELETIONS: count ref", *_ranked({ref: count for (ref, hyp), count in wrong.items() if not hyp})]
    lines += ["", "INSERTIONS: count hyp", *_ranked({hyp: count for (ref, hyp), count in wrong.items() if not ref})]
    lines += ["", "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp", *_word_stats(pairs)]
    return "\n".join(lines) + "\n"


def _mark(pair: tuple[str, str]) -> str:
    ref, hyp = pair
    return ref if ref == hyp else f"({ref or '*'}->{hyp or '*'})"


def _ranked(counts: Mapping[str, int]) -> Iterable[str]:
    return (f"{count}   {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _word_stats(pairs: Mapping[tuple[str, str], int]) -> Iterable[str]:
    in_ref, in_hyp, correct = Counter[str](), Counter[str](), Counter[str]()
    for (ref, hyp), count in pairs.items():
        in_ref[ref] += count
        in_hyp[hyp] += count
        correct[ref] += count if ref == hyp else 0
    words = (in_ref.keys() | in_hyp.keys()) - {NOTHING}
    wrong = {word: in_ref[word] + in_hyp[word] - 2 * correct[word] for word in words}
    for word in sorted(words, key=lambda word: (-wrong[word], word)):
        yield f"{word}   {correct[word]} {wrong[word]} {in_ref[word]} {in_hyp[word]}"
