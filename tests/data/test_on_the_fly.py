"""Features that are computed when they are read equal those that are stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from tests.data.corpus_factory import noise, truncate, write_utterance
from w2vbert.config import save_config
from w2vbert.data.corpora import CorpusConfig, read_split
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.features import FEATURES_FILE, W2V_BERT_2, FeatureConfig, _extract, add_speeds
from w2vbert.data.filterbanks import filterbanks
from w2vbert.data.on_the_fly import compute_frames, describe_features
from w2vbert.errors import UserError

CPU = torch.device("cpu")
NARROW = FeatureConfig(num_mel_bins=40, sampling_rate_hz=8000, high_hz=3800.0)


def speechlike(seconds: float, rate_hz: int = 16000) -> torch.Tensor:
    """Loud, quiet and silent stretches with more energy at low frequencies, on a small offset, as 16-bit samples."""
    samples = np.cumsum(noise(seconds, rate_hz, seed=3)) * 0.01
    samples -= samples.mean() - 0.01
    samples *= np.repeat([1.0, 0.01, 0.0, 0.5], -(-len(samples) // 4))[: len(samples)]
    return torch.from_numpy(np.round(samples.clip(-1, 1) * 32767) / 32768).float()


def are_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Within 1e-4, but for the quietest bins of loud frames: there Lhotse differs as much from float64."""
    difference = (a - b).abs()
    return bool(difference.max() < 5e-3 and (difference < 1e-4).float().mean() > 0.998)


@pytest.mark.parametrize("config", [FeatureConfig(), W2V_BERT_2, NARROW])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 7.1234])
def test_values_are_those_of_lhotse(config: FeatureConfig, seconds: float) -> None:
    samples = speechlike(seconds, config.sampling_rate_hz)
    ours = filterbanks(config, CPU)(samples)
    theirs = torch.from_numpy(_extract(samples.numpy(), config))
    assert ours.shape == theirs.shape and filterbanks(config, CPU).count(len(samples)) == len(ours)
    assert are_close(ours, theirs)


@pytest.mark.parametrize("config", [FeatureConfig(), W2V_BERT_2])
def test_a_stretch_has_the_values_of_the_whole(config: FeatureConfig) -> None:
    bank = filterbanks(config, CPU)
    samples = speechlike(3.0)
    whole = bank(samples)
    for start, frames in ((0, 20), (1, 50), (100, 100), (len(whole) - 10, 10)):
        assert are_close(bank(samples, start, frames), whole[start : start + frames]), start


def test_another_length_in_between_leaves_no_trace() -> None:
    bank, samples = filterbanks(FeatureConfig(), CPU), speechlike(6.0)
    first = bank(samples)
    bank(torch.ones(100_000))
    assert torch.equal(bank(samples), first)


def described(folder: Path, config: FeatureConfig, speeds: tuple[float, ...] = ()) -> list[dict[str, Any]]:
    """Records of the cuts of subset a, and `cuts_train.jsonl.gz` and the config in `folder`."""
    save_config(config, folder / FEATURES_FILE)
    cuts = read_split(CorpusConfig(folder, {"train": ("a",)}), "train", jobs=1).cuts()
    found = list(describe_features(add_speeds(cuts, speeds), config, folder / FEATURES_FILE))
    CutSet.from_cuts(found).to_file(folder / "cuts_train.jsonl.gz")
    return [cut.to_dict() for cut in found]


@pytest.mark.parametrize("config", [FeatureConfig(), W2V_BERT_2])
def test_frames_of_a_cut_equal_those_of_its_waveform(tmp_path: Path, config: FeatureConfig) -> None:
    samples = noise(2.507, seed=1)
    write_utterance(tmp_path / "a", "11-7-0000", "WORD", samples)
    (record,) = described(tmp_path, config)
    samples, _ = soundfile.read(record["recording"]["sources"][0]["source"], dtype="float32")
    whole = torch.from_numpy(_extract(samples, config))
    assert record["features"]["num_frames"] == len(whole)
    for start, frames in ((0, len(whole)), (0, 30), (17, 60), (len(whole) - 30, 30)):
        found = compute_frames(record, start, frames)
        assert are_close(found, whole[start : start + frames]), start


def test_a_cut_within_a_recording_sees_nothing_beyond_it(tmp_path: Path) -> None:
    path = write_utterance(tmp_path / "a", "11-7-0000", "WORD", noise(4.0))
    (record,) = described(tmp_path, FeatureConfig())
    samples, _ = soundfile.read(path, dtype="float32")
    for start, duration in ((0.5, 1.0), (0.25, 3.5)):  # found by seeking, and by decoding all
        part = _extract(samples[round(16000 * start) : round(16000 * (start + duration))], FeatureConfig())
        found = compute_frames(record | {"start": start, "duration": duration}, 0, len(part))
        assert are_close(found, torch.from_numpy(part))


def test_other_speeds_and_other_formats(tmp_path: Path) -> None:
    path = write_utterance(tmp_path / "a", "11-7-0000", "WORD", noise(1.0))
    records = described(tmp_path, FeatureConfig(), speeds=(0.9,))
    assert [len(compute_frames(record, 0, record["features"]["num_frames"])) for record in records] == [100, 111]
    samples, _ = soundfile.read(path, dtype="float32")
    wav = path.with_suffix(".wav")
    soundfile.write(wav, samples, 16000)
    source = records[0]["recording"]["sources"][0] | {"source": str(wav)}
    record = records[0] | {"recording": records[0]["recording"] | {"sources": [source]}}
    assert torch.equal(compute_frames(record, 0, 100), compute_frames(records[0], 0, 100))


def test_a_dataset_computes_and_keeps(tmp_path: Path) -> None:
    for number, seconds in enumerate((1.0, 2.0)):
        write_utterance(tmp_path / "a", f"11-7-000{number}", f"WORD {number}", noise(seconds, seed=number))
    described(tmp_path, FeatureConfig())
    data = SpeechDataset([tmp_path / "cuts_train.jsonl.gz"], 1.5, crop=True)
    assert data.frames == [100, 150] and data.spare == [0, 50] and data.texts == ["WORD 0", "WORD 1"]
    first = data.load(0)
    assert torch.equal(data.load(0), first) and data.load(1, 50).shape == (150, 80)
    without_memory = SpeechDataset([tmp_path / "cuts_train.jsonl.gz"], 1.5, crop=True, cache_bytes=0)
    assert torch.equal(without_memory.load(0), first)


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_audio_that_is_damaged_since_is_named(tmp_path: Path, damage: str) -> None:
    path = write_utterance(tmp_path / "a", "11-7-0000", "WORD", noise(2.0))
    (record,) = described(tmp_path, FeatureConfig())
    if damage == "missing":
        path.unlink()
    else:
        truncate(path, 0.5 if damage == "truncated" else 0.0)
    for frames in (200, 20):  # the second by seeking to the end
        with pytest.raises(UserError, match="11-7-0000.flac"):
            compute_frames(record, 200 - frames, frames)


def test_the_sampling_rate_must_fit(tmp_path: Path) -> None:
    write_utterance(tmp_path / "a", "11-7-0000", "WORD", noise(1.0))
    with pytest.raises(UserError, match="has 16000 Hz, the config 8000 Hz"):
        described(tmp_path, NARROW)
