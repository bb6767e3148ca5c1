import pytest
import torch

from tests.decoding.toys import ToyScorer, ToyTransducer
from w2vbert.decoding.rescoring import rank, rescore, score_texts, total_score
from w2vbert.decoding.scorers import WeightedScorer
from w2vbert.decoding.search import SearchConfig, search

CPU = torch.device("cpu")


def test_whole_texts_are_scored_in_one_batch() -> None:
    scorer = ToyScorer(5)
    texts = [(1, 2, 3), (), (4,), (2, 2, 2, 2, 1)]
    assert score_texts(scorer, texts, CPU) == pytest.approx([scorer.whole(text) for text in texts], abs=1e-5)
    assert score_texts(scorer, [], CPU) == []


def test_a_second_pass_ranks_as_the_first_would_have() -> None:
    torch.manual_seed(0)
    model, first, second = ToyTransducer(vocab_size=4, seed=1), ToyScorer(4, seed=1), ToyScorer(4, seed=2)
    encoder_out, lengths = 2 * torch.randn(6, 5, 8), torch.full((6,), 5)
    wide = SearchConfig(method="beam", beam_size=400, nbest=400, length_bonus=0.3)
    together = [WeightedScorer("a", first, 0.4), WeightedScorer("b", second, 0.8)]
    expected = search(model, encoder_out, lengths, wide, together)
    plain = search(model, encoder_out, lengths, wide, [WeightedScorer("a", first, 0.1)])
    found = rescore(plain, together[1:], CPU, {"a": 0.4}, length_bonus=0.3)
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)
        assert {h.tokens: h.posterior for h in ours} == pytest.approx({h.tokens: h.posterior for h in theirs}, abs=1e-4)
        assert ours[0].scores == pytest.approx(theirs[0].scores, abs=1e-4)


def test_stored_scores_are_weighed_without_a_model() -> None:
    torch.manual_seed(1)
    model, scorer = ToyTransducer(vocab_size=5, seed=3), ToyScorer(5)
    config = SearchConfig(method="beam", beam_size=8, nbest=8)
    (nbest,) = search(model, torch.randn(1, 9, 8), torch.tensor([9]), config, [WeightedScorer("lm", scorer, 0.5)])
    assert [h.tokens for h in rank(nbest, {"lm": 0.5})] == [h.tokens for h in nbest]
    assert [h.score for h in rank(nbest, {})] == sorted((h.model_score for h in nbest), reverse=True)
    per_label = rank(nbest, {"lm": 2.0}, length_bonus=1.0, normalize=True)
    best = max(nbest, key=lambda h: total_score(h, {"lm": 2.0}, 1.0) / max(len(h.tokens), 1))
    assert per_label[0].tokens == best.tokens
    assert rank([], {"lm": 1.0}) == []
