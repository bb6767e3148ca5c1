"""Speech from text with the espeak-ng library that the package `espeakng-loader` carries (no program needed)."""

import ctypes
from dataclasses import dataclass

import numpy as np

from w2vbert.errors import UserError

ACCENTS = (
    *("en", "en-us", "en-029", "en-gb-scotland"),
    *("en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-us-nyc"),
)
FEMALE_VARIANTS = (
    *("Alicia", "Andrea", "Annie", "anika", "aunty", "belinda", "f1", "f2", "f3", "f4", "f5"),
    *("grandma", "linda", "shelby", "steph", "steph2", "steph3"),
)
# Left out: whispers, robots, monsters and announcers, and those that speak far slower or faster than they are told.
MALE_VARIANTS = (
    *("Alex", "Andy", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Mario", "Michael"),
    *("Mike", "Mr serious", "Nguyen", "Reed", "RicishayMax", "Storm", "adam", "antonio", "benjamin", "boris", "caleb"),
    *("david", "ed", "edward", "edward2", "grandpa", "gustave", "ian", "iven", "iven2", "iven3", "iven4", "john"),
    *("kaukovalta", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max", "michel", "miguel", "mike2"),
    *("norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "travis", "victor", "zac"),
)

# Values of speak_lib.h, version 1.52.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_PARAMETER_RATE, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 3, 4
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """How one synthetic speaker sounds."""

    accent: str  # one of ACCENTS
    variant: str  # one of FEMALE_VARIANTS or MALE_VARIANTS: formants, breath, intonation
    words_per_minute: int  # 80 to 450
    pitch: int  # 0 to 100, 50 is the variant's own
    pitch_range: int  # 0 to 100, 50 is the variant's own


class Espeak:
    """The espeak-ng library, started in this process.

    The library keeps hidden state from one utterance to the next, so the same text sounds the same only after the same
    utterances before it: give each speaker a process of its own.

    Raises:
        UserError: the package `espeakng-loader` is missing or its library does not start.
    """

    sampling_rate_hz: int

    def __init__(self, seed: int) -> None:
        try:
            import espeakng_loader

            library = ctypes.CDLL(espeakng_loader.get_library_path())
            data_path = espeakng_loader.get_data_path()
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(f"espeak-ng cannot be loaded ({error}): pip install espeakng-loader") from error
        library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        ]
        library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.sampling_rate_hz = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path.encode(), 0)
        if self.sampling_rate_hz <= 0:
            raise UserError(f"espeak-ng does not start with the data in {data_path}: reinstall espeakng-loader")
        self._library = library
        self._chunks: list[bytes] = []
        self._callback = _SynthCallback(self._receive)  # kept: the library holds only a pointer
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_ng_SetRandSeed(seed)

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """Samples (N,) float32 in [-1, 1] of `text` at `sampling_rate_hz`.

        Raises:
            ValueError: the library does not know the voice. (It would go on with the voice before.)
        """
        name = f"{voice.accent}+{voice.variant}"
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name}")
        self._library.espeak_SetParameter(_PARAMETER_RATE, voice.words_per_minute, 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, voice.pitch, 0)
        self._library.espeak_SetParameter(_PARAMETER_RANGE, voice.pitch_range, 0)
        encoded = text.encode()
        self._chunks.clear()
        status = self._library.espeak_Synth(
            encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status != 0:
            raise RuntimeError(f"espeak-ng failed with status {status} on {text!r}")
        return np.frombuffer(b"".join(self._chunks), dtype=np.int16).astype(np.float32) / 32768

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0
