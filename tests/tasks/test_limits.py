"""Settings that nobody can mean are refused before anything is read."""

import pytest

from w2vbert.tasks.decode import DecodeConfig
from w2vbert.tasks.finetune import FinetuneConfig
from w2vbert.tasks.pretrain import PretrainConfig
from w2vbert.tasks.pseudo_labels import PseudoLabelConfig
from w2vbert.training.config import TrainConfig


@pytest.mark.parametrize("config", [DecodeConfig, FinetuneConfig, PretrainConfig, PseudoLabelConfig])
@pytest.mark.parametrize("key", ["batch_seconds", "max_seconds"])
def test_batches_without_room_for_an_utterance(config: type, key: str) -> None:
    config(**{key: 1.0})
    for value in (0.0, -1.0, 0.1 if key == "batch_seconds" else 0.0):
        with pytest.raises(ValueError, match=f"{key}.*must be|must be.*{key}|{key} above 0"):
            config(**{key: value})


@pytest.mark.parametrize("config", [FinetuneConfig, PretrainConfig])
def test_utterances_that_join_none(config: type) -> None:
    with pytest.raises(ValueError, match="join_utterances at least 1"):
        config(join_utterances=0)


@pytest.mark.parametrize("values", [{"seed": -1}, {"seed": 2**32}, {"threads": 10**6}])
def test_numbers_that_torch_would_stumble_over(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="threads must be at most 1024, and seed lie in"):
        TrainConfig(**values)
