"""One loop for every task."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2vbert.errors import Unfinished
from w2vbert.log import logger, progress
from w2vbert.training.best_models import BestModels
from w2vbert.training.checkpoint import Weights, check_room, load_newest, save_checkpoint
from w2vbert.training.compilation import CompiledBlocks
from w2vbert.training.config import TrainConfig
from w2vbert.training.device import choose_device, choose_precision
from w2vbert.training.distributed import ALONE, COMPUTING, LOADING, WAITING, Replica, join_world
from w2vbert.training.interruption import Interrupted, StopRequest
from w2vbert.training.metrics import MetricsWriter, Panel, draw_curves
from w2vbert.training.optim import WeightAverage, make_optimizer, scale_and_clip, set_learning_rates
from w2vbert.training.prefetch import DataWaits, Prefetcher
from w2vbert.training.sharding import gather, gather_moments, load_moments, params_of, shard
from w2vbert.training.task import BatchSource, StepOutput, Task, Watch
from w2vbert.training.trouble import SkippedUpdates, naming_memory

REDRAW_SECONDS = 60.0  # between two drawings of the curves; a validation draws them, too


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves, for its card.

    Attributes:
        steps: updates done.
        audio_hours: hours of audio seen, repetitions counted.
        minutes: wall time of training, over all starts of the run.
        best: validation metrics of the model that was kept.
    """

    steps: int
    audio_hours: float
    minutes: float
    best: dict[str, float]


class Trainer:
    """Trains a task in a run's folder, goes on where a killed run stopped, and keeps the best model."""

    def __init__(
        self,
        task: Task,
        batches: BatchSource,
        config: TrainConfig,
        run: Path,
        panels: Sequence[Panel],
        max_hours: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Prepares a run.

        Args:
            task: what to train.
            batches: of this process and the others; they are shared out here.
            config: the loop.
            run: the run's folder.
            panels: of the picture of the curves.
            max_hours: time allowed, after which the run saves its state and stops; None: no limit.
            watch: looks at the run after each line of the log.
        """
        self.task = task
        self.watch = watch
        self.drawn_at = 0.0
        self.batches = batches
        self.config = config
        self.run = run
        self.panels = panels
        self.stop = StopRequest(max_hours)
        self.world = join_world()
        self.device = choose_device()
        self.dtype = choose_precision(config.precision, self.device)
        task.model.to(self.device)
        self.compiled = CompiledBlocks(task.blocks(), config.compile, self.device)
        self.groups = task.param_groups()
        self.params = [p for group in self.groups for module in group.modules for p in module.parameters()]
        self.optimizer = make_optimizer(self.groups)
        # On a GPU nobody waits for the answer whether an update is finite: the optimizer finds out there.
        self.decides_on_device = self.device.type == "cuda" and hasattr(self.optimizer, "_step_supports_amp_scaling")
        self.generator = torch.Generator().manual_seed(config.seed)
        self.average = WeightAverage(task.model, config.average_decay) if config.average_decay else None
        self.is_sharded = config.shard_weights and self.world.size > 1
        self.whole: nn.Module | None = None  # where weights are shared out: what the first process validates
        self.accumulate = config.accumulate
        if config.update_seconds:
            self.accumulate = max(math.ceil(config.update_seconds / (batches.batch_seconds * self.world.size)), 1)
        self.step = 0
        self.audio_seconds = 0.0
        self.train_seconds = 0.0
        self.skipped = SkippedUpdates(run, config.max_bad_steps, self.world)
        self.sums: dict[str, Tensor] = {}
        self.models = BestModels(run, task.best_metric, config.keep_best)
        self.validation_due = False
        self.ended = False
        self.told_to_stop = False
        self.waits = DataWaits()

    def fit(self) -> TrainResult:
        """Trains until `max_steps` or the end of patience; the model that was kept lies in `run/model.safetensors`.

        Raises:
            Unfinished: told to stop; what is done is saved.
            UserError: something that the user can mend.
        """
        self._resume()
        if self.world.is_first:
            check_room(self.run, self._weights(), self.params, self.config.keep_last, self.config.keep_best)
        if self.is_sharded:
            self._shard()
        self.batches.share(self.world.rank, self.world.size)
        with self.stop, self.world.watched(self.config.hang_seconds, self.compiled.most_seconds):
            replica = Replica(self.task, self.world, self.is_sharded)
            if self.device.type == "cuda" and not self._is_over():
                self.rehearse(replica)
            writer = MetricsWriter(self.run, self.step) if self.world.is_first else None
            bar = progress(total=self.config.max_steps, initial=self.step, desc=self.run.name, unit="step")
            try:
                with Prefetcher(self.batches) as source:
                    self._train(replica, source, writer, bar)
            finally:
                bar.close()
                if writer is not None:
                    writer.close()
        return TrainResult(self.step, self.audio_seconds / 3600, self.train_seconds / 60, self.models.best)

    def _shard(self) -> None:
        """Shares out model and average, and begins a new optimizer over the parts with the moments of the old."""
        moments = self.optimizer.state_dict()
        if self.world.is_first:
            self.whole = copy.deepcopy(self.task.model)
        shard(self.task.model, self.device, self.world.size)
        if self.average is not None:
            shard(self.average.model, self.device, self.world.size)
        self.params = [p for group in self.groups for module in group.modules for p in module.parameters()]
        self.optimizer = make_optimizer(self.groups)
        load_moments(self.optimizer, moments, params_of(self.optimizer))
        self.decides_on_device = False

    def _is_over(self) -> bool:
        return (self.ended or self.step >= self.config.max_steps) and not self.validation_due

    def _train(self, replica: Replica, source: Prefetcher, writer: MetricsWriter | None, bar: Any) -> None:
        config = self.config
        while not self._is_over():
            if not self.validation_due:  # else it was broken off, and is done again
                started, waited = time.perf_counter(), source.wait_seconds
                metrics = self._update(replica, source)
                seconds = time.perf_counter() - started
                self.train_seconds += seconds
                self.waits.add(source.wait_seconds - waited, seconds)
                self.step += 1
                bar.update(1)
                last = self.step == config.max_steps
                if last or self.step % config.log_every_steps == 0:
                    self._log(writer, bar, metrics)
                self.validation_due = last or self.step % config.validate_every_steps == 0
            if self.validation_due:
                self._validate(writer)
            if self._is_over() or self.told_to_stop or self.step % config.save_every_steps == 0:
                self._save(source.state_dict())
            if self.told_to_stop and not self._is_over():
                self.world.wait()  # the launcher ends the others as soon as the first has ended
                raise Unfinished(f"{self.run}: stopped after step {self.step}, all is saved: start it again to go on")

    def _update(self, replica: Replica, source: Prefetcher) -> dict[str, Any]:
        """One update from `accumulate` batches. Returns what a log line says of it, still as tensors."""
        self.task.model.train()
        rates = set_learning_rates(self.optimizer, self.groups, self.step, self.config.max_steps)
        buffers = [buffer.clone() for buffer in self.task.model.buffers()]
        count = torch.zeros((), device=self.device)
        seconds = 0.0
        ids: list[str] = []
        self.world.seed_step(self.config.seed, self.step, self.generator)
        for number in range(1, self.accumulate + 1):
            self.world.mark = (self.step, LOADING)
            batch = source.next_batch()
            self.world.mark = (self.step, COMPUTING)
            seconds += batch.seconds
            ids.extend(batch.ids)
            output = self._backward(replica, batch, self.step, number == self.accumulate)
            count += output.count
            for name, value in output.sums.items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.world.sum_tensors([count])
        # Gradients are means over the processes.
        norm = scale_and_clip(self.params, count / self.world.size, self.config.clip_norm)
        self._apply(torch.isfinite(norm), buffers, count, ids)
        self.optimizer.zero_grad(set_to_none=True)
        self.world.mark = (self.step, WAITING)
        told, seconds = self.world.sum([self.stop.is_set(), seconds])
        self.told_to_stop = bool(told)
        self.audio_seconds += seconds
        return {"gradient_norm": norm, **{f"lr_{name}": rate for name, rate in rates.items()}}

    def _backward(self, replica: Replica, batch: Any, step: int, is_last: bool) -> StepOutput:
        """Adds the gradients of a batch; with the last one of an update come those of the other processes."""
        with naming_memory(batch), nullcontext() if is_last else replica.alone():
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                output = replica.train_step(batch.to(self.device), step, self.generator)
            output.loss.backward()
        return output

    def _apply(self, finite: Tensor, buffers: Sequence[Tensor], count: Tensor, ids: list[str]) -> None:
        """Updates weights and average, unless a gradient is not finite: then the buffers go back, too."""
        pairs = list(zip(self.task.model.buffers(), buffers, strict=True))
        if self.decides_on_device:
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            for buffer, before in pairs:
                buffer.copy_(torch.where(finite, buffer, before))
        elif bool(finite):
            self.optimizer.step()
        else:
            for buffer, before in pairs:
                buffer.copy_(before)  # BatchNorm has seen what is not finite
        if self.average is not None and (self.decides_on_device or bool(finite)):
            self.average.update(self.task.model)
        self.skipped.note(self.step, finite, count, ids)
        if not self.decides_on_device:
            self.skipped.look()

    def rehearse(self, replica: Replica) -> None:
        """Forward and backward of the largest batch, with memory for the optimizer set aside, and no trace left.

        Raises:
            UserError: there is too little memory for it.
        """
        batch = self.batches.largest()
        model = self.task.model.train()
        buffers = [buffer.clone() for buffer in model.buffers()]
        state = self.generator.get_state()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), naming_memory(batch):
            moments = [torch.empty_like(p) for p in self.params for _ in range(2) if not self.optimizer.state]
            last = self.config.max_steps - 1  # nothing is frozen any more, and every head learns
            self.compiled.try_out(lambda: self._backward(replica, batch, last, is_last=False))
            del moments
        self.generator.set_state(state)
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        logger.info(f"the largest batch, {batch.size}, fits in memory")

    def _log(self, writer: MetricsWriter | None, bar: Any, extra: dict[str, Any]) -> None:
        self.skipped.look()
        self.world.sum_tensors([self.sums[name] for name in sorted(self.sums)])
        metrics = self.task.summarize(self.sums)
        metrics |= {name: float(value) for name, value in extra.items()}
        metrics["skipped_steps"] = self.skipped.total
        if self.audio_seconds:  # text has none
            metrics["audio_hours"] = self.audio_seconds / 3600
            metrics["hours_per_hour"] = self.audio_seconds / max(self.train_seconds, 1e-9)
        metrics["data_wait_share"] = self.waits.take(self.step)
        sums, self.sums = self.sums, {}
        if writer is not None:
            writer.write(self.step, "train", metrics)
            if time.monotonic() - self.drawn_at > REDRAW_SECONDS:
                self._draw()
        if self.watch is not None:
            self.watch.look(self.step, sums, self.optimizer)
        shown = ", ".join(f"{name} {metrics[name]:.3g}" for name in list(metrics)[:4])
        if self.audio_seconds:
            shown += f", {metrics['hours_per_hour']:.3g} h of audio an hour"
        bar.set_postfix_str(shown, refresh=False)

    def _validate(self, writer: MetricsWriter | None) -> None:
        """Validates in the first process, unless a signal breaks it off: then it stays due."""
        model = (self.average.model if self.average is not None else self.task.model).eval()
        self.world.average_buffers(self.task.model)
        if self.average is not None:
            self.world.average_buffers(self.average.model)
        if self.is_sharded:
            tensors = gather(model.state_dict(), self.world.is_first)
            if self.whole is not None:
                self.whole.load_state_dict(tensors)
                model = self.whole.eval()
        self.validation_due = False
        if writer is not None:
            self.world.mark = (self.step, ALONE)
            try:
                with self.compiled.plain(), self.stop.breaking_off(f"step {self.step}: validation"):
                    metrics = self.task.validate(model, self.step)
                self._judge(model, metrics, writer)
            except Interrupted:
                self.validation_due = True
        self.validation_due, self.ended = self.world.from_first([self.validation_due, self.ended])
        self.told_to_stop = self.told_to_stop or self.validation_due

    def _judge(self, model: nn.Module, metrics: dict[str, float], writer: MetricsWriter) -> None:
        """Notes a validation, and keeps the model if it is among the best."""
        writer.write(self.step, "dev", metrics)
        logger.info(f"step {self.step}: dev " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        self.models.judge(self.step, metrics, model)
        self.ended = 0 < self.models.since_best == self.config.patience
        if self.ended:
            logger.info(f"step {self.step}: no better model in {self.config.patience} validations; training ends")
        self._draw()

    def _draw(self) -> None:
        if self.panels:
            draw_curves(self.run, self.panels, self.run / "curves.png")
        self.drawn_at = time.monotonic()

    def _weights(self) -> dict[str, nn.Module]:
        weights = {"model": self.task.model}
        return weights if self.average is None else {**weights, "average": self.average.model}

    def _save(self, position: Mapping[str, int]) -> None:
        """Writes a checkpoint in the first process; all of them take part."""
        self.skipped.look()
        self.world.average_buffers(self.task.model)
        self.world.sum_tensors([self.sums[name] for name in sorted(self.sums)])
        is_first = self.world.is_first
        weights: dict[str, Weights] = {**self._weights()}
        moments = self.optimizer.state_dict() if not self.is_sharded else gather_moments(self.optimizer, is_first)
        if self.is_sharded:
            weights = {name: gather(module.state_dict(), is_first) for name, module in self._weights().items()}
        if not is_first:
            self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}  # the first one has them
            return
        self.world.mark = (self.step, ALONE)
        state = {
            "step": self.step,
            "audio_seconds": self.audio_seconds,
            "train_seconds": self.train_seconds,
            "bad_steps": self.skipped.in_a_row,
            "skipped_steps": self.skipped.total,
            "average_updates": 0 if self.average is None else self.average.updates,
            "optimizer": moments,
            "batches": dict(position),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "sums": self.sums,
            "models": self.models.state_dict(),
            "validation_due": self.validation_due,
            "ended": self.ended,
        }
        save_checkpoint(self.run, self.step, weights, state, self.config.keep_last)

    def _resume(self) -> None:
        state = load_newest(self.run, self._weights())
        if state is None:
            torch.manual_seed(self.config.seed)
            return
        self.step = state["step"]
        self.audio_seconds = state["audio_seconds"]
        self.train_seconds = state["train_seconds"]
        self.skipped.in_a_row = state["bad_steps"]
        self.skipped.total = state["skipped_steps"]
        if self.average is not None:
            self.average.updates = state["average_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda" and state["device_rng"] is not None:
            torch.cuda.set_rng_state(state["device_rng"], self.device)
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        if not self.world.is_first:
            self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}
        self.models.load_state_dict(state["models"])
        self.validation_due = state["validation_due"]
        self.ended = state["ended"]
        logger.info(f"{self.run}: resumed at step {self.step} of {self.config.max_steps}")
