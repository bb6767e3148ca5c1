"""Reference files: `lmplz -o N --discount_fallback --text tests/data/ngram/text.txt --arpa ...` of kenlm 0.3.0."""

import gzip
import itertools
import random
import shutil
from pathlib import Path

import kenlm
import pytest

from w2vbert.decoding import ngram
from w2vbert.decoding.ngram import NgramConfig, choose_estimator, estimate, piece_word, run_lmplz
from w2vbert.errors import UserError

DATA = Path(__file__).parents[1] / "data" / "ngram"


def read_text() -> tuple[list[list[int]], list[str]]:
    """The reference text as token ids, and the words of the ids."""
    lines = [line.split() for line in (DATA / "text.txt").read_text().splitlines()]
    words = sorted({word for line in lines for word in line})
    number = {word: index for index, word in enumerate(words)}
    return [[number[word] for word in line] for line in lines], words


def parse_arpa(text: str) -> dict[str, tuple[float, float]]:
    """n-gram -> log10 probability, log10 back-off weight."""
    entries = {}
    for line in text.splitlines():
        columns = line.split("\t")
        if len(columns) > 1:
            entries[columns[1]] = (float(columns[0]), float(columns[2]) if len(columns) > 2 else 0.0)
    return entries


def assert_same_model(ours: str, reference: str) -> None:
    assert ours.split("\\1-grams:")[0] == reference.split("\\1-grams:")[0], "numbers of n-grams"
    mine, theirs = parse_arpa(ours), parse_arpa(reference)
    assert mine.keys() == theirs.keys()
    for entry, values in theirs.items():
        assert mine[entry] == pytest.approx(values, abs=1e-5), entry


@pytest.mark.parametrize("order", [1, 3, 6])
def test_every_probability_and_backoff_is_that_of_lmplz(tmp_path: Path, order: int) -> None:
    sentences, words = read_text()
    estimate(sentences, words, NgramConfig(order=order)).write_arpa(tmp_path / "lm.arpa")
    reference = gzip.open(DATA / f"lmplz-order{order}.arpa.gz", "rt").read()
    assert_same_model((tmp_path / "lm.arpa").read_text(), reference)


@pytest.mark.skipif(shutil.which("lmplz") is None, reason="KenLM's lmplz is not on the path")
@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_lmplz_on_the_path_gives_the_same(tmp_path: Path, order: int) -> None:
    generator = random.Random(order)
    words = [f"w{n}" for n in range(300)]
    sentences = [[int(generator.paretovariate(0.4)) % 300 for _ in range(generator.randint(1, 20))] for _ in range(500)]
    config = NgramConfig(order=order, discount_fallback=(0.4, 0.9, 1.3))
    run_lmplz(sentences, words, config, tmp_path / "lmplz.arpa")
    estimate(sentences, words, config).write_arpa(tmp_path / "ours.arpa")
    assert_same_model((tmp_path / "ours.arpa").read_text(), (tmp_path / "lmplz.arpa").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lmplz.arpa", "ours.arpa"]


def test_probabilities_sum_to_one_after_any_context(tmp_path: Path) -> None:
    sentences, words = read_text()
    for text, order in ((sentences, 4), (sentences[:2], 3), ([[0]], 2)):
        estimate(text, words, NgramConfig(order=order)).write_arpa(tmp_path / "lm.arpa")
        model = kenlm.Model(str(tmp_path / "lm.arpa"))
        known = [word for word in parse_arpa((tmp_path / "lm.arpa").read_text()) if " " not in word and word != "<s>"]
        contexts: list[tuple[int, ...]] = [(), (0,), *itertools.pairwise(text[0])]
        contexts += [tuple(sentence[:5]) for sentence in text[:10]]
        for context, begin in itertools.product(contexts, (True, False)):
            state, after = kenlm.State(), kenlm.State()
            (model.BeginSentenceWrite if begin else model.NullContextWrite)(state)
            for token in context:
                model.BaseScore(state, words[token], after)
                state, after = after, kenlm.State()
            assert sum(10 ** model.BaseScore(state, word, after) for word in known) == pytest.approx(1.0, abs=1e-5)


def test_empty_sentences_do_not_count() -> None:
    sentences, words = read_text()
    ours = estimate([[], *sentences, []], words, NgramConfig(order=2))
    same = estimate(sentences, words, NgramConfig(order=2))
    assert all((a.log10_prob == b.log10_prob).all() for a, b in zip(ours.levels, same.levels, strict=True))
    with pytest.raises(UserError, match="no text"):
        estimate([[], []], words, NgramConfig())


def test_every_piece_is_one_word_and_its_own() -> None:
    pieces = ["\u2581THE", "A", "<s>", "</s>", "<unk>", "", " ", "\u00a0", "\\", "\\u0020", "\t", "\u3000x", "\u200b"]
    words = [piece_word(piece) for piece in pieces]
    assert words[:2] == pieces[:2]
    assert len(set(words)) == len(pieces)
    assert all(len(word.split()) == 1 and word not in ("<s>", "</s>", "<unk>") for word in words)


def test_a_model_of_odd_pieces_is_read_by_kenlm(tmp_path: Path) -> None:
    words = [piece_word(piece) for piece in ("<s>", "\\", " ", "\\data\\", "\u2581\u00c4")]
    estimate([[0, 1, 2, 3, 4], [4, 2]], words, NgramConfig(order=2)).write_arpa(tmp_path / "lm.arpa")
    model = kenlm.Model(str(tmp_path / "lm.arpa"))
    assert all(word in model for word in words)


def test_choice_of_the_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "find_lmplz", lambda: None)
    assert choose_estimator(NgramConfig(), 1000) == "native"
    with pytest.raises(UserError, match="lmplz"):
        choose_estimator(NgramConfig(), ngram.MAX_NATIVE_TOKENS + 1)
    with pytest.raises(UserError, match="not on the path"):
        choose_estimator(NgramConfig(estimator="lmplz"), 1000)
    monkeypatch.setattr(ngram, "find_lmplz", lambda: "/somewhere/lmplz")
    assert choose_estimator(NgramConfig(), 1000) == "lmplz"
    assert choose_estimator(NgramConfig(estimator="native"), 1000) == "native"


def test_config_refuses_what_kenlm_cannot_load() -> None:
    with pytest.raises(ValueError, match="order: 7"):
        NgramConfig(order=7)
    with pytest.raises(ValueError, match="discount_fallback"):
        NgramConfig(discount_fallback=(1.5, 1.0, 1.5))
