"""Noise mixed into speech: levels, draws, and folders of noise."""

import math
from pathlib import Path

import pytest
import soundfile
import torch
from lhotse import CutSet

from tests.data.corpus_factory import RATE_HZ, noise, store, truncate
from w2vbert.data.features import FeatureConfig, features_of_waveform
from w2vbert.data.noise import NoiseConfig, NoiseMixer, mix_noise, noise_cuts
from w2vbert.errors import UserError


def tone(seconds: float) -> torch.Tensor:
    """A sine of 1 kHz, (N,)."""
    return 0.2 * torch.sin(2 * math.pi * 1000 / RATE_HZ * torch.arange(round(seconds * RATE_HZ)))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of a short and a long recording, the second of two channels at another rate; and a broken file."""
    folder = tmp_path_factory.mktemp("noise")
    (folder / "deep").mkdir()
    soundfile.write(folder / "short.wav", noise(0.4, seed=1), RATE_HZ)
    soundfile.write(folder / "deep" / "long.flac", noise(12, 8000, seed=2).reshape(-1, 2), 8000)
    soundfile.write(folder / "broken.flac", noise(3, seed=3), RATE_HZ)
    truncate(folder / "broken.flac", 0.5)
    cuts = list(noise_cuts(folder, RATE_HZ))
    assert [cut.id for cut in cuts] == ["noise-deep-long", "noise-short"]
    stored = store(cuts, folder)
    assert [cut.num_frames for cut in stored] == [600, 40]
    CutSet.from_cuts(stored).to_file(folder / "cuts_noise.jsonl.gz")
    return folder / "cuts_noise.jsonl.gz"


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 15.0])
def test_the_level_is_that_of_signals_mixed_as_waves(snr_db: float) -> None:
    speech, hiss = tone(2), torch.from_numpy(noise(2, seed=5))
    features = [features_of_waveform(x, FeatureConfig()) for x in (speech, hiss)]
    mixed = mix_noise(*features, snr_db)
    # The same gain on the wave: mel energies are what the level is measured by.
    gain = math.sqrt(float(features[0].exp().mean() / features[1].exp().mean()) / 10 ** (snr_db / 10))
    expected = features_of_waveform(speech + gain * hiss, FeatureConfig())
    # Phases make single values differ, not their mean.
    assert abs(float((mixed - expected).mean())) < 0.1
    assert float((mixed - expected).abs().mean()) < 0.4
    added = mixed.exp() - features[0].exp()
    assert 10 * math.log10(float(features[0].exp().mean() / added.mean())) == pytest.approx(snr_db, abs=0.05)


def test_draws_follow_their_generator_and_their_share(manifest: Path) -> None:
    mixer = NoiseMixer(manifest, NoiseConfig(prob=0.5, min_snr_db=0.0, max_snr_db=5.0))
    speech = features_of_waveform(tone(1), FeatureConfig())

    def draw(seed: int, count: int = 1) -> list[torch.Tensor]:
        change = mixer.changes(torch.Generator().manual_seed(seed))
        return [change(speech) for _ in range(count)]

    for one, two in zip(draw(1, 20), draw(1, 20), strict=True):
        assert torch.equal(one, two)
    many = draw(2, 200)
    noisy = [x for x in many if not torch.equal(x, speech)]
    assert 75 < len(noisy) < 125 and all(x.shape == speech.shape and x.isfinite().all() for x in noisy)
    assert len({float(x.sum()) for x in noisy}) == len(noisy)
    # Both recordings serve; the short one, of 40 frames, comes again and again.
    added = [x.exp() - speech.exp() for x in noisy]
    again = [torch.allclose(x[:40], x[40:80], rtol=0.1, atol=1e-3 * float(x.max())) for x in added]
    assert 0.3 < sum(again) / len(again) < 0.7


def test_no_noise_changes_nothing_and_all_noise_changes_all(manifest: Path) -> None:
    speech = features_of_waveform(tone(0.5), FeatureConfig())
    for prob, noisy in ((0.0, 0), (1.0, 30)):
        change = NoiseMixer(manifest, NoiseConfig(prob)).changes(torch.Generator().manual_seed(3))
        assert sum(not torch.equal(change(speech), speech) for _ in range(30)) == noisy


def test_what_cannot_serve_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noise.prob needs `w2vbert features` with --set noise=FOLDER"):
        NoiseMixer(tmp_path / "cuts_noise.jsonl.gz", NoiseConfig(0.5))
    with pytest.raises(UserError, match="does not exist"):
        list(noise_cuts(tmp_path / "nowhere", RATE_HZ))
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(UserError, match="no audio that can be decoded"):
        list(noise_cuts(tmp_path, RATE_HZ))
    for values in ({"prob": 1.5}, {"min_snr_db": 30.0}):
        with pytest.raises(ValueError, match="prob in"):
            NoiseConfig(**values)
