"""Values that no model can have are refused by name, before anything is divided by them."""

from collections.abc import Callable

import pytest

from w2vbert.models.conformer import ConformerConfig
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.transducer import PredictorConfig, TransducerConfig
from w2vbert.models.w2v_bert import W2vBertConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConformerConfig(heads=0), "heads"),
        (lambda: ConformerConfig(kernel=-1), "kernel"),
        (lambda: ConformerConfig(dropout_prob=1.0), r"dropout_prob must lie in \[0, 1\), not 1.0"),
        (lambda: QuantizerConfig(codebooks=0), "codebooks"),
        (lambda: QuantizerConfig(logit_std=0.0), "logit_std above 0"),
        (lambda: W2vBertConfig(contrastive_temperature=0.0), "contrastive_temperature must be above 0"),
        (lambda: W2vBertConfig(diversity_weight=-0.1), "weights of the losses must not be negative"),
        (lambda: PredictorConfig(dropout_prob=-0.1), "dropout_prob"),
        (lambda: TransducerConfig(joiner_dim=0), "joiner_dim"),
    ],
)
def test_values_that_no_model_can_have(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
