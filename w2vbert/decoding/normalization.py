"""Normalisation of texts before they are scored: which spellings count as the same word."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from w2vbert.errors import UserError

NONE, BASIC = "none", "basic"
APOSTROPHES = "\u2018\u2019\u201b\u02bc\u02b9\u0060\u00b4\uff07\u2032"
_TO_APOSTROPHE = str.maketrans(dict.fromkeys(APOSTROPHES, "'"))
_MARK = re.compile(r"[^\w\s]|_")


def _apostrophes(text: str) -> str:
    return text.translate(_TO_APOSTROPHE)


def _punctuation(text: str) -> str:
    return _MARK.sub(_replace_mark, text)


def _replace_mark(match: re.Match[str]) -> str:
    """A space for a punctuation mark, but for an apostrophe between letters and for `.` and `,` between digits."""
    mark, text, place = match[0], match.string, match.start()
    if not unicodedata.category(mark).startswith("P"):
        return mark  # currency, mathematics, accents that stand alone: they may be spoken
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if mark == "'" and before.isalpha() and after.isalpha():
        return mark
    if mark in ".," and before.isdigit() and after.isdigit():
        return mark
    return " " if mark != "'" else ""


STEPS: dict[str, Callable[[str], str]] = {
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "apostrophes": _apostrophes,
    "case": str.lower,
    "punctuation": _punctuation,
}
"""In the order in which they are done."""

MEANINGS = {
    "nfc": "Unicode NFC",
    "nfkc": "Unicode NFKC",
    "apostrophes": "one kind of apostrophe",
    "case": "lower case",
    "punctuation": "no punctuation",
}


@dataclass(frozen=True)
class Normalization:
    """What is done to references and hypotheses alike.

    Attributes:
        name: `none`, `basic`, or the steps with commas between them.
        steps: names in `STEPS`, in its order.
    """

    name: str = NONE
    steps: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str) -> "Normalization":
        """`none`, `basic`, or some of `STEPS` with commas between them.

        Raises:
            UserError: another name.
        """
        if name == NONE:
            return cls()
        wanted = [step for step in STEPS if step != "nfc"] if name == BASIC else name.split(",")
        unknown = [step for step in wanted if step not in STEPS]
        if unknown:
            known = f"{NONE}, {BASIC}, or some of {','.join(STEPS)} with commas between them"
            raise UserError(f"--normalize {name}: {known}")
        return cls(name, tuple(step for step in STEPS if step in wanted))

    def __call__(self, text: str) -> str:
        for step in self.steps:
            text = STEPS[step](text)
        return " ".join(text.split())

    def describe(self) -> str:
        """For the output: the name and what it stands for."""
        if not self.steps:
            return f"{self.name} (texts as they stand, words parted by white space)"
        return f"{self.name} ({', '.join(MEANINGS[step] for step in self.steps)})"
