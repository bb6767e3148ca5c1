import gzip
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from w2vbert.data.espeak import Voice
from w2vbert.data.synthesis import (
    SPLITS,
    Speaker,
    SynthConfig,
    draw_sentences,
    make_noise,
    make_speakers,
    record,
    resample,
    trim_silence,
    write_corpus,
)

TINY = SynthConfig(
    **{f"{split}_hours": 0.002 for split in SPLITS}, **{f"{split}_speakers": 2 for split in SPLITS}, lm_sentences=50
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth")
    write_corpus(folder, TINY, jobs=2)
    return folder


def read_texts(corpus: Path, split: str) -> dict[str, str]:
    lines = [line for path in (corpus / split).rglob("*.trans.txt") for line in path.read_text().splitlines()]
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines}


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_corpus_has_librispeechs_layout(corpus: Path) -> None:
    for split in SPLITS:
        audio = sorted((corpus / split).rglob("*.flac"))
        assert len({path.parents[1].name for path in audio}) == 2
        for path in audio:
            speaker, chapter, number = path.stem.split("-")
            assert path.parent == corpus / split / speaker / chapter and len(number) == 4
        texts = read_texts(corpus, split)
        assert set(texts) == (set() if split == "unlabelled" else {path.stem for path in audio})
        assert all(text == text.upper() and "  " not in text for text in texts.values())
    table = [line.split("|") for line in (corpus / "SPEAKERS.TXT").read_text().splitlines() if line[0] != ";"]
    assert len(table) == 8 and {row[1].strip() for row in table} <= {"F", "M"}
    assert {row[2].strip() for row in table} == set(SPLITS)


def test_the_audio_is_16_khz_mono_16_bit_and_as_long_as_asked(corpus: Path) -> None:
    for split in SPLITS:
        infos = [soundfile.info(path) for path in (corpus / split).rglob("*.flac")]
        assert {(i.samplerate, i.channels, i.subtype) for i in infos} == {(16000, 1, "PCM_16")}
        seconds = sum(i.duration for i in infos)
        assert TINY.hours(split) * 3600 <= seconds < TINY.hours(split) * 3600 + 2 * 6  # each speaker's last utterance


def test_no_sentence_of_dev_or_test_is_anywhere_else(corpus: Path) -> None:
    train, dev, test = (set(read_texts(corpus, split).values()) for split in ("train", "dev", "test"))
    lm = gzip.open(corpus / "lm-text.txt.gz", "rt").read().splitlines()
    assert len(lm) == 50 and all(line == line.upper() for line in lm)
    assert not any(a & b for a, b in itertools.combinations((train, dev, test), 2))
    assert not (dev | test) & set(lm)


def test_the_default_corpus_keeps_splits_apart() -> None:
    sentences = {name: set(s) for name, s in draw_sentences(SynthConfig()).items()}
    for name in ("train", "unlabelled", "lm", "test"):
        assert not sentences["dev"] & sentences[name]
    for name in ("train", "unlabelled", "lm", "dev"):
        assert not sentences["test"] & sentences[name]
    speakers = make_speakers(SynthConfig())
    assert len({s.id for s in speakers}) == len(speakers) >= 60
    variants = {split: {s.voice.variant for s in speakers if s.split == split} for split in SPLITS}
    assert not variants["dev"] & variants["test"]
    assert not (variants["dev"] | variants["test"]) & (variants["train"] | variants["unlabelled"])
    assert all({s.sex for s in speakers if s.split == split} == {"F", "M"} for split in SPLITS)


def test_seed_decides_and_the_number_of_processes_does_not(corpus: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path, TINY, jobs=1)
    assert digest(tmp_path) == digest(corpus)


def test_another_seed_gives_other_sentences_and_speakers() -> None:
    assert draw_sentences(SynthConfig(seed=1)) != draw_sentences(SynthConfig(seed=2))
    assert make_speakers(SynthConfig(seed=1)) != make_speakers(SynthConfig(seed=2))


@pytest.mark.parametrize(
    "values", [{"dev_hours": 0}, {"test_speakers": 0}, {"lm_sentences": -1}, {"min_snr_db": 40.0}, {"seed": -1}]
)
def test_contradictions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SynthConfig(**values)


def test_resampling_keeps_what_is_below_8_khz_and_nothing_else() -> None:
    times = np.arange(22050) / 22050
    low, high = np.sin(2 * np.pi * 3000 * times), np.sin(2 * np.pi * 9500 * times)
    window = np.hanning(22050)
    resampled = resample((low + high) * window, 22050)
    expected = np.sin(2 * np.pi * 3000 * np.arange(16000) / 16000) * np.interp(np.arange(16000) / 16000, times, window)
    assert len(resampled) == 16000
    np.testing.assert_allclose(resampled, expected, atol=1e-4)


def test_noise_has_the_snr_the_slope_and_the_level_asked_for() -> None:
    noise = make_noise(1 << 16, slope=1.0, rng=np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    hz = np.fft.rfftfreq(1 << 16, 1 / 16000)
    low, high = (power[(hz > f) & (hz < 2 * f)].mean() for f in (500, 2000))
    assert noise.std() == pytest.approx(1, abs=0.01) and low / high == pytest.approx(4, rel=0.1)

    speaker = Speaker(1, "train", "F", Voice("en", "f1", 180, 50, 50), snr_db=20, noise_slope=0, level_db=-30)
    speech = np.sin(np.arange(32000) * 0.3).astype(np.float32)
    samples = record(speech, speaker, np.random.default_rng(0))
    assert len(speech) + 3200 <= len(samples) <= len(speech) + 11200
    silence = samples[:1600].std()
    level = samples[8000:24000].std()
    assert 20 * np.log10(level / silence) == pytest.approx(20, abs=0.5)
    assert 20 * np.log10(level) == pytest.approx(-30, abs=3.5)


def test_silence_is_trimmed_at_both_ends_only() -> None:
    samples = np.array([0, 0, 0.5, 0, 0.2, 0, 0], dtype=np.float32)
    assert trim_silence(samples).tolist() == samples[2:5].tolist()
    assert len(trim_silence(np.zeros(5))) == 5
