"""What the JSON of a Libri-Light recording tells."""

from pathlib import Path

import pytest

from w2vbert.data.librilight import read_metadata


@pytest.mark.parametrize(
    ("content", "speaker", "spans"),
    [
        ('{"speaker": 12, "voice_activity": [[0.5, 2.0], [3.0, 2.5]]}', "12", [(0.5, 2.0)]),
        ('{"speaker": null, "voice_activity": [[0.5, 2.0]]}', None, [(0.5, 2.0)]),
        ('{"voice_activity": "x"}', None, []),
        ("[" * 100_000, None, []),
        ("", None, []),
    ],
    ids=["usual", "no speaker", "no spans", "deep", "empty"],
)
def test_what_makes_no_sense_is_passed_over(
    tmp_path: Path, content: str, speaker: str | None, spans: list[tuple[float, float]]
) -> None:
    (tmp_path / "a.json").write_text(content)
    assert read_metadata(tmp_path / "a.json") == (speaker, spans)
