"""`w2vbert decode` of audio: recordings of any length in, transcripts out in their order, in bounded memory."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from w2vbert.config import load_config
from w2vbert.data.batches import FRAMES_PER_SECOND, collate
from w2vbert.data.datasets import MIN_FRAMES
from w2vbert.data.features import FEATURES_FILE, FeatureConfig, features_of_waveform, normalize
from w2vbert.data.loaders import group_by_seconds
from w2vbert.data.pieces import cut
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.scorers import WeightedScorer
from w2vbert.errors import UserError
from w2vbert.log import logger, progress
from w2vbert.models.transducer import Transducer
from w2vbert.tasks.audio_sources import Source, Sources
from w2vbert.tasks.decode import DecodeConfig
from w2vbert.tasks.fusion import LanguageModels, load_scorers
from w2vbert.tasks.outputs import Output, check_output, choose_format, open_output, print_line
from w2vbert.tasks.recognize import Recognition, encoder_frame_seconds, load_transducer, recognize
from w2vbert.tasks.shards import shard_of, shard_path
from w2vbert.tasks.transcript_building import Heard, TranscriptBuilder
from w2vbert.tasks.transcript_formats import Transcript

READ_AHEAD_SECONDS = 1200.0
"""Audio that is read before it is sorted into batches: bounds memory, however much there is to decode."""

READ_AHEAD_RECORDINGS = 10_000
"""Recordings, however short, that are read before they are sorted into batches."""


@dataclass(frozen=True)
class Recognizer:
    """A model with all that it takes to recognise audio.

    Attributes:
        model: a transducer.
        tokenizer: its word pieces.
        features: how its filterbanks are made.
        scorers: language models of the search.
        config: of search, batches and cuts.
    """

    model: Transducer
    tokenizer: Tokenizer
    features: FeatureConfig
    scorers: Sequence[WeightedScorer]
    config: DecodeConfig

    @classmethod
    def load(cls, model: Path, lms: LanguageModels, config_path: Path | None, overrides: Sequence[str]) -> "Recognizer":
        """Loads the folder of a model.

        Raises:
            UserError: model, language models or config are not fit for it.
        """
        config = load_config(DecodeConfig, config_path, overrides)
        transducer, tokenizer = load_transducer(model)
        features = load_config(FeatureConfig, model / FEATURES_FILE)
        scorers = load_scorers(lms.folders, lms.lodr, config.fusion, config.search, tokenizer, transducer)
        return cls(transducer, tokenizer, features, scorers, config)


@dataclass(frozen=True)
class _End:
    """The end of a recording: what of it was heard stands before.

    Attributes:
        source: the recording.
        seconds: its length.
        error: why it could not be read, or not to its end; None if all is well.
    """

    source: Source
    seconds: float
    error: str | None


@dataclass
class _Meter:
    """How much has been decoded since it was made, on a progress bar over seconds of audio."""

    count: int

    def __post_init__(self) -> None:
        self.begin = time.monotonic()
        self.heard_seconds, self.audio_seconds = 0.0, 0.0  # of pieces so far, and of whole recordings
        self.recordings, self.failures = 0, 0
        self.bar = progress(desc="decode", unit="s of audio")
        self.bar.bar_format = "{desc}: {n_fmt}{unit}, {elapsed}{postfix}"

    def add_audio(self, seconds: float) -> None:
        self.heard_seconds += seconds
        self._show()
        self.bar.update(int(self.heard_seconds) - self.bar.n)

    def add_recording(self, transcript: Transcript) -> None:
        self.recordings += 1
        self.failures += transcript.error is not None
        self.audio_seconds += transcript.seconds if transcript.error is None else 0.0
        self._show()

    def _show(self) -> None:
        factor = f", RTF {self.took_seconds / self.heard_seconds:.4f}" if self.heard_seconds else ""
        self.bar.set_postfix_str(f"{self.recordings} of {self.count} recordings{factor}", refresh=False)

    @property
    def took_seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self.begin

    def close(self) -> None:
        """Says what came of it."""
        self.bar.close()
        if self.failures:
            logger.warning(f"{self.failures} of {self.recordings} recordings could not be decoded")
        if self.audio_seconds:
            took = self.took_seconds
            logger.info(
                f"decoded {self.recordings - self.failures} recordings, {self.audio_seconds:.1f} s of audio in "
                f"{took:.1f} s: RTF {took / self.audio_seconds:.4f}, {self.audio_seconds / took:.1f} times real time"
            )


def decode_files(
    model: Path,
    inputs: Sequence[Path],
    output: Output,
    lms: LanguageModels,
    config_path: Path | None,
    overrides: Sequence[str],
) -> int:
    """Recognises recordings and prints `FILE<tab>TEXT` in the order of the inputs, or writes another format.

    A tab or the like in a file's name is printed as in C. A recording that cannot be decoded is named, counted and
    passed over.

    Returns:
        The number of recordings that could not be decoded.

    Raises:
        UserError: model, language models or config are not fit for it, an input is missing, the output cannot be
            written, or no recording could be decoded.
    """
    load_config(DecodeConfig, config_path, overrides)
    path = output.path if output.path is None or output.shard is None else shard_path(output.path, output.shard)
    format = None if path is None and output.format is None else choose_format(output.path, output.format)
    sources = Sources(inputs, output.channel)
    count = len(sources) if output.shard is None else len(list(shard_of(range(len(sources)), output.shard)))
    if format is not None:
        check_output(path, format, count)
    recognizer = Recognizer.load(model, lms, config_path, overrides)
    meter = _Meter(count)
    wanted = sources if output.shard is None else shard_of(sources, output.shard)
    with open_output(path, format) as write:
        for transcript in transcribe(wanted, recognizer, meter.add_audio):
            meter.add_recording(transcript)
            if path is not None:
                print_line(transcript)
            write(transcript)
        if meter.failures and meter.failures == meter.recordings:
            meter.bar.close()
            raise UserError(f"none of {meter.failures} recordings could be decoded")
    meter.close()
    return meter.failures


def transcribe(
    sources: Iterable[Source], recognizer: Recognizer, advance: Callable[[float], None]
) -> Iterator[Transcript]:
    """The transcripts of recordings, in their order; what cannot be decoded has an error and no text.

    Args:
        sources: recordings, which are read as they are asked for.
        recognizer: what decodes them.
        advance: called with the seconds of audio of each batch when it has been decoded.
    """
    builder = TranscriptBuilder(recognizer.tokenizer, encoder_frame_seconds(recognizer.model))
    for stretch in _stretches(_read(sources, recognizer)):
        found = _recognize_stretch(stretch, recognizer, advance)
        for index, item in enumerate(stretch):
            if isinstance(item, _End):
                yield builder.finish(item.source, item.seconds, item.error)
            else:
                builder.add(item, found[index])


def _read(sources: Iterable[Source], recognizer: Recognizer) -> Iterator[Heard | _End]:
    """The pieces of each recording, with its end after them."""
    rate_hz = recognizer.features.sampling_rate_hz
    shortest = round(MIN_FRAMES * recognizer.features.frame_shift_seconds * rate_hz)
    for source in sources:
        yield from _read_one(source, recognizer, rate_hz, shortest)


def _read_one(source: Source, recognizer: Recognizer, rate_hz: int, shortest: int) -> Iterator[Heard | _End]:
    samples = pieces = 0
    error = None

    def count(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        nonlocal samples
        for block in blocks:
            samples += len(block)
            yield block

    config = recognizer.config
    try:
        for piece in cut(count(source.read(rate_hz)), rate_hz, config.max_seconds, config.cutting):
            pieces += 1
            if len(piece.samples) >= shortest:  # what a cut leaves may be shorter, and holds no word
                features = normalize(features_of_waveform(piece.samples, recognizer.features))
                yield Heard(piece.start / rate_hz, len(piece.samples) / rate_hz, piece.overlaps, features)
        if samples < shortest:
            raise UserError(f"{source.id} is shorter than {shortest / rate_hz:g} s")
        if not pieces:
            logger.info(f"{source.id} is silent")
    except UserError as caught:
        error = str(caught)
        logger.warning(f"skipped: {error}")
    yield _End(source, samples / rate_hz, error)


def _stretches(items: Iterable[Heard | _End]) -> Iterator[list[Heard | _End]]:
    """Runs of what is read, of about READ_AHEAD_SECONDS of audio at most."""
    stretch: list[Heard | _End] = []
    seconds, recordings = 0.0, 0
    for item in items:
        stretch.append(item)
        seconds += item.seconds if isinstance(item, Heard) else 0.0
        recordings += isinstance(item, _End)
        if seconds >= READ_AHEAD_SECONDS or recordings >= READ_AHEAD_RECORDINGS:
            yield stretch
            stretch, seconds, recordings = [], 0.0, 0
    if stretch:
        yield stretch


def _recognize_stretch(
    stretch: Sequence[Heard | _End], recognizer: Recognizer, advance: Callable[[float], None]
) -> dict[int, Recognition]:
    """What was recognised in each piece, by its index; decodes in batches of similar lengths."""
    features = {index: item.features for index, item in enumerate(stretch) if isinstance(item, Heard)}
    frames = [len(item.features) if isinstance(item, Heard) else 0 for item in stretch]
    order = sorted(features, key=lambda index: -frames[index])
    groups = group_by_seconds(order, frames, recognizer.config.batch_seconds)
    batches = (collate([str(i) for i in group], [features[i] for i in group], None) for group in groups)
    found: dict[int, Recognition] = {}
    for results in recognize(
        recognizer.model, recognizer.tokenizer, batches, recognizer.config.search, recognizer.scorers
    ):
        found |= {int(result.id): result for result in results}
        advance(sum(frames[int(result.id)] for result in results) / FRAMES_PER_SECOND)
    return found
