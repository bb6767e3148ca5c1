"""What would meet on a GPU, and what would wait for it, on a pretended one: training steps, validations, searches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import kenlm
import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny import BLOCK, ENCODER, LSTM, MELS, PRETRAINING, STATELESS, TRANSDUCER, noise
from tests.pretended_gpu import GPU, OnGpu, PretendedGpu, pretended_gpu
from w2vbert.data.batches import SpeechBatch, collate
from w2vbert.data.text import collate_text
from w2vbert.decoding.model import LabelModel
from w2vbert.decoding.neural_scorers import InternalLmScorer, NeuralScorer
from w2vbert.decoding.ngram import NgramConfig, estimate
from w2vbert.decoding.ngram_automaton import load_automaton
from w2vbert.decoding.scorers import NgramScorer, WeightedScorer
from w2vbert.decoding.search import SearchConfig
from w2vbert.decoding.word_ngram import WordNgramScorer
from w2vbert.models.language_model import CausalLm, CausalLmConfig
from w2vbert.models.transducer import Transducer
from w2vbert.models.w2v_bert import Objective
from w2vbert.tasks import finetune, pretrain, recognize
from w2vbert.tasks.finetune import FinetuneConfig, FinetuneTask, TransducerLossConfig
from w2vbert.tasks.pretrain import PretrainConfig, PretrainTask
from w2vbert.tasks.train_lm import DevText, LmTask, LmTrainConfig
from w2vbert.training import trainer as training
from w2vbert.training.config import TrainConfig
from w2vbert.training.distributed import Replica
from w2vbert.training.optim import OptimConfig
from w2vbert.training.trainer import Trainer

TRAIN = TrainConfig(max_steps=10, average_decay=0.5, accumulate=2, precision="float32", compile="off")
PIECES = ["<blk>", "\u2581a", "b", "\u2581c", "d", "e", "f", "g", "h", "\u2581i", "j"]
Precision = Literal["float32", "bfloat16"]


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with pretended_gpu() as found:
        yield found


def speech(lengths: list[int], seed: int = 0) -> SpeechBatch:
    features = [noise(n, MELS, seed=seed + i) for i, n in enumerate(lengths)]
    tokens = [[1 + (i + n) % 10 for n in range(i + 2)] for i in range(len(lengths))]
    return collate([f"{seed}-{i}" for i in range(len(lengths))], features, tokens)


def pretraining(objective: Objective, train: TrainConfig = TRAIN) -> PretrainTask:
    blocks = {"w2v-bert": (2, 2), "w2v-conformer": (2, 0)}.get(objective, (0, 2))
    encoder = replace(ENCODER, contrastive_blocks=blocks[0], masked_blocks=blocks[1])
    config = PretrainConfig(replace(PRETRAINING, encoder=encoder, objective=objective), train)
    return PretrainTask(config, None)  # type: ignore[arg-type]


def finetuning(kind: str, train: TrainConfig = TRAIN) -> FinetuneTask:
    frozen = OptimConfig(1e-3, 0, freeze_steps=1)
    loss = TransducerLossConfig(prune_range=3, warmup_steps=0, ctc_weight=0.5 * (kind == "ctc"))
    config = FinetuneConfig(loss=loss, train=train, encoder_optim=frozen)
    block = BLOCK
    if kind == "w2v-bert-2.0":
        block = replace(BLOCK, positions="relative_key", convolution="causal")
    elif kind == "ctc":
        block = replace(BLOCK, positions="rotary")
    predictor = STATELESS if kind == "stateless" else LSTM
    encoder = replace(ENCODER, block=block)
    model = Transducer(replace(TRANSDUCER, encoder=encoder, predictor=predictor, ctc=kind == "ctc"))
    return FinetuneTask(config, model, None, None)  # type: ignore[arg-type]


def language_model(kind: Literal["transformer", "lstm"], train: TrainConfig = TRAIN) -> LmTask:
    lm = CausalLmConfig(kind, layers=2, dim=16, heads=2, feed_forward_dim=32, dropout=0.0)
    config = LmTrainConfig(lm, train, batch_pieces=100, max_pieces=50)
    return LmTask(config, 11, DevText([[3, 4, 5], [6]], 2))


def text(lengths: list[int], seed: int = 0) -> Any:
    return collate_text(range(len(lengths)), [torch.arange(n) % 10 + 1 for n in lengths])


MAKERS: dict[str, tuple[Callable[..., Any], str, Callable[..., Any]]] = {
    **{
        f"pretraining {o}": (pretraining, o, speech) for o in ("w2v-bert", "w2v-conformer", "no-contrastive", "best-rq")
    },
    **{f"finetuning {k}": (finetuning, k, speech) for k in ("lstm", "stateless", "ctc", "w2v-bert-2.0")},
    **{f"language model {k}": (language_model, k, text) for k in ("transformer", "lstm")},
}


def two_updates(
    name: str, run: Path, gpu: PretendedGpu | None = None, precision: Precision = "float32"
) -> tuple[Trainer, dict[str, Any]]:
    """A trainer after two updates of two batches, one of them without padding, and what the last would log."""
    maker, kind, batch = MAKERS[name]
    torch.manual_seed(0)
    config = replace(TRAIN, precision=precision)
    trainer = Trainer(maker(kind, config), SimpleNamespace(), config, run, ())  # type: ignore[arg-type]
    batches = iter([batch([40, 33, 21], seed=1), batch([32, 32], seed=5), batch([29, 40], seed=7), batch([40], seed=9)])
    source: Any = SimpleNamespace(next_batch=lambda: next(batches))
    replica = Replica(trainer.task, trainer.world)
    if gpu is not None:
        gpu.waits.clear()  # the weights were brought there
    for _ in range(2):
        told = trainer._update(replica, source)
        trainer.step += 1
    return trainer, told


def values(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The same on the CPU."""
    return {name: tensor.detach().cpu().double() for name, tensor in tensors}


def moments(trainer: Trainer) -> dict[str, Tensor]:
    """What Adam remembers of the gradients of each parameter."""
    state = trainer.optimizer.state
    return values((name, state[p]["exp_avg"]) for name, p in trainer.task.model.named_parameters() if p in state)


@pytest.mark.parametrize("name", MAKERS)
def test_an_update_on_a_gpu_is_that_of_a_cpu_and_waits_for_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, plain_told = two_updates(name, tmp_path)
    monkeypatch.setattr(training, "choose_device", lambda: GPU)
    with pretended_gpu() as gpu:
        trainer, told = two_updates(name, tmp_path, gpu)
        assert gpu.waits == []
        assert trainer.decides_on_device and all(isinstance(p, OnGpu) for p in trainer.params)
        assert trainer.average is not None and plain.average is not None
        torch.testing.assert_close(moments(trainer), moments(plain), atol=1e-5, rtol=1e-4)
        for mine, theirs in ((trainer.task.model, plain.task.model), (trainer.average.model, plain.average.model)):
            torch.testing.assert_close(
                values(mine.named_buffers()), values(theirs.named_buffers()), atol=1e-5, rtol=1e-4
            )
            # Adam makes steps of the size of the learning rate of gradients that are 0 but for rounding.
            torch.testing.assert_close(
                values(mine.named_parameters()), values(theirs.named_parameters()), atol=4e-3, rtol=0.0
            )
        torch.testing.assert_close(values(trainer.sums.items()), values(plain.sums.items()), atol=1e-3, rtol=1e-4)
        assert float(told["gradient_norm"]) == pytest.approx(float(plain_told["gradient_norm"]), rel=1e-3)
        assert gpu.waits != []  # what was just looked at


@pytest.mark.parametrize("name", MAKERS)
def test_an_update_in_bfloat16_waits_for_nothing_and_is_near_that_in_float32(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = two_updates(name, tmp_path)
    monkeypatch.setattr(training, "choose_device", lambda: GPU)
    with pretended_gpu() as gpu:
        trainer, _ = two_updates(name, tmp_path, gpu, "bfloat16")
        assert gpu.waits == [] and trainer.dtype == torch.bfloat16
        key = "loss" if "loss" in trainer.sums else "total" if "total" in trainer.sums else "pruned"
        assert float(trainer.sums[key]) == pytest.approx(float(plain.sums[key]), rel=0.05)
        assert not float(trainer.sums[key]) == float(plain.sums[key])


def test_a_gradient_that_is_not_finite_is_left_out_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "choose_device", lambda: GPU)
    with pretended_gpu() as gpu:
        trainer, _ = two_updates("pretraining w2v-bert", tmp_path, gpu)
        before = values(trainer.task.model.state_dict().items())
        broken = speech([40, 33], seed=3)
        broken.features[1, 3, 2] = torch.nan
        gpu.waits.clear()
        source: Any = SimpleNamespace(next_batch=lambda: broken)
        trainer._update(Replica(trainer.task, trainer.world), source)
        assert gpu.waits == []
        assert all(
            torch.equal(before[n], after) for n, after in values(trainer.task.model.state_dict().items()).items()
        )
        trainer.skipped.look()
        assert trainer.skipped.total == 1


class Dev:
    """A split of two batches."""

    ids = ["0-0", "0-1", "0-2"]
    texts = ["a", "ab", "abc"]
    batches = [speech([40, 33, 21])]


@pytest.mark.parametrize("name", MAKERS)
def test_validations_on_a_gpu_say_what_those_on_a_cpu_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maker, kind, _ = MAKERS[name]
    for module in (pretrain, finetune):
        monkeypatch.setattr(module, "in_order", lambda dev, seconds: dev.batches)
    monkeypatch.setattr(recognize, "choose_precision", lambda precision, device: torch.float32)
    torch.manual_seed(0)
    task = maker(kind)
    if not isinstance(task, LmTask):
        task.dev = Dev()
        task.tokenizer = SimpleNamespace(unknown_id=1, decode=lambda labels: " ".join(map(str, labels)))
    plain = task.validate(task.model.eval(), 1)
    with pretended_gpu():
        assert task.validate(task.model.to(GPU), 1) == pytest.approx(plain, rel=1e-4)


def scorers(model: nn.Module, folder: Path) -> list[WeightedScorer]:
    """One of each kind; the neural ones in the second pass, too."""
    generator = torch.Generator().manual_seed(0)
    sentences = [(torch.randint(1, 11, (n % 7 + 1,), generator=generator)).tolist() for n in range(60)]
    estimate(sentences, PIECES, NgramConfig(order=3)).write_arpa(folder / "lm.arpa")
    estimate([[0, 1], [2, 0, 1], [3]], ["a", "ab", "cd", "i"], NgramConfig(order=2)).write_arpa(folder / "words.arpa")
    torch.manual_seed(0)
    lms = [CausalLm(CausalLmConfig(kind, 2, 16, 2, 32, 0.0), 11).eval() for kind in ("transformer", "lstm")]  # type: ignore[arg-type]
    device = next(model.parameters()).device
    return [
        WeightedScorer("ngram", NgramScorer(load_automaton(folder / "lm.arpa", PIECES)), 0.3),
        WeightedScorer("word", WordNgramScorer(kenlm.Model(str(folder / "words.arpa")), PIECES), 0.2),
        WeightedScorer("neural", NeuralScorer(lms[0].to(device)), 0.3),
        WeightedScorer("internal", InternalLmScorer(LabelModel(model)), -0.1),  # type: ignore[arg-type]
        WeightedScorer("second", NeuralScorer(lms[1].to(device)), 0.3, second_pass=True),
    ]


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_searches_on_a_gpu_find_what_those_on_a_cpu_find(
    method: Literal["greedy", "beam"], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognize, "choose_precision", lambda precision, device: torch.float32)
    torch.manual_seed(0)
    model = finetuning(kind).model.eval()
    with torch.no_grad():
        model.joiner.linear.bias[0] -= 4.0  # fewer blanks
    tokenizer: Any = SimpleNamespace(unknown_id=2, decode=lambda labels: " ".join(map(str, labels)))
    config = SearchConfig(method, beam_size=3, max_symbols_per_frame=2, nbest=3 if method == "beam" else 1)

    def found() -> list[tuple[str, list[float]]]:
        with_models = scorers(model, tmp_path) if method == "beam" else []
        batches = [speech([40, 33, 21]), speech([12])]
        results = recognize.recognize(model, tokenizer, batches, config, with_models)
        return [(r.text, [h.score for h in r.hypotheses]) for batch in results for r in batch]

    plain = found()
    assert any(text for text, _ in plain)
    with pretended_gpu():
        model.to(GPU)
        for (text, scores), (plain_text, plain_scores) in zip(found(), plain, strict=True):
            assert text == plain_text and scores == pytest.approx(plain_scores, abs=1e-3)


def test_the_pretended_gpu_minds_what_a_real_one_minds(gpu: PretendedGpu) -> None:
    here, there = torch.ones(3), torch.ones(3, device=GPU)
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    with pytest.raises(RuntimeError, match="one scalar type"):
        torch.native_layer_norm(there.bfloat16(), [3], there, there, 1e-5)
    assert ((there + torch.tensor(1.0)) * 2).device == GPU and gpu.waits == []
    here.pin_memory().to(GPU, non_blocking=True)
    assert gpu.waits == []
    for wait in (
        lambda: here.to(GPU),
        lambda: here.to(GPU, non_blocking=True),
        lambda: here.pin_memory().to(GPU),
        lambda: there.cpu(),
        lambda: float(there.sum()),
        lambda: bool((there > 0).all()),
        lambda: there.nonzero(),
        lambda: there[there > 0],
        lambda: there[torch.tensor([1])],
        lambda: there.tolist(),
        lambda: torch.tensor([1.0], device=GPU),
        lambda: there.copy_(here),
    ):
        gpu.waits.clear()
        wait()
        assert len(gpu.waits) >= 1, wait
