"""Text for language models: encoded once into files, then batches from any place of them with little memory.

B sentences, U pieces.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from w2vbert.errors import UserError
from w2vbert.files import read_json, write_json
from w2vbert.log import progress
from w2vbert.ops.lengths import send

TOKENS_FILE, ENDS_FILE, COUNTS_FILE = "tokens.bin", "ends.bin", "counts.json"
LINES_AT_ONCE = 8192
BLOCK_SENTENCES = 8192
"""Sentences that stay neighbours: what is read from one place of the file."""

CHUNK_BLOCKS = 32
"""Blocks, from anywhere in the text, whose sentences are shuffled together: a quarter of a million sentences."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TextCounts:
    """What is in an encoded text.

    Attributes:
        sentences: that were encoded.
        tokens: in them, without boundaries.
        words: in them, between white space.
        left_out: sentences that were too long, or gave no token.
        bytes_per_token: of the stored numbers.
    """

    sentences: int
    tokens: int
    words: int
    left_out: int
    bytes_per_token: int


class EncodedText:
    """A sequence of sentences as token ids, in files that are read where they are asked for.

    Attributes:
        counts: what is in them.
    """

    def __init__(self, folder: Path) -> None:
        """Opens what `encode_text` wrote."""
        self.counts = TextCounts(**read_json(folder / COUNTS_FILE))
        kind = np.uint16 if self.counts.bytes_per_token == 2 else np.int32
        self._ends: NDArray[np.int64] = np.memmap(folder / ENDS_FILE, np.int64, "r")
        self._tokens: NDArray[np.integer] = np.memmap(folder / TOKENS_FILE, kind, "r")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self), BLOCK_SENTENCES):
            ends = self._ends[first : first + BLOCK_SENTENCES + 1].tolist()
            tokens = self._tokens[ends[0] : ends[-1]].tolist()
            yield from (tokens[a - ends[0] : b - ends[0]] for a, b in zip(ends, ends[1:], strict=False))

    def lengths(self, first: int, last: int) -> Ints:
        """Tokens of the sentences from `first` to before `last`, int64 (last - first,)."""
        return np.diff(self._ends[first : last + 1])

    def length(self, index: int) -> int:
        """Tokens of a sentence."""
        return int(self._ends[index + 1] - self._ends[index])

    def tensor(self, index: int) -> Tensor:
        """The tokens of a sentence, int64 (U,)."""
        return torch.from_numpy(self._tokens[self._ends[index] : self._ends[index + 1]].astype(np.int64))


def encode_text(
    lines: Iterable[str],
    encode: Callable[[list[str]], Sequence[Sequence[int]]],
    folder: Path,
    bytes_per_token: int,
    max_tokens: int | None = None,
) -> EncodedText:
    """Writes sentences as token ids into an existing folder, some thousands at a time.

    Args:
        lines: sentences.
        encode: token ids of each of some sentences.
        folder: where the files are written.
        bytes_per_token: 2 for ids below 65 536, otherwise 4.
        max_tokens: longer sentences are left out; None: none is.

    Raises:
        UserError: no sentence is left.
    """
    kind = np.uint16 if bytes_per_token == 2 else np.int32
    total = words = left_out = sentences = 0
    with (
        (folder / TOKENS_FILE).open("wb") as tokens_file,
        (folder / ENDS_FILE).open("wb") as ends_file,
        progress(desc="encode text", unit="sentences") as bar,
    ):
        np.zeros(1, np.int64).tofile(ends_file)
        source = iter(lines)
        while some := list(islice(source, LINES_AT_ONCE)):
            encoded = encode(some)
            kept = [i for i, row in enumerate(encoded) if row and (max_tokens is None or len(row) <= max_tokens)]
            left_out += len(some) - len(kept)
            words += sum(len(some[i].split()) for i in kept)
            lengths = np.array([len(encoded[i]) for i in kept], np.int64)
            np.array([token for i in kept for token in encoded[i]], kind).tofile(tokens_file)
            (total + lengths.cumsum()).tofile(ends_file)
            total, sentences = total + int(lengths.sum()), sentences + len(kept)
            bar.update(len(some))
    if not sentences:
        reason = f": all {left_out} sentences have more than {max_tokens} pieces (max_pieces)" if left_out else ""
        raise UserError(f"there is no text to learn a language model from{reason}")
    write_json(folder / COUNTS_FILE, TextCounts(sentences, total, words, left_out, bytes_per_token))
    return EncodedText(folder)


@dataclass(frozen=True)
class TextBatch:
    """Sentences, padded with 0 at their ends.

    Attributes:
        ids: numbers of the sentences in the text.
        tokens: int64 (B, U), pieces without boundaries.
        lengths: int64 (B,), on the CPU always.
    """

    ids: tuple[str, ...]
    tokens: Tensor
    lengths: Tensor

    seconds = 0.0
    """Of audio."""

    @property
    def size(self) -> str:
        """Its shape in words."""
        return f"{len(self.ids)} sentences of up to {int(self.lengths.max())} pieces"

    def to(self, device: torch.device) -> "TextBatch":
        """Moves the tokens."""
        return replace(self, tokens=send(self.tokens, device))


def collate_text(ids: Iterable[object], sentences: Sequence[Tensor]) -> TextBatch:
    """Pads sentences, int64 (U_i,) each, to one batch."""
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    return TextBatch(tuple(map(str, ids)), pad_sequence(list(sentences), batch_first=True), lengths)


def group_by_pieces(order: Iterable[int], lengths: Sequence[int] | Ints, batch_pieces: int) -> list[list[int]]:
    """Cuts `order` into batches of at most `batch_pieces`, padding and an end for each sentence counted."""
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, int(lengths[index]) + 1)
        if not batches or longest * (len(batches[-1]) + 1) > batch_pieces:
            batches.append([])
            longest = int(lengths[index]) + 1
        batches[-1].append(index)
    return batches


class TextStream:
    """Endless training batches of a text, a function of seed and position (docs/decisions/0003).

    An epoch goes through chunks of blocks drawn from the whole text; only one chunk's order is in memory.
    """

    batch_seconds = 0.0

    def __init__(self, text: EncodedText, batch_pieces: int, seed: int) -> None:
        """Begins at the first batch of the first epoch.

        Args:
            text: sentences.
            batch_pieces: most pieces in a batch, padding counted; a longer sentence is a batch of its own.
            seed: decides the order.
        """
        self.text = text
        self.batch_pieces = batch_pieces
        self.seed = seed
        self.place = (0, 0, 0)  # epoch, chunk, position
        self._index, self._count = 0, 1
        blocks = -(-len(text) // BLOCK_SENTENCES)
        self.chunks = -(-blocks // CHUNK_BLOCKS)
        self._blocks = lru_cache(1)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(blocks))
        self._plan = lru_cache(2)(self._plan_chunk)

    def _plan_chunk(self, epoch: int, chunk: int) -> list[list[int]]:
        """Sentences of each batch of a chunk: similar lengths together, batches in random order."""
        blocks = self._blocks(epoch)[chunk * CHUNK_BLOCKS : (chunk + 1) * CHUNK_BLOCKS]
        parts = [range(b * BLOCK_SENTENCES, min((b + 1) * BLOCK_SENTENCES, len(self.text))) for b in blocks.tolist()]
        sentences = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        lengths = np.concatenate([self.text.lengths(part.start, part.stop) for part in parts])
        generator = np.random.default_rng((self.seed, epoch, chunk))
        jitter = 1.0 + 0.1 * (generator.random(len(lengths)) - 0.5)  # neighbours change between epochs
        batches = group_by_pieces(np.argsort(lengths * jitter).tolist(), lengths, self.batch_pieces)
        return [sentences[batches[i]].tolist() for i in generator.permutation(len(batches))]

    def _advance(self, place: tuple[int, int, int], count: int) -> tuple[int, int, int]:
        """The place `count` batches on: within its chunk, or at its end."""
        epoch, chunk, position = place
        position += count
        while position > len(self._plan(epoch, chunk)):
            position -= len(self._plan(epoch, chunk))
            epoch, chunk = self._following(epoch, chunk)
        return epoch, chunk, position

    def _following(self, epoch: int, chunk: int) -> tuple[int, int]:
        return (epoch, chunk + 1) if chunk + 1 < self.chunks else (epoch + 1, 0)

    def _make(self, place: tuple[int, int, int]) -> TextBatch:
        epoch, chunk, position = place
        if position == len(self._plan(epoch, chunk)):
            (epoch, chunk), position = self._following(epoch, chunk), 0
        return self._collate(self._plan(epoch, chunk)[position])

    def _collate(self, sentences: Sequence[int]) -> TextBatch:
        return collate_text(sentences, [self.text.tensor(i) for i in sentences])

    def share(self, index: int, count: int) -> None:
        """Gives batch `index` of every `count` from now on, and passes all."""
        self._index, self._count = index, count

    def next_batch(self) -> TextBatch:
        """The next batch; after the last of an epoch comes the first of the next."""
        batch = self._make(self._advance(self.place, self._index))
        self.place = self._advance(self.place, self._count)
        return batch

    def largest(self) -> TextBatch:
        """The batch of this chunk with most pieces, padding counted."""
        plan = self._plan(*self.place[:2])
        return self._collate(max(plan, key=lambda batch: len(batch) * max(map(self.text.length, batch))))

    def state_dict(self) -> dict[str, int]:
        """Epoch, chunk and position in it."""
        return dict(zip(("epoch", "chunk", "position"), self.place, strict=True))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues at a position."""
        self.place = (state["epoch"], state["chunk"], state["position"])
