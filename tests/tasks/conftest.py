"""A prepared data set of noise and an untrained recogniser that babbles, shared by the tests of the tasks."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.data.corpus_factory import write_corpus
from w2vbert import cli
from w2vbert.config import save_config
from w2vbert.data.features import FEATURES_FILE, ExtractionConfig, FeatureConfig
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.models.conformer import ConformerConfig
from w2vbert.models.encoder import EncoderConfig
from w2vbert.models.subsampling import SubsamplingConfig
from w2vbert.models.transducer import PredictorConfig, Transducer, TransducerConfig
from w2vbert.tasks import prepare
from w2vbert.training.checkpoint import save_weights, write_model_card

SPLITS = {"train": ["a-train", "b-train"], "dev": ["a-dev"], "test": ["a-test"], "unlabelled": ["a-more"]}
ENCODER = EncoderConfig(
    SubsamplingConfig(80, (4, 4)), ConformerConfig(16, 2, 32, positions="rotary", dropout_prob=0.1), 1, 1
)
# Runs the command line in arguments 3, 4, ... and dies just before the file system renames something to a path with
# argument 1 in it for the time that argument 2 says.
KILLER = """
import os, signal, sys
pattern, left, rename = sys.argv[1], int(sys.argv[2]), os.replace
def replace(source, target):
    global left
    left -= pattern in str(target)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = replace
from w2vbert.cli import main
sys.exit(main(sys.argv[3:]))
"""


@dataclass(frozen=True)
class Prepared:
    """Folders that tests must not change."""

    corpus: Path
    manifests: Path
    data: Path
    tokenizer: Path
    lm: Path
    model: Path


def write_model(folder: Path, tokenizer: Path, seed: int = 0, encoder: EncoderConfig = ENCODER) -> Path:
    """A model folder as fine-tuning leaves it: random weights, and a blank so improbable that it babbles."""
    pieces = Tokenizer.load(tokenizer)
    torch.manual_seed(seed)
    config = TransducerConfig(encoder, pieces.vocab_size, 16, PredictorConfig(dim=16, layers=1), 16)
    model = Transducer(config)
    with torch.no_grad():
        model.joiner.linear.weight.mul_(8.0)
        model.joiner.linear.bias[0] = -0.5
    folder.mkdir(parents=True)
    save_weights(model, folder / "model.safetensors")
    save_config(config, folder / "model.yaml")
    save_config(FeatureConfig(), folder / FEATURES_FILE)
    (folder / "tokenizer").mkdir()
    pieces.save(folder / "tokenizer")
    history = {str(folder): {"audio_hours": 1.5, "minutes": 2.5}}
    write_model_card(folder, "transducer", {"history": history, "tokenizer": pieces.digest})
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Noise in LibriSpeech's layout, its features, a tokenizer of characters, a language model, a babbling model."""
    root = tmp_path_factory.mktemp("prepared")
    made = Prepared(*(root / name for name in ("corpus", "manifests", "data", "tokenizer", "lm", "model")))
    prepare.prepare_corpus(write_corpus(made.corpus), made.manifests, SPLITS)
    prepare.extract_features(made.manifests, made.data, ExtractionConfig())
    prepare.train_tokenizer(made.manifests, made.tokenizer, TokenizerConfig("char"))
    run("lm", "ngram", made.manifests, made.lm, "--tokenizer", made.tokenizer, "--set", "ngram.order=2")
    write_model(made.model, made.tokenizer)
    return made


@pytest.fixture(autouse=True)
def log_stays_here() -> Iterator[None]:
    """Takes away the log files that a test's runs have opened."""
    yield
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler) and (handler.name or "").startswith("w2vbert-"):
            logging.getLogger().removeHandler(handler)
            handler.close()


def run(*arguments: object) -> None:
    """A command that succeeds."""
    assert cli.main([str(a) for a in arguments]) == 0


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that ends with exit code 2 and returns its one line `error: ...`."""

    def run_and_fail(*arguments: object) -> str:
        capsys.readouterr()
        assert cli.main([str(a) for a in arguments]) == 2
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert captured.out == "" and len(errors) == 1 and captured.err.endswith(f"{errors[0]}\n")
        return errors[0]

    return run_and_fail


def kill(pattern: str, time: int, *arguments: object) -> None:
    """Runs a command in a process that is killed (SIGKILL) before the `time`-th renaming to `pattern`."""
    command: Sequence[str] = [sys.executable, "-c", KILLER, pattern, str(time), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def is_up_to_date(caplog: pytest.LogCaptureFixture, *arguments: object) -> bool:
    """Whether a command finds its work done."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "w2vbert"):
        run(*arguments)
    return any("up to date" in record.getMessage() for record in caplog.records)
