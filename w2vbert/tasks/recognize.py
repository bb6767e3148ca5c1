"""A transducer's folder, and from batches of features to text: what fine-tuning, decoding and self-training share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2vbert.config import load_config, to_dict
from w2vbert.data.batches import FRAMES_PER_SECOND, SpeechBatch
from w2vbert.data.features import FEATURES_FILE, FeatureConfig
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.rescoring import rescore
from w2vbert.decoding.scorers import WeightedScorer
from w2vbert.decoding.search import SearchConfig, search
from w2vbert.errors import UserError
from w2vbert.models.transducer import Transducer, TransducerConfig
from w2vbert.training.checkpoint import load_weights, read_model_card
from w2vbert.training.device import choose_device, choose_precision


@dataclass(frozen=True)
class Recognition:
    """What was recognised in an utterance.

    Attributes:
        id: cut id.
        text: words of the best hypothesis.
        hypotheses: n-best list, best first.
    """

    id: str
    text: str
    hypotheses: list[Hypothesis]

    @property
    def confidence(self) -> float:
        """Confidence of the best hypothesis, 0 to 1."""
        return self.hypotheses[0].confidence


def load_transducer(folder: Path) -> tuple[Transducer, Tokenizer]:
    """A fine-tuned model, ready to decode, and its tokenizer.

    Raises:
        UserError: the folder is no transducer's, or its parts do not fit one another.
    """
    card = read_model_card(folder, "transducer")
    config = load_config(TransducerConfig, folder / "model.yaml")
    model = Transducer(config)
    load_weights(model, folder / "model.safetensors")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.vocab_size} pieces, the model {config.vocab_size}")
    if card.get("tokenizer", tokenizer.digest) != tokenizer.digest:
        raise UserError(f"{folder}/tokenizer is not the one that the model was trained with: put that one back")
    return model.to(choose_device()).eval(), tokenizer


def check_features(model: Path, data: Path) -> None:
    """Refuses a data set whose features are not made like those that the model was trained on.

    Raises:
        UserError: they differ, or one of the folders does not tell.
    """
    wanted, found = (to_dict(load_config(FeatureConfig, folder / FEATURES_FILE)) for folder in (model, data))
    differing = ", ".join(key for key in wanted if wanted[key] != found[key])
    if differing:
        raise UserError(
            f"{data / FEATURES_FILE} and {model / FEATURES_FILE} differ in {differing}: "
            "the model needs other features, made by `w2vbert features MANIFESTS DATA --config` with the latter"
        )


def encoder_frame_seconds(model: Transducer) -> float:
    """Seconds from one frame of the encoder to the next."""
    return model.config.encoder.subsampling.stride / FRAMES_PER_SECOND


@torch.inference_mode()
def encode(model: Transducer, batch: SpeechBatch, precision: str = "auto") -> tuple[Tensor, Tensor]:
    """What a search works on: encoder output (B, T, J) float32 and its lengths, int64 (B,).

    Args:
        model: whose encoder.
        batch: B utterances.
        precision: of the matrix products, as in `TrainConfig`.
    """
    device = next(model.parameters()).device
    dtype = choose_precision(precision, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        encoded, lengths = model.encode(batch.features.to(device), batch.lengths)
    return encoded.float(), lengths


@torch.inference_mode()
def search_and_rescore(
    model: Transducer,
    encoded: Tensor,
    lengths: Tensor,
    config: SearchConfig,
    scorers: Sequence[WeightedScorer],
    unknown: int,
) -> list[list[Hypothesis]]:
    """N-best lists of a search, which scorers of the second pass sort anew.

    Args:
        model: what to search.
        encoded: float32 (B, T, J), of `encode`.
        lengths: int64 (B,), frames.
        config: how to search.
        scorers: of both passes; each with a name of its own.
        unknown: label that is never emitted.
    """
    first = [weighted for weighted in scorers if not weighted.second_pass]
    second = [weighted for weighted in scorers if weighted.second_pass]
    found = search(model, encoded, lengths, config, first, unknown)
    if not second:
        return found
    weights = {weighted.name: weighted.weight for weighted in first}
    return rescore(found, second, encoded.device, weights, config.length_bonus, config.length_normalization)


@torch.inference_mode()
def recognize(
    model: Transducer,
    tokenizer: Tokenizer,
    batches: Iterable[SpeechBatch],
    config: SearchConfig,
    scorers: Sequence[WeightedScorer] = (),
    precision: str = "auto",
) -> Iterator[list[Recognition]]:
    """Recognises batch after batch; each result is in the order of its batch.

    Args:
        model: what recognises.
        tokenizer: its own.
        batches: utterances.
        config: how to search.
        scorers: language models, of both passes.
        precision: of the encoder's matrix products, as in `TrainConfig`; auto is bfloat16 where the hardware has it.
    """
    for batch in batches:
        encoded, lengths = encode(model, batch, precision)
        found = search_and_rescore(model, encoded, lengths, config, scorers, tokenizer.unknown_id)
        yield [
            Recognition(id, tokenizer.decode(list(nbest[0].tokens)), nbest)
            for id, nbest in zip(batch.ids, found, strict=True)
        ]
