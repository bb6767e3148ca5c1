"""Greedy and beam search, alone and with language models, beside the encoder and beside torchaudio's beam search.

    python -m benchmarks.decoding [--quick] [--device cuda] [--rounds N] [--predictor stateless] [--json]

The model is random: 12 blocks of 256, V = 1024, joiner 512. Its encoder output is scaled to variance 1, its joiner
made so sharp that a label has a probability like those of trained models, and the blank's bias chosen so that greedy
search emits 6 labels a second. "Whole" below is encoder and search together. torchaudio's `RNNTBeamSearch` takes one
utterance at a time: it is timed on one, times the utterances of the batch, with the same model and without its encoder;
once as it is by default (a frame may emit 100 labels), and once with one label a frame, as our search has it here.
The n-gram is a 5-gram over text that the model's own hypotheses are part of, so that long contexts are met.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchaudio.models import RNNTBeamSearch

from benchmarks.timing import Row, alternate, median_ratio, milliseconds, pin_to_one_thread
from w2vbert.decoding.greedy import search_by_frames
from w2vbert.decoding.model import LabelModel, State
from w2vbert.decoding.neural_scorers import NeuralScorer
from w2vbert.decoding.ngram import NgramConfig, estimate
from w2vbert.decoding.ngram_automaton import load_automaton
from w2vbert.decoding.scorers import NgramScorer, WeightedScorer
from w2vbert.decoding.search import SearchConfig, search
from w2vbert.models.conformer import ConformerConfig
from w2vbert.models.encoder import EncoderConfig
from w2vbert.models.language_model import CausalLm, CausalLmConfig
from w2vbert.models.subsampling import SubsamplingConfig
from w2vbert.models.transducer import PredictorConfig, Transducer, TransducerConfig

LABELS_PER_SECOND = 6.0
TORCHAUDIO_LABELS = 100  # that a frame may emit, as torchaudio has it by default
SHARPNESS = 30.0  # factor of the joiner's weights
Kind = Literal["lstm", "stateless"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the benchmark.

    Attributes:
        batch: utterances.
        seconds: length of each.
        blocks: of the encoder.
        dim: of the encoder.
        vocab: V, with the blank.
        joiner_dim: J, also of the prediction network.
        beam: hypotheses.
        lm_layers: of the neural language model, a Transformer as wide as the encoder.
        text_pieces: that the n-gram model is estimated from, beside the hypotheses.
    """

    batch: int = 16
    seconds: float = 8.0
    blocks: int = 12
    dim: int = 256
    vocab: int = 1024
    joiner_dim: int = 512
    beam: int = 10
    lm_layers: int = 4
    text_pieces: int = 200_000


QUICK = Sizes(2, 1.0, 2, 16, 32, 16, 4, 1, 500)


class Contest:
    """The model, its inputs, and what is timed on them."""

    def __init__(self, sizes: Sizes, kind: Kind, device: torch.device) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        self.features = torch.randn(sizes.batch, round(100 * sizes.seconds), 80).to(device)
        self.lengths = torch.full((sizes.batch,), self.features.shape[1])
        heads, half = max(sizes.dim // 64, 2), sizes.blocks // 2
        block = ConformerConfig(sizes.dim, heads, 4 * sizes.dim, positions="rotary")
        encoder = EncoderConfig(SubsamplingConfig(80), block, half, sizes.blocks - half)
        predictor = PredictorConfig(kind, sizes.joiner_dim, 1)
        config = TransducerConfig(encoder, sizes.vocab, sizes.joiner_dim, predictor, sizes.joiner_dim)
        self.model = Transducer(config).to(device).eval()
        self.greedy = SearchConfig()
        self.beam = SearchConfig(method="beam", beam_size=sizes.beam, nbest=sizes.beam)
        self.encoded, self.frames = self._make_realistic()
        self.ngram = [WeightedScorer("ngram", self._make_ngram(), 0.3)]
        lm = CausalLmConfig(layers=sizes.lm_layers, dim=sizes.dim, heads=heads, feed_forward_dim=4 * sizes.dim)
        neural = NeuralScorer(CausalLm(lm, sizes.vocab).to(device).eval())
        self.neural = [WeightedScorer("neural", neural, 0.3)]

    @torch.inference_mode()
    def _make_realistic(self) -> tuple[Tensor, Tensor]:
        """Scales the model; its encoder output (B, T, J) and frames (B,)."""
        encoded, frames = self.encode()
        linear, bias = self.model.encoder_linear, self.model.joiner.linear.bias
        mean, std = encoded.mean((0, 1)), encoded.std((0, 1))
        linear.weight.div_(std.unsqueeze(1))
        linear.bias.sub_(mean).div_(std)
        self.model.joiner.linear.weight.mul_(SHARPNESS)
        self.encoded, self.frames = self.encode()
        low, high = -10.0 * SHARPNESS, 10.0 * SHARPNESS
        for _ in range(14):
            bias[self.model.blank] = (low + high) / 2
            if self.rate(self.greedy) > LABELS_PER_SECOND:
                low = float(bias[self.model.blank])
            else:
                high = float(bias[self.model.blank])
        return self.encoded, frames

    def _make_ngram(self) -> NgramScorer:
        generator = torch.Generator().manual_seed(0)
        weights = 1.0 / torch.arange(1.0, self.sizes.vocab)  # Zipf
        draws = torch.multinomial(weights, self.sizes.text_pieces, replacement=True, generator=generator) + 1
        sentences = [chunk.tolist() for chunk in draws.split(25)]
        sentences += [list(h.tokens) for nbest in self.search(self.beam) for h in nbest]
        words = [f"w{number}" for number in range(self.sizes.vocab)]
        with TemporaryDirectory() as folder:
            estimate(sentences, words, NgramConfig(order=5)).write_arpa(Path(folder) / "lm.arpa")
            return NgramScorer(load_automaton(Path(folder) / "lm.arpa", words))

    @torch.inference_mode()
    def encode(self) -> tuple[Tensor, Tensor]:
        """The encoder's side of the joiner."""
        return self.model.encode(self.features, self.lengths)

    def search(self, config: SearchConfig, scorers: list[WeightedScorer] | None = None) -> list[Any]:
        """Search the whole batch."""
        return search(self.model, self.encoded, self.frames, config, scorers or [])

    def rate(self, config: SearchConfig) -> float:
        """Labels a second of the best hypotheses."""
        return sum(len(n[0].tokens) for n in self.search(config)) / (self.sizes.batch * self.sizes.seconds)

    @torch.inference_mode()
    def by_frames(self) -> None:
        """The frame-synchronous form of greedy search."""
        search_by_frames(LabelModel(self.model), self.encoded, self.frames.to(self.encoded.device), 1)

    @torch.inference_mode()
    def torchaudio(self, labels_per_frame: int) -> None:
        """torchaudio's beam search of the first utterance."""
        decoder = RNNTBeamSearch(_Torchaudio(self.model), self.sizes.vocab - 1, step_max_tokens=labels_per_frame)
        decoder(self.encoded[:1], self.frames[:1], self.sizes.beam)


class _Torchaudio(nn.Module):
    """The model as torchaudio's search wants it: the blank is the last label, and a state of lists of tensors."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.model = model

    def transcribe(self, encoded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder output itself."""
        return encoded, lengths

    def predict(self, tokens: Tensor, lengths: Tensor, state: Any) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """One label for each hypothesis: (N, 1)."""
        labels = (tokens[:, 0] + 1) % self.model.vocab_size
        before: State = self.model.predictor.initial_state(len(labels), tokens.device)
        if state:  # torchaudio has the hypotheses in dimension 0
            before = tuple(part.transpose(0, 1).contiguous() for part in state[0])
        out, after = self.model.predictor.step(labels, before)
        return out.unsqueeze(1), lengths, [[part.transpose(0, 1) for part in after]]

    def join(
        self, encoded: Tensor, lengths: Tensor, predicted: Tensor, predicted_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 1, J) and (N, 1, J) -> (N, 1, 1, V)."""
        logits = self.model.joiner(encoded, predicted).unsqueeze(1)
        return logits.roll(-1, -1), lengths, predicted_lengths


def compare(sizes: Sizes, kind: Kind, device: torch.device, rounds: int) -> list[Row]:
    """All rows."""
    contest = Contest(sizes, kind, device)
    runs: dict[str, Callable[[], object]] = {
        "encoder": contest.encode,
        "greedy": lambda: contest.search(contest.greedy),
        "by_frames": contest.by_frames,
        "beam": lambda: contest.search(contest.beam),
        "ngram": lambda: contest.search(contest.beam, contest.ngram),
        "neural": lambda: contest.search(contest.beam, contest.neural),
        "torchaudio": lambda: contest.torchaudio(TORCHAUDIO_LABELS),
        "torchaudio_one": lambda: contest.torchaudio(1),
    }
    seconds = alternate(runs, rounds)
    for name in ("greedy", "beam", "ngram", "neural"):
        seconds[f"whole_{name}"] = [a + b for a, b in zip(seconds["encoder"], seconds[name], strict=True)]
    nbest = contest.search(contest.greedy)
    confidence = median(n[0].confidence for n in nbest)
    rates = {"labels_per_second": contest.rate(contest.greedy), "confidence": confidence}
    of_search = {f"{name}_over_beam": median_ratio(seconds, name, "beam") for name in ("ngram", "neural")}
    speed, one = (sizes.batch * median_ratio(seconds, name, "beam") for name in ("torchaudio", "torchaudio_one"))
    share = median_ratio(seconds, "greedy", "encoder")
    times = milliseconds({name: seconds[name] for name in runs})
    return [
        Row("decoding/greedy-share", share, 0.3, False, {**rates, **times}),
        Row("decoding/beam", median_ratio(seconds, "whole_beam", "whole_greedy"), 1.5, False),
        Row("decoding/torchaudio", speed, 20.0, True, {"with_one_label_a_frame": one}),
        Row("decoding/ngram", median_ratio(seconds, "whole_ngram", "whole_beam"), 1.1, False, of_search),
        Row("decoding/neural", median_ratio(seconds, "whole_neural", "whole_beam"), 1.6, False),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--predictor", default="lstm", choices=["lstm", "stateless"], help="kind of prediction network")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torchaudio")
    if arguments.device == "cpu":
        pin_to_one_thread()
    sizes = QUICK if arguments.quick else Sizes()
    for row in compare(sizes, arguments.predictor, torch.device(arguments.device), arguments.rounds):
        print(row.json_line() if arguments.json else row.table_line())


if __name__ == "__main__":
    main()
