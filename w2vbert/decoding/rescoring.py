"""Second pass: n-best lists scored anew, with stored scores and with those of further language models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.scorers import Scorer, WeightedScorer


def total_score(hypothesis: Hypothesis, weights: Mapping[str, float], length_bonus: float = 0.0) -> float:
    """The transducer's log-probability, weighted scores and the bonus for each label.

    Args:
        hypothesis: with a score by each name in `weights`.
        weights: of the scores; those of other names do not count.
        length_bonus: for each label.
    """
    fused = sum(weight * hypothesis.scores[name] for name, weight in weights.items())
    return hypothesis.model_score + fused + length_bonus * len(hypothesis.tokens)


def rank(
    nbest: Sequence[Hypothesis], weights: Mapping[str, float], length_bonus: float = 0.0, normalize: bool = False
) -> list[Hypothesis]:
    """An n-best list by `total_score`, best first; shares of the beam (`posterior`) stay within the list.

    Args:
        nbest: hypotheses of one utterance.
        weights: of the stored scores.
        length_bonus: for each label.
        normalize: sort by score per label.
    """
    if not nbest:
        return []
    totals = torch.tensor([total_score(h, weights, length_bonus) for h in nbest], dtype=torch.float64)
    posteriors = totals.softmax(0).tolist()
    scores = [
        total / max(len(h.tokens), 1) if normalize else total for total, h in zip(totals.tolist(), nbest, strict=True)
    ]
    changed = [replace(h, score=s, posterior=p) for h, s, p in zip(nbest, scores, posteriors, strict=True)]
    return sorted(changed, key=lambda h: -h.score)


@torch.inference_mode()
def score_texts(scorer: Scorer, texts: Sequence[Sequence[int]], device: torch.device) -> list[float]:
    """Log-probability of whole texts, with the end of the sentence.

    Args:
        scorer: what scores.
        texts: labels of each text.
        device: where the scorer computes.
    """
    if not texts:
        return []
    lengths = torch.tensor([len(text) for text in texts], device=device)
    tokens = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long, device=device)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(list(text), dtype=torch.long, device=device)
    state = scorer.start(len(texts), device)
    total = torch.zeros(len(texts), device=device, dtype=torch.float64)
    rows = torch.arange(len(texts), device=device)
    for place, column in enumerate(tokens.T):
        inside: Tensor = lengths > place
        gained = scorer.scores(state).gather(1, column.unsqueeze(1)).squeeze(1)
        total += gained.masked_fill(~inside, 0.0)
        state = scorer.advance(state, rows, column, inside)
    totals: list[float] = (total + scorer.final(state)).tolist()
    return totals


def rescore(
    nbests: Sequence[Sequence[Hypothesis]],
    scorers: Sequence[WeightedScorer],
    device: torch.device,
    weights: Mapping[str, float] | None = None,
    length_bonus: float = 0.0,
    normalize: bool = False,
) -> list[list[Hypothesis]]:
    """N-best lists in a new order, their hypotheses with the scores of `scorers` beside those that they have.

    Args:
        nbests: of many utterances; texts of all are scored together.
        scorers: of the second pass. One of the same name takes the place of a stored score.
        device: where the scorers compute.
        weights: of the stored scores.
        length_bonus: for each label.
        normalize: sort by score per label.

    Returns:
        The lists, sorted by `total_score`.
    """
    flat = [h for nbest in nbests for h in nbest]
    added = {w.name: score_texts(w.scorer, [h.tokens for h in flat], device) for w in scorers}
    together = {**(weights or {}), **{w.name: w.weight for w in scorers}}
    scored = iter(
        replace(h, scores={**h.scores, **{name: values[i] for name, values in added.items()}})
        for i, h in enumerate(flat)
    )
    return [rank([next(scored) for _ in nbest], together, length_bonus, normalize) for nbest in nbests]
