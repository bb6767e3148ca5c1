import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.decoding.toys import ToyScorer, ToyTransducer, all_sequences, exact_log_prob, label_log_probs
from w2vbert.decoding.greedy import search_by_frames
from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.model import LabelModel
from w2vbert.decoding.scorers import WeightedScorer
from w2vbert.decoding.search import SearchConfig, search


def batch(model: ToyTransducer, count: int, frames: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random encoder output (B, T, J) with lengths 1 .. frames; garbage in the padding."""
    generator = torch.Generator().manual_seed(seed)
    encoder_out = 2 * torch.randn(count, frames, model.output.in_features, generator=generator)
    lengths = torch.randint(1, frames + 1, (count,), generator=generator)
    lengths[0] = frames
    for row, length in enumerate(lengths.tolist()):
        encoder_out[row, length:] = 1e4
    return encoder_out, lengths


def tokens_of(results: list[list[Hypothesis]]) -> list[tuple[int, ...]]:
    return [ranked[0].tokens for ranked in results]


def reference_greedy(model: ToyTransducer, encoder_out: Tensor, max_symbols: int) -> tuple[list[int], list[int]]:
    """One utterance (T, J), written down as plainly as can be."""
    tokens: list[int] = []
    frames: list[int] = []
    for frame in range(len(encoder_out)):
        for _ in range(max_symbols):
            best = int(label_log_probs(model, encoder_out, tuple(tokens))[frame, -1].argmax())
            if best == model.blank:
                break
            tokens.append(best)
            frames.append(frame)
    return tokens, frames


@pytest.mark.parametrize("max_symbols", [1, 2, 3])
def test_greedy_takes_the_best_choice_on_each_frame(max_symbols: int) -> None:
    model = ToyTransducer(vocab_size=6, seed=1)
    encoder_out, lengths = batch(model, count=20, frames=9)
    found = search(model, encoder_out, lengths, SearchConfig(max_symbols_per_frame=max_symbols))
    assert any(ranked[0].tokens for ranked in found)
    for row, length in enumerate(lengths.tolist()):
        tokens, frames = reference_greedy(model, encoder_out[row, :length], max_symbols)
        assert list(found[row][0].tokens) == tokens
        assert list(found[row][0].frames) == frames


@pytest.mark.parametrize("max_symbols", [1, 3])
@pytest.mark.parametrize("blank_bias", [-1.0, 1.0, 3.0])
def test_both_greedy_forms_and_a_beam_of_one_are_the_same(max_symbols: int, blank_bias: float) -> None:
    model = ToyTransducer(vocab_size=12, joiner_dim=16, seed=2, blank_bias=blank_bias)
    encoder_out, lengths = batch(model, count=200, frames=25)
    greedy = search(model, encoder_out, lengths, SearchConfig(max_symbols_per_frame=max_symbols))
    config = SearchConfig(method="beam", beam_size=1, max_symbols_per_frame=max_symbols)
    beam = search(model, encoder_out, lengths, config)
    with torch.inference_mode():
        by_frames = search_by_frames(LabelModel(model), encoder_out, lengths, max_symbols)
    for (one,), other in zip(greedy + greedy, [ranked[0] for ranked in beam] + by_frames, strict=True):
        assert one.tokens == other.tokens
        assert one.frames == other.frames
        assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-5)
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize(("max_symbols", "frames", "beam_size"), [(1, 5, 400), (2, 3, 900)])
def test_a_wide_beam_is_an_exhaustive_search(max_symbols: int, frames: int, beam_size: int) -> None:
    for seed in range(3):
        model = ToyTransducer(vocab_size=4 if max_symbols == 1 else 3, seed=seed)
        encoder_out, lengths = batch(model, count=3, frames=frames, seed=seed)
        config = SearchConfig(method="beam", beam_size=beam_size, nbest=beam_size, max_symbols_per_frame=max_symbols)
        found = search(model, encoder_out, lengths, config)
        for row, length in enumerate(lengths.tolist()):
            sequences = all_sequences(model.vocab_size, length * max_symbols)
            exact = {s: exact_log_prob(model, encoder_out[row, :length], s, max_symbols) for s in sequences}
            assert sum(math.exp(value) for value in exact.values()) == pytest.approx(1.0, abs=1e-5)
            assert {h.tokens: h.model_score for h in found[row]} == pytest.approx(exact, abs=1e-4)
            assert [h.score for h in found[row]] == sorted((h.score for h in found[row]), reverse=True)
            assert sum(h.posterior for h in found[row]) == pytest.approx(1.0, abs=1e-5)


def test_scorers_are_added_for_each_label_and_for_the_end() -> None:
    model, scorer = ToyTransducer(vocab_size=4, seed=3), ToyScorer(4)
    encoder_out, lengths = batch(model, count=4, frames=5)
    config = SearchConfig(method="beam", beam_size=400, nbest=400, length_bonus=0.2)
    weighted = [WeightedScorer("one", scorer, 0.9), WeightedScorer("two", scorer, 0.5)]
    found = search(model, encoder_out, lengths, config, weighted)
    for row, length in enumerate(lengths.tolist()):
        assert len(found[row]) == len(all_sequences(4, length))
        for h in found[row]:
            exact = exact_log_prob(model, encoder_out[row, :length], h.tokens)
            fused = exact + 2 * 0.7 * scorer.whole(h.tokens) + 0.2 * len(h.tokens)
            assert h.model_score == pytest.approx(exact, abs=1e-4)
            assert h.score == pytest.approx(fused, abs=1e-4)
            assert h.scores == pytest.approx({"one": scorer.whole(h.tokens), "two": scorer.whole(h.tokens)}, abs=1e-4)


@pytest.mark.parametrize("max_symbols", [1, 2])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_batch_gives_each_utterance_what_it_gets_alone(method: Literal["greedy", "beam"], max_symbols: int) -> None:
    model = ToyTransducer(vocab_size=10, joiner_dim=16, seed=4)
    scorers = [WeightedScorer("toy", ToyScorer(10), 0.3)] if method == "beam" else []
    encoder_out, lengths = batch(model, count=12, frames=20)
    config = SearchConfig(method=method, max_symbols_per_frame=max_symbols, nbest=3 if method == "beam" else 1)
    together = search(model, encoder_out, lengths, config, scorers)
    for row, length in enumerate(lengths.tolist()):
        (alone,) = search(model, encoder_out[row : row + 1, :length], lengths[row : row + 1], config, scorers)
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        assert [h.frames for h in alone] == [h.frames for h in together[row]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[row]], abs=1e-4)


@pytest.mark.parametrize("max_symbols", [1, 2])
def test_times_and_label_scores_belong_to_one_alignment(max_symbols: int) -> None:
    model = ToyTransducer(vocab_size=5, seed=5)
    encoder_out, lengths = batch(model, count=30, frames=15)
    config = SearchConfig(method="beam", beam_size=6, nbest=6, max_symbols_per_frame=max_symbols)
    for row, ranked in enumerate(search(model, encoder_out, lengths, config)):
        assert len({h.tokens for h in ranked}) == len(ranked), "equal texts must have been merged"
        for h in ranked:
            assert list(h.frames) == sorted(h.frames)
            assert all(h.frames.count(frame) <= max_symbols for frame in h.frames)
            assert all(0 <= frame < lengths[row] for frame in h.frames)
            lattice = label_log_probs(model, encoder_out[row], h.tokens)
            expected = [float(lattice[t, u, v]) for u, (t, v) in enumerate(zip(h.frames, h.tokens, strict=True))]
            assert h.token_log_probs == pytest.approx(expected, abs=1e-4)


def test_a_wider_beam_finds_better_scores() -> None:
    model = ToyTransducer(vocab_size=12, joiner_dim=16, seed=6, blank_bias=1.0)
    encoder_out, lengths = batch(model, count=100, frames=20)
    scores = {}
    for size in (1, 4, 16):
        found = search(model, encoder_out, lengths, SearchConfig(method="beam", beam_size=size))
        scores[size] = torch.tensor([ranked[0].score for ranked in found])
    greedy = search(model, encoder_out, lengths, SearchConfig())
    scores[0] = torch.tensor([ranked[0].model_score for ranked in greedy])
    assert ((scores[4] >= scores[0] - 1e-4).float().mean()) >= 0.99
    assert ((scores[16] >= scores[4] - 1e-4).float().mean()) >= 0.99


def test_the_predictor_runs_only_for_rows_that_emit() -> None:
    model = ToyTransducer(vocab_size=8, seed=7, blank_bias=2.0)
    encoder_out, lengths = batch(model, count=10, frames=20)
    found = search(model, encoder_out, lengths, SearchConfig())
    assert model.predictor.rows == 10 + sum(len(tokens) for tokens in tokens_of(found))
    model.predictor.rows = 0
    search(model, encoder_out, lengths, SearchConfig(method="beam", beam_size=4))
    assert model.predictor.rows < 0.7 * 4 * int(lengths.sum())


@pytest.mark.parametrize("max_symbols", [1, 2])
def test_the_unknown_label_is_never_emitted_and_the_others_share_its_probability(max_symbols: int) -> None:
    model = ToyTransducer(vocab_size=5, seed=9)
    without = ToyTransducer(vocab_size=5, seed=9)
    with torch.no_grad():
        model.output.bias[4] += 3.0
        without.output.bias[4] = -1e9
    encoder_out, lengths = batch(model, count=20, frames=10)
    greedy = SearchConfig(max_symbols_per_frame=max_symbols)
    for config in (greedy, replace(greedy, method="beam")):
        assert any(4 in tokens for tokens in tokens_of(search(model, encoder_out, lengths, config)))
        found = search(model, encoder_out, lengths, config, unknown=4)
        expected = search(without, encoder_out, lengths, config)
        assert tokens_of(found) == tokens_of(expected) and not any(4 in tokens for tokens in tokens_of(found))
        assert [r[0].score for r in found] == pytest.approx([r[0].score for r in expected], abs=1e-4)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_blank_penalty_is_a_blank_of_lower_score(method: Literal["greedy", "beam"]) -> None:
    model = ToyTransducer(vocab_size=6, seed=4, blank_bias=2.0)
    encoder_out, lengths = batch(model, count=20, frames=10)
    penalised = search(model, encoder_out, lengths, SearchConfig(method=method, blank_penalty=1.5))
    plain = search(model, encoder_out, lengths, SearchConfig(method=method))
    expected = search(
        ToyTransducer(vocab_size=6, seed=4, blank_bias=0.5), encoder_out, lengths, SearchConfig(method=method)
    )
    assert tokens_of(penalised) == tokens_of(expected)
    assert [r[0].model_score for r in penalised] == pytest.approx([r[0].model_score for r in expected], abs=1e-4)
    assert sum(map(len, tokens_of(penalised))) > sum(map(len, tokens_of(plain)))


def test_length_normalization_and_bonus_prefer_longer_texts() -> None:
    model = ToyTransducer(vocab_size=4, seed=8, blank_bias=1.0)
    encoder_out, lengths = batch(model, count=30, frames=6)

    def labels(**keys: float) -> int:
        config = SearchConfig(method="beam", beam_size=100, **keys)  # type: ignore[arg-type]
        return sum(len(tokens) for tokens in tokens_of(search(model, encoder_out, lengths, config)))

    assert labels() < labels(length_bonus=1.0) <= labels(length_bonus=20.0) == int(lengths.sum())
    assert labels() < labels(length_normalization=True)


def test_empty_batches_and_empty_utterances() -> None:
    model = ToyTransducer()
    for config in (SearchConfig(), SearchConfig(method="beam")):
        assert search(model, torch.zeros(0, 3, 8), torch.zeros(0, dtype=torch.long), config) == []
        found = search(model, torch.randn(2, 3, 8), torch.tensor([0, 3]), config)
        assert found[0][0].tokens == () and found[0][0].score == 0.0 and found[0][0].confidence == 0.0
        assert len(found) == 2
        assert tokens_of(search(model, torch.randn(1, 3, 8), torch.tensor([0]), config)) == [()]


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="beam_size: 0"):
        SearchConfig(method="beam", beam_size=0)
    with pytest.raises(ValueError, match="nbest"):
        SearchConfig(method="beam", beam_size=2, nbest=3)
    with pytest.raises(ValueError, match="method: beam"):
        SearchConfig(method="greedy", length_bonus=1.0)
    with pytest.raises(ValueError, match="method: beam"):
        search(
            ToyTransducer(),
            torch.zeros(1, 1, 8),
            torch.tensor([1]),
            SearchConfig(),
            [WeightedScorer("toy", ToyScorer(4), 0.3)],
        )
    twice = [WeightedScorer("toy", ToyScorer(4), weight) for weight in (0.1, 0.2)]
    with pytest.raises(ValueError, match="a name of its own"):
        search(ToyTransducer(), torch.zeros(1, 1, 8), torch.tensor([1]), SearchConfig(method="beam"), twice)
    with pytest.raises(ValueError, match="weight of toy: inf"):
        WeightedScorer("toy", ToyScorer(4), math.inf)


def test_confidence_is_the_geometric_mean_of_the_label_probabilities() -> None:
    h = Hypothesis((1, 2), (0, 3), (math.log(0.5), math.log(0.125)), -3.0, -3.0)
    assert h.confidence == pytest.approx(0.25)


@pytest.mark.parametrize(
    "change", [{"beam_size": 10**6}, {"blank_penalty": float("inf")}, {"length_bonus": float("nan")}]
)
def test_limits_of_the_beam(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        SearchConfig(method="beam", **change)  # type: ignore[arg-type]
