"""The pre-training model of each objective."""

from w2vbert.models.best_rq import BestRq
from w2vbert.models.w2v_bert import W2vBert, W2vBertConfig

PretrainingModel = W2vBert | BestRq
"""All have an `encoder`, and map (features, lengths, temperature, generator) to a `PretrainingLoss`."""


def make_pretraining_model(config: W2vBertConfig) -> PretrainingModel:
    """A fresh model for `config.objective`."""
    return BestRq(config) if config.objective == "best-rq" else W2vBert(config)
