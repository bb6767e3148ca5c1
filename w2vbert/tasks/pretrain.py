"""Pre-training with w2v-BERT's objective on unlabelled speech."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from w2vbert.config import load_config, save_config
from w2vbert.data.batches import SpeechBatch
from w2vbert.data.buckets import check_length_buckets
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.features import FEATURES_FILE
from w2vbert.data.loaders import BatchStream, in_order
from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.models.encoder import EncoderConfig
from w2vbert.models.objectives import make_pretraining_model
from w2vbert.models.quantizer import perplexity
from w2vbert.models.w2v_bert import PretrainingLoss, W2vBertConfig
from w2vbert.stages import Step
from w2vbert.tasks.collapse import CollapseWatch, OnCollapse, find_collapse
from w2vbert.tasks.encoders import PRETRAINED, load_encoder_weights, read_encoder_config, read_encoder_history
from w2vbert.tasks.recognize import check_features
from w2vbert.tasks.runs import check_mel_bins, finish_run, prepare_run
from w2vbert.training.config import TrainConfig
from w2vbert.training.metrics import Panel
from w2vbert.training.optim import OptimConfig, ParamGroup
from w2vbert.training.task import StepOutput
from w2vbert.training.trainer import Trainer

TRAIN_SPLITS = ("unlabelled", "train")
PANELS = (
    Panel("loss (nats a masked frame)", ("contrastive_loss", "masked_loss")),
    Panel("accuracy", ("contrastive_accuracy", "contrastive_chance", "masked_accuracy", "top_code_share")),
    Panel("codes", ("code_perplexity", "codes_used")),
    Panel("entropy of the codes (nats)", ("batch_entropy", "frame_entropy")),
    Panel("gradient norm", ("gradient_norm",), log=True),
)
COLLAPSED = 1000.0
"""Added to the loss by which the best model is kept: any healthy model goes before one whose codes have collapsed."""

SUMMED = {
    "masked_loss": "masked_loss",
    "diversity_loss": "diversity",
    "batch_entropy": "batch_entropy",
    "frame_entropy": "frame_entropy",
    "temperature": "temperature",
}
"""Metrics that are a sum divided by the masked frames, and the names of the sums."""


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-training.

    Attributes:
        model: w2v-BERT.
        train: the loop.
        optim: AdamW and its schedule.
        join_utterances: up to so many utterances, drawn anew in each epoch, are joined to one: short ones have few
            frames to draw distractors from.
        batch_seconds: most audio in a batch, padding counted (18.2 h in all: paper).
        max_seconds: of longer utterances a random crop of this length, drawn anew in each epoch, is taken (32: paper);
            on dev, their first `max_seconds`.
        length_buckets: batches get at most so many shapes and one more, by lengths of utterances, for compiled models
            and CUDA graphs; 0: as many shapes as there are, the longest of a batch decides.
        on_collapse: when the codes collapse (docs/collapse.md): warn; stop with an error, after which the checkpoints
            hold only what was healthy; or reseed: warn, and let dead codes begin anew.
    """

    model: W2vBertConfig = field(default_factory=W2vBertConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    join_utterances: int = 1
    batch_seconds: float = 512.0
    length_buckets: int = 0
    max_seconds: float = 32.0
    on_collapse: OnCollapse = "warn"

    def __post_init__(self) -> None:
        if self.batch_seconds < 0.5 or self.max_seconds <= 0.0 or self.join_utterances < 1:
            raise ValueError("batch_seconds must be at least 0.5, max_seconds above 0 and join_utterances at least 1")
        check_length_buckets(self.length_buckets, self.join_utterances)
        if self.on_collapse == "stop" and self.train.save_every_steps % self.train.log_every_steps:
            raise ValueError(
                "on_collapse stop looks at each line of the log: make train.save_every_steps "
                f"a multiple of train.log_every_steps, {self.train.log_every_steps}"
            )
        if self.on_collapse == "reseed" and self.train.shard_weights:
            raise ValueError("on_collapse reseed is not made for train.shard_weights: set warn or stop")
        if self.on_collapse == "reseed" and self.model.objective == "best-rq":
            raise ValueError("on_collapse reseed: the codes of objective best-rq are frozen, set warn or stop")


class PretrainTask:
    """w2v-BERT as a thing to train."""

    best_metric = "loss_if_healthy"

    def __init__(self, config: PretrainConfig, dev: SpeechDataset) -> None:
        self.config = config
        self.dev = dev
        self.model = make_pretraining_model(config.model)

    def param_groups(self) -> Sequence[ParamGroup]:
        """One group: everything."""
        return [ParamGroup("all", [self.model], self.config.optim)]

    def blocks(self) -> Sequence[nn.Module]:
        """The conformer blocks."""
        return self.model.encoder.blocks()

    def train_step(self, batch: SpeechBatch, step: int, generator: torch.Generator) -> StepOutput:
        """Loss of a batch; the Gumbel temperature follows the step."""
        temperature = self.config.model.quantizer.temperature(step / self.config.train.max_steps)
        loss = self.model(batch.features, batch.lengths, temperature, generator)
        frames = self.config.model.encoder.subsampling.output_lengths(batch.lengths).sum()
        places = torch.tensor(batch.features.shape[0] * batch.features.shape[1])
        sums = loss_sums(loss) | {"frames": frames, "audio": batch.lengths.sum(), "places": places}
        if loss.use is not None:
            sums["temperature"] = loss.count * temperature
        return StepOutput(loss.total, loss.count, sums)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics per masked frame."""
        return summarize_pretraining(sums)

    @torch.inference_mode()
    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """The same on the dev split, with the same masks each time."""
        generator = torch.Generator().manual_seed(0)
        sums: dict[str, Tensor] = {}
        device = next(model.parameters()).device
        for batch in in_order(self.dev, self.config.batch_seconds):
            batch = batch.to(device)
            loss = model(batch.features, batch.lengths, self.config.model.quantizer.temperature_end, generator)
            for name, value in loss_sums(loss).items():
                sums[name] = sums[name] + value if name in sums else value
        metrics = summarize_pretraining(sums)
        found = find_collapse(sums, self.config.model)
        if found is not None:
            logger.warning(f"step {step}: on dev {found}")
        return metrics | {self.best_metric: metrics["loss"] + COLLAPSED * (found is not None)}


def loss_sums(loss: PretrainingLoss) -> dict[str, Tensor]:
    """What is added up over batches; frames are masked frames. Only the parts that the objective has."""
    sums = {"count": loss.count, "total": loss.total.detach(), "code_counts": loss.code_counts}
    if loss.contrastive is not None:
        sums |= {
            "contrastive_loss": loss.contrastive.loss.detach(),
            "contrastive_correct": loss.contrastive.correct,
            "contrastive_chance": loss.contrastive.chance,
            "contrastive_count": loss.contrastive.count,
        }
    if loss.masked is not None:
        sums |= {"masked_loss": loss.masked.loss.detach(), "masked_correct": loss.masked.correct}
    if loss.use is not None:
        sums |= {
            "diversity": loss.use.diversity.detach(),
            "batch_entropy": loss.use.batch_entropy,
            "frame_entropy": loss.use.frame_entropy,
        }
    return sums


def summarize_pretraining(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of a stretch of training.

    `code_perplexity` is that of the target ids, averaged over codebooks; `top_code_share` is what a constant guess
    of the most frequent code would get right, so `masked_accuracy` means something only above it.
    """
    count = max(float(sums["count"]), 1.0)
    shares = sums["code_counts"].float() / count  # (G, V)
    metrics = {"loss": float(sums["total"]) / count}
    if "contrastive_loss" in sums:
        contrastive = max(float(sums["contrastive_count"]), 1.0)
        metrics["contrastive_accuracy"] = float(sums["contrastive_correct"]) / contrastive
    if "masked_loss" in sums:
        metrics["masked_accuracy"] = float(sums["masked_correct"]) / count
    metrics["code_perplexity"] = float(perplexity(shares).mean())
    if "contrastive_loss" in sums:
        metrics["contrastive_loss"] = float(sums["contrastive_loss"]) / contrastive
        metrics["contrastive_chance"] = float(sums["contrastive_chance"]) / contrastive
    for name, key in SUMMED.items():
        if key in sums:
            metrics[name] = float(sums[key]) / count
    metrics["top_code_share"] = float(shares.max(-1).values.mean())
    metrics["codes_used"] = float((shares > 0).sum(-1).float().mean())
    if "frames" in sums:
        metrics["mask_share"] = count / max(float(sums["frames"]), 1.0)
        metrics["padding_share"] = 1.0 - float(sums["audio"]) / max(float(sums["places"]), 1.0)
    return metrics


def pretrain(
    data: Path,
    out: Path,
    init: Path | None,
    config_path: Path | None,
    overrides: Sequence[str],
    force: bool,
    max_hours: float | None = None,
) -> None:
    """Pre-trains on the unlabelled and train splits of `data` and leaves a model folder.

    With `init` the encoder begins as the one of that folder; codebooks and heads are fresh.

    Raises:
        UserError: config, data or `init` are not fit for it.
        Unfinished: `max_hours` are over, or a signal came.
    """
    config = load_config(PretrainConfig, config_path, overrides)
    if init is not None:
        config = replace(config, model=_with_encoder_of(init, config.model))
    step = Step("pretrain", out, config, {"data": data, "init": init})
    if not force and step.is_done():
        return
    splits = [data / f"cuts_{name}.jsonl.gz" for name in TRAIN_SPLITS]
    train = SpeechDataset([path for path in splits if path.is_file()] or splits, config.max_seconds, crop=True)
    dev = SpeechDataset([data / "cuts_dev.jsonl.gz"], config.max_seconds, crop=True)
    check_mel_bins(data, config.model.encoder)
    if init is not None:
        check_features(init, data)
    world = prepare_run(step, config.train, force)
    task = PretrainTask(config, dev)
    if init is not None:
        load_encoder_weights(task.model.encoder, init)
    workers = config.train.loader_workers
    batches = BatchStream(train, config.batch_seconds, config.train.seed, join=config.join_utterances, workers=workers)
    if config.length_buckets:
        batches.fix_shapes(config.length_buckets)
    for key in config.model.unused_keys():
        logger.warning(f"objective {config.model.objective} does not look at the key model.{key}")
    watch = CollapseWatch(task.model, config.on_collapse, config.train.seed)
    result = Trainer(task, batches, config.train, out, PANELS, max_hours, watch).fit()
    if not world.is_first:
        return
    shutil.copyfile(data / FEATURES_FILE, out / FEATURES_FILE)
    save_config(config.model, out / "model.yaml")
    finish_run(step, PRETRAINED, result, {} if init is None else read_encoder_history(init))


def _with_encoder_of(init: Path, model: W2vBertConfig) -> W2vBertConfig:
    """The model with the architecture of the encoder that it begins with; the config may tell it or leave it out.

    Raises:
        UserError: `init` has no encoder, or one that the config contradicts.
    """
    encoder = read_encoder_config(init)
    default, given = EncoderConfig(), model.encoder
    keys = [entry.name for entry in fields(EncoderConfig)]
    told = {key for key in keys if getattr(given, key) not in (getattr(default, key), getattr(encoder, key))}
    if model.objective != "w2v-bert":  # the others want no blocks in one of the modules
        told -= {key for key in ("contrastive_blocks", "masked_blocks") if not getattr(given, key)}
    if told:
        raise UserError(f"key model.encoder contradicts {init}/model.yaml: leave it out, or make it equal")
    try:
        return replace(model, encoder=encoder)
    except ValueError as error:
        raise UserError(f"the encoder of {init} does not fit the config: {error}") from error
