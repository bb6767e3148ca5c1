"""Sentences for the synthetic corpus: commands, numbers and dates over about 90 distinct words.

The words are few, so that a small model can learn to read them from minutes of speech, and many of them sound alike
(thirteen and thirty, fifteen and fifty, on and off), so that the task is not empty.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DEVICES = ("light", "lights", "fan", "music")
ROOMS = ("kitchen", "bedroom", "garage", "office")
PEOPLE = ("my mother", "my brother", "the doctor", "the office")


def spell_number(number: int) -> str:
    """The words of a whole number from 0 to 999, e.g. 342 -> "three hundred forty two"."""
    if not 0 <= number <= 999:
        raise ValueError(f"only 0 to 999 can be spelled, got {number}")
    if number >= 100:
        rest = number % 100
        return f"{UNITS[number // 100]} hundred" + (f" {spell_number(rest)}" if rest else "")
    if number >= 20:
        return TENS[number // 10 - 2] + (f" {UNITS[number % 10]}" if number % 10 else "")
    return (UNITS + TEENS)[number]


class SentenceGrammar:
    """Draws random sentences in lower case. The same generator state gives the same sentences.

    Args:
        rng: the only source of randomness.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._rules: tuple[tuple[float, Callable[[], str]], ...] = (
            (0.18, self._device),
            (0.14, self._timer),
            (0.11, self._wake),
            (0.10, self._volume),
            (0.11, self._call),
            (0.10, self._weather),
            (0.14, self._date),
            (0.12, self._digits),
        )
        weights = np.array([weight for weight, _ in self._rules])
        self._thresholds = np.cumsum(weights / weights.sum())

    def draw(self) -> str:
        """One sentence of 2 to 12 words, 7 in the mean."""
        rule = int(np.searchsorted(self._thresholds, self._rng.random(), side="right"))
        return self._rules[min(rule, len(self._rules) - 1)][1]()

    def draw_many(self, count: int, distinct: bool, banned: Collection[str] = frozenset()) -> list[str]:
        """Draw `count` sentences, none of them in `banned` and, when `distinct`, no two the same."""
        sentences: list[str] = []
        seen = set(banned)
        while len(sentences) < count:
            sentence = self.draw()
            if sentence in seen:
                continue
            sentences.append(sentence)
            if distinct:
                seen.add(sentence)
        return sentences

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]

    def _maybe(self, prob: float, text: str) -> str:
        return text if self._rng.random() < prob else ""

    def _number(self, low: int, high: int) -> str:
        """A number from low to high, both included."""
        return spell_number(int(self._rng.integers(low, high + 1)))

    def _time(self) -> str:
        hour = self._number(1, 12)
        minute = self._pick(("", "", *(spell_number(m) for m in range(10, 60, 5))))
        return _join(hour, minute)

    def _day(self) -> str:
        return self._pick(("today", "tomorrow", *(f"on {day}" for day in WEEKDAYS)))

    def _calendar_day(self) -> str:
        return f"{self._pick(MONTHS)} {self._number(1, 28)}"

    def _device(self) -> str:
        where = self._pick(("", *(f"in the {room}" for room in ROOMS)))
        when = self._maybe(0.5, f"at {self._time()}")
        switch = self._pick(("on", "off"))
        return _join(self._maybe(0.2, "please"), "turn", switch, "the", self._pick(DEVICES), where, when)

    def _timer(self) -> str:
        length = f"{self._number(2, 59)} {self._pick(('minutes', 'hours'))}"
        return _join(self._maybe(0.1, "please"), f"set a timer for {length}", self._maybe(0.2, f"at {self._time()}"))

    def _wake(self) -> str:
        what = self._pick(("wake me", "set the clock", f"remind {self._pick(PEOPLE)}", "remind me"))
        return _join(what, f"at {self._time()}", self._maybe(0.7, self._day()))

    def _volume(self) -> str:
        what = self._pick(("volume", "music", "heating", "light"))
        where = self._maybe(0.4, f"in the {self._pick(ROOMS)}")
        return _join(f"set the {what}", where, f"to {self._number(1, 99)}", self._maybe(0.7, "percent"))

    def _call(self) -> str:
        if self._rng.random() < 0.4:
            return f"call the number {self._digit_string(4, 7)}"
        return _join("call", self._pick(PEOPLE), self._day(), self._maybe(0.7, f"at {self._time()}"))

    def _weather(self) -> str:
        when = self._pick((self._day(), f"on {self._calendar_day()}", f"at {self._time()}"))
        return _join(f"what is the {self._pick(('weather', 'time'))}", when, self._maybe(0.15, "please"))

    def _date(self) -> str:
        year = _join(self._pick(("nineteen", "twenty")), self._number(10, 99))
        return _join(self._maybe(0.5, self._pick(WEEKDAYS)), self._calendar_day(), self._maybe(0.7, year))

    def _digits(self) -> str:
        if self._rng.random() < 0.4:
            return _join("play", self._pick(("song", "number")), self._number(100, 999), self._maybe(0.4, self._day()))
        return self._digit_string(4, 8)

    def _digit_string(self, low: int, high: int) -> str:
        count = int(self._rng.integers(low, high + 1))
        return " ".join(UNITS[digit] for digit in self._rng.integers(10, size=count))


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
