"""Frame-synchronous beam search in batches, with scorers.

Letters: n utterances that have not ended, K hypotheses of the beam, N = n * K rows, J joiner channels, V labels with
the blank, S scorers. Utterances are sorted by falling length, so those that have not ended come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from w2vbert.decoding.beam import Step, Texts, merge_closed, merge_emissions, trace
from w2vbert.decoding.config import SearchConfig
from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.model import NEVER, LabelModel, State
from w2vbert.decoding.scorers import WeightedScorer


@dataclass(frozen=True)
class _Beam:
    """The hypotheses of the n utterances that have not ended. A slot with log-probability -inf is empty."""

    texts: Texts
    log_prob: Tensor
    """(n, K), the model's, summed over merged alignments."""
    fusion: Tensor
    """(n, K), weighted scorers and length bonus: a function of the text alone."""
    by_scorer: tuple[Tensor, ...]
    """S of (n, K), what each scorer gives the text, without its weight."""
    out: Tensor
    """(N, J), output of the prediction network."""
    state: State
    """Of the prediction network, each (layers, N, H)."""
    scorer_states: tuple[Any, ...]

    def first(self, running: int, scorers: Sequence[WeightedScorer]) -> _Beam:
        """The beams of the first `running` utterances."""
        rows = torch.arange(running * self.log_prob.shape[1], device=self.log_prob.device)
        return _Beam(
            texts=self.texts.first(running),
            log_prob=self.log_prob[:running],
            fusion=self.fusion[:running],
            by_scorer=tuple(values[:running] for values in self.by_scorer),
            out=self.out[: len(rows)],
            state=tuple(part[:, : len(rows)] for part in self.state),
            scorer_states=tuple(
                weighted.scorer.advance(state, rows, rows, rows < 0)
                for weighted, state in zip(scorers, self.scorer_states, strict=True)
            ),
        )


@dataclass(frozen=True)
class _Ended:
    """The beam of m utterances that have ended; each tensor (m, K), but for (m, K, S) by scorer."""

    score: Tensor
    log_prob: Tensor
    length: Tensor
    by_scorer: Tensor


@dataclass(frozen=True)
class _Choice:
    """Where the hypotheses after an expansion come from; each tensor (n, K)."""

    slots: Tensor
    """Hypothesis before it whose text is continued."""
    labels: Tensor
    """By which label; the blank where by none."""
    emitted: Tensor
    """Whether by a label."""


def _running(frame_counts: list[int]) -> list[int]:
    """For each frame the number of utterances, sorted by falling length, that reach it."""
    running, alive = [], len(frame_counts)
    for frame in range(frame_counts[0] if frame_counts else 0):
        while frame_counts[alive - 1] <= frame:
            alive -= 1
        running.append(alive)
    return running


class BeamSearch:
    """Beam searches over batches. Hypotheses of equal text are merged, and their probabilities added."""

    def __init__(self, model: LabelModel, config: SearchConfig, scorers: Sequence[WeightedScorer]) -> None:
        self.model, self.config, self.scorers = model, config, scorers

    def run(self, encoder_out: Tensor, frame_counts: list[int]) -> list[list[Hypothesis]]:
        """Search a batch.

        Args:
            encoder_out: float (B, T, J), sorted by falling length.
            frame_counts: of each utterance.

        Returns:
            The n-best list of each utterance.
        """
        beam = self._start(len(frame_counts), encoder_out.device)
        steps: list[Step] = []
        ended: list[_Ended] = []
        rounds = self.config.max_symbols_per_frame
        for frame, running in enumerate(_running(frame_counts)):
            if running < beam.log_prob.shape[0]:
                ended.append(self._end(beam, running))
                beam = beam.first(running, self.scorers)
            is_open: Tensor | None = None
            for symbol in range(rounds):
                beam, step, is_open = self._expand(
                    beam, encoder_out[:running, frame], frame, is_open, symbol + 1 == rounds
                )
                steps.append(step)
                if symbol + 1 < rounds and not bool(is_open.any()):
                    break
        ended.append(self._end(beam, 0))
        return self._collect(steps, ended[::-1], len(frame_counts))

    def _start(self, batch: int, device: torch.device) -> _Beam:
        beam_size = self.config.beam_size
        log_prob = torch.full((batch, beam_size), NEVER, device=device)
        log_prob[:, 0] = 0.0
        out, state = self.model.start(batch * beam_size, device)
        return _Beam(
            texts=Texts.empty(batch, beam_size, self.model.blank, device),
            log_prob=log_prob,
            fusion=torch.zeros_like(log_prob),
            by_scorer=tuple(torch.zeros_like(log_prob) for _ in self.scorers),
            out=out,
            state=state,
            scorer_states=tuple(weighted.scorer.start(batch * beam_size, device) for weighted in self.scorers),
        )

    def _expand(
        self, beam: _Beam, encoder_frame: Tensor, frame: int, is_open: Tensor | None, last_round: bool
    ) -> tuple[_Beam, Step, Tensor]:
        """Let each open hypothesis take the blank or a label of this frame, and keep the best K.

        encoder_frame: (n, J). is_open: (n, K), hypotheses that have not taken this frame's blank yet; None: all.
        In the last round a label ends the frame as a blank does, so equal texts meet and are merged.
        """
        (n, k), blank = beam.log_prob.shape, self.model.blank
        log_probs = self.model.log_probs(encoder_frame.unsqueeze(1), beam.out.view(n, k, -1))  # (n, K, V)
        v = log_probs.shape[-1]
        wait = log_probs[..., blank] if is_open is None else log_probs[..., blank].masked_fill(~is_open, 0.0)
        keep = beam.log_prob + wait  # (n, K)
        parent = torch.arange(k, device=keep.device).expand(n, k)
        token = torch.full_like(parent, blank)
        base = (beam.log_prob + beam.fusion + self.config.length_bonus).unsqueeze(-1)
        totals = log_probs + (base if is_open is None else base.masked_fill(~is_open.unsqueeze(-1), NEVER))
        totals[..., blank] = NEVER
        scores = [w.scorer.scores(s).view(n, k, v) for w, s in zip(self.scorers, beam.scorer_states, strict=True)]
        for weighted, values in zip(self.scorers, scores, strict=True):
            totals.add_(values, alpha=weighted.weight)
        if self.config.max_symbols_per_frame > 1:
            keep, parent = merge_closed(beam.texts, keep, parent)
        if last_round:
            last = beam.texts.last.unsqueeze(1).expand(-1, k, -1)  # (n, K, K)
            arcs = beam.log_prob.unsqueeze(-1) + log_probs.gather(2, last)
            if is_open is not None:
                arcs.masked_fill_(~is_open.unsqueeze(-1), NEVER)
            keep, parent, token, moved = merge_emissions(beam.texts, keep, arcs, parent, token)
            totals.scatter_add_(2, last, torch.where(moved, NEVER, 0.0))

        best, cell = totals.view(n, k * v).topk(min(k, k * v), dim=1)  # (n, K)
        top, index = torch.cat([keep + beam.fusion, best], dim=1).topk(k, dim=1)  # (n, K) of (n, 2 K)
        kept = index < k
        cell = cell.gather(1, (index - k).clamp(min=0))  # of (K, V), where a label is emitted
        slots = torch.where(kept, index, cell // v)
        labels = torch.where(kept, blank, cell % v)
        parent = torch.where(kept, parent.gather(1, slots), slots)
        token = torch.where(kept, token.gather(1, slots), labels)
        step = Step(frame, parent, token, log_probs.view(n, k * v).gather(1, parent * v + token))
        emitted_log_prob = (beam.log_prob.gather(1, slots) + log_probs.view(n, k * v).gather(1, cell)).where(
            top > NEVER, NEVER
        )
        log_prob = torch.where(kept, keep.gather(1, slots), emitted_log_prob)
        emitted = ~kept & (top > NEVER)
        gained = [values.reshape(n, k * v).gather(1, cell).masked_fill(kept, 0.0) for values in scores]
        beam = replace(beam, log_prob=log_prob)
        beam = self._advance(beam, _Choice(slots, labels, emitted), gained)
        return beam, step, emitted & (not last_round)

    def _advance(self, beam: _Beam, choice: _Choice, gained: Sequence[Tensor]) -> _Beam:
        """Let all but the log-probabilities follow the hypotheses. gained: S of (n, K), without weights."""
        (n, k), slots = choice.slots.shape, choice.slots
        rows = (slots + torch.arange(0, n * k, k, device=slots.device).unsqueeze(1)).view(n * k)
        emitted, labels = choice.emitted.view(n * k), choice.labels.view(n * k)
        out, state = beam.out.index_select(0, rows), tuple(part.index_select(1, rows) for part in beam.state)
        changed = emitted.nonzero().squeeze(1)
        if len(changed):
            self.model.read(out, state, changed, labels[changed])
        fusion = beam.fusion.gather(1, slots) + self.config.length_bonus * choice.emitted
        for weighted, values in zip(self.scorers, gained, strict=True):
            fusion = fusion + weighted.weight * values
        return _Beam(
            texts=beam.texts.extend(slots, choice.labels, choice.emitted),
            log_prob=beam.log_prob,
            fusion=fusion,
            by_scorer=tuple(old.gather(1, slots) + values for old, values in zip(beam.by_scorer, gained, strict=True)),
            out=out,
            state=state,
            scorer_states=tuple(
                weighted.scorer.advance(scorer_state, rows, labels, emitted)
                for weighted, scorer_state in zip(self.scorers, beam.scorer_states, strict=True)
            ),
        )

    def _end(self, beam: _Beam, running: int) -> _Ended:
        """The beams of the utterances from `running` on, with the scorers' word on the end of the sentence."""
        log_prob, k = beam.log_prob[running:], beam.log_prob.shape[1]
        score = log_prob + beam.fusion[running:]
        rows = torch.arange(running * k, beam.log_prob.numel(), device=score.device)
        by_scorer = []
        for weighted, state, values in zip(self.scorers, beam.scorer_states, beam.by_scorer, strict=True):
            final = weighted.scorer.final(weighted.scorer.advance(state, rows, rows, rows < 0)).view_as(score)
            by_scorer.append(values[running:] + final)
            score = score + weighted.weight * final
        together = torch.stack(by_scorer, -1) if by_scorer else score.new_zeros(*score.shape, 0)
        return _Ended(score, log_prob, beam.texts.length[running:], together)

    def _collect(self, steps: list[Step], ended: list[_Ended], batch: int) -> list[list[Hypothesis]]:
        """Sort the finished hypotheses and follow the back-pointers of those that are wanted."""
        score = torch.cat([part.score for part in ended])  # (B, K)
        log_prob = torch.cat([part.log_prob for part in ended])
        posterior = score.softmax(-1)
        if self.config.length_normalization:
            score = score / torch.cat([part.length for part in ended]).clamp(min=1)
        order = score.argsort(dim=1, descending=True, stable=True)[:, : self.config.nbest]
        paths = trace(steps, order, self.model.blank)
        by_scorer = torch.cat([part.by_scorer for part in ended])  # (B, K, S)
        scores = by_scorer.gather(1, order.unsqueeze(-1).expand(-1, -1, len(self.scorers))).tolist()
        columns = [values.gather(1, order).tolist() for values in (score, log_prob, posterior)]
        names = [weighted.name for weighted in self.scorers]
        results: list[list[Hypothesis]] = []
        for b in range(batch):
            named = [dict(zip(names, values, strict=True)) for values in scores[b]]
            ranked = zip(paths[b], *(column[b] for column in columns), named, strict=True)
            results.append([Hypothesis.of_path(*entry) for entry in ranked if entry[1] > NEVER])
        return results
