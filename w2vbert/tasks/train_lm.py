"""Training of a neural language model over the tokenizer's pieces."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from w2vbert.config import load_config, save_config
from w2vbert.data.text import EncodedText, TextBatch, TextStream, encode_text
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.errors import UserError
from w2vbert.files import remove_tree
from w2vbert.log import logger
from w2vbert.models.language_model import CausalLm, CausalLmConfig, TransformerBody, sentence_log_probs
from w2vbert.stages import Step, run_step
from w2vbert.tasks.language_models import NEURAL, copy_tokenizer, score_sentences
from w2vbert.tasks.ngram_lm import TextSource, read_transcripts
from w2vbert.tasks.runs import finish_run, prepare_run
from w2vbert.training.config import TrainConfig
from w2vbert.training.distributed import join_world
from w2vbert.training.metrics import Panel
from w2vbert.training.optim import OptimConfig, ParamGroup
from w2vbert.training.task import StepOutput
from w2vbert.training.trainer import Trainer

PANELS = (
    Panel("perplexity per piece", ("perplexity_per_piece",), log=True),
    Panel("gradient norm", ("gradient_norm",), log=True),
)


@dataclass(frozen=True)
class LmTrainConfig:
    """Training of a neural language model.

    Attributes:
        lm: the model.
        train: the loop.
        optim: AdamW and its schedule.
        transcripts: learn from the transcripts of the train split, too.
        batch_pieces: most pieces in a batch, padding and ends of sentences counted.
        max_pieces: longer sentences are left out.
    """

    lm: CausalLmConfig = field(default_factory=CausalLmConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(1e-3, 4000))
    transcripts: bool = True
    batch_pieces: int = 16_384
    max_pieces: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.max_pieces < self.batch_pieces:
            raise ValueError("max_pieces must be at least 1, and batch_pieces more than that")
        if self.train.update_seconds or self.train.loader_workers:
            raise ValueError("train.update_seconds and train.loader_workers are for audio: leave them at 0")


@dataclass(frozen=True)
class DevText:
    """Sentences to validate on.

    Attributes:
        sentences: pieces of each.
        words: in all of them.
    """

    sentences: list[list[int]]
    words: int


class LmTask:
    """A language model as a thing to train."""

    best_metric = "perplexity_per_piece"

    def __init__(self, config: LmTrainConfig, vocab_size: int, dev: DevText) -> None:
        self.config = config
        self.dev = dev
        self.model = CausalLm(config.lm, vocab_size)

    def param_groups(self) -> Sequence[ParamGroup]:
        """One group: everything."""
        return [ParamGroup("all", [self.model], self.config.optim)]

    def blocks(self) -> Sequence[nn.Module]:
        """Those of a Transformer."""
        return list(self.model.body.blocks) if isinstance(self.model.body, TransformerBody) else []

    def train_step(self, batch: TextBatch, step: int, generator: torch.Generator) -> StepOutput:
        """Negative log-probability of the sentences of a batch, counted by pieces and ends."""
        log_probs = self.model(batch.tokens)
        loss = -sentence_log_probs(log_probs, batch.tokens, batch.lengths).sum()
        count = loss.new_full((), float(batch.lengths.sum()) + len(batch.lengths))
        places = loss.new_full((), float(log_probs.shape[0] * log_probs.shape[1]))
        return StepOutput(loss, count, {"loss": loss.detach(), "count": count, "places": places})

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Perplexity with dropout, and the share of padding."""
        count = max(float(sums["count"]), 1.0)
        return {
            "loss": float(sums["loss"]) / count,
            "perplexity_per_piece": _exp(float(sums["loss"]) / count),
            "padding_share": 1.0 - count / max(float(sums["places"]), 1.0),
        }

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Perplexities of the transcripts of the dev split; ends count as a piece and as a word."""
        assert isinstance(model, CausalLm)
        sentences = self.dev.sentences
        loss = -math.fsum(score_sentences(model, sentences, self.config.batch_pieces))
        return {
            "perplexity_per_piece": _exp(loss / (sum(map(len, sentences)) + len(sentences))),
            "perplexity_per_word": _exp(loss / (self.dev.words + len(sentences))),
        }


def _exp(nats: float) -> float:
    """`exp`, at most 1e300, and not a number where a model has none."""
    return math.exp(min(nats, 690.0)) if not math.isnan(nats) else nats


def train_lm(
    manifests: Path,
    out: Path,
    tokenizer: Path,
    texts: Sequence[Path],
    config_path: Path | None,
    overrides: Sequence[str],
    force: bool,
    max_hours: float | None = None,
) -> None:
    """Trains a neural language model on texts (one sentence a line) and the transcripts of the train split.

    The text is encoded once, into the folder OUT.text beside `out`, which is removed when the training is finished.

    Raises:
        UserError: config, text or tokenizer are not fit for it.
        Unfinished: `max_hours` are over, or a signal came.
    """
    config = load_config(LmTrainConfig, config_path, overrides)
    source = TextSource(manifests, texts, config.transcripts)
    step = Step("lm train", out, config, source.inputs | {"tokenizer": tokenizer})
    if not force and step.is_done():
        return
    step.check_out()
    pieces = Tokenizer.load(tokenizer)
    dev = _read_dev(source, manifests, pieces)
    world = join_world()
    encoded = out.with_name(f"{out.name}.text")
    if world.is_first:
        _encode(encoded, source, tokenizer, pieces, config.max_pieces)
    world.wait()
    text = EncodedText(encoded)
    prepare_run(step, config.train, force)
    task = LmTask(config, pieces.vocab_size, dev)
    size = sum(parameter.numel() for parameter in task.model.parameters()) / 1e6
    logger.info(f"language model of {size:.3g} M parameters on {text.counts.tokens} pieces, {len(text)} sentences")
    batches = TextStream(text, config.batch_pieces, config.train.seed)
    result = Trainer(task, batches, config.train, out, PANELS, max_hours).fit()
    if not world.is_first:
        return
    save_config(config.lm, out / "model.yaml")
    copy_tokenizer(pieces, out)
    remove_tree(encoded)
    details = {"tokenizer": pieces.digest, "text": asdict(text.counts), "dev_sentences": len(dev.sentences)}
    finish_run(step, NEURAL, result, details=details)


def _read_dev(source: TextSource, manifests: Path, tokenizer: Tokenizer) -> DevText:
    lines = [] if source.dev is None else list(read_transcripts(source.dev))
    if not lines:
        raise UserError(f"{manifests} has no transcripts in its dev split: they choose the best language model")
    return DevText(tokenizer.encode_all(lines), sum(len(line.split()) for line in lines))


def _encode(out: Path, source: TextSource, tokenizer: Path, pieces: Tokenizer, max_pieces: int) -> None:
    """Encodes the text into a folder, unless it is there already."""

    def work(folder: Path) -> None:
        width = 2 if pieces.vocab_size <= 2**16 else 4
        counts = encode_text(source.lines(pieces), pieces.encode_all, folder, width, max_pieces).counts
        if counts.left_out:
            logger.warning("%d sentences of more than max_pieces=%d were left out", counts.left_out, max_pieces)

    inputs = {name: path for name, path in source.inputs.items() if name != "dev"} | {"tokenizer": tokenizer}
    run_step(Step("lm text", out, {"max_pieces": max_pieces}, inputs), work)
