"""Fine-tuning with the pruned RNN-T loss, from a pre-trained encoder or from scratch."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from w2vbert.config import load_config, save_config
from w2vbert.data.augment import SpecAugmentConfig, spec_augment
from w2vbert.data.batches import SpeechBatch
from w2vbert.data.buckets import check_length_buckets
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.features import FEATURES_FILE
from w2vbert.data.loaders import BatchStream, in_order
from w2vbert.data.mixing import Mixture
from w2vbert.data.noise import NOISE_FILE, NoiseConfig, NoiseMixer
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.scoring import score_pairs
from w2vbert.decoding.search import SearchConfig
from w2vbert.errors import UserError
from w2vbert.files import read_json, write_json
from w2vbert.log import logger
from w2vbert.models.encoder import EncoderConfig
from w2vbert.models.transducer import PredictorConfig, Transducer, TransducerConfig
from w2vbert.ops.lengths import send
from w2vbert.ops.rnnt_loss import backend_reason
from w2vbert.stages import Step
from w2vbert.tasks.encoders import load_encoder_weights, read_encoder_config, read_encoder_history
from w2vbert.tasks.recognize import check_features, recognize
from w2vbert.tasks.runs import check_mel_bins, finish_run, prepare_run
from w2vbert.tasks.transcripts import UnusableUtterances, check_spelling, leave_out_crowded
from w2vbert.training.config import TrainConfig
from w2vbert.training.metrics import Panel, read_metrics
from w2vbert.training.optim import OptimConfig, ParamGroup, layer_groups
from w2vbert.training.task import StepOutput
from w2vbert.training.trainer import Trainer

SCRATCH = "scratch"
LEFT_OUT_FILE = "left_out.json"
"""Ids of utterances that were left out before training: more word pieces than encoder frames."""

PANELS = (
    Panel("loss (nats a frame)", ("pruned_loss", "simple_loss", "ctc_loss"), log=True),
    Panel("WER on dev, greedy (%)", ("wer", "ctc_wer")),
)


@dataclass(frozen=True)
class TransducerLossConfig:
    """How the losses are added up.

    Attributes:
        prune_range: labels that the pruned loss keeps at each frame (5: icefall); one more than the longest transcript
            has pieces: all of them, which is the full loss.
        ctc_only_steps: at the start only the CTC head learns (Rao et al. 2017 begin from CTC, too): with few labels the
            prediction network otherwise learns the transcripts by heart before the encoder has found the words.
        warmup_steps: after that, while the weight of the simple loss falls from 1 to 0.5 and that of the pruned one
            rises from 0.1 to 1, both linearly (icefall).
        ctc_weight: of the CTC head's loss; 0: no head.
        rnnt_type: lattice: regular (a frame may emit any number of labels), modified (a label uses up its frame) or
            constrained (modified, and pays for a blank as well).
    """

    prune_range: int = 5
    ctc_only_steps: int = 0
    warmup_steps: int = 2000
    ctc_weight: float = 0.0
    rnnt_type: Literal["regular", "modified", "constrained"] = "regular"

    def __post_init__(self) -> None:
        if self.ctc_only_steps and not self.ctc_weight:
            raise ValueError("ctc_only_steps needs a CTC head: set ctc_weight above 0")
        least = 1 if self.rnnt_type == "modified" else 2
        if self.prune_range < least:
            raise ValueError(f"prune_range must be at least {least} with rnnt_type {self.rnnt_type}")
        if min(self.ctc_only_steps, self.warmup_steps, self.ctc_weight) < 0:
            raise ValueError("ctc_only_steps, warmup_steps and ctc_weight must not be negative")

    def is_ctc_alone(self, step: int) -> bool:
        """Whether the CTC head learns alone at `step` (0-based)."""
        return step < self.ctc_only_steps

    def weights(self, step: int) -> tuple[float, float]:
        """Weights of the simple and of the pruned loss at `step`; both are 0 while only the CTC head learns."""
        if self.is_ctc_alone(step):
            return 0.0, 0.0
        done = min((step - self.ctc_only_steps) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return 1.0 - 0.5 * done, 0.1 + 0.9 * done


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning.

    Attributes:
        encoder: architecture, needed with `--init scratch` (keys as model.encoder of pre-training); a pre-trained model
            brings its own, and must not contradict this one.
        predictor: prediction network.
        projection_dim, joiner_dim: of projection block and joiner (640: family).
        loss: weights of the losses.
        train: the loop.
        encoder_optim, decoder_optim: schedules of the encoder and of everything else. During the `freeze_steps` of
            the encoder it stands still as a whole: no gradient, no dropout, and BatchNorm keeps its statistics. One
            from scratch has nothing to keep: it learns from the first step.
        encoder_layer_decay: factor of the learning rate from a block of the encoder to the one below it (ELECTRA;
            0.7 to 0.95 with few labels); 1: all learn alike.
        freeze_feature_encoder: keep the pre-trained convolutions as they are (paper); not from scratch.
        spec_augment: masks on the features.
        noise: mixed into the training data, drawn anew in each epoch, from what `w2vbert features` stored with its key
            `noise`.
        join_utterances: up to so many utterances, drawn anew in each epoch, are joined to one. With few labels a model
            learns whole utterances by heart, and emits their words at the ends; joined ones make it listen.
        pseudo_share: of the audio of an epoch that is pseudo-labelled. It then holds all of that once and labelled
            utterances as often as this asks for (0.9: Zhang et al. 2020). None: all of both once.
        batch_seconds: most audio in a batch, padding counted.
        length_buckets: batches get at most so many shapes and one more, by lengths of utterances, for compiled models
            and CUDA graphs; 0: as many shapes as there are, the longest of a batch decides.
        max_seconds: longer utterances are left out.
    """

    encoder: EncoderConfig | None = None
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    projection_dim: int = 640
    joiner_dim: int = 640
    loss: TransducerLossConfig = field(default_factory=TransducerLossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    encoder_optim: OptimConfig = field(default_factory=lambda: OptimConfig(3e-4, 5000))
    decoder_optim: OptimConfig = field(default_factory=lambda: OptimConfig(1e-3, 1500))
    encoder_layer_decay: float = 1.0
    freeze_feature_encoder: bool = True
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    join_utterances: int = 1
    pseudo_share: float | None = None
    batch_seconds: float = 400.0
    length_buckets: int = 0
    max_seconds: float = 32.0

    def __post_init__(self) -> None:
        if self.batch_seconds < 0.5 or self.max_seconds <= 0.0 or self.join_utterances < 1:
            raise ValueError("batch_seconds must be at least 0.5, max_seconds above 0 and join_utterances at least 1")
        if min(self.projection_dim, self.joiner_dim) < 1:
            raise ValueError("projection_dim and joiner_dim must be at least 1")
        check_length_buckets(self.length_buckets, self.join_utterances)
        if self.loss.ctc_only_steps >= self.train.max_steps:
            steps = f"loss.ctc_only_steps, {self.loss.ctc_only_steps}, must be less than train.max_steps"
            raise ValueError(f"{steps}, {self.train.max_steps}: set both, or train longer")
        if not 0.0 < self.encoder_layer_decay <= 1.0:
            raise ValueError(f"encoder_layer_decay must lie in (0, 1], not {self.encoder_layer_decay}")
        if self.pseudo_share is not None and not 0.0 < self.pseudo_share < 1.0:
            raise ValueError(f"pseudo_share must lie between 0 and 1, not {self.pseudo_share}")

    def transducer(self, encoder: EncoderConfig, vocab_size: int) -> TransducerConfig:
        """The model that is trained, over an encoder and word pieces."""
        return TransducerConfig(
            encoder=encoder,
            vocab_size=vocab_size,
            projection_dim=self.projection_dim,
            predictor=self.predictor,
            joiner_dim=self.joiner_dim,
            ctc=self.loss.ctc_weight > 0.0,
            rnnt_type=self.loss.rnnt_type,
        )


@dataclass(frozen=True)
class Sources:
    """What a fine-tuning starts from.

    Attributes:
        data: folder of features.
        tokenizer: folder of the tokenizer.
        init: folder of a pre-trained model, or `SCRATCH`.
        pseudo: folder of pseudo-labels; None: without.
    """

    data: Path
    tokenizer: Path
    init: str
    pseudo: Path | None = None

    def inputs(self) -> dict[str, Path | None]:
        """For the stamp of a step."""
        init = None if self.init == SCRATCH else Path(self.init)
        return {"data": self.data, "tokenizer": self.tokenizer, "pseudo": self.pseudo, "init": init}


class FinetuneTask:
    """A transducer as a thing to train."""

    best_metric = "wer"

    def __init__(self, config: FinetuneConfig, model: Transducer, tokenizer: Tokenizer, dev: SpeechDataset) -> None:
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.dev = dev
        self.only_ctc = False
        self.unusable = UnusableUtterances()

    def param_groups(self) -> Sequence[ParamGroup]:
        """The encoder, layer by layer if their learning rates differ, and everything else."""
        encoder = self.model.encoder
        decoder = [module for module in self.model.children() if module is not encoder]
        return [
            *layer_groups("encoder", encoder.layers(), self.config.encoder_optim, self.config.encoder_layer_decay),
            ParamGroup("decoder", decoder, self.config.decoder_optim),
        ]

    def blocks(self) -> Sequence[nn.Module]:
        """The conformer blocks."""
        return self.model.encoder.blocks()

    def train_step(self, batch: SpeechBatch, step: int, generator: torch.Generator) -> StepOutput:
        """Weighted sum of the losses of a batch, counted by encoder frames.

        An utterance whose loss is not finite has no way through its lattice: it is named, counted and left out.
        """
        assert batch.tokens is not None and batch.token_lengths is not None
        features = spec_augment(batch.features, batch.lengths, self.config.spec_augment, generator)
        config = self.config.loss
        simple_weight, pruned_weight = config.weights(step)
        self.only_ctc = config.is_ctc_alone(step)
        prune_range = None if self.only_ctc else config.prune_range
        frozen = step < self.config.encoder_optim.freeze_steps
        loss = self.model(features, batch.lengths, batch.tokens, batch.token_lengths, prune_range, frozen)
        usable = loss.simple.isfinite() & loss.pruned.isfinite() & loss.ctc.isfinite()
        self.unusable.note(batch.ids, ~usable)
        simple, pruned, ctc = (x.masked_fill(~usable, 0.0).sum() for x in (loss.simple, loss.pruned, loss.ctc))
        total = simple_weight * simple + pruned_weight * pruned + config.ctc_weight * ctc
        count = (send(loss.frames, usable.device) * usable).sum()
        unusable = (~usable).sum()
        sums = {"count": count, "pruned": pruned, "simple": simple, "ctc": ctc, "unusable": unusable}
        sums["rnnt_count"] = count * (not self.only_ctc)  # frames that have the transducer's losses
        return StepOutput(total, count, {name: value.detach() for name, value in sums.items()})

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Losses per encoder frame, of the heads that learn."""
        self.unusable.report()
        counts = {} if self.only_ctc else dict.fromkeys(["pruned", "simple"], "rnnt_count")
        counts |= {"ctc": "count"} if self.config.loss.ctc_weight else {}
        metrics = {f"{name}_loss": float(sums[name]) / max(float(sums[of]), 1.0) for name, of in counts.items()}
        return metrics | {"unusable_utterances": float(sums["unusable"])}

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """WER of greedy search on the dev split, in percent; of the CTC head while it learns alone."""
        assert isinstance(model, Transducer)
        references = dict(zip(self.dev.ids, self.dev.texts, strict=True))
        batches = in_order(self.dev, self.config.batch_seconds)
        if self.config.loss.is_ctc_alone(step - 1):
            return {"ctc_wer": score_pairs(references, self._recognize_by_ctc(model, batches)).wer}
        precision = self.config.train.precision
        results = recognize(model, self.tokenizer, batches, SearchConfig(), precision=precision)
        found = [result for batch in results for result in batch]
        return {"wer": score_pairs(references, {r.id: r.text for r in found}).wer}

    @torch.inference_mode()
    def _recognize_by_ctc(self, model: Transducer, batches: Iterable[SpeechBatch]) -> dict[str, str]:
        device = next(model.parameters()).device
        texts: dict[str, str] = {}
        for batch in batches:
            labels = model.ctc_greedy(batch.features.to(device), batch.lengths)
            texts.update(zip(batch.ids, map(self.tokenizer.decode, labels), strict=True))
        return texts


def build_transducer(config: FinetuneConfig, init: str, tokenizer: Tokenizer) -> Transducer:
    """A transducer with a pre-trained encoder or a fresh one.

    Raises:
        UserError: `init` is no pre-trained model, or contradicts the config.
    """
    encoder = config.encoder if init == SCRATCH else read_encoder_config(Path(init))
    if encoder is None:
        raise UserError("--init scratch needs the key `encoder` in the config: there is no pre-trained model to copy")
    if config.encoder not in (None, encoder):
        raise UserError(f"key encoder contradicts {init}/model.yaml: leave it out, or make it equal")
    model = Transducer(config.transducer(encoder, tokenizer.vocab_size))
    if init != SCRATCH:
        load_encoder_weights(model.encoder, Path(init))
        model.encoder.feature_encoder.requires_grad_(not config.freeze_feature_encoder)
    return model


def finetune(
    data: Path,
    out: Path,
    tokenizer: Path,
    init: str,
    pseudo: Path | None,
    config_path: Path | None,
    overrides: Sequence[str],
    force: bool,
    max_hours: float | None = None,
) -> None:
    """Trains a transducer on the train split (and on pseudo-labelled cuts) and leaves a model folder.

    Raises:
        UserError: config, data, tokenizer or initial model are not fit for it.
        Unfinished: `max_hours` are over, or a signal came.
    """
    config = load_config(FinetuneConfig, config_path, overrides)
    train_transducer(config, Sources(data, tokenizer, init, pseudo), out, force, max_hours)


def train_transducer(
    config: FinetuneConfig, sources: Sources, out: Path, force: bool = False, max_hours: float | None = None
) -> None:
    """`finetune` with settings that are loaded; raises the same."""
    data, tokenizer, init, pseudo = sources.data, sources.tokenizer, sources.init, sources.pseudo
    if init == SCRATCH:
        config = replace(config, encoder_optim=replace(config.encoder_optim, freeze_steps=0))
    step = Step("finetune", out, config, sources.inputs())
    if not force and step.is_done():
        return
    if config.pseudo_share is not None and pseudo is None:
        raise UserError("the key pseudo_share needs pseudo-labels: give --pseudo, or leave the key out")
    pieces = Tokenizer.load(tokenizer)
    manifests = [data / "cuts_train.jsonl.gz"] + ([pseudo / "cuts_pseudo.jsonl.gz"] if pseudo else [])
    train = SpeechDataset(manifests, config.max_seconds)
    dev = SpeechDataset([data / "cuts_dev.jsonl.gz"], config.max_seconds)
    check_spelling(train, dev, pieces)
    noise = NoiseMixer(data / NOISE_FILE, config.noise) if config.noise.prob else None
    if not any(dev.texts):
        raise UserError(f"{data}/cuts_dev.jsonl.gz has no transcripts: fine-tuning chooses the best model by its WER")
    torch.manual_seed(config.train.seed)
    model = build_transducer(config, init, pieces)
    if init != SCRATCH:
        check_features(Path(init), data)
    check_mel_bins(data, model.config.encoder)
    encoder_frames = model.config.encoder.subsampling.output_lengths
    crowded = leave_out_crowded(train, pieces, encoder_frames, config.loss.rnnt_type)
    world = prepare_run(step, config.train, force)
    if crowded and world.is_first:
        write_json(out / LEFT_OUT_FILE, crowded)
    logger.info(f"fine-tuning from {init} on {train.hours:.2f} h, {len(train)} utterances")
    logger.info(f"RNN-T loss: {backend_reason()}")
    join, workers = config.join_utterances, config.train.loader_workers
    mixture = Mixture(train.count_from(0), config.pseudo_share) if config.pseudo_share else None
    batches = BatchStream(train, config.batch_seconds, config.train.seed, pieces.encode, join, noise, workers, mixture)
    if config.length_buckets:
        batches.fix_shapes(config.length_buckets)
    task = FinetuneTask(config, model, pieces, dev)
    result = Trainer(task, batches, config.train, out, PANELS, max_hours).fit()
    if not world.is_first:
        return
    shutil.copytree(tokenizer, out / "tokenizer", ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
    shutil.copyfile(data / FEATURES_FILE, out / FEATURES_FILE)
    save_config(model.config, out / "model.yaml")
    details = {"tokenizer": pieces.digest, "left_out": _count_left_out(out, crowded)}
    finish_run(step, "transducer", result, _read_history(init, pseudo), details)


def _count_left_out(out: Path, crowded: Sequence[str]) -> dict[str, int]:
    """How many utterances the finished run in `out` left out, and why, for its card."""
    unusable = sum(int(line.get("unusable_utterances", 0)) for line in read_metrics(out))
    if unusable:
        logger.warning(f"{out}: {unusable} times an utterance without a finite loss was left out, repetitions counted")
    return {"more_pieces_than_frames": len(crowded), "times_without_finite_loss": unusable}


def _read_history(init: str, pseudo: Path | None) -> dict[str, Any]:
    """Cost of the pre-training and of the teacher's training."""
    history: dict[str, Any] = {} if init == SCRATCH else read_encoder_history(Path(init))
    return history if pseudo is None else history | read_json(pseudo / "report.json")["history"]
