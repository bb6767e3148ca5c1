"""What the w2v-BERT paper says of pre-training, key by key, and what it leaves open; `w2vbert info` compares.

XL's values; where XXL differs both stand. Sources: the paper (Chung et al. 2021, arXiv 2108.06209), wav2vec 2.0, and
papers that share the paper's training stack ("family": Zhang et al. 2020, USM).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAPER, FAMILY = "paper", "its family"


@dataclass(frozen=True)
class Fact:
    """A key of a pre-training config.

    Attributes:
        key: with its sections, dotted.
        values: the right ones; none: unknown in the paper.
        source: where they come from, or what else is known.
    """

    key: str
    values: tuple[Any, ...]
    source: str


FACTS = (
    Fact("model.objective", ("w2v-bert",), PAPER),
    Fact("model.encoder.subsampling.num_mel_bins", (80,), PAPER),
    Fact("model.encoder.subsampling.kind", ("convolution",), PAPER),
    Fact("model.encoder.subsampling.channels", (), "128 and 32, or the model's dimension, in its family"),
    Fact("model.encoder.contrastive_blocks", (12,), PAPER),
    Fact("model.encoder.masked_blocks", (12, 30), PAPER),
    Fact("model.encoder.block.dim", (1024,), PAPER),
    Fact("model.encoder.block.heads", (8,), PAPER),
    Fact("model.encoder.block.feed_forward_dim", (4096,), "the sizes of its models"),
    Fact("model.encoder.block.kernel", (5,), PAPER),
    Fact("model.encoder.block.positions", ("none",), "its family, and the sizes of its models"),
    Fact("model.encoder.block.dropout_prob", (0.1,), FAMILY),
    Fact("model.encoder.block.convolution", ("centred",), FAMILY),
    Fact("model.quantizer.codebooks", (1,), PAPER),
    Fact("model.quantizer.codes", (1024,), PAPER),
    Fact("model.quantizer.dim", (1024,), PAPER),
    Fact("model.quantizer.logit_std", (), "fairseq's initialisation gives about 25"),
    Fact("model.quantizer.temperature_start", (), "2.0 in Meta's replication"),
    Fact("model.quantizer.temperature_end", (), "0.1 in Meta's replication, 0.999995 times less at each update"),
    Fact("model.mask_start_prob", (0.065,), PAPER),
    Fact("model.mask_span_frames", (10,), PAPER),
    Fact("model.num_distractors", (100,), "wav2vec 2.0"),
    Fact("model.contrastive_temperature", (0.1,), "wav2vec 2.0"),
    Fact("model.contrastive_weight", (1.0,), PAPER),
    Fact("model.diversity", ("perplexity",), "wav2vec 2.0"),
    Fact("model.diversity_weight", (0.1,), PAPER),
    Fact("model.masked_prediction_weight", (1.0,), PAPER),
    Fact("train.max_steps", (400_000,), PAPER),
    Fact("train.update_seconds", (65_536.0,), f"2048 crops of 32 s: {PAPER}"),
    Fact("train.clip_norm", (20.0,), FAMILY),
    Fact("optim.learning_rate", (2e-3,), PAPER),
    Fact("optim.warmup_steps", (25_000,), PAPER),
    Fact("optim.schedule", ("inverse_sqrt",), PAPER),
    Fact("optim.weight_decay", (), "nothing is said of one"),
    Fact("join_utterances", (1,), PAPER),
    Fact("max_seconds", (32.0,), PAPER),
)

BUILT_IN_DEVIATIONS = (
    "optimizer: AdamW (paper: Adam for XL, Adafactor for XXL)",
    "feature encoder: its output is normalised to mean 0 and variance 1 over each frame (the paper does not say so)",
    "masks: spans may begin before the utterance, so that its first frames are masked as often as the others",
)
"""Of every config, for no key changes them."""

BUILT_IN_UNKNOWNS = (
    "masks: the distribution of the random vectors that fill them, here N(0, 1), the scale of what they replace",
    "feature encoder: size of the kernels, here 3x3",
)


def compare_with_paper(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Deviations from the paper, and what is unknown in it, of a pre-training config as nested mappings."""
    deviations, unknowns = list(BUILT_IN_DEVIATIONS), list(BUILT_IN_UNKNOWNS)
    for fact in FACTS:
        value: Any = config
        for name in fact.key.split("."):
            value = value[name]
        if not fact.values:
            unknowns.append(f"{fact.key}: {value} ({fact.source})")
        elif value not in fact.values:
            wanted = " or ".join(str(known) for known in fact.values)
            deviations.append(f"{fact.key}: {value} ({fact.source}: {wanted})")
    return deviations, unknowns
