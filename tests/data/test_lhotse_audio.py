"""Errors of audio that Lhotse reads."""

from pathlib import Path

import pytest
import soundfile

from tests.data.corpus_factory import RATE_HZ, noise, truncate
from w2vbert.data.lhotse_audio import libsndfile


def test_a_truncated_file_is_told_in_libsndfiles_words(tmp_path: Path) -> None:
    from lhotse import Recording

    path = tmp_path / "a.flac"
    soundfile.write(path, noise(2.0), RATE_HZ)
    recording = Recording.from_file(path)
    truncate(path, 0.5)
    with pytest.raises(OSError, match="^Error : flac decoder lost sync\\.$"), libsndfile():
        recording.load_audio()


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    from lhotse import Recording

    path = tmp_path / "a.wav"
    soundfile.write(path, noise(0.5), RATE_HZ)
    recording = Recording.from_file(path)
    path.unlink()
    with pytest.raises(OSError, match="a.wav"), libsndfile():
        recording.load_audio()
