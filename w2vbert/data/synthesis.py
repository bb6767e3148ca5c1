"""A speech corpus without a data set: synthetic speakers that say sentences of a grammar, in LibriSpeech's layout.

The speakers and sentences of train, dev and test are disjoint, and so are the voice variants of dev, test and the rest.
Everything follows from the seed; the number of processes changes nothing.
"""

import gzip
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from w2vbert.data.espeak import ACCENTS, FEMALE_VARIANTS, MALE_VARIANTS, Espeak, Voice
from w2vbert.data.grammar import SentenceGrammar
from w2vbert.data.parallel import map_in_processes
from w2vbert.log import progress

SAMPLING_RATE_HZ = 16000
SPLITS = ("unlabelled", "train", "dev", "test")
MIN_UTTERANCE_SECONDS = 1.4  # sentences are reserved for utterances of this mean length, so that none runs short
VARIANT_POOLS = 7  # a seventh of the variants is heard only in dev, another only in test


@dataclass(frozen=True)
class SynthConfig:
    """Size and sound of the synthetic corpus.

    Attributes:
        seed: of speakers, sentences and noise.
        unlabelled_hours, train_hours, dev_hours, test_hours: speech in the split.
        unlabelled_speakers, train_speakers, dev_speakers, test_speakers: voices in the split; no other split has them.
        lm_sentences: lines of text for a language model, none of them in dev or test.
        min_words_per_minute, max_words_per_minute: how fast speakers are; each has a rate of their own in between.
        min_snr_db, max_snr_db: speech over noise.
    """

    seed: int = 1
    unlabelled_hours: float = 2.0
    train_hours: float = 0.25
    dev_hours: float = 1 / 6
    test_hours: float = 1 / 6
    unlabelled_speakers: int = 48
    train_speakers: int = 20
    dev_speakers: int = 10
    test_speakers: int = 10
    lm_sentences: int = 20000
    min_words_per_minute: int = 150
    max_words_per_minute: int = 210
    min_snr_db: float = 20.0
    max_snr_db: float = 35.0

    def __post_init__(self) -> None:
        for split in SPLITS:
            if self.hours(split) <= 0 or self.speakers(split) < 1:
                raise ValueError(f"{split}_hours must be above 0 and {split}_speakers at least 1")
            if self.speakers(split) > 900:
                raise ValueError(f"{split}_speakers must be at most 900")
        if self.lm_sentences < 0 or self.seed < 0:
            raise ValueError("seed and lm_sentences must not be negative")
        if not 80 <= self.min_words_per_minute <= self.max_words_per_minute <= 450:
            raise ValueError("80 <= min_words_per_minute <= max_words_per_minute <= 450 must hold")
        if self.min_snr_db > self.max_snr_db:
            raise ValueError("min_snr_db must not be above max_snr_db")

    def hours(self, split: str) -> float:
        """Hours of speech in a split."""
        return float(getattr(self, f"{split}_hours"))

    def speakers(self, split: str) -> int:
        """Number of speakers of a split."""
        return int(getattr(self, f"{split}_speakers"))


@dataclass(frozen=True)
class Speaker:
    """One synthetic speaker and the room around the microphone."""

    id: int
    split: str
    sex: str  # F or M
    voice: Voice
    snr_db: float
    noise_slope: float  # power of the noise falls with frequency to this power: 0 white, 1 pink, 2 brown
    level_db: float  # root mean square of the speech, relative to full scale


@dataclass(frozen=True)
class SpeakerJob:
    """What one process needs to know to write all utterances of one speaker."""

    speaker: Speaker
    sentences: tuple[str, ...]  # as many as are needed to fill `seconds`
    seconds: float
    folder: Path  # of the split
    seed: int


def write_corpus(folder: Path, config: SynthConfig, jobs: int) -> None:
    """Fill `folder` with a corpus: `SPLIT/SPK/CHAP/SPK-CHAP-NNNN.flac` (16 kHz, mono, 16 bit), transcripts, a table of
    speakers and text for a language model (`lm-text.txt.gz`).

    Args:
        jobs: number of processes.

    Raises:
        UserError: espeak-ng cannot be loaded.
    """
    speakers = make_speakers(config)
    sentences = draw_sentences(config)
    tasks: list[SpeakerJob] = []
    for split in SPLITS:
        share = _sentences_per_speaker(config, split)
        seconds = config.hours(split) * 3600 / config.speakers(split)
        for index, speaker in enumerate(s for s in speakers if s.split == split):
            own = tuple(sentences[split][index * share : (index + 1) * share])
            tasks.append(SpeakerJob(speaker, own, seconds, folder / split, config.seed))
    written = map_in_processes(write_speaker, tasks, jobs, fresh=True)
    spoken_seconds = list(progress(written, total=len(tasks), desc="synthesis", unit="speakers"))
    _write_speaker_table(folder / "SPEAKERS.TXT", speakers, spoken_seconds)
    text = "".join(f"{sentence.upper()}\n" for sentence in sentences["lm"])
    (folder / "lm-text.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def make_speakers(config: SynthConfig) -> list[Speaker]:
    """All speakers, split by split; ids start at 1001 (unlabelled), 2001 (train), 3001 (dev) and 4001 (test)."""
    rng = np.random.default_rng([config.seed, 0])
    # Sorted by sex and dealt out in turn, so that each pool has its share of both.
    variants = [str(v) for names in (FEMALE_VARIANTS, MALE_VARIANTS) for v in rng.permutation(names)]
    pools = [[str(v) for v in rng.permutation(variants[i::VARIANT_POOLS])] for i in range(VARIANT_POOLS)]
    common = [variant for pool in pools[2:] for variant in pool]
    speakers = []
    for number, split in enumerate(SPLITS, start=1):
        pool = {"dev": pools[0], "test": pools[1]}.get(split, [str(v) for v in rng.permutation(common)])
        accents = [str(accent) for accent in rng.permutation(ACCENTS)]
        for index in range(config.speakers(split)):
            variant, accent = pool[index % len(pool)], accents[index % len(accents)]
            speakers.append(_make_speaker(1000 * number + index + 1, split, accent, variant, config, rng))
    return speakers


def draw_sentences(config: SynthConfig) -> dict[str, list[str]]:
    """Sentences by split, and "lm" for the language model's text. None of dev or test occurs anywhere else."""
    counts = {split: _sentences_per_speaker(config, split) * config.speakers(split) for split in SPLITS}
    grammar = SentenceGrammar(np.random.default_rng([config.seed, 1]))
    dev = grammar.draw_many(counts["dev"], distinct=True)
    test = grammar.draw_many(counts["test"], distinct=True, banned=dev)
    held_out = frozenset(dev + test)
    counts["lm"] = config.lm_sentences
    others = ("train", "unlabelled", "lm")
    rest = {name: grammar.draw_many(counts[name], distinct=False, banned=held_out) for name in others}
    return {"dev": dev, "test": test, **rest}


def write_speaker(job: SpeakerJob) -> float:
    """Write the chapter of one speaker and return its length in seconds."""
    speaker = job.speaker
    chapter = 100000 + speaker.id
    folder = job.folder / str(speaker.id) / str(chapter)
    folder.mkdir(parents=True)
    rng = np.random.default_rng([job.seed, 2, speaker.id])
    espeak = Espeak(seed=int(rng.integers(2**31)))
    transcripts: list[str] = []
    spoken_seconds = 0.0
    for number, sentence in enumerate(job.sentences):
        if spoken_seconds >= job.seconds:
            break
        speech = resample(trim_silence(espeak.speak(sentence, speaker.voice)), espeak.sampling_rate_hz)
        samples = record(speech, speaker, rng)
        name = f"{speaker.id}-{chapter}-{number:04d}"
        encoded = io.BytesIO()  # a full disk is an OSError from Python, but not from soundfile
        soundfile.write(encoded, samples, SAMPLING_RATE_HZ, format="FLAC", subtype="PCM_16")
        (folder / f"{name}.flac").write_bytes(encoded.getvalue())
        transcripts.append(f"{name} {sentence.upper()}\n")
        spoken_seconds += len(samples) / SAMPLING_RATE_HZ
    if speaker.split != "unlabelled":
        (folder / f"{speaker.id}-{chapter}.trans.txt").write_text("".join(transcripts), encoding="utf-8")
    return spoken_seconds


def trim_silence(samples: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Cut off what is below `threshold` times the peak at both ends of samples (N,)."""
    loud = np.flatnonzero(np.abs(samples) > threshold * np.abs(samples).max(initial=0.0))
    return samples[loud[0] : loud[-1] + 1] if loud.size else samples


def resample(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Samples (N,) from `rate_hz` to 16 kHz by cutting their spectrum off at 8 kHz: exact below it, nothing above.

    Raises:
        ValueError: the rate is below 16 kHz.
    """
    if rate_hz < SAMPLING_RATE_HZ:
        raise ValueError(f"{rate_hz} Hz is below {SAMPLING_RATE_HZ} Hz")
    common = math.gcd(rate_hz, SAMPLING_RATE_HZ)
    step_in, step_out = rate_hz // common, SAMPLING_RATE_HZ // common
    # Zeros behind, so that the end does not wrap into the beginning, up to a size with small factors, for speed.
    blocks = 32 * math.ceil((len(samples) / step_in + 4) / 32)
    padded = np.zeros(blocks * step_in)
    padded[: len(samples)] = samples
    spectrum = np.fft.rfft(padded)[: blocks * step_out // 2 + 1]
    resampled = np.fft.irfft(spectrum, blocks * step_out) * (step_out / step_in)
    return resampled[: round(len(samples) * step_out / step_in)].astype(np.float32)


def record(speech: np.ndarray, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Speech (N,) as a microphone hears it: silence before and after, the speaker's level and noise. (N',) float32."""
    before, after = (int(seconds * SAMPLING_RATE_HZ) for seconds in rng.uniform(0.1, 0.35, size=2))
    level = 10 ** ((speaker.level_db + rng.uniform(-3, 3)) / 20)
    speech = speech * (level / max(float(np.sqrt(np.mean(speech**2))), 1e-5))
    noise = make_noise(before + len(speech) + after, speaker.noise_slope, rng)
    samples = noise * (level * 10 ** (-speaker.snr_db / 20))
    samples[before : before + len(speech)] += speech
    return np.asarray(samples * min(1.0, 0.97 / np.abs(samples).max()), dtype=np.float32)


def make_noise(count: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Noise (count,) with root mean square 1 whose power falls with frequency to the power `slope` above 50 Hz."""
    size = 4096 * math.ceil(count / 4096)  # small factors make the transform fast
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequencies_hz = np.fft.rfftfreq(size, 1 / SAMPLING_RATE_HZ)
    noise = np.fft.irfft(spectrum * np.maximum(frequencies_hz, 50.0) ** (-slope / 2), size)[:count]
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))


def _sentences_per_speaker(config: SynthConfig, split: str) -> int:
    seconds = config.hours(split) * 3600 / config.speakers(split)
    return math.ceil(seconds / MIN_UTTERANCE_SECONDS) + 8


def _make_speaker(
    speaker_id: int, split: str, accent: str, variant: str, config: SynthConfig, rng: np.random.Generator
) -> Speaker:
    voice = Voice(
        accent,
        variant,
        words_per_minute=int(rng.integers(config.min_words_per_minute, config.max_words_per_minute + 1)),
        pitch=int(rng.integers(30, 71)),
        pitch_range=int(rng.integers(30, 71)),
    )
    coloured = rng.random() < 0.5
    return Speaker(
        id=speaker_id,
        split=split,
        sex="F" if variant in FEMALE_VARIANTS else "M",
        voice=voice,
        snr_db=float(rng.uniform(config.min_snr_db, config.max_snr_db)),
        noise_slope=float(rng.uniform(0.5, 2.0)) if coloured else 0.0,
        level_db=float(rng.uniform(-32, -18)),
    )


def _write_speaker_table(path: Path, speakers: list[Speaker], spoken_seconds: list[float]) -> None:
    lines = [";ID  |SEX| SUBSET     |MINUTES| NAME\n"]
    for speaker, seconds in zip(speakers, spoken_seconds, strict=True):
        name = f"espeak-ng {speaker.voice.accent} {speaker.voice.variant}"
        lines.append(f"{speaker.id} | {speaker.sex} | {speaker.split:<10} | {seconds / 60:5.2f} | {name}\n")
    path.write_text("".join(lines), encoding="utf-8")
