import math
from pathlib import Path

import kenlm
import pytest
import torch

from tests.decoding.toys import ToyTransducer
from w2vbert.decoding import scorers
from w2vbert.decoding.ngram import NgramConfig, estimate, piece_word
from w2vbert.decoding.scorers import NgramScorer, WeightedScorer
from w2vbert.decoding.search import SearchConfig, search
from w2vbert.errors import UserError

PIECES = ["<blk>", "<unk>", "\u2581", "A", "\u2581B", "C", "NEVER", "\u2581D"]
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A language model over PIECES, as `w2vbert lm` leaves it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 3, 4, 5, 7])
    sentences = [labels[torch.randint(5, (n % 7 + 1,), generator=generator)].tolist() for n in range(60)]
    words = [piece_word(piece) for piece in PIECES]
    estimate(sentences, words, NgramConfig(order=4)).write_arpa(tmp_path / "lm.arpa")
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in words))
    return tmp_path


def whole(folder: Path, tokens: tuple[int, ...]) -> float:
    """What KenLM says of a sentence, as a natural logarithm."""
    text = " ".join(piece_word(PIECES[token]) for token in tokens)
    return kenlm.Model(str(folder / "lm.arpa")).score(text, bos=True, eos=True) * math.log(10)


def test_scores_add_up_to_those_of_whole_sentences(folder: Path) -> None:
    scorer = NgramScorer.load(folder, PIECES)
    sentences = torch.randint(1, len(PIECES), (50, 8))
    state, total = scorer.start(50, CPU), torch.zeros(50)
    for tokens in sentences.T:
        scores = scorer.scores(state)
        assert scores.shape == (50, len(PIECES)) and scores.isfinite().all()
        total += scores.gather(1, tokens.unsqueeze(1)).squeeze(1)
        state = scorer.advance(state, torch.arange(50), tokens, tokens > 0)
    total += scorer.final(state)
    expected = [whole(folder, tuple(sentence)) for sentence in sentences.tolist()]
    assert total.tolist() == pytest.approx(expected, abs=1e-3)


def test_rows_can_be_chosen_kept_and_repeated(folder: Path) -> None:
    scorer = NgramScorer.load(folder, PIECES)
    emitted = torch.tensor([True, True])
    state = scorer.advance(scorer.start(2, CPU), torch.tensor([0, 1]), torch.tensor([3, 4]), emitted)
    rows, tokens = torch.tensor([1, 1, 0]), torch.tensor([5, 0, 0])
    mixed = scorer.advance(state, rows, tokens, torch.tensor([True, False, False]))
    assert torch.equal(scorer.scores(mixed)[1:], scorer.scores(state)[[1, 0]])
    assert scorer.final(mixed)[1:].tolist() == scorer.final(state)[[1, 0]].tolist()
    assert not torch.equal(scorer.scores(mixed)[0], scorer.scores(state)[1])


def test_fusion_adds_what_kenlm_gives_for_the_whole_text(folder: Path) -> None:
    model, scorer = ToyTransducer(vocab_size=len(PIECES), seed=1), NgramScorer.load(folder, PIECES)
    encoder_out = 2 * torch.randn(6, 10, 8)
    lengths = torch.tensor([10, 7, 9, 10, 1, 4])
    config = SearchConfig(method="beam", beam_size=6, nbest=6)
    for ranked in search(model, encoder_out, lengths, config, [WeightedScorer("ngram", scorer, 0.6)]):
        for h in ranked:
            assert h.scores == pytest.approx({"ngram": whole(folder, h.tokens)}, abs=1e-3)
            assert h.score - h.model_score == pytest.approx(0.6 * whole(folder, h.tokens), abs=1e-3)


def test_each_context_is_asked_of_kenlm_once_and_a_full_cache_starts_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "FIRST_ROWS", 4)
    scorer = NgramScorer.load(folder, PIECES)
    rows = torch.arange(300)
    old = scorer.start(300, CPU)
    for step in range(6):
        old = scorer.advance(old, rows, (rows * (step + 3)) % 7 + 1, rows >= 0)
    assert len(old.automaton.states) == len(set(old.automaton.states))
    assert len(old.automaton.states) > 2 * 4, "the table must have grown"
    before = scorer.scores(old).clone()
    monkeypatch.setattr(scorers, "CACHE_BYTES", 100)
    new = scorer.start(1, CPU)
    assert len(new.automaton.states) == 1
    assert torch.equal(scorer.scores(old), before)


def test_what_is_no_language_model_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="another tokenizer"):
        NgramScorer.load(folder, [*PIECES[:-1], "X"])
    with pytest.raises(UserError, match="none of the tokenizer's pieces"):
        NgramScorer(folder / "lm.arpa", ["x", "y"])
    (folder / "lm.bin").write_bytes(b"not a model")
    with pytest.raises(UserError, match="lm.bin cannot be read"):
        NgramScorer.load(folder, PIECES)
    with pytest.raises(UserError, match="is not a language model"):
        NgramScorer.load(folder / "absent", PIECES)
