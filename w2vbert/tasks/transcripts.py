"""Transcripts that cannot be learnt: characters that the tokenizer lacks, more labels than frames, no finite loss."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.errors import UserError
from w2vbert.log import logger

SHOWN_IDS = 20  # in one line of the log
NAMED_IDS = 200  # of utterances without a finite loss in a whole run


def check_spelling(train: SpeechDataset, dev: SpeechDataset, tokenizer: Tokenizer) -> None:
    """Refuses training transcripts that the tokenizer cannot spell; dev's cost WER, and are only said.

    Raises:
        UserError: names the characters and some utterances, or says that there is no transcript at all.
    """
    unknown = _describe_unknown(train, tokenizer)
    if unknown is not None:
        raise UserError(f"{unknown}: train it on these transcripts, or normalise them")
    if not any(train.texts):
        raise UserError("no utterance of the training data has a transcript")
    unknown = _describe_unknown(dev, tokenizer)
    if unknown is not None:
        logger.warning(f"dev: {unknown}: these words count as errors in every WER on dev")


def _describe_unknown(dataset: SpeechDataset, tokenizer: Tokenizer) -> str | None:
    unknown = set(tokenizer.unknown_characters(dataset.texts))
    if not unknown:
        return None
    ids = [id for id, text in zip(dataset.ids, dataset.texts, strict=True) if unknown & set(text)]
    return f"the tokenizer has never seen {' '.join(sorted(unknown))} (utterances {', '.join(ids[:3])})"


def leave_out_crowded(
    dataset: SpeechDataset, tokenizer: Tokenizer, encoder_frames: Callable[[Tensor], Tensor], rnnt_type: str
) -> list[str]:
    """Names the utterances with more word pieces than encoder frames, and leaves them out if no loss can reach the end.

    A regular transducer may emit several labels on a frame: it keeps them. Most often their transcripts are wrong.

    Args:
        dataset: training data.
        tokenizer: text to word pieces.
        encoder_frames: int64 (N,) filterbank frames -> (N,) encoder frames.
        rnnt_type: regular, modified or constrained.

    Returns:
        Ids of those that were left out.

    Raises:
        UserError: nothing is left.
    """
    frames = encoder_frames(torch.tensor(dataset.frames)).tolist()
    crowded = [i for i, text in enumerate(dataset.texts) if text and len(tokenizer.encode(text)) > frames[i]]
    if not crowded:
        return []
    ids = [dataset.ids[i] for i in crowded]
    kept = rnnt_type == "regular"
    fate = "kept, since a regular transducer can emit several on a frame" if kept else "left out"
    logger.warning(f"{len(ids)} utterances have more word pieces than encoder frames and are {fate}: {_shorten(ids)}")
    if kept:
        return []
    dataset.leave_out(set(crowded))
    if not len(dataset):
        raise UserError("every transcript has more word pieces than encoder frames: take a larger vocab_size")
    return ids


def _shorten(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more


class UnusableUtterances:
    """Names utterances whose loss was not finite, each once, without making the step wait for the GPU."""

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._noted: list[tuple[Sequence[str], Tensor]] = []

    def note(self, ids: Sequence[str], unusable: Tensor) -> None:
        """Takes the verdict on a batch, bool (B,); `report` looks into it."""
        self._noted.append((ids, unusable))

    def report(self) -> None:
        """Names those of each batch noted that were not named before, in one line; waits for the device."""
        noted, self._noted = self._noted, []
        for ids, unusable in noted:
            self._name([id for id, is_bad in zip(ids, unusable.tolist(), strict=True) if is_bad])

    def _name(self, ids: Sequence[str]) -> None:
        bad = [id for id in ids if id not in self._named]
        if not bad or len(self._named) >= NAMED_IDS:
            return
        self._named.update(bad)
        logger.warning(f"no finite loss, left out: {_shorten(bad)}")
        if len(self._named) >= NAMED_IDS:
            logger.warning(f"{len(self._named)} utterances without a finite loss were named; more are only counted")
