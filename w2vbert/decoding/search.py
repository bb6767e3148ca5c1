"""Greedy and beam search over a transducer, in batches.

On each frame a hypothesis either takes the blank and waits for the next frame, or emits a label; after
`max_symbols_per_frame` labels the next frame comes without a blank. With one symbol a frame this is the modified
transducer of k2 and icefall. Under this rule the probabilities of all label sequences sum to one, and a beam that is
wide enough is an exact search.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2vbert.decoding.beam_search import BeamSearch
from w2vbert.decoding.config import SearchConfig as SearchConfig
from w2vbert.decoding.greedy import search_by_labels
from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.model import LabelModel, Transducer
from w2vbert.decoding.scorers import WeightedScorer


@torch.inference_mode()
def search(
    model: Transducer,
    encoder_out: Tensor,
    lengths: Tensor,
    config: SearchConfig,
    scorers: Sequence[WeightedScorer] = (),
    unknown: int | None = None,
) -> list[list[Hypothesis]]:
    """The best label sequences of each utterance, best first.

    Args:
        model: what to search.
        encoder_out: float (B, T, J), as `Transducer.encode` returns it; frames beyond `lengths` are not read.
        lengths: int64 (B,), frames.
        config: how to search.
        scorers: for the beam; each with a name of its own.
        unknown: label that is never emitted, since it stands for no text; the others share its probability.

    Raises:
        ValueError: a greedy search is given scorers, or two scorers have one name.
    """
    if config.method == "greedy" and scorers:
        raise ValueError("a greedy search takes no language model: set method: beam")
    if len({weighted.name for weighted in scorers}) < len(scorers):
        raise ValueError(f"each scorer needs a name of its own: {[weighted.name for weighted in scorers]}")
    if encoder_out.shape[0] == 0:
        return []
    lengths = lengths.to(encoder_out.device)
    labels = LabelModel(model, unknown, config.blank_penalty)
    if config.method == "greedy":
        return [[h] for h in search_by_labels(labels, encoder_out, lengths, config.max_symbols_per_frame)]
    sorted_lengths, order = lengths.sort(descending=True, stable=True)
    found = BeamSearch(labels, config, scorers).run(encoder_out[order], sorted_lengths.tolist())
    results: list[list[Hypothesis]] = [[] for _ in found]
    for position, hypotheses in zip(order.tolist(), found, strict=True):
        results[position] = hypotheses
    return results
