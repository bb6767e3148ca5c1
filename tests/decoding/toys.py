"""A transducer small enough to be searched exhaustively, and a scorer small enough to be added up by hand."""

import itertools
import math

import torch
from torch import Tensor, nn

from w2vbert.decoding.model import State


class ToyPredictor(nn.Module):
    """An embedding and a GRU cell; counts the rows it was run for."""

    def __init__(self, vocab_size: int, joiner_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, joiner_dim)
        self.cell = nn.GRUCell(joiner_dim, joiner_dim)
        self.rows = 0

    def initial_state(self, batch: int, device: torch.device) -> State:
        return (torch.zeros(1, batch, self.cell.hidden_size, device=device),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        self.rows += len(tokens)
        hidden = self.cell(self.embedding(tokens), state[0][0])
        return hidden, (hidden.unsqueeze(0),)


class ToyTransducer(nn.Module):
    """Random, with a prediction network that matters."""

    blank = 0

    def __init__(self, vocab_size: int = 4, joiner_dim: int = 8, seed: int = 0, blank_bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vocab_size = vocab_size
        self.predictor = ToyPredictor(vocab_size, joiner_dim)
        self.output = nn.Linear(joiner_dim, vocab_size)
        with torch.no_grad():
            self.output.weight.mul_(4.0)
            self.predictor.embedding.weight.mul_(2.0)
            self.output.bias[0] += blank_bias

    def joiner(self, encoder_out: Tensor, predictor_out: Tensor) -> Tensor:
        return self.output(torch.tanh(encoder_out + predictor_out))


class ToyScorer:
    """Bigram over labels: the state is the last label of each hypothesis, the blank at the start."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(vocab_size, vocab_size, generator=generator).log_softmax(-1)
        self.end = torch.randn(vocab_size, generator=generator)

    def start(self, batch: int, device: torch.device) -> Tensor:
        return torch.zeros(batch, dtype=torch.long, device=device)

    def scores(self, state: Tensor) -> Tensor:
        return self.table[state]

    def advance(self, state: Tensor, rows: Tensor, tokens: Tensor, emitted: Tensor) -> Tensor:
        return torch.where(emitted, tokens, state[rows])

    def final(self, state: Tensor) -> Tensor:
        return self.end[state]

    def whole(self, tokens: tuple[int, ...]) -> float:
        """Score of the sentence."""
        pairs = itertools.pairwise((0, *tokens))
        return sum(float(self.table[a, b]) for a, b in pairs) + float(self.end[(0, *tokens)[-1]])


def label_log_probs(model: ToyTransducer, encoder_out: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Log-probabilities (T, len(tokens) + 1, V) of the lattice of one utterance (T, J)."""
    with torch.no_grad():
        state = model.predictor.initial_state(1, encoder_out.device)
        outs = []
        for token in (0, *tokens):
            out, state = model.predictor.step(torch.tensor([token]), state)
            outs.append(out)
        return model.joiner(encoder_out.unsqueeze(1), torch.cat(outs).unsqueeze(0)).log_softmax(-1)


def exact_log_prob(model: ToyTransducer, encoder_out: Tensor, tokens: tuple[int, ...], max_symbols: int = 1) -> float:
    """Log of the sum over all alignments of `tokens` with the frames (T, J), by plain recursion."""
    log_probs = label_log_probs(model, encoder_out, tokens).tolist()
    total = {(0, 0): 1.0}  # (labels so far, labels on this frame) -> probability
    for frame in log_probs:
        closed: dict[tuple[int, int], float] = {}
        for done in range(len(tokens) + 1):
            for here in range(max_symbols):
                value = total.get((done, here), 0.0)
                wait = value * math.exp(frame[done][0])
                closed[(done, 0)] = closed.get((done, 0), 0.0) + wait
                if done < len(tokens):
                    emit = value * math.exp(frame[done][tokens[done]])
                    target = closed if here + 1 == max_symbols else total
                    key = (done + 1, 0 if target is closed else here + 1)
                    target[key] = target.get(key, 0.0) + emit
        total = closed
    final = total.get((len(tokens), 0), 0.0)
    return math.log(final) if final > 0 else -math.inf


def all_sequences(vocab_size: int, longest: int) -> list[tuple[int, ...]]:
    labels = range(1, vocab_size)
    return [s for length in range(longest + 1) for s in itertools.product(labels, repeat=length)]
