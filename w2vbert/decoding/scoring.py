"""Word error rate with its interval, and the files that hold it.

Words are what stands between white space, compared as they are: whoever wants another spelling to count as the same
normalises the texts before (`normalization.py`). Alignments are those of sclite (`alignment.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2vbert.decoding.alignment import NO_PARTNER, Counts, align, count_characters, count_pairs, number_words
from w2vbert.decoding.significance import Difference, compare, group_sums, rate_interval, segment_differences
from w2vbert.errors import UserError
from w2vbert.files import atomic_file

NOTHING = ""  # stands in an alignment where a word has no partner
NAMED = 3  # ids that an error message names


@dataclass(frozen=True)
class UtteranceScore:
    """The alignment of one utterance and its counts."""

    id: str
    speaker: str
    """The utterance's id where no speakers are known."""
    pairs: tuple[tuple[str, str], ...]
    """Reference and hypothesis word side by side; an empty string where there is none."""
    counts: Counts
    """Of words."""

    @property
    def words(self) -> int:
        """Words of the reference."""
        return self.counts.length

    @property
    def insertions(self) -> int:
        return self.counts.insertions

    @property
    def deletions(self) -> int:
        return self.counts.deletions

    @property
    def substitutions(self) -> int:
        return self.counts.substitutions

    @property
    def errors(self) -> int:
        return self.counts.errors

    @property
    def ref(self) -> str:
        """The reference, its words parted by a space."""
        return " ".join(ref for ref, _ in self.pairs if ref != NOTHING)

    @property
    def hyp(self) -> str:
        """The hypothesis, its words parted by a space."""
        return " ".join(hyp for _, hyp in self.pairs if hyp != NOTHING)


@dataclass(frozen=True)
class ErrorRate:
    """Error rate of a set, over words or characters."""

    counts: Counts
    interval: tuple[float, float]
    """95 % interval of the rate, percent."""

    @property
    def percent(self) -> float:
        """100 * errors / length."""
        return self.counts.percent


@dataclass(frozen=True)
class WerResult:
    """Word error rate of a set."""

    rate: ErrorRate
    resampled: str
    """What the interval takes for independent: `speakers`, or `utterances` where fewer than two speakers are known, or
    `words` where there is one utterance."""
    units: int
    """How many of these there are."""
    utterances: tuple[UtteranceScore, ...]

    @property
    def wer(self) -> float:
        """Percent: 100 * errors / words."""
        return self.rate.percent

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `wer`, percent."""
        return self.rate.interval

    @property
    def errors(self) -> int:
        return self.rate.counts.errors

    @property
    def insertions(self) -> int:
        return self.rate.counts.insertions

    @property
    def deletions(self) -> int:
        return self.rate.counts.deletions

    @property
    def substitutions(self) -> int:
        return self.rate.counts.substitutions

    @property
    def words(self) -> int:
        """Words of the references."""
        return self.rate.counts.length

    @property
    def wrong_utterances(self) -> int:
        """Utterances with an error."""
        return sum(utterance.errors > 0 for utterance in self.utterances)

    @property
    def unit_names(self) -> list[str]:
        """The unit of each utterance."""
        return [u.speaker if self.resampled == "speakers" else u.id for u in self.utterances]

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
        groups: id -> speaker, for all ids; the interval then draws speakers, whose errors hang together.

    Raises:
        UserError: ids that stand on one side only, or no word to be recognised.
    """
    check_ids(refs, hyps)
    utterances = _align(refs, hyps, groups or {id: id for id in refs})
    if not any(utterance.words for utterance in utterances):
        raise UserError("the references hold no words, so there is no word error rate")
    resampled = "speakers" if groups is not None and len({u.speaker for u in utterances}) > 1 else "utterances"
    units = [u.speaker if resampled == "speakers" else u.id for u in utterances]
    rate = _rate([u.counts for u in utterances], units)
    if len(utterances) == 1:
        return WerResult(rate, "words", rate.counts.length, utterances)
    return WerResult(rate, resampled, len(set(units)), utterances)


def score_characters(result: WerResult) -> tuple[ErrorRate, list[Counts]]:
    """Character error rate, white space left out, and the counts of each utterance."""
    counts = count_characters([u.ref for u in result.utterances], [u.hyp for u in result.utterances])
    return _rate(counts, result.unit_names), counts


def compare_results(first: WerResult, other: WerResult) -> Difference:
    """The difference of two systems that were scored on the same references, by the units of their intervals."""
    assert [u.id for u in first.utterances] == [u.id for u in other.utterances]
    both = list(zip(first.utterances, other.utterances, strict=True))
    segments = [d for ours, theirs in both for d in segment_differences(ours.pairs, theirs.pairs)]
    words = group_sums(first.unit_names, [u.words for u in first.utterances])
    errors = group_sums(first.unit_names, [u.errors for u in other.utterances])
    first_errors = group_sums(first.unit_names, [u.errors for u in first.utterances])
    return compare(errors, first_errors, words, segments)


def _rate(counts: Sequence[Counts], units: Sequence[str]) -> ErrorRate:
    errors = group_sums(units, [one.errors for one in counts])
    lengths = group_sums(units, [one.length for one in counts])
    return ErrorRate(sum(counts, start=Counts()), rate_interval(errors, lengths))


def _align(refs: Mapping[str, str], hyps: Mapping[str, str], groups: Mapping[str, str]) -> tuple[UtteranceScore, ...]:
    words = [(text.split(), hyps[id].split()) for id, text in refs.items()]
    numbers: dict[str, int] = {}
    sides = [number_words([pair[side] for pair in words], numbers) for side in (0, 1)]
    scores = []
    for id, (ref, hyp), ref_numbers, hyp_numbers, path in zip(refs, words, *sides, align(*sides), strict=True):
        pairs = tuple(
            (NOTHING if i == NO_PARTNER else ref[i], NOTHING if j == NO_PARTNER else hyp[j]) for i, j in path.tolist()
        )
        scores.append(UtteranceScore(id, groups[id], pairs, count_pairs(ref_numbers, hyp_numbers, path)))
    return tuple(scores)


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


def check_ids(refs: Mapping[str, object], hyps: Mapping[str, object]) -> None:
    """Refuses ids that stand on one side only.

    Raises:
        UserError: names some of them.
    """
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


def _recogs(result: WerResult) -> str:
    lines = []
    for utterance in result.utterances:
        lines.append(f"{utterance.id}:\tref={utterance.ref.split()}\n")
        lines.append(f"{utterance.id}:\thyp={utterance.hyp.split()}\n")
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
