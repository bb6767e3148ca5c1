"""Texts of utterances in the formats that users bring."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2vbert.errors import UserError
from w2vbert.tasks.text_files import read_lines

TRN = re.compile(r"^(.*?)\(([^()\s]+)\)\s*$")
TRN_COMMENT = ";;"


@dataclass(frozen=True)
class Utterance:
    """One utterance of a file."""

    id: str
    text: str
    """Empty where nothing was said or recognised."""
    speaker: str | None = None
    value: dict[str, Any] | None = None
    """The whole object of a JSON line."""


def read_utterances(path: Path) -> dict[str, Utterance]:
    """The utterances of a file by id, in its order.

    The file, plain or gzip, may be Kaldi text (`ID WORDS...`), trn (`WORDS... (ID)`), JSONL (objects with `id` and
    `text`; null stands for no text), or Lhotse's JSONL of supervisions or of cuts, told apart by content.

    Raises:
        UserError: the file is missing, empty or not in these formats, or an id stands there twice.
    """
    lines = [(number, line) for number, line in read_lines(path) if not line.startswith(TRN_COMMENT)]
    if not lines:
        raise UserError(f"{path} is empty: one utterance a line is needed")
    parse = _find_format([line for _, line in lines])
    found: dict[str, Utterance] = {}
    for number, line in lines:
        try:
            utterance = parse(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        if utterance.id in found:
            raise UserError(f"{path}:{number}: id {utterance.id} stands there twice")
        found[utterance.id] = utterance
    return found


def find_speakers(utterances: Iterable[Utterance]) -> dict[str, str] | None:
    """id -> speaker: as the file says, or the part of the id before the first `-` or `_`; None unless for all."""
    speakers = {utterance.id: utterance.speaker or _speaker_of(utterance.id) for utterance in utterances}
    known = {id: speaker for id, speaker in speakers.items() if speaker is not None}
    return known if len(known) == len(speakers) else None


def match_file_names(refs: Iterable[str], hyps: dict[str, Utterance]) -> dict[str, Utterance]:
    """Hypotheses by the ids of the references where their own ids are audio files (`w2vbert decode FILE`).

    An id that is no reference becomes the name of its file without folder and suffix, if that is one.
    """
    wanted, found = set(refs), dict[str, Utterance]()
    for id, utterance in hyps.items():
        name = id if id in wanted or Path(id).stem not in wanted else Path(id).stem
        if name in found:
            raise UserError(f"the hypotheses {found[name].id} and {id} both belong to the reference {name}")
        found[name] = utterance
    return found


def _speaker_of(id: str) -> str | None:
    parts = re.split("[-_]", id, maxsplit=1)
    return parts[0] if len(parts) > 1 and parts[0] else None


def _find_format(lines: list[str]) -> Callable[[str], Utterance]:
    if lines[0].startswith("{"):
        return _parse_json
    if all(TRN.match(line) for line in lines):
        return _parse_trn
    return _parse_kaldi


def _parse_json(line: str) -> Utterance:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError("not JSON") from error
    if isinstance(value, dict) and isinstance(value.get("supervisions"), list):
        value = _join_supervisions(value)
    if not isinstance(value, dict) or not isinstance(value.get("id"), str) or "text" not in value:
        raise ValueError('an object with "id" (a string) and "text" is needed')
    text, speaker = value["text"], value.get("speaker")
    if text is not None and not isinstance(text, str):
        raise ValueError('"text" is not a string')
    return Utterance(value["id"], text or "", None if speaker is None else str(speaker), value)


def _join_supervisions(cut: dict[str, Any]) -> dict[str, Any]:
    """A cut of Lhotse as one utterance: the texts of its supervisions in the order of time."""
    parts = cut["supervisions"]
    if not parts or not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise ValueError('a cut needs supervisions with "text"')
    parts = sorted(parts, key=lambda part: float(part.get("start", 0)))
    speakers = {part.get("speaker") for part in parts}
    speaker = speakers.pop() if len(speakers) == 1 else None
    return {"id": cut.get("id"), "text": " ".join(part["text"] for part in parts), "speaker": speaker}


def _parse_trn(line: str) -> Utterance:
    match = TRN.match(line)
    assert match is not None
    return Utterance(match[2], match[1].strip())


def _parse_kaldi(line: str) -> Utterance:
    id, *text = line.split(maxsplit=1)
    return Utterance(id, text[0] if text else "")
