"""Scoring of files: what was recognised against what was said."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from w2vbert.decoding.scoring import WerResult, score_pairs
from w2vbert.errors import UserError
from w2vbert.tasks.text_files import read_lines

TRN = re.compile(r"^(.*?)\(([^()\s]+)\)\s*$")
TRN_COMMENT = ";;"


@dataclass(frozen=True)
class Entry:
    """One utterance of a file."""

    id: str
    text: str
    speaker: str | None = None


def score_files(ref: Path, hyp: Path) -> WerResult:
    """Word error rate of the texts in `hyp` against those in `ref`; words are compared as they stand.

    Each file, plain or gzip, may be Kaldi text (`ID WORDS...`), trn (`WORDS... (ID)`) or JSONL (objects with `id` and
    `text`; null stands for no text), told apart by content. The interval draws speakers where `ref` names them: by
    `speaker` in JSONL, otherwise by the part of the id before the first `-` or `_`; else it draws utterances.

    Raises:
        UserError: a file is missing, empty or not in these formats, or the ids of the two differ.
    """
    refs, hyps = _read_texts(ref), _read_texts(hyp)
    speakers = {id: entry.speaker or _speaker_of(id) for id, entry in refs.items()}
    groups = {id: speaker for id, speaker in speakers.items() if speaker is not None}
    return score_pairs(
        {id: entry.text for id, entry in refs.items()},
        {id: entry.text for id, entry in hyps.items()},
        groups if len(groups) == len(refs) else None,
    )


def _speaker_of(id: str) -> str | None:
    parts = re.split("[-_]", id, maxsplit=1)
    return parts[0] if len(parts) > 1 and parts[0] else None


def _read_texts(path: Path) -> dict[str, Entry]:
    """The utterances of a file by id, in its order."""
    lines = [(number, line) for number, line in read_lines(path) if not line.startswith(TRN_COMMENT)]
    if not lines:
        raise UserError(f"{path} is empty: one utterance a line is needed")
    parse = _find_format([line for _, line in lines])
    entries: dict[str, Entry] = {}
    for number, line in lines:
        try:
            entry = parse(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        if entry.id in entries:
            raise UserError(f"{path}:{number}: id {entry.id} stands there twice")
        entries[entry.id] = entry
    return entries


def _find_format(lines: list[str]) -> Callable[[str], Entry]:
    if lines[0].startswith("{"):
        return _parse_json
    if all(TRN.match(line) for line in lines):
        return _parse_trn
    return _parse_kaldi


def _parse_json(line: str) -> Entry:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError("not JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("id"), str) or "text" not in value:
        raise ValueError('an object with "id" (a string) and "text" is needed')
    text, speaker = value["text"], value.get("speaker")
    if text is not None and not isinstance(text, str):
        raise ValueError('"text" is not a string')
    return Entry(value["id"], text or "", None if speaker is None else str(speaker))


def _parse_trn(line: str) -> Entry:
    match = TRN.match(line)
    assert match is not None
    return Entry(match[2], match[1].strip())


def _parse_kaldi(line: str) -> Entry:
    id, *text = line.split(maxsplit=1)
    return Entry(id, text[0] if text else "")
