"""w2v-BERT's whole loss and its gradients against a plain reference in float64, written frame by frame from equations.

wav2vec 2.0, equations 1 (Gumbel softmax), 3 (contrastive) and 4 (diversity); w2v-BERT, section 2.4 (sum of the losses).
"""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.models.tiny import ENCODER, MELS, PRETRAINING, noise, unsettle
from w2vbert.models import w2v_bert
from w2vbert.models.encoder import EncoderOutput
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.w2v_bert import W2vBert, W2vBertConfig

LENGTHS = torch.tensor([40, 25, 9])  # encoder frames
TEMPERATURE = 0.7
LEAVES = ("encoded", "context", "output")


class Case:
    """A model whose encoder is replaced by given tensors, and what was drawn at random in its forward pass."""

    def __init__(self, config: W2vBertConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        self.config = config
        self.model = W2vBert(config).train()
        unsettle(self.model)
        frames, dims = int(LENGTHS.max()), (ENCODER.subsampling.output_dim, ENCODER.block.dim, ENCODER.block.dim)
        values = [noise(len(LENGTHS), frames, dim, seed=seed) for seed, dim in enumerate(dims)]
        self.leaves = {name: x.requires_grad_() for name, x in zip(LEAVES, values, strict=True)}
        self.mask = torch.zeros(0)
        self.distractors: Tensor | None = None
        self.gumbel = torch.zeros(0)
        encoder = self.model.encoder
        monkeypatch.setattr(encoder.feature_encoder, "forward", lambda *_: (self.leaves["encoded"], LENGTHS))
        output = EncoderOutput(self.leaves["encoded"], self.leaves["context"], self.leaves["output"], LENGTHS)
        monkeypatch.setattr(encoder, "contextualize", lambda *_: output)
        self._record(monkeypatch)

    def _record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        span_mask, draw, quantize = w2v_bert.span_mask, w2v_bert.draw_distractors, self.model.quantizer.forward

        def recorded_mask(*args: object) -> Tensor:
            self.mask = span_mask(*args)  # type: ignore[arg-type]
            self.mask[2] = False
            self.mask[2, 4] = True  # an utterance with one masked frame
            return self.mask

        def recorded_draw(*args: object) -> Tensor:
            self.distractors = draw(*args)  # type: ignore[arg-type]
            return self.distractors

        def recorded_quantize(x: Tensor, temperature: float, generator: torch.Generator) -> object:
            quantizer = self.config.quantizer
            replay = torch.Generator()
            replay.set_state(generator.get_state())
            drawn = torch.empty(len(x), quantizer.codebooks, quantizer.codes).exponential_(generator=replay)
            self.gumbel = -drawn.double().log()
            return quantize(x, temperature, generator)

        monkeypatch.setattr(w2v_bert, "span_mask", recorded_mask)
        monkeypatch.setattr(w2v_bert, "draw_distractors", recorded_draw)
        monkeypatch.setattr(self.model.quantizer, "forward", recorded_quantize)

    def run(self) -> tuple[Tensor, list[Tensor]]:
        """The model's own loss and gradients: of the encoder's tensors, then of quantizer and heads."""
        loss = self.model(torch.zeros(3, 160, MELS), LENGTHS * 4, TEMPERATURE, torch.Generator().manual_seed(0))
        return loss.total, list(torch.autograd.grad(loss.total, [*self.leaves.values(), *self.parameters()]))

    def parameters(self) -> list[Tensor]:
        quantizer, context, code = self.model.quantizer, self.model.context_linear, self.model.code_linear
        assert context is not None and code is not None
        return [
            *(quantizer.logits.weight, quantizer.logits.bias, quantizer.codebook),
            *(context.weight, context.bias, code.weight, code.bias),
        ]


def softmax(scores: Tensor) -> Tensor:
    return torch.exp(scores) / torch.exp(scores).sum()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / ((a @ a).sqrt() * (b @ b).sqrt())


def reference(case: Case) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients, one masked frame after the other."""
    config = case.config
    groups, codes = config.quantizer.codebooks, config.quantizer.codes
    tensors = [x.detach().double().requires_grad_() for x in [*case.leaves.values(), *case.parameters()]]
    encoded, context, output, logit_weight, logit_bias, codebook, context_weight, context_bias, *code = tensors
    vectors: dict[tuple[int, int], Tensor] = {}
    chosen: dict[tuple[int, int], tuple[int, ...]] = {}
    mean = torch.zeros(groups, codes, dtype=torch.float64)
    frame_entropy = torch.zeros((), dtype=torch.float64)
    masked_loss, places = torch.zeros((), dtype=torch.float64), [(b, t) for b, t in case.mask.nonzero().tolist()]
    for number, (b, t) in enumerate(places):
        parts = []
        logits = (logit_weight @ encoded[b, t] + logit_bias).view(groups, codes)
        predicted = (code[0] @ output[b, t] + code[1]).view(groups, codes)
        for g in range(groups):
            noisy = logits[g] + case.gumbel[number, g]
            soft = softmax(noisy / TEMPERATURE)
            hard = torch.zeros(codes, dtype=torch.float64)
            hard[noisy.argmax()] = 1.0
            parts.append((hard - soft.detach() + soft) @ codebook[g])
            chosen[b, t] = (*chosen.get((b, t), ()), int(noisy.argmax()))
            probs = softmax(logits[g])
            mean = mean + torch.eye(groups, dtype=torch.float64)[g][:, None] * probs / len(places)
            frame_entropy = frame_entropy - (probs * probs.log()).sum() / (groups * len(places))
            masked_loss = masked_loss - softmax(predicted[g])[logits[g].argmax()].log() / groups
        vectors[b, t] = torch.cat(parts)
    contrastive = torch.zeros((), dtype=torch.float64)
    for b, t in places:
        own = [s for c, s in places if c == b]
        if case.distractors is None:
            candidates = own
        else:
            candidates = [own[k] for k in case.distractors[b, own.index(t)].tolist()] if len(own) > 1 else []
        others = [s for s in candidates if chosen[b, s] != chosen[b, t]]
        if others:
            query = context_weight @ context[b, t] + context_bias
            scores = torch.stack([cosine(query, vectors[b, s]) for s in [t, *others]])
            contrastive = contrastive - softmax(scores / config.contrastive_temperature)[0].log()
    entropy = -(mean * mean.log()).sum(1)
    diversity = math.log(codes) - (entropy.mean() - frame_entropy)
    if config.diversity == "perplexity":
        diversity = (groups * codes - entropy.exp().sum()) / (groups * codes)
    total = config.contrastive_weight * (contrastive + config.diversity_weight * diversity * len(places))
    total = total + config.masked_prediction_weight * masked_loss
    return total, list(torch.autograd.grad(total, tensors))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("diversity", ["information", "perplexity"])
@pytest.mark.parametrize("distractors", [5, 1000])
def test_loss_and_gradients_are_those_of_the_equations(
    groups: int, diversity: Literal["information", "perplexity"], distractors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        PRETRAINING,
        quantizer=QuantizerConfig(groups, codes=6, dim=10, logit_std=1.5),
        num_distractors=distractors,
        contrastive_weight=0.8,
        diversity=diversity,
        diversity_weight=0.6,
        masked_prediction_weight=1.3,
    )
    case = Case(config, monkeypatch)
    total, grads = case.run()
    expected_total, expected_grads = reference(case)
    assert (case.distractors is None) == (distractors == 1000) and int(case.mask.sum(1)[2]) == 1
    torch.testing.assert_close(total.double(), expected_total, rtol=1e-5, atol=1e-5)
    for found, expected in zip(grads, expected_grads, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)
