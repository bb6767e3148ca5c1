"""RNN transducer (Graves 2012) over a pre-trained speech encoder, with the pruned loss (Kuang et al. 2022).

B batch, T filterbank frames, F mel bins, D model dimension, U labels, V vocabulary, J joiner dimension.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2vbert.models.conformer import MaskedBatchNorm
from w2vbert.models.encoder import EncoderConfig, EncoderOutput, SpeechEncoder
from w2vbert.ops.lengths import padding_mask, send, zero_padding
from w2vbert.ops.rnnt_loss import (
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    rnnt_loss_pruned,
    rnnt_loss_smoothed,
    state_occupation,
)

BLANK = 0

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class PredictorConfig:
    """Prediction network.

    Attributes:
        kind: lstm (paper) or stateless: an embedding and a convolution over the last `context` labels (Ghodsi et al.
            2020, as icefall's recipes have it).
        dim: H, of embedding and hidden state (640: family).
        layers: LSTM layers (2: paper).
        context: labels that the stateless network sees.
        dropout_prob: dropout on the embedding and between LSTM layers.
    """

    kind: Literal["lstm", "stateless"] = "lstm"
    dim: int = 640
    layers: int = 2
    context: int = 2
    dropout_prob: float = 0.1

    def __post_init__(self) -> None:
        if self.dim < 1 or self.layers < 1 or self.context < 1:
            raise ValueError("the prediction network needs dim, layers and context of at least 1")
        if not 0.0 <= self.dropout_prob < 1.0:
            raise ValueError(f"dropout_prob must lie in [0, 1), not {self.dropout_prob}")


@dataclass(frozen=True)
class TransducerConfig:
    """Transducer; the defaults are those of w2v-BERT XL.

    Attributes:
        encoder: as pre-trained.
        vocab_size: V, word pieces with the blank (1024: paper).
        projection_dim: of the projection block (640: family).
        predictor: prediction network.
        joiner_dim: J (640: family).
        ctc: whether a CTC head stands beside the transducer; it serves training alone.
        rnnt_type: lattice of the losses: regular (a frame may emit any number of labels), modified (a label uses up
            its frame) or constrained (k2's names). Decoding with one symbol a frame is exact for the last two.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vocab_size: int = 1024
    projection_dim: int = 640
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    joiner_dim: int = 640
    ctc: bool = False
    rnnt_type: Literal["regular", "modified", "constrained"] = "regular"

    def __post_init__(self) -> None:
        if min(self.projection_dim, self.joiner_dim) < 1:
            raise ValueError("projection_dim and joiner_dim must be at least 1")
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2 (the blank and one piece), not {self.vocab_size}")


class LSTMPredictor(nn.Module):
    """Embedding, LSTM and the joiner's linear layer for it."""

    def __init__(self, vocab_size: int, joiner_dim: int, config: PredictorConfig) -> None:
        super().__init__()
        self.layers, self.dim = config.layers, config.dim
        between = config.dropout_prob if config.layers > 1 else 0.0
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout_prob)
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=between)
        self.linear = nn.Linear(config.dim, joiner_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs after each prefix of the labels: int64 (B, U) -> (B, U + 1, J)."""
        inputs = F.pad(tokens, (1, 0), value=BLANK)  # (B, U + 1): the blank begins
        with torch.autocast(tokens.device.type, enabled=False):
            hidden, _ = self.lstm(self.dropout(self.embedding(inputs)))  # (B, U + 1, H)
        return self.linear(hidden)

    def initial_state(self, batch: int, device: torch.device) -> State:
        """State before the first step: hidden and cell, each (layers, B, H)."""
        zeros = torch.zeros(self.layers, batch, self.dim, device=device)
        return zeros, zeros.clone()

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One label for each of N hypotheses: int64 (N,), state (layers, N, H) -> (N, J) and the next state."""
        x, (hidden, cell) = self.embedding(tokens), state
        hiddens, cells = [], []
        for layer, weights in enumerate(self.lstm.all_weights):  # one cell costs half of the LSTM's call on a CPU
            x, after = torch.lstm_cell(x, (hidden[layer], cell[layer]), *weights)
            hiddens.append(x)
            cells.append(after)
        return self.linear(x), (torch.stack(hiddens), torch.stack(cells))


class StatelessPredictor(nn.Module):
    """Embedding and a depthwise convolution over the last labels (Ghodsi et al. 2020, section 2)."""

    def __init__(self, vocab_size: int, joiner_dim: int, config: PredictorConfig) -> None:
        super().__init__()
        self.context = config.context
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout_prob)
        self.convolution = nn.Conv1d(config.dim, config.dim, config.context, groups=config.dim)
        self.linear = nn.Linear(config.dim, joiner_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs after each prefix of the labels: int64 (B, U) -> (B, U + 1, J)."""
        return self._outputs(F.pad(tokens, (self.context, 0), value=BLANK))

    def _outputs(self, tokens: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(tokens))
        hidden = F.relu(self.convolution(embedded.transpose(1, 2)))  # (B, H, U + 1)
        return self.linear(hidden.transpose(1, 2))

    def initial_state(self, batch: int, device: torch.device) -> State:
        """State before the first step: the last labels, int64 (1, B, context), all blank."""
        return (torch.full((1, batch, self.context), BLANK, dtype=torch.int64, device=device),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One label for each of N hypotheses: int64 (N,) -> (N, J) and the next state."""
        labels = torch.cat([state[0][0, :, 1:], tokens[:, None]], dim=1)  # (N, context)
        return self._outputs(labels)[:, 0], (labels[None],)


class Joiner(nn.Module):
    """tanh of the sum of encoder and predictor, then a linear layer to the vocabulary."""

    def __init__(self, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(joiner_dim, vocab_size)

    def forward(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """(..., J) and (..., J), which broadcast -> logits (..., V)."""
        return self.linear(torch.tanh(encoder + predictor))


@dataclass(frozen=True)
class TransducerLoss:
    """Losses of each utterance in nats, and what they are counted by.

    Attributes:
        simple: (B,), smoothed loss of the additive joiner, which chooses the ranges.
        pruned: (B,), loss of the joiner inside the ranges.
        ctc: (B,), loss of the CTC head; zeros without one.
        frames: int64 (B,), encoder frames.
    """

    simple: Tensor
    pruned: Tensor
    ctc: Tensor
    frames: Tensor


class Transducer(nn.Module):
    """Encoder, projection block (linear, Swish, BatchNorm: Zhang et al. 2020), prediction network, joiner."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.blank = BLANK
        self.encoder = SpeechEncoder(config.encoder)
        self.projection = nn.Linear(config.encoder.block.dim, config.projection_dim)
        self.projection_norm = MaskedBatchNorm(config.projection_dim)
        self.encoder_linear = nn.Linear(config.projection_dim, config.joiner_dim)
        predictor = LSTMPredictor if config.predictor.kind == "lstm" else StatelessPredictor
        self.predictor = predictor(config.vocab_size, config.joiner_dim, config.predictor)
        self.joiner = Joiner(config.joiner_dim, config.vocab_size)
        self.simple_encoder = nn.Linear(config.joiner_dim, config.vocab_size)
        self.simple_predictor = nn.Linear(config.joiner_dim, config.vocab_size)
        self.ctc = nn.Linear(config.encoder.block.dim, config.vocab_size) if config.ctc else None

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder side of the joiner.

        Args:
            features: (B, T, F), normalised log-mel filterbanks.
            lengths: int64 (B,), filterbank frames, on the CPU.

        Returns:
            (B, T/4, J) and encoder frames int64 (B,).
        """
        output = self.encoder(features, lengths)
        return self._project(output), output.lengths

    def _project(self, output: EncoderOutput) -> Tensor:
        """Projection block and the joiner's linear layer: (B, T/4, D) -> (B, T/4, J)."""
        mask = padding_mask(output.lengths, output.output.shape[1])
        mask = None if mask is None else send(mask, output.output.device)
        x = F.silu(self.projection(output.output))
        x = self.projection_norm(zero_padding(x, mask), mask)
        return self.encoder_linear(x)

    def forward(
        self,
        features: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        s_range: int | None,
        freeze_encoder: bool = False,
    ) -> TransducerLoss:
        """Losses of a batch.

        Args:
            features: (B, T, F).
            lengths: int64 (B,), filterbank frames, on the CPU.
            tokens: int64 (B, U), without blanks.
            token_lengths: int64 (B,), on the CPU.
            s_range: labels that the pruned loss keeps at each frame; None for the CTC head alone, with zeros elsewhere.
            freeze_encoder: no gradient into the encoder, and none of its statistics or dropout change anything.
        """
        output = self._encode_frozen(features, lengths) if freeze_encoder else self.encoder(features, lengths)
        ctc = self._ctc_loss(output, tokens, token_lengths)
        if s_range is None:
            return TransducerLoss(torch.zeros_like(ctc), torch.zeros_like(ctc), ctc, output.lengths)
        simple, pruned = self._rnnt_losses(output, tokens, token_lengths, s_range)
        return TransducerLoss(simple, pruned, ctc, output.lengths)

    def _rnnt_losses(
        self, output: EncoderOutput, tokens: Tensor, token_lengths: Tensor, s_range: int
    ) -> tuple[Tensor, Tensor]:
        """Smoothed and pruned loss of each utterance, (B,) and (B,)."""
        encoded, predicted = self._project(output), self.predictor(tokens)
        boundary = torch.zeros(len(tokens), 4, dtype=torch.int64)
        boundary[:, 2], boundary[:, 3] = token_lengths, output.lengths
        bounds = send(boundary, tokens.device)
        am, lm = self.simple_encoder(encoded), self.simple_predictor(predicted)
        with torch.autocast(tokens.device.type, enabled=False):
            simple, (px_grad, py_grad) = rnnt_loss_smoothed(
                lm=lm.float(),
                am=am.float(),
                symbols=tokens,
                termination_symbol=BLANK,
                lm_only_scale=0.25,
                am_only_scale=0.0,
                boundary=bounds,
                rnnt_type=self.config.rnnt_type,
                reduction="none",
                return_grad=True,
            )
        if self.config.rnnt_type != "regular":
            px_grad, py_grad = state_occupation(px_grad, py_grad, self.config.rnnt_type)
        ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range)
        logits = self.joiner(*do_rnnt_pruning(encoded, predicted, ranges))  # (B, T/4, s_range, V)
        with torch.autocast(tokens.device.type, enabled=False):
            pruned = rnnt_loss_pruned(
                logits=logits,  # summed in float32, whatever their type
                symbols=tokens,
                ranges=ranges,
                termination_symbol=BLANK,
                boundary=bounds,
                rnnt_type=self.config.rnnt_type,
                reduction="none",
            )
        return simple, pruned

    @torch.no_grad()
    def _encode_frozen(self, features: Tensor, lengths: Tensor) -> EncoderOutput:
        training = self.encoder.training
        output = self.encoder.eval()(features, lengths)
        self.encoder.train(training)
        return output

    def ctc_greedy(self, features: Tensor, lengths: Tensor) -> list[list[int]]:
        """Labels of the CTC head's best path, repetitions and blanks removed; (B, T, F) and (B,) -> B lists."""
        assert self.ctc is not None
        output = self.encoder(features, lengths)
        best = self.ctc(output.output).argmax(-1).cpu()  # (B, T/4)
        paths = (path[:frames].unique_consecutive() for path, frames in zip(best, output.lengths, strict=True))
        return [path[path != BLANK].tolist() for path in paths]

    def _ctc_loss(self, output: EncoderOutput, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Loss of the CTC head, (B,); 0, without gradient, where the frames are too few for the labels."""
        if self.ctc is None:
            return output.output.new_zeros(len(tokens), dtype=torch.float32)
        log_probs = self.ctc(output.output).float().log_softmax(-1).transpose(0, 1)  # (T/4, B, V)
        return F.ctc_loss(
            log_probs, tokens, output.lengths, token_lengths, blank=BLANK, reduction="none", zero_infinity=True
        )
