"""Folders of audio in the layouts that people have: which files there are, who says what in them, and for what.

files           FILE.wav, with FILE.txt beside it or without
tables          *.csv, *.tsv, *.jsonl (metadata.csv of Hugging Face's audio folders, Common Voice's train.tsv):
                a column that names the file, others with text, speaker and split
Kaldi           wav.scp, text, utt2spk and segments, here or in folders such as train and test
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from w2vbert.data.audio_files import AUDIO_SUFFIXES
from w2vbert.data.corpora import Utterance, is_unicode
from w2vbert.errors import UserError
from w2vbert.files import list_files

FILE_COLUMNS = ("file_name", "path", "file", "audio", "audio_path", "audio_filepath", "audio_file", "wav", "filename")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "normalized_text", "raw_text")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id", "spk", "spk_id")
SPLIT_COLUMNS = ("split", "subset", "set")
TABLES = (".csv", ".tsv", ".jsonl")
BESIDE_TABLE = ("", "clips", "audio", "wavs", "data")
"""Folders, from that of a table, where its files are looked for."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}
"""What the splits are called by others."""


class _Tabs(csv.excel_tab):
    """Quotation marks are part of the text."""

    quoting = csv.QUOTE_NONE


@dataclass
class Listing:
    """What a folder holds.

    Attributes:
        layout: files, table or Kaldi.
        utterances: each file, its speaker ("" if nothing tells) and its text (None if there is none).
        groups: id -> part of the data that it belongs to, where the folder tells, in small letters.
        told: groups that stand in a column of a table, and a table that has it.
        dropped: reason -> names of what cannot be used.
        warnings: what may not be as it was meant.
    """

    layout: str
    utterances: dict[str, Utterance] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    told: dict[str, Path] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, utterance: Utterance, group: str) -> None:
        """Takes an utterance, unless its id is there or it cannot be written into a manifest."""
        if not is_unicode(f"{utterance.id}{utterance.path}"):
            self.drop("name that is not UTF-8", utterance.id)
            return
        words = f"{utterance.text}{utterance.speaker}"
        if not is_unicode(words) or "\0" in words:
            self.drop("text or speaker that is no Unicode text", utterance.id)
            return
        first = self.utterances.setdefault(utterance.id, utterance)
        if first is not utterance:
            self.drop("id is there twice", f"{utterance.id} ({first.path} is taken, {utterance.path} is not)")
            return
        if group:
            self.groups[utterance.id] = group.lower()

    def drop(self, reason: str, name: str) -> None:
        """Notes what cannot be used."""
        self.dropped.setdefault(reason, []).append(name)


def list_folder(folder: Path) -> Listing:
    """Everything in a folder, in the first layout of Kaldi, tables and files that fits.

    Raises:
        UserError: there is no such folder, no audio, or a file that cannot be read as what it seems to be.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    files = list_files(folder)
    if any(path.name.endswith(".trans.txt") for path in files):
        raise UserError(f"{folder} is in LibriSpeech's layout (*.trans.txt): use `w2vbert prepare corpus`")
    scripts = [path for path in files if path.name == "wav.scp"]
    tables = [path for path in files if path.suffix.lower() in TABLES]
    tables = [path for path in tables if _is_split_name(path.stem)] or tables  # Common Voice has others beside these
    if scripts:
        listing = _list_kaldi(folder, scripts)
    elif tables:
        listing = _list_tables(folder, tables)
        _list_audio(folder, files, listing)
    else:
        listing = Listing("files")
        _list_audio(folder, files, listing)
    if not listing.utterances:
        reasons = ", ".join(f"{reason}: {len(names)}" for reason, names in sorted(listing.dropped.items()))
        raise UserError(f"there is no audio that can be used in {folder} ({reasons or ' '.join(AUDIO_SUFFIXES)})")
    return listing


def _list_audio(folder: Path, files: list[Path], listing: Listing) -> None:
    """Adds audio files that are not listed yet; with their text, where it stands beside them."""
    known = {utterance.path for utterance in listing.utterances.values()}
    for path in files:
        if path.suffix.lower() not in AUDIO_SUFFIXES or path in known:
            continue
        place = path.relative_to(folder)
        beside = path.with_suffix(".txt")
        text = " ".join(" ".join(_read_lines(beside)).split()) if beside.is_file() else None
        utterance = Utterance("-".join(place.with_suffix("").parts), path, _speaker_of(place), text)
        listing.add(utterance, _group_of_folders(place.parts[:-1]))


def _speaker_of(place: Path) -> str:
    """The folder of a file, if it is not one of a split or of nothing but audio."""
    name = place.parent.name
    return "" if name in BESIDE_TABLE or _is_split_name(name) else name


def _is_split_name(name: str) -> bool:
    return any(name.lower() in names for names in SPLIT_NAMES.values())


def _list_tables(folder: Path, tables: list[Path]) -> Listing:
    listing = Listing("table")
    for table in tables:
        columns: set[str] = set()
        for number, row in enumerate(_read_rows(table), start=1):
            columns |= row.keys()
            name = _first(row, FILE_COLUMNS)
            if name is None:
                raise UserError(
                    f"{table}, row {number}: no column names the audio file (looked for {', '.join(FILE_COLUMNS)})"
                )
            path = _find_file(table.parent, name)
            if path is None:
                listing.drop("audio file is missing", name)
                continue
            place = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
            text = _first(row, TEXT_COLUMNS)
            speaker = _first(row, SPEAKER_COLUMNS) or _speaker_of(place)
            utterance_id = "-".join(place.with_suffix("").parts)
            told = (_first(row, SPLIT_COLUMNS) or "").strip().lower()
            if told:
                listing.told.setdefault(told, table)
            listing.add(
                Utterance(utterance_id, path, speaker, None if text is None else " ".join(text.split())),
                told or _group_of(folder, table, place),
            )
        if columns and not columns & {*TEXT_COLUMNS}:
            names = ", ".join(sorted(columns))
            listing.warnings.append(f"no column of {table} holds text ({names}): {', '.join(TEXT_COLUMNS)} would be it")
    return listing


def _group_of(folder: Path, table: Path, place: Path) -> str:
    """The part of the data by the table's name (train.tsv), its folder, or that of the file."""
    if _is_split_name(table.stem):
        return table.stem
    if table.parent != folder:
        return _group_of_folders(table.relative_to(folder).parts[:-1])
    return _group_of_folders(place.parts[:-1])


def _group_of_folders(names: Sequence[str]) -> str:
    """The nearest folder that is called like a split, or else the outermost; "" where there is none."""
    return next((name for name in reversed(names) if _is_split_name(name)), names[0] if names else "")


def _find_file(folder: Path, name: str) -> Path | None:
    candidates = [folder / beside / name for beside in BESIDE_TABLE]
    candidates += [Path(f"{path}{suffix}") for path in candidates for suffix in AUDIO_SUFFIXES]
    return next((path for path in candidates if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()), None)


def _first(row: Mapping[str, str], columns: tuple[str, ...]) -> str | None:
    """The value of the first of `columns` that a row has; None if it has none of them."""
    return next((row[column] for column in columns if row.get(column) is not None), None)


def _read_rows(table: Path) -> Iterator[Mapping[str, str]]:
    return _read_objects(table) if table.suffix.lower() == ".jsonl" else _read_columns(table)


def _read_columns(table: Path) -> Iterator[Mapping[str, str]]:
    """Rows with something in them of a CSV or TSV file by the names of its first row; a quoted value may have lines.

    Raises:
        UserError: the file is not UTF-8, or no table: a row has more values than there are columns, say.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            is_csv = table.suffix.lower() == ".csv"
            parsed = csv.reader(file, strict=True) if is_csv else csv.reader(file, dialect=_Tabs)
            rows = (row for row in parsed if any(value.strip() for value in row))
            names = [name.strip().lower() for name in next(rows, [])]
            for row in rows:
                if any(value.strip() for value in row[len(names) :]):
                    advice = ": quote values with commas" if is_csv else ""
                    counts = f"{len(row)} values for {len(names)} columns"
                    raise UserError(f"{table}, line {parsed.line_num}: {counts}{advice}")
                yield dict(zip(names, row, strict=False))
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not UTF-8 text") from error
    except csv.Error as error:
        raise UserError(f"{table}, line {parsed.line_num}: {error}") from error


def _read_objects(table: Path) -> Iterator[Mapping[str, str]]:
    """The objects of a JSONL file.

    Raises:
        UserError: the file is not UTF-8, or a line is no object.
    """
    for number, line in enumerate(_read_lines(table), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{table}, line {number}: not valid JSON") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{table}, line {number}: write an object, such as {{'file_name': 'a.wav', 'text': 'WORDS'}}"
            )
        yield {str(key).lower(): str(value) for key, value in row.items() if value is not None}


def _list_kaldi(folder: Path, scripts: list[Path]) -> Listing:
    listing = Listing("Kaldi")
    for script in scripts:
        own = script.parent
        group = _group_of_folders(own.relative_to(folder).parts)
        texts, speakers = (_read_pairs(own / name) for name in ("text", "utt2spk"))
        files = _find_recordings(script, folder, listing)
        # Recordings without transcripts are cut at their silences, whatever the segments are.
        segments = _read_segments(own / "segments") if (own / "text").is_file() else {}
        for utterance_id, (recording, span) in (segments or {name: (name, None) for name in files}).items():
            if recording not in files:
                listing.drop("recording is missing", utterance_id)
                continue
            text, speaker = texts.get(utterance_id), speakers.get(utterance_id, "")
            listing.add(Utterance(utterance_id, files[recording], speaker, text, span), group)
        for utterance_id in texts.keys() - listing.utterances.keys():
            if not any(utterance_id in names for names in listing.dropped.values()):
                listing.drop("transcript without audio", utterance_id)
    return listing


def _find_recordings(script: Path, folder: Path, listing: Listing) -> dict[str, Path]:
    """Id -> file of what a wav.scp names; what is not there is noted."""
    files: dict[str, Path] = {}
    for recording, place in _read_pairs(script).items():
        path = Path(place)
        candidates = [path] if path.is_absolute() else [script.parent / path, folder / path]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if place.endswith("|"):
            listing.drop("command in wav.scp instead of a file", recording)
        elif found is None:
            listing.drop("audio file is missing", recording)
        else:
            files[recording] = found
    return files


def _read_segments(path: Path) -> dict[str, tuple[str, tuple[float, float] | None]]:
    """Utterance -> recording, begin and end in seconds; an end below 0 is that of the recording, as in Kaldi.

    Raises:
        UserError: a line is something else.
    """
    segments: dict[str, tuple[str, tuple[float, float] | None]] = {}
    for utterance_id, rest in _read_pairs(path).items():
        try:
            recording, begin, end = rest.split()[:3]
            span = float(begin), math.inf if float(end) < 0.0 else float(end)
        except ValueError as error:
            raise UserError(f"{path}: write UTTERANCE RECORDING BEGIN END, not {utterance_id} {rest}") from error
        if not 0.0 <= span[0] < span[1]:
            raise UserError(f"{path}: {utterance_id} from {begin} to {end} s is no part of a recording")
        segments[utterance_id] = recording, span
    return segments


def _read_pairs(path: Path) -> dict[str, str]:
    """First word -> the rest of each line; nothing if there is no such file.

    Raises:
        UserError: two lines begin with the same word.
    """
    pairs: dict[str, str] = {}
    for line in _read_lines(path) if path.is_file() else ():
        name, *rest = line.split()
        if name in pairs:
            raise UserError(f"{path}: {name} is there twice: remove one of the lines")
        pairs[name] = " ".join(rest)
    return pairs


def _read_lines(path: Path) -> list[str]:
    """Lines with something in them; nothing but a line feed ends one, whatever else Unicode has for it.

    Raises:
        UserError: the file is not UTF-8.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
