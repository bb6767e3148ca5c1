"""Reading any audio file, whole and in blocks."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from tests.data.corpus_factory import noise, truncate
from w2vbert.data import audio
from w2vbert.data.audio import find_audio, read_audio
from w2vbert.data.audio_files import AUDIO_SUFFIXES
from w2vbert.errors import UserError

RATE_HZ = 16000


def tone(seconds: float, rate_hz: int, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def test_wav_and_flac_give_their_samples(tmp_path: Path) -> None:
    samples = noise(0.7)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, samples, RATE_HZ)
        found = read_audio(tmp_path / name, RATE_HZ)
        assert found.dtype == torch.float32 and found.shape == (len(samples),)
        torch.testing.assert_close(found, torch.from_numpy(samples), atol=1e-4, rtol=0)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = noise(0.3), noise(0.3, seed=1)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE_HZ, subtype="FLOAT")
    found = read_audio(tmp_path / "a.wav", RATE_HZ)
    torch.testing.assert_close(found, torch.from_numpy((left + right) / 2))


@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.flac", tone(1.0, rate_hz), rate_hz)
    found = read_audio(tmp_path / "a.flac", RATE_HZ)
    assert len(found) == RATE_HZ
    inner = slice(1000, -1000)
    torch.testing.assert_close(found[inner], torch.from_numpy(tone(1.0, RATE_HZ))[inner], atol=0.01, rtol=0)


@pytest.mark.parametrize("suffix", [".mp3", ".ogg", ".opus"])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 7.3])
def test_lossy_formats_are_read_whole(tmp_path: Path, suffix: str, seconds: float) -> None:
    samples = tone(seconds, RATE_HZ)
    form = {".opus": ("OGG", "OPUS"), ".ogg": ("OGG", "VORBIS"), ".mp3": ("MP3", "MPEG_LAYER_III")}[suffix]
    soundfile.write(tmp_path / f"a{suffix}", samples, RATE_HZ, format=form[0], subtype=form[1])
    found = read_audio(tmp_path / f"a{suffix}", RATE_HZ)
    assert len(samples) <= len(found) + 10 <= len(samples) + 2500
    if seconds >= 1.0:
        assert abs(found.square().mean().sqrt() / np.sqrt(np.mean(samples**2)) - 1) < 0.1


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_a_truncated_flac_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(3), RATE_HZ)
    truncate(path, share)
    with pytest.raises(UserError, match=rf"{path} (is truncated|cannot be decoded)"):
        read_audio(path, RATE_HZ)


def test_a_truncated_wav_is_read_as_far_as_it_goes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(3), RATE_HZ)
    with caplog.at_level("WARNING", "w2vbert"):
        assert len(read_audio(path, RATE_HZ)) == 3 * RATE_HZ and not caplog.text
        truncate(path, 0.5)
        assert len(read_audio(path, RATE_HZ)) == pytest.approx(1.5 * RATE_HZ, abs=20)
    assert f"{path} ends before its header says: read as far as it goes, 1.50 s" in caplog.text


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".ogg"])
def test_other_truncated_files_are_read_as_far_as_they_go_or_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, noise(3), RATE_HZ)
    truncate(path, 0.5)
    try:
        assert 0 < len(read_audio(path, RATE_HZ)) < 2 * RATE_HZ
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("content", [b"", b"hello world", bytes(5000), b"fLaC", b"RIFF\x00\x00\x00\x00WAVE"])
@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_what_is_no_audio_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        read_audio(path, RATE_HZ)


def test_a_file_without_samples_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0, dtype=np.float32), RATE_HZ)
    with pytest.raises(UserError, match="holds no samples"):
        read_audio(tmp_path / "a.wav", RATE_HZ)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    samples = noise(0.2)
    samples[100] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT")
    with pytest.raises(UserError, match="not finite"):
        read_audio(tmp_path / "a.wav", RATE_HZ)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.wav"):
        with pytest.raises(UserError, match=str(path)):
            read_audio(path, RATE_HZ)


def test_files_are_found_below_folders_in_order(tmp_path: Path) -> None:
    for name in ("b/2.FLAC", "b/1.wav", "a.mp3", "notes.txt", "c.raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_audio([tmp_path / "c.raw", tmp_path])
    assert found == [tmp_path / name for name in ("c.raw", "a.mp3", "b/1.wav", "b/2.FLAC")]
    with pytest.raises(UserError, match="absent does not exist"):
        find_audio([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no audio in"):
        find_audio([tmp_path / "empty"])


@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100])
def test_blocks_join_to_what_is_resampled_at_once(
    tmp_path: Path, rate_hz: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = noise(3.3, rate_hz)
    soundfile.write(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    whole = torchaudio.functional.resample(torch.from_numpy(samples), rate_hz, RATE_HZ)
    monkeypatch.setattr(audio, "BLOCK_SECONDS", 0.25)
    blocks = list(audio.read_blocks(tmp_path / "a.wav", RATE_HZ))
    assert len(blocks) > 10
    torch.testing.assert_close(torch.cat(blocks), whole, atol=2e-4, rtol=0)


def test_one_channel_of_several(tmp_path: Path) -> None:
    both = np.stack([noise(0.3), noise(0.3, seed=1)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, RATE_HZ, subtype="FLOAT")
    for channel in (0, 1):
        found = torch.cat(list(audio.read_blocks(tmp_path / "a.wav", RATE_HZ, channel)))
        torch.testing.assert_close(found, torch.from_numpy(both[:, channel]))
    with pytest.raises(UserError, match="has no channel 2: it has 2, counted from 0"):
        list(audio.read_blocks(tmp_path / "a.wav", RATE_HZ, 2))


def test_samples_far_beyond_one_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", np.full(1600, 1e30, dtype=np.float32), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="audio lies within -1 and 1"):
        read_audio(tmp_path / "loud.wav", 16000)


def test_linked_folders_are_searched_once_and_rates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    soundfile.write(tmp_path / "real" / "deep" / "a.wav", np.zeros(500), 44101)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone").symlink_to(tmp_path / "nowhere")
    (file,) = find_audio([tmp_path / "in"])
    assert file == tmp_path / "in" / "link" / "deep" / "a.wav"
    with pytest.raises(UserError, match="sampling rate of 44101 Hz"):
        read_audio(file, 16000)
