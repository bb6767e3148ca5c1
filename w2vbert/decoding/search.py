"""Batched greedy and beam search over a transducer.

Both searches are frame-synchronous and know the model only through the protocols below. On each frame a hypothesis
either takes the blank and waits for the next frame, or emits a label; after `max_symbols_per_frame` labels the next
frame comes without a blank. With one symbol a frame this is the modified transducer of k2 and icefall. Under this
rule the probabilities of all label sequences sum to one, and a beam that is wide enough is an exact search.

Letters: B utterances, n utterances that have not ended, T encoder frames, K hypotheses of the beam, J joiner
channels, V labels with the blank. Utterances are sorted by length, so those that have not ended come first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from w2vbert.decoding.beam import NEVER, Step, Texts, merge_closed, merge_emissions, trace
from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.scorers import WeightedScorer

State = tuple[Tensor, ...]
MAX_BEAM_SIZE = 1000


class Predictor(Protocol):
    """The prediction network; each tensor of its state is (layers, N, H)."""

    def initial_state(self, batch: int, device: torch.device) -> State: ...

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens (N,) int64 -> output (N, J), state."""


class Joiner(Protocol):
    """(..., J) of the encoder and (..., J) of the predictor -> logits (..., V)."""

    def __call__(self, encoder_out: Tensor, predictor_out: Tensor) -> Tensor: ...


class Transducer(Protocol):
    """All that a search needs of a model. The blank also stands before the first label."""

    @property
    def predictor(self) -> Predictor: ...

    @property
    def joiner(self) -> Joiner: ...

    @property
    def blank(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class SearchConfig:
    """How to look for the best label sequences."""

    method: Literal["greedy", "beam"] = "greedy"
    """greedy: the best choice on each frame. beam: keeps `beam_size` hypotheses and takes language models."""
    beam_size: int = 4
    """Hypotheses kept for each utterance (beam only)."""
    max_symbols_per_frame: int = 1
    """Labels that one encoder frame may emit."""
    blank_penalty: float = 0.0
    """Subtracted from the blank's score before the softmax, in nats: above 0 against deletions."""
    length_bonus: float = 0.0
    """Added to the score for each label, in nats (beam only): above 0 for longer texts."""
    length_normalization: bool = False
    """Sort the finished hypotheses by score per label instead of by score (beam only)."""
    nbest: int = 1
    """Hypotheses returned for each utterance; fewer where the beam holds fewer."""

    def __post_init__(self) -> None:
        for key in ("beam_size", "max_symbols_per_frame", "nbest"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is not allowed: at least 1")
        if self.beam_size > MAX_BEAM_SIZE:
            raise ValueError(f"beam_size: {self.beam_size} is not allowed: at most {MAX_BEAM_SIZE}")
        for key in ("blank_penalty", "length_bonus"):
            if not math.isfinite(getattr(self, key)):
                raise ValueError(f"{key}: {getattr(self, key)} is not allowed: a finite number")
        if self.method == "greedy" and (self.nbest > 1 or self.length_bonus or self.length_normalization):
            raise ValueError("nbest, length_bonus and length_normalization need method: beam")
        if self.method == "beam" and self.nbest > self.beam_size:
            raise ValueError(f"nbest: {self.nbest} is more than beam_size: {self.beam_size}")


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

    encoder_out: (B, T, J) float, as `Transducer.encode` returns it; frames beyond `lengths` are not read.
    lengths: (B,) int64, frames. scorers: for the beam; each with a name of its own.
    unknown: label that is never emitted, since it stands for no text; the others share its probability.
    Raises ValueError when a greedy search is given scorers.
    """
    if config.method == "greedy" and scorers:
        raise ValueError("a greedy search takes no language model: set method: beam")
    if len({weighted.name for weighted in scorers}) < len(scorers):
        raise ValueError(f"each scorer needs a name of its own: {[weighted.name for weighted in scorers]}")
    if encoder_out.shape[0] == 0:
        return []
    sorted_lengths, order = lengths.to(encoder_out.device).sort(descending=True, stable=True)
    encoder_out = encoder_out[order]
    frame_counts = sorted_lengths.tolist()
    if config.method == "greedy":
        found = [[h] for h in _greedy_search(model, encoder_out, frame_counts, config, unknown)]
    else:
        found = _BeamSearch(model, config, scorers, unknown).run(encoder_out, frame_counts)
    results: list[list[Hypothesis]] = [[] for _ in found]
    for position, hypotheses in zip(order.tolist(), found, strict=True):
        results[position] = hypotheses
    return results


def _running(frame_counts: list[int]) -> list[int]:
    """For each frame the number of utterances, sorted by falling length, that reach it."""
    running, alive = [], len(frame_counts)
    for frame in range(frame_counts[0] if frame_counts else 0):
        while frame_counts[alive - 1] <= frame:
            alive -= 1
        running.append(alive)
    return running


def _log_probs(
    model: Transducer, encoder_frame: Tensor, predictor_out: Tensor, unknown: int | None, blank_penalty: float
) -> Tensor:
    logits = model.joiner(encoder_frame, predictor_out).float()
    if blank_penalty:
        logits[..., model.blank] -= blank_penalty
    if unknown is not None:
        logits[..., unknown] = NEVER
    return logits.log_softmax(-1)


def _start_predictor(model: Transducer, rows: int, device: torch.device) -> tuple[Tensor, State]:
    state = model.predictor.initial_state(rows, device)
    return model.predictor.step(torch.full((rows,), model.blank, dtype=torch.long, device=device), state)


def _run_predictor(model: Transducer, out: Tensor, state: State, rows: Tensor, tokens: Tensor) -> None:
    """Run the predictor for `rows` (N,) of out (R, J) and state, with `tokens` (N,); changes both in place."""
    new_out, new_state = model.predictor.step(tokens, tuple(part[:, rows] for part in state))
    out[rows] = new_out
    for part, new_part in zip(state, new_state, strict=True):
        part[:, rows] = new_part


def _greedy_search(
    model: Transducer, encoder_out: Tensor, frame_counts: list[int], config: SearchConfig, unknown: int | None
) -> list[Hypothesis]:
    """encoder_out: (B, T, J), sorted by falling length."""
    device = encoder_out.device
    out, state = _start_predictor(model, len(frame_counts), device)
    score = torch.zeros(len(frame_counts), device=device)
    emissions: list[tuple[int, Tensor, Tensor, Tensor]] = []  # frame, rows, tokens, log-probabilities
    for frame, running in enumerate(_running(frame_counts)):
        rows = torch.arange(running, device=device)
        for _ in range(config.max_symbols_per_frame):
            log_probs = _log_probs(model, encoder_out[rows, frame], out[rows], unknown, config.blank_penalty)
            best, tokens = log_probs.max(-1)
            score[rows] += best
            emitted = (tokens != model.blank).nonzero().squeeze(1)
            if len(emitted) == 0:
                break
            rows, tokens = rows[emitted], tokens[emitted]
            emissions.append((frame, rows, tokens, best[emitted]))
            _run_predictor(model, out, state, rows, tokens)
    paths: list[list[tuple[int, int, float]]] = [[] for _ in frame_counts]
    for frame, rows, tokens, log_probs in emissions:
        for row, token, log_prob in zip(rows.tolist(), tokens.tolist(), log_probs.tolist(), strict=True):
            paths[row].append((token, frame, log_prob))
    return [_hypothesis(path, value, value, 1.0, {}) for path, value in zip(paths, score.tolist(), strict=True)]


def _hypothesis(
    path: list[tuple[int, int, float]], score: float, model_score: float, posterior: float, scores: Mapping[str, float]
) -> Hypothesis:
    return Hypothesis(
        tokens=tuple(token for token, _, _ in path),
        frames=tuple(frame for _, frame, _ in path),
        token_log_probs=tuple(log_prob for _, _, log_prob in path),
        score=score,
        model_score=model_score,
        posterior=posterior,
        scores=scores,
    )


@dataclass(frozen=True)
class _Beam:
    """The hypotheses of the n utterances that have not ended. A slot with log-probability -inf is empty."""

    texts: Texts
    log_prob: Tensor
    """(n, K), the model's, summed over merged alignments."""
    fusion: Tensor
    """(n, K), weighted scorers and length bonus: a function of the text alone."""
    by_scorer: Tensor
    """(S, n, K), what each scorer gives the text, without its weight."""
    gain: Tensor
    """(n, K, V), what the next label will add to `fusion`."""
    out: Tensor
    """(n * K, J), output of the prediction network."""
    state: State
    """Of the prediction network, each (layers, n * K, H)."""
    scorer_states: tuple[Any, ...]


@dataclass(frozen=True)
class _Ended:
    """The beam of utterances that have ended; each tensor (m, K)."""

    score: Tensor
    log_prob: Tensor
    length: Tensor
    by_scorer: Tensor
    """(S, m, K), with the end of the sentence."""


class _BeamSearch:
    """One beam search over a batch."""

    def __init__(
        self, model: Transducer, config: SearchConfig, scorers: Sequence[WeightedScorer], unknown: int | None
    ) -> None:
        self.model, self.config, self.unknown = model, config, unknown
        self.scorers = [weighted.scorer for weighted in scorers]
        self.names = [weighted.name for weighted in scorers]
        self.weights = [weighted.weight for weighted in scorers]

    def run(self, encoder_out: Tensor, frame_counts: list[int]) -> list[list[Hypothesis]]:
        """encoder_out: (B, T, J), sorted by falling length."""
        beam = self._start(len(frame_counts), encoder_out.device)
        steps: list[Step] = []
        ended: list[_Ended] = []
        for frame, running in enumerate(_running(frame_counts)):
            if running < beam.log_prob.shape[0]:
                ended.append(self._end(beam, running))
                beam = self._first(beam, running)
            is_open = torch.ones_like(beam.log_prob, dtype=torch.bool)
            for symbol in range(self.config.max_symbols_per_frame):
                last_round = symbol + 1 == self.config.max_symbols_per_frame
                encoder_frame = encoder_out[:running, frame]
                beam, step, is_open = self._expand(beam, encoder_frame, frame, is_open, last_round)
                steps.append(step)
                if not last_round and not bool(is_open.any()):
                    break
        ended.append(self._end(beam, 0))
        return self._collect(steps, ended[::-1], len(frame_counts))

    def _start(self, batch: int, device: torch.device) -> _Beam:
        beam_size = self.config.beam_size
        log_prob = torch.full((batch, beam_size), NEVER, device=device)
        log_prob[:, 0] = 0.0
        out, state = _start_predictor(self.model, batch * beam_size, device)
        scorer_states = tuple(scorer.start(batch * beam_size, device) for scorer in self.scorers)
        return _Beam(
            texts=Texts.empty(batch, beam_size, self.model.blank, device),
            log_prob=log_prob,
            fusion=torch.zeros_like(log_prob),
            by_scorer=log_prob.new_zeros(len(self.scorers), *log_prob.shape),
            gain=self._gain(scorer_states, log_prob),
            out=out,
            state=state,
            scorer_states=scorer_states,
        )

    def _gain(self, scorer_states: Sequence[Any], like: Tensor) -> Tensor:
        """What each next label adds to the score beside the model, (n, K, V); `like`: (n, K)."""
        gain = torch.full((*like.shape, self.model.vocab_size), self.config.length_bonus, device=like.device)
        for scorer, weight, state in zip(self.scorers, self.weights, scorer_states, strict=True):
            gain = gain + weight * scorer.scores(state).view_as(gain)
        return gain

    def _expand(
        self, beam: _Beam, encoder_frame: Tensor, frame: int, is_open: Tensor, last_round: bool
    ) -> tuple[_Beam, Step, Tensor]:
        """Let each open hypothesis take the blank or a label of this frame, and keep the best K.

        encoder_frame: (n, J). is_open: (n, K), hypotheses that have not taken this frame's blank yet.
        In the last round a label ends the frame as a blank does, so equal texts meet and are merged.
        """
        (n, k), blank = beam.log_prob.shape, self.model.blank
        expanded = encoder_frame.unsqueeze(1).expand(-1, k, -1).reshape(n * k, -1)  # (n * K, J)
        log_probs = _log_probs(self.model, expanded, beam.out, self.unknown, self.config.blank_penalty)
        log_probs = log_probs.view(n, k, -1)  # (n, K, V)
        v = log_probs.shape[-1]
        keep = beam.log_prob + torch.where(is_open, log_probs[..., blank], 0.0)  # (n, K)
        emit = beam.log_prob.unsqueeze(-1) + log_probs  # (n, K, V)
        emit[..., blank] = NEVER
        if self.config.max_symbols_per_frame > 1:
            emit.masked_fill_(~is_open.unsqueeze(-1), NEVER)
        parent = torch.arange(k, device=keep.device).expand(n, k)
        token = torch.full_like(parent, blank)
        if self.config.max_symbols_per_frame > 1:
            keep, parent = merge_closed(beam.texts, keep, parent)
        if last_round:
            keep, emit, parent, token = merge_emissions(beam.texts, keep, emit, parent, token)

        totals = torch.cat([keep + beam.fusion, (emit + beam.fusion.unsqueeze(-1) + beam.gain).flatten(1)], dim=1)
        top, index = totals.topk(k, dim=1)  # (n, K) of (n, K + K * V)
        kept = index < k
        label_index = (index - k).clamp(min=0)
        slots = torch.where(kept, index, label_index // v)
        labels = torch.where(kept, blank, label_index % v)
        parent = torch.where(kept, parent.gather(1, slots), slots)
        token = torch.where(kept, token.gather(1, slots), labels)
        step = Step(frame, parent, token, log_probs.flatten(1).gather(1, parent * v + token))
        log_prob = torch.where(kept, keep.gather(1, slots), emit.flatten(1).gather(1, label_index))
        added = torch.where(kept, 0.0, beam.gain.flatten(1).gather(1, label_index))
        by_scorer = [values.gather(1, slots) for values in beam.by_scorer]
        for number, (scorer, state) in enumerate(zip(self.scorers, beam.scorer_states, strict=True)):
            gained = scorer.scores(state).view(n, -1).gather(1, label_index)
            by_scorer[number] = by_scorer[number] + torch.where(kept, 0.0, gained)
        beam = replace(beam, log_prob=log_prob, fusion=beam.fusion.gather(1, slots) + added)
        beam = replace(beam, by_scorer=torch.stack(by_scorer) if by_scorer else beam.by_scorer)
        beam = self._advance(beam, slots, labels, ~kept & (top > NEVER))
        return beam, step, ~kept & (top > NEVER) & (not last_round)

    def _advance(self, beam: _Beam, slots: Tensor, labels: Tensor, emitted: Tensor) -> _Beam:
        """Texts, prediction network and scorers follow the hypotheses; each argument (n, K)."""
        n, k = slots.shape
        rows = (slots + torch.arange(n, device=slots.device).unsqueeze(1) * k).flatten()  # (n * K,)
        flat = emitted.flatten()
        out, state = beam.out[rows], tuple(part[:, rows] for part in beam.state)
        changed = flat.nonzero().squeeze(1)
        if len(changed):
            _run_predictor(self.model, out, state, changed, labels.flatten()[changed])
        states = tuple(
            scorer.advance(scorer_state, rows, labels.flatten(), flat)
            for scorer, scorer_state in zip(self.scorers, beam.scorer_states, strict=True)
        )
        gain = self._gain(states, slots) if states else beam.gain
        texts = beam.texts.extend(slots, labels, emitted)
        return replace(beam, texts=texts, out=out, state=state, scorer_states=states, gain=gain)

    def _end(self, beam: _Beam, running: int) -> _Ended:
        """The beams of the utterances from `running` on, with the scorers' word on the end of the sentence."""
        log_prob, k = beam.log_prob[running:], beam.log_prob.shape[1]
        score = log_prob + beam.fusion[running:]
        rows = torch.arange(running * k, beam.log_prob.numel(), device=score.device)
        by_scorer = beam.by_scorer[:, running:].clone()
        for number, (scorer, state) in enumerate(zip(self.scorers, beam.scorer_states, strict=True)):
            last = scorer.advance(state, rows, torch.full_like(rows, self.model.blank), rows < 0)
            final = scorer.final(last).view_as(score)
            by_scorer[number] += final
            score = score + self.weights[number] * final
        return _Ended(score, log_prob, beam.texts.length[running:], by_scorer)

    def _first(self, beam: _Beam, running: int) -> _Beam:
        """The beams of the first `running` utterances."""
        rows = torch.arange(running * beam.log_prob.shape[1], device=beam.log_prob.device)
        return _Beam(
            texts=beam.texts.first(running),
            log_prob=beam.log_prob[:running],
            fusion=beam.fusion[:running],
            by_scorer=beam.by_scorer[:, :running],
            gain=beam.gain[:running],
            out=beam.out[: len(rows)],
            state=tuple(part[:, : len(rows)] for part in beam.state),
            scorer_states=tuple(
                scorer.advance(state, rows, torch.full_like(rows, self.model.blank), rows < 0)
                for scorer, state in zip(self.scorers, beam.scorer_states, strict=True)
            ),
        )

    def _collect(self, steps: list[Step], ended: list[_Ended], batch: int) -> list[list[Hypothesis]]:
        """Sort the finished hypotheses and follow the back-pointers of those that are wanted."""
        score = torch.cat([part.score for part in ended])  # (B, K)
        log_prob = torch.cat([part.log_prob for part in ended])
        posterior = score.softmax(-1)
        if self.config.length_normalization:
            score = score / torch.cat([part.length for part in ended]).clamp(min=1)
        order = score.argsort(dim=1, descending=True, stable=True)[:, : self.config.nbest]
        paths = trace(steps, order, self.model.blank)
        results: list[list[Hypothesis]] = []
        by_scorer = torch.cat([part.by_scorer for part in ended], 1).gather(2, order.expand(len(self.names), -1, -1))
        scores = by_scorer.permute(1, 2, 0).tolist()  # (B, N, S)
        columns = [values.gather(1, order).tolist() for values in (score, log_prob, posterior)]
        for b in range(batch):
            named = [dict(zip(self.names, values, strict=True)) for values in scores[b]]
            ranked = zip(paths[b], *(column[b] for column in columns), named, strict=True)
            results.append([_hypothesis(*entry) for entry in ranked if entry[1] > NEVER])
        return results
