import ast
import random
from pathlib import Path

import pytest

from w2vbert.decoding.scoring import score_pairs, write_scores
from w2vbert.errors import UserError


def levenshtein(ref: list[str], hyp: list[str], substitution: int = 1, gap: int = 1) -> int:
    """Cheapest alignment, written down as plainly as can be."""
    row = [gap * j for j in range(len(hyp) + 1)]
    for i, word in enumerate(ref):
        previous, row = row, [gap * (i + 1)]
        for j, other in enumerate(hyp):
            same = previous[j] + (0 if word == other else substitution)
            row.append(min(same, previous[j + 1] + gap, row[j] + gap))
    return row[-1]


def random_pairs(count: int, seed: int, error_prob: float = 0.3) -> tuple[dict[str, str], dict[str, str]]:
    """Sentences of up to 12 words out of 8, and copies with random errors."""
    generator = random.Random(seed)
    words = "a b c d e f g h".split()
    refs, hyps = {}, {}
    for index in range(count):
        ref = generator.choices(words, k=generator.randint(1, 12))
        hyp = [word for word in ref if generator.random() > error_prob / 3]
        hyp = [generator.choice(words) if generator.random() < error_prob / 3 else word for word in hyp]
        for _ in range(sum(generator.random() < error_prob / 3 for _ in ref)):
            hyp.insert(generator.randint(0, len(hyp)), generator.choice(words))
        refs[f"s{index % 10}-{index:05d}"], hyps[f"s{index % 10}-{index:05d}"] = " ".join(ref), " ".join(hyp)
    return refs, hyps


def test_counts_of_an_example_done_by_hand() -> None:
    refs = {"u1": "SET THE LAMP TO TEN", "u2": "STOP", "u3": ""}
    hyps = {"u3": "OH", "u2": "", "u1": "SET A LAMP TO TEN NOW"}
    result = score_pairs(refs, hyps)
    assert (result.substitutions, result.deletions, result.insertions) == (1, 1, 2)
    assert (result.errors, result.words, result.wer) == (4, 6, pytest.approx(100 * 4 / 6))
    assert [utterance.id for utterance in result.utterances] == ["u1", "u2", "u3"]
    assert result.wrong_utterances == 3
    assert result.utterances[0].pairs[1] == ("THE", "A")
    assert result.utterances[0].pairs[-1] == ("", "NOW")


def test_alignments_are_the_cheapest_with_the_weights_of_sclite() -> None:
    refs, hyps = random_pairs(400, seed=1, error_prob=0.8)
    result = score_pairs(refs, hyps)
    assert result.errors == result.insertions + result.deletions + result.substitutions
    for utterance in result.utterances:
        ref, hyp = refs[utterance.id].split(), hyps[utterance.id].split()
        assert [word for word, _ in utterance.pairs if word] == ref
        assert [word for _, word in utterance.pairs if word] == hyp
        cost = 4 * utterance.substitutions + 3 * (utterance.insertions + utterance.deletions)
        assert cost == levenshtein(ref, hyp, substitution=4, gap=3)
        assert utterance.errors >= levenshtein(ref, hyp)
    total = sum(levenshtein(refs[id].split(), hyps[id].split()) for id in refs)
    assert result.errors == pytest.approx(total, rel=0.02)


def test_the_interval_holds_the_value_and_shrinks_with_data() -> None:
    widths = []
    for count in (50, 500, 5000):
        result = score_pairs(*random_pairs(count, seed=2))
        low, high = result.interval
        assert low < result.wer < high
        assert (result.resampled, result.units) == ("utterances", count)
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0] and widths[2] < 0.5 * widths[1]


def test_speakers_who_differ_widen_the_interval() -> None:
    refs = {f"{speaker}-{n}": "one two three four" for speaker in range(8) for n in range(50)}
    hyps = {id: "one two three four" if int(id[0]) % 2 else "one two three" for id in refs}
    by_speaker = score_pairs(refs, hyps, {id: id[0] for id in refs})
    by_utterance = score_pairs(refs, hyps)
    assert (by_speaker.resampled, by_speaker.units) == ("speakers", 8)
    width = [high - low for low, high in (by_speaker.interval, by_utterance.interval)]
    assert width[0] > 4 * width[1]
    assert by_speaker.interval == score_pairs(refs, hyps, {id: id[0] for id in refs}).interval
    one_speaker = score_pairs(refs, hyps, dict.fromkeys(refs, "7"))
    assert one_speaker.resampled == "utterances" and one_speaker.interval == by_utterance.interval


def test_a_perfect_result_and_a_single_utterance() -> None:
    result = score_pairs({"u": "a b"}, {"u": "a b"}, {"u": "s"})
    assert (result.wer, result.resampled, result.units, result.interval[0]) == (0.0, "words", 2, 0.0)
    assert result.interval[1] == pytest.approx(84.2, abs=0.1)  # two right words say little


def test_ids_must_be_the_same_on_both_sides() -> None:
    with pytest.raises(UserError, match="2 of 3 references have no hypothesis: b, c"):
        score_pairs({"a": "x", "b": "x", "c": "x"}, {"a": "x"})
    with pytest.raises(UserError, match="1 of 2 hypotheses have no reference: b"):
        score_pairs({"a": "x"}, {"a": "x", "b": "x"})
    with pytest.raises(UserError, match="no words"):
        score_pairs({"a": ""}, {"a": "x"})
    with pytest.raises(UserError, match="no utterances"):
        score_pairs({}, {})


def test_the_files_say_what_the_result_says(tmp_path: Path) -> None:
    refs, hyps = random_pairs(60, seed=3)
    hyps[next(iter(hyps))] += " don't"
    result = score_pairs(refs, hyps)
    write_scores(tmp_path, "dev", result, "greedy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errs-dev.txt", "recogs-dev.txt", "wer-summary-dev.txt"]

    read: dict[str, dict[str, str]] = {"ref": {}, "hyp": {}}
    for line in (tmp_path / "recogs-dev.txt").read_text().splitlines():
        id, entry = line.split(":\t", 1)
        kind, words = entry.split("=", 1)
        read[kind][id] = " ".join(ast.literal_eval(words))
    assert read == {"ref": refs, "hyp": hyps}

    errs = (tmp_path / "errs-dev.txt").read_text()
    assert errs.startswith(f"%WER = {result.wer:.2f}\nErrors: {result.insertions} insertions")
    sections = {section.split(":", 1)[0]: section.splitlines()[1:] for section in errs.split("\n\n")[1:]}
    for name, total in (
        ("SUBSTITUTIONS", result.substitutions),
        ("DELETIONS", result.deletions),
        ("INSERTIONS", result.insertions),
    ):
        counts = [int(line.split()[0]) for line in sections[name]]
        assert sum(counts) == total and counts == sorted(counts, reverse=True)
    assert len(sections["PER-UTT DETAILS"]) == 60
    columns = [line.split() for line in sections["PER-WORD STATS"]]
    assert sum(int(column[3]) for column in columns) == result.words
    summary = (tmp_path / "wer-summary-dev.txt").read_text().splitlines()
    assert summary[1].split("\t")[:2] == ["greedy", f"{result.wer:.2f}"]
