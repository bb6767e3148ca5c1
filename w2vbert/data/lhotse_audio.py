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
        raise OSError(_describe(error)) from error


def _describe(error: Exception) -> str:
    """What went wrong, without what Lhotse adds."""
    # Lhotse raises soundfile's error again with a text in place of its number, and then it has no string of its own.
    text = getattr(error, "code", None)
    return " ".join((text if isinstance(text, str) else str(error)).partition("[extra info]")[0].split())
