"""Audio read by Lhotse: always decoded by libsndfile, and with one kind of error."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def libsndfile() -> Iterator[None]:
    """Inside, Lhotse decodes with libsndfile: ffmpeg, where it is, returns wrong samples without a word.

    Raises:
        OSError: audio cannot be read; why, in one line.
    """
    from lhotse.audio.backend import LibsndfileBackend, audio_backend
    from lhotse.audio.utils import AudioLoadingError, DurationMismatchError

    try:
        with audio_backend(LibsndfileBackend()):
            yield
    except (AudioLoadingError, DurationMismatchError, OSError, RuntimeError, TypeError, ValueError) as error:
        # Lhotse fails with TypeError on soundfile's own error.
        raise OSError(" ".join(str(error).split())) from error
