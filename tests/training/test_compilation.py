"""Compiled blocks in a training: the same result, plain copies and validations, and what happens where it fails."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toys import CONFIG, ToyLayer, make_trainer
from tests.training.workers import run, train_compiled
from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.training import compilation
from w2vbert.training.checkpoint import read_weights
from w2vbert.training.compilation import CompiledBlocks

CPU, GPU = torch.device("cpu"), torch.device("cuda")
Graph = Callable[..., Any]


class Backend:
    """Counts the graphs that it is given, and runs them as they are."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.graphs = 0

    def __call__(self, graph: Graph, inputs: Any) -> Graph:
        self.graphs += 1
        if self.error is not None:
            raise self.error
        return graph


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    made = Backend()
    monkeypatch.setattr(compilation, "BACKEND", made)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def test_a_compiled_training_is_that_of_plain_blocks(tmp_path: Path, backend: Backend) -> None:
    for folder, compile in (("plain", "off"), ("compiled", "on")):
        config: Any = replace(CONFIG, compile=compile)
        trainer = make_trainer(tmp_path / folder, config)
        trainer.fit()
        assert (backend.graphs > 0) == (compile == "on")
    checkpoint = Path("checkpoints") / "step-00000012"
    for name in ("model.safetensors", checkpoint / "model.safetensors", checkpoint / "average.safetensors"):
        plain, compiled = (read_weights(tmp_path / folder / name) for folder in ("plain", "compiled"))
        assert plain.keys() == compiled.keys()
        for key in plain:
            torch.testing.assert_close(plain[key], compiled[key], atol=1e-5, rtol=1e-4)


def test_validations_and_copies_compile_nothing(tmp_path: Path, backend: Backend) -> None:
    config = replace(CONFIG, compile="on", average_decay=0.0)
    trainer = make_trainer(tmp_path, config)
    trainer.step, trainer.config = 4, replace(config, max_steps=4)
    trainer._validate(None)
    with trainer.compiled.plain():
        trainer.task.validate(trainer.task.model.eval(), 1)
    make_trainer(tmp_path, replace(config, average_decay=0.5)).average.model(torch.randn(3, 4))  # type: ignore[union-attr]
    assert backend.graphs == 0
    trainer.task.model(torch.randn(3, 4))
    assert backend.graphs > 0


def test_it_is_for_gpus_unless_it_is_forced(backend: Backend) -> None:
    blocks = [ToyLayer(2, 2), ToyLayer(2, 2)]
    for wanted, device, compiles in (("auto", CPU, False), ("auto", GPU, True), ("on", CPU, True), ("off", GPU, False)):
        compiled = CompiledBlocks(blocks, wanted, device)  # type: ignore[arg-type]
        assert (len(compiled.blocks) == 2) == compiles == (compiled.most_seconds > 0.0)
    assert not CompiledBlocks([], "on", GPU).blocks


def test_where_the_compiler_fails_training_goes_on_without(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    backend.error = RuntimeError("no C compiler\nand many more lines")
    block, x = ToyLayer(2, 2), torch.randn(3, 2)
    compiled = CompiledBlocks([block], "auto", GPU)
    compiled.try_out(lambda: block(x).sum().backward())
    (line,) = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert "no C compiler" in line and "compile=off" in line and "\n" not in line
    assert block.weight.grad is not None and not compiled.blocks
    block(x)
    assert backend.graphs == 1
    with pytest.raises(UserError, match="set train.compile=off: .*no C compiler"):
        forced = CompiledBlocks([block], "on", GPU)
        forced.try_out(lambda: block(x))


def test_an_error_of_the_step_itself_is_not_the_compilers(backend: Backend) -> None:
    block = ToyLayer(2, 2)
    with pytest.raises(KeyError):
        CompiledBlocks([block], "auto", GPU).try_out(lambda: {}["no such key"])
    assert block._compiled_call_impl is not None


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_with_compiled_blocks_take_the_same_way(
    tmp_path: Path, processes: ForkServerContext, shard: bool
) -> None:
    for name in ("plain", "compiled"):
        config = replace(CONFIG, max_steps=4, shard_weights=shard, average_decay=0.0)
        assert run(processes, 2, train_compiled, tmp_path / name, config, name == "compiled") == [0, 0]
    plain, compiled = (
        read_weights(tmp_path / name / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
        for name in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()
    for key in plain:
        torch.testing.assert_close(plain[key], compiled[key], atol=1e-5, rtol=1e-4)
    counts = [int(path.read_text()) for path in sorted((tmp_path / "compiled").glob("graphs-*"))]
    assert len(counts) == 2 and all(count > 0 for count in counts)
