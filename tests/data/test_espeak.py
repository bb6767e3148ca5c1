import numpy as np
import pytest

from w2vbert.data.espeak import ACCENTS, FEMALE_VARIANTS, MALE_VARIANTS, Espeak, Voice


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak(seed=1)


def test_all_accents_and_variants_are_there_and_sound_different(espeak: Espeak) -> None:
    names = [(a, "f1") for a in ACCENTS] + [("en-us", v) for v in (*FEMALE_VARIANTS[1:], *MALE_VARIANTS)]
    spoken = [espeak.speak("seven", Voice(accent, variant, 200, 50, 50)) for accent, variant in names]
    assert len({samples.tobytes() for samples in spoken}) == len(names)
    for samples, name in zip(spoken, names, strict=True):
        assert samples.dtype == np.float32 and samples.ndim == 1
        assert 0.2 < len(samples) / espeak.sampling_rate_hz < 1.5, name
        assert 0.02 < np.abs(samples).max() <= 1, name


def test_rate_changes_the_length(espeak: Espeak) -> None:
    slow, fast = (espeak.speak("set a timer for ten minutes", Voice("en", "m1", rate, 50, 50)) for rate in (150, 210))
    assert len(slow) > 1.2 * len(fast)


def test_an_unknown_voice_is_refused(espeak: Espeak) -> None:
    with pytest.raises(ValueError, match="no voice en-gb\\+f1"):
        espeak.speak("seven", Voice("en-gb", "f1", 200, 50, 50))
