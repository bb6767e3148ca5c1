"""Causal language models over the transducer's pieces: a Transformer or an LSTM, whole sentences or piece by piece.

N rows (hypotheses), B sentences, U pieces, C pieces of the longest row, D model dimension, H heads, L layers,
V vocabulary, d = D / H.

The vocabulary is that of the tokenizer. Its id 0, the blank of the transducer, stands in no text: here it is the
boundary of a sentence, read at the begin and predicted at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2vbert.models.attention import rotate
from w2vbert.ops.lengths import lengths_to_mask, send

BOUNDARY = 0
FIRST_SLOTS = 1024  # of the memory of keys and values, which doubles when it is full
SLACK = 2  # slots taken for each place of the rows, beyond which the memory is cleared of rows that are gone


@dataclass(frozen=True)
class CausalLmConfig:
    """A language model.

    Attributes:
        kind: a Transformer with rotary positions, or an LSTM.
        layers: L (8: family, Zhang et al. 2020).
        dim: D, also of the embeddings and of the LSTM's cells. Unknown in the paper: 1024 gives its 103 M.
        heads: H, of the Transformer only.
        feed_forward_dim: of the Transformer only.
        dropout: of embeddings and of what each layer adds.
        tied: the matrix of the embeddings is that of the outputs, too (Press and Wolf 2017).
    """

    kind: Literal["transformer", "lstm"] = "transformer"
    layers: int = 8
    dim: int = 1024
    heads: int = 8
    feed_forward_dim: int = 4096
    dropout: float = 0.1
    tied: bool = True

    def __post_init__(self) -> None:
        if min(self.layers, self.dim, self.heads, self.feed_forward_dim) < 1:
            raise ValueError("layers, dim, heads and feed_forward_dim must be at least 1")
        if self.kind == "transformer" and self.dim % (2 * self.heads):
            raise ValueError(f"dim must be a multiple of twice the heads, {2 * self.heads}, not {self.dim}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")


class CausalLm(nn.Module):
    """Predicts each piece, and the end of the sentence, from the pieces before it.

    Whole sentences go through `forward`. A search goes piece by piece: `initial_state`, then `step` with BOUNDARY for
    every row, then `step` with each row's next piece. Rows of a state may have any lengths; they are taken, put back
    and reordered with the methods of the state.
    """

    def __init__(self, config: CausalLmConfig, vocab_size: int) -> None:
        """Fresh weights; `vocab_size` is the tokenizer's, V."""
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.body: TransformerBody | LstmBody
        self.body = TransformerBody(config) if config.kind == "transformer" else LstmBody(config)
        self.norm = nn.LayerNorm(config.dim)
        self.output = None if config.tied else nn.Linear(config.dim, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probability of each next piece.

        Needs no lengths: nothing looks ahead, so what stands at the end of a row does not change what comes before.

        Args:
            tokens: int64 (B, U), pieces of each sentence without boundaries, padded at the end.

        Returns:
            float32 (B, U + 1, V); place u is what follows the first u pieces, column BOUNDARY the end of the sentence.
        """
        return self._predict(self.body(self._embed(F.pad(tokens, (1, 0), value=BOUNDARY))))

    def score(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Log-probability of whole sentences, their ends counted.

        Args:
            tokens: int64 (B, U), pieces of each sentence without boundaries, padded at the end.
            lengths: int64 (B,).

        Returns:
            float32 (B,), natural logarithms.
        """
        return sentence_log_probs(self(tokens), tokens, lengths)

    def initial_state(self, rows: int, device: torch.device) -> LmState:
        """The state of rows that have not read anything, not even the begin of the sentence."""
        return self.body.initial_state(rows, device, self.embedding.weight.dtype)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: LmState) -> tuple[Tensor, LmState]:
        """Reads one piece in each row; without gradients, and in evaluation (`eval()`).

        Args:
            tokens: int64 (N,), pieces; BOUNDARY first.
            state: of N rows, from `initial_state`, `step` or the methods of a state; stays as it was.

        Returns:
            Log-probability of each next piece, float32 (N, V), column BOUNDARY being the end of the sentence; and the
            state after the pieces.
        """
        y, state = self.body.step(self._embed(tokens), state)
        return self._predict(y), state

    def _embed(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., D), of variance 1 at the start."""
        embedded: Tensor = self.embedding(tokens) * self.config.dim**0.5
        return self.dropout(embedded)

    def _predict(self, y: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        weight = self.embedding.weight if self.output is None else self.output.weight
        return F.linear(self.norm(y), weight).log_softmax(-1, dtype=torch.float32)


def sentence_log_probs(log_probs: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Sum over each sentence and its end.

    Args:
        log_probs: (B, U + 1, V), as `CausalLm` gives them.
        tokens: int64 (B, U), padded with anything.
        lengths: int64 (B,).

    Returns:
        (B,).
    """
    lengths = send(lengths, tokens.device)
    inside = lengths_to_mask(lengths, tokens.shape[1])
    targets = F.pad(tokens.masked_fill(~inside, BOUNDARY), (0, 1), value=BOUNDARY)  # (B, U + 1)
    chosen = log_probs.gather(2, targets[:, :, None]).squeeze(2)  # (B, U + 1)
    return chosen.masked_fill(~lengths_to_mask(lengths + 1, targets.shape[1]), 0.0).sum(1)


@dataclass(frozen=True)
class LstmState:
    """N rows of an LSTM.

    Attributes:
        hidden: (N, L, D).
        cell: (N, L, D).
    """

    hidden: Tensor
    cell: Tensor

    def select(self, rows: Tensor) -> LstmState:
        """The rows of these numbers, int64 (M,); a number may come several times."""
        return LstmState(self.hidden[rows], self.cell[rows])

    def put(self, rows: Tensor, part: LmState) -> LstmState:
        """Rows of these numbers, int64 (M,), each once, replaced by those of `part`."""
        assert isinstance(part, LstmState)
        return LstmState(self.hidden.index_copy(0, rows, part.hidden), self.cell.index_copy(0, rows, part.cell))

    def compact(self) -> LstmState:
        """Itself; see `TransformerState`."""
        return self


class LstmBody(nn.Module):
    """Layers of an LSTM, each as wide as the embeddings."""

    def __init__(self, config: CausalLmConfig) -> None:
        super().__init__()
        dropout = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, U, D) -> (B, U, D)."""
        y: Tensor = self.lstm(x)[0]
        return y

    def initial_state(self, rows: int, device: torch.device, dtype: torch.dtype) -> LstmState:
        """See `CausalLm.initial_state`."""
        zeros = torch.zeros(rows, self.lstm.num_layers, self.lstm.hidden_size, device=device, dtype=dtype)
        return LstmState(zeros, zeros)

    def step(self, x: Tensor, state: LmState) -> tuple[Tensor, LstmState]:
        """(N, D) -> (N, D) and the state after it."""
        assert isinstance(state, LstmState)
        before = (state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous())  # (L, N, D)
        y, (hidden, cell) = self.lstm(x[:, None], before)
        return y[:, 0], LstmState(hidden.transpose(0, 1), cell.transpose(0, 1))


class KeyValueMemory:
    """Keys and values of all pieces that any row has read; a row knows the numbers of its own.

    So rows that share a begin share its keys and values, and reordering rows moves numbers only.

    Attributes:
        data: (L, slots, 2 D).
        used: slots that are taken.
    """

    def __init__(self, data: Tensor, used: int) -> None:
        self.data = data
        self.used = used

    def take(self, count: int) -> Tensor:
        """Numbers of `count` free slots, int64 (count,), which are free no more."""
        slots = torch.arange(self.used, self.used + count, device=self.data.device)
        self.used += count
        if self.used > self.data.shape[1]:
            layers, there, width = self.data.shape
            grown = self.data.new_zeros(layers, max(2 * there, self.used), width)
            grown[:, :there] = self.data
            self.data = grown
        return slots


@dataclass(frozen=True)
class TransformerState:
    """N rows of a Transformer.

    Attributes:
        memory: shared by all states that came from one `initial_state`.
        slots: int64 (N, C), where keys and values of each row's pieces lie in it; padded with 0 at the end.
        lengths: int64 (N,), pieces of each row, the begin of the sentence counted.
    """

    memory: KeyValueMemory
    slots: Tensor
    lengths: Tensor

    def select(self, rows: Tensor) -> TransformerState:
        """The rows of these numbers, int64 (M,); a number may come several times."""
        return TransformerState(self.memory, self.slots[rows], self.lengths[rows])

    def put(self, rows: Tensor, part: LmState) -> TransformerState:
        """Rows of these numbers, int64 (M,), each once, replaced by those of `part`, which has the same memory."""
        assert isinstance(part, TransformerState) and part.memory is self.memory
        width = max(self.slots.shape[1], part.slots.shape[1])
        mine, theirs = (F.pad(s.slots, (0, width - s.slots.shape[1])) for s in (self, part))
        return TransformerState(
            self.memory, mine.index_copy(0, rows, theirs), self.lengths.index_copy(0, rows, part.lengths)
        )

    def compact(self) -> TransformerState:
        """Itself; or, when most of the memory may belong to rows that are gone, a copy with a memory of its own.

        To be called on a state that has all rows: `put` refuses parts that were selected before.
        """
        if self.memory.used <= FIRST_SLOTS + SLACK * self.slots.numel():
            return self
        inside = lengths_to_mask(self.lengths, self.slots.shape[1])  # (N, C)
        kept, numbers = self.slots[inside].unique(return_inverse=True)
        memory = KeyValueMemory(self.memory.data[:, kept], len(kept))
        return TransformerState(memory, torch.zeros_like(self.slots).masked_scatter(inside, numbers), self.lengths)


class TransformerBody(nn.Module):
    """Transformer layers that look back only.

    Deviation: the norms stand before what they feed (Xiong et al. 2020); positions are rotary, in place of the relative
    embeddings of the family's LM.
    """

    def __init__(self, config: CausalLmConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TransformerBlock(config) for _ in range(config.layers)])
        self.dim = config.dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, U, D) -> (B, U, D)."""
        for block in self.blocks:
            x = block(x)
        return x

    def initial_state(self, rows: int, device: torch.device, dtype: torch.dtype) -> TransformerState:
        """See `CausalLm.initial_state`."""
        data = torch.zeros(len(self.blocks), FIRST_SLOTS, 2 * self.dim, device=device, dtype=dtype)
        slots = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        return TransformerState(KeyValueMemory(data, 0), slots, slots.new_zeros(rows))

    def step(self, x: Tensor, state: LmState) -> tuple[Tensor, TransformerState]:
        """(N, D) -> (N, D) and the state after it."""
        assert isinstance(state, TransformerState)
        memory, lengths = state.memory, state.lengths
        longest = int(lengths.max()) + 1 if len(lengths) else 1  # of rows that were selected, maybe less than C
        slots = F.pad(state.slots, (0, max(longest - state.slots.shape[1], 0)))[:, :longest]
        own = memory.take(len(lengths))
        slots = slots.scatter(1, lengths[:, None], own[:, None])  # (N, C)
        seen = lengths_to_mask(lengths + 1, longest)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, TransformerBlock)
            x = block.step(x, lengths, memory.data[number], own, slots, seen)
        return x, TransformerState(memory, slots, lengths + 1)


class TransformerBlock(nn.Module):
    """Self-attention over what came before, and a feed-forward layer (Vaswani et al. 2017)."""

    def __init__(self, config: CausalLmConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, config.feed_forward_dim), nn.GELU(), nn.Linear(config.feed_forward_dim, dim)
        )
        self.dropout = nn.Dropout(config.dropout)
        for last in (self.out, self.feed_forward[2]):  # so that the sum over 2 L branches keeps its size (GPT-2)
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=(2 * config.layers * last.in_features) ** -0.5)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, U, D) -> (B, U, D)."""
        batch, pieces, dim = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, pieces, 3, self.heads, -1)  # (B, U, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, U, d)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self._finish(x, y.transpose(1, 2).reshape(batch, pieces, dim))  # (B, U, D)

    def step(self, x: Tensor, places: Tensor, memory: Tensor, own: Tensor, slots: Tensor, seen: Tensor) -> Tensor:
        """One piece in each row.

        Args:
            x: (N, D).
            places: int64 (N,), of the piece in its row.
            memory: (slots, 2 D), this layer's; keys and values of the pieces are written into it.
            own: int64 (N,), where.
            slots: int64 (N, C), where those of all pieces of a row are, `own` among them.
            seen: bool (N, C), False on padding.

        Returns:
            (N, D).
        """
        rows, dim = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(rows, 3, self.heads, 1, -1).unbind(1)  # each (N, H, 1, d)
        q, k = rotate(q, places[:, None, None]), rotate(k, places[:, None, None])
        memory[own] = torch.cat([k.reshape(rows, dim), v.reshape(rows, dim)], 1).to(memory.dtype)  # (N, 2 D)
        past = memory.index_select(0, slots.flatten()).view(*slots.shape, 2, self.heads, -1)  # (N, C, 2, H, d)
        keys, values = past.to(q.dtype).permute(2, 0, 3, 1, 4).unbind(0)  # each (N, H, C, d)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[:, None, None])  # (N, H, 1, d)
        return self._finish(x, y.reshape(rows, dim))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds the attended (..., D) and the feed-forward layer to `x` (..., D)."""
        x = x + self.dropout(self.out(attended))
        y: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return y


LmState = TransformerState | LstmState
"""What a model remembers of N rows; `select`, `put` and `compact` are common to both."""
