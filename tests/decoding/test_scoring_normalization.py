import pytest

from w2vbert.decoding.normalization import STEPS, Normalization
from w2vbert.errors import UserError


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("none", " It\u2019s \t A-one,  \u00c9te\u0301 ", "It\u2019s A-one, \u00c9te\u0301"),
        ("nfc", "e\u0301t\u00e9 \ufb01n", "\u00e9t\u00e9 \ufb01n"),
        ("nfkc", "e\u0301t\u00e9 \ufb01n \uff21", "\u00e9t\u00e9 fin A"),
        ("apostrophes", "it\u2019s don\u02bct", "it's don't"),
        ("case", "\u00c4PFEL Stra\u00dfe", "\u00e4pfel stra\u00dfe"),
        ("punctuation", "well-known: 'tis rock 'n' roll", "well known tis rock n roll"),
        ("punctuation", "it's 3.14, 1,000!", "it's 3.14 1,000"),
        ("punctuation", "5 % of \u20ac 7 \u2013 \u00bfs\u00ed?", "5 of \u20ac 7 s\u00ed"),
        ("case,apostrophes", "IT\u2019S, so", "it's, so"),
        ("basic", "\u201cIt\u2019s\u201d \uff34HE_END \u2026", "it's the end"),
        ("basic", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d \u4e16\u754c"),
    ],
)
def test_what_becomes_of_a_text(name: str, text: str, expected: str) -> None:
    normalize = Normalization.parse(name)
    assert normalize(text) == expected
    assert normalize(expected) == expected
    assert normalize.describe().startswith(f"{name} (")


def test_the_order_of_steps_is_always_the_same() -> None:
    assert Normalization.parse("punctuation,nfkc").steps == ("nfkc", "punctuation")
    assert Normalization.parse(",".join(reversed(STEPS))).steps == tuple(STEPS)


@pytest.mark.parametrize("name", ["", "None", "basic,case", "lower", "case, nfc"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UserError, match="none, basic, or some of nfc,nfkc"):
        Normalization.parse(name)
