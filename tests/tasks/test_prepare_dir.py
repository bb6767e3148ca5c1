"""Folders of one's own, in all layouts that are read."""

import json
from pathlib import Path

import pytest
import soundfile
import torch

from tests.data.corpus_factory import RATE_HZ, noise, truncate, write_subset
from w2vbert import cli
from w2vbert.data.features import ExtractionConfig, FeatureConfig, features_of_waveform
from w2vbert.data.folders import list_folder
from w2vbert.errors import UserError
from w2vbert.tasks.prepare import extract_features
from w2vbert.tasks.prepare_dir import DirConfig, prepare_dir


def write_audio(path: Path, seconds: float = 0.5, text: str | None = None) -> Path:
    """A file of noise, with FILE.txt beside it if it has a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds), RATE_HZ)
    if text is not None:
        path.with_suffix(".txt").write_text(text + "\n")
    return path


def prepare(folder: Path, config: DirConfig | None = None, **named: list[str]) -> dict[str, dict[str, tuple[str, str]]]:
    """Split -> id -> (speaker, text) of what `prepare dir` makes of a folder."""
    from lhotse import load_manifest

    out = folder.parent / "out"
    prepare_dir(folder, out, named, config or DirConfig(), force=True)
    found = {}
    for path in sorted(out.glob("cuts_*.jsonl.gz")):
        cuts = {cut.id: (cut.supervisions[0].speaker, cut.supervisions[0].text or "") for cut in load_manifest(path)}
        found[path.name.removeprefix("cuts_").removesuffix(".jsonl.gz")] = cuts
    return found


def report(folder: Path) -> dict:
    return json.loads((folder.parent / "out" / "report.json").read_text())


def test_files_with_text_beside_them_are_drawn_by_speaker(tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    for speaker in range(10):
        for number in range(3):
            write_audio(folder / f"speaker{speaker}" / f"{number}.wav", text=f" hello  {number}")
    write_audio(folder / "speaker0" / "more.wav")
    found = prepare(folder)
    speakers = {split: {speaker for speaker, _ in cuts.values()} for split, cuts in found.items()}
    assert {split: len(cuts) for split, cuts in found.items()} == {"train": 24, "dev": 3, "test": 3, "unlabelled": 1}
    assert not speakers["train"] & speakers["dev"] and not speakers["dev"] & speakers["test"]
    assert {text for _, text in found["train"].values()} == {"hello 0", "hello 1", "hello 2"}
    assert list(found["unlabelled"]) == ["speaker0-more-0000"]
    assert prepare(folder) == found
    assert prepare(folder, DirConfig(seed=2)) != found
    assert prepare(folder, DirConfig(dev_share=0.3, test_share=0.0)).keys() == {"train", "dev", "unlabelled"}


def test_splits_that_the_folder_names_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    for part in ("train", "validation", "test", "extra"):
        write_audio(folder / part / "a.wav", text=f"in {part}")
    found = prepare(folder)
    assert {split: list(cuts) for split, cuts in found.items()} == {
        "train": ["extra-a", "train-a"],
        "dev": ["validation-a"],
        "test": ["test-a"],
    }
    found = prepare(folder, train=["train", "test"], dev=["extra"], unlabelled=["validation"])
    assert {split: len(cuts) for split, cuts in found.items()} == {"train": 1, "test": 1, "dev": 1, "unlabelled": 1}
    with pytest.raises(UserError, match=r"no part nowhere \(there are: extra, test, train, validation\)"):
        prepare(folder, train=["nowhere"])


TABLES = {
    "metadata.csv": 'file_name,transcription\ntrain/a.wav,"ONE, TWO"\ntest/b.wav,THREE\nvalidation/c.wav,FOUR\n',
    "metadata.jsonl": '{"file_name": "train/a.wav", "text": "ONE, TWO"}\n{"file_name": "test/b.wav", "text": "THREE"}\n'
    '{"file_name": "validation/c.wav", "text": "FOUR"}\n',
    "all.tsv": "audio\tsentence\tsplit\ntrain/a.wav\tONE, TWO\ttrain\ntest/b.wav\tTHREE\ttest\n"
    "validation/c\tFOUR\tdev\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_tell_text_and_split(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "speech"
    for place in ("train/a.wav", "test/b.wav", "validation/c.wav"):
        write_audio(folder / place)
    (folder / name).write_text(TABLES[name])
    found = prepare(folder)
    texts = {split: [text for _, text in cuts.values()] for split, cuts in found.items()}
    assert texts == {"train": ["ONE, TWO"], "test": ["THREE"], "dev": ["FOUR"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.csv", '\nfile_name,text,split\r\na.wav,"HELLO\nWORLD",train\r\n \r\nb.wav,TWO\u2028WORDS,dev\r\n'),
        ("list.tsv", "file_name\ttext\tsplit\na.wav\tHELLO\u0085WORLD\ttrain\nb.wav\tTWO\u2028WORDS\tdev\n"),
        (
            "list.jsonl",
            '{"file_name": "a.wav", "text": "HELLO\u2028WORLD", "split": "train"}\n\n'
            '{"file_name": "b.wav", "text": "TWO\u0085WORDS", "split": "dev"}\n',
        ),
    ],
)
def test_a_line_break_within_a_transcript_is_white_space(tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "speech"
    for place in ("a.wav", "b.wav"):
        write_audio(folder / place)
    (folder / name).write_bytes(content.encode())
    utterances = list_folder(folder).utterances
    assert {id: utterance.text for id, utterance in utterances.items()} == {"a": "HELLO WORLD", "b": "TWO WORDS"}


def test_common_voice(tmp_path: Path) -> None:
    folder = tmp_path / "cv"
    for name in "abcd":
        write_audio(folder / "clips" / f"{name}.wav")
    for table, name in {"train": "a", "dev": "b", "test": "c", "validated": "a"}.items():
        (folder / f"{table}.tsv").write_text(f'client_id\tpath\tsentence\ns{name}\t{name}.wav\tSay "{name}\n')
    (folder / "reported.tsv").write_text("sentence\treason\nx\ty\n")
    assert prepare(folder) == {
        "train": {"clips-a": ("sa", 'Say "a')},
        "dev": {"clips-b": ("sb", 'Say "b')},
        "test": {"clips-c": ("sc", 'Say "c')},
        "unlabelled": {"clips-d-0000": ("clips-d", "")},
    }


def test_kaldi(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for part in ("train", "dev", "test"):
        audio = write_audio(tmp_path / "audio" / f"{part}.wav")
        (folder / part).mkdir(parents=True)
        (folder / part / "wav.scp").write_text(f"s-{part} {audio}\npipe-{part} sox a.wav -t wav - |\ngone {part}.wav\n")
        (folder / part / "text").write_text(f"s-{part} TEXT OF {part}\nnone-{part} NOTHING\n")
        (folder / part / "utt2spk").write_text(f"s-{part} speaker-{part}\n")
    found = prepare(folder)
    assert found == {part: {f"s-{part}": (f"speaker-{part}", f"TEXT OF {part}")} for part in ("train", "dev", "test")}
    dropped = report(folder)["splits"]["train"]["dropped"]
    assert dropped["command in wav.scp instead of a file"] == ["pipe-dev", "pipe-test", "pipe-train"]
    assert dropped["audio file is missing"] == ["gone"] * 3 and len(dropped["transcript without audio"]) == 3


def write_segments(tmp_path: Path, texts: str, spans: str) -> Path:
    """Kaldi's files of a recording of 3 s in each of train, dev and test; PART in `texts` and `spans` is its name."""
    folder = tmp_path / "data"
    for part in ("train", "dev", "test"):
        (folder / part).mkdir(parents=True)
        (folder / part / "wav.scp").write_text(f"r-{part} {write_audio(tmp_path / f'{part}.wav', 3.0)}\n")
        (folder / part / "text").write_text(texts.replace("PART", part))
        (folder / part / "segments").write_text(spans.replace("PART", part))
    return folder


def test_a_segment_that_would_end_after_its_recording_is_counted(tmp_path: Path) -> None:
    spans = "a-PART r-PART 1 3.01\nb-PART r-PART 1 -1\nc-PART r-PART 1 3.4\n"
    folder = write_segments(tmp_path, "a-PART ROUNDED\nb-PART OPEN\nc-PART LATE\n", spans)
    assert len(prepare(folder)["train"]) == 3
    assert report(folder)["splits"]["train"]["clipped"] == ["c-train"]
    assert "(1 cut short by the end of their recording)" in (tmp_path / "out" / "report.txt").read_text()


def test_kaldis_segments_are_parts_of_recordings(tmp_path: Path) -> None:
    from lhotse import load_manifest

    spans = "a-PART r-PART 0.5 1.25\nb-PART r-PART 2 -1\nc-PART r-PART 0 1\nd-PART x 0 1\nlate-PART r-PART 2.99 4\n"
    folder = write_segments(tmp_path, "a-PART FIRST\nb-PART SECOND\nd-PART GONE\n", spans)
    for part in ("train", "dev", "test"):
        (folder / part / "utt2spk").write_text(f"a-{part} anna-{part}\nb-{part} bert-{part}\n")
    assert prepare(folder)["train"] == {"a-train": ("anna-train", "FIRST"), "b-train": ("bert-train", "SECOND")}
    assert report(folder)["splits"]["train"]["hours"] == pytest.approx(1.75 / 3600, abs=1e-4)
    dropped = report(folder)["splits"]["train"]["dropped"]
    assert dropped["recording is missing"] == ["d-dev", "d-test", "d-train"] and len(dropped["no transcript"]) == 6
    assert extract_features(tmp_path / "out", tmp_path / "fbank", ExtractionConfig())
    samples, _ = soundfile.read(tmp_path / "train.wav", dtype="float32")
    for cut, begin, end in zip(
        load_manifest(tmp_path / "fbank" / "cuts_train.jsonl.gz"), (0.5, 2), (1.25, 3), strict=True
    ):
        assert (cut.load_audio()[0] == samples[round(begin * RATE_HZ) : round(end * RATE_HZ)]).all()
        assert (cut.supervisions[0].start, cut.supervisions[0].duration) == (0.0, end - begin)
        alone = features_of_waveform(torch.from_numpy(cut.load_audio()[0]), FeatureConfig())
        assert (torch.from_numpy(cut.load_features()) == alone).all()
    parts = {"train": ["train"], "dev": ["dev"], "unlabelled": ["test"]}
    assert set(prepare(folder, **parts)["unlabelled"]) == {"a-test-0000"}, "the whole recording, and once"
    for text in ("", "a-train\nb-train\n"):
        (folder / "train" / "text").write_text(text)
        with pytest.raises(UserError, match="none of the 4 utterances of train has a transcript"):
            prepare(folder)
    (folder / "train" / "text").unlink()
    assert set(prepare(folder, unlabelled=["train"], dev=["dev"])["unlabelled"]) == {"r-train-0000"}
    for line, told in (
        ("u r-dev zero 1", "write UTTERANCE RECORDING BEGIN END, not u r-dev zero 1"),
        ("u r-dev 2 1", "u from 2 to 1 s is no part"),
        ("u r-dev 0 nan", "u from 0 to nan s is no part"),
        ("u r-dev 0 1\nu r-dev 1 2", "u is there twice"),
    ):
        (folder / "dev" / "segments").write_text(line + "\n")
        with pytest.raises(UserError, match=told):
            prepare(folder)


def test_long_audio_without_text_is_cut_and_goes_through_features(tmp_path: Path) -> None:
    folder = tmp_path / "podcasts"
    write_audio(folder / "a.wav", 9.0)
    write_audio(folder / "b.flac", 1.0)
    assert {name for name in prepare(folder, DirConfig(piece_seconds=4.0))["unlabelled"]} == {
        *(f"a-{number:04d}" for number in range(3)),
        "b-0000",
    }
    assert extract_features(tmp_path / "out", tmp_path / "fbank", ExtractionConfig())


def test_what_was_dropped_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    for number in range(5):
        write_audio(folder / f"{number}.wav", text="words")
    truncate(write_audio(folder / "t.flac", text="words"), 0.5)
    write_audio(folder / "e.wav", text="")
    write_audio(folder / "e.flac", text="")
    (folder / "metadata.csv").write_text("path,text\n9.wav,missing\n")
    config = DirConfig(dev_share=0.2, test_share=0.2)
    prepare(folder, config)
    rows = report(folder)["splits"]
    dropped = {reason: names for row in rows.values() for reason, names in row["dropped"].items()}
    assert dropped["audio file is missing"] == ["9.wav"] and dropped["empty transcript"] == ["e"]
    assert dropped["damaged or truncated"] == ["t"]
    assert dropped["id is there twice"] == [f"e ({folder / 'e.flac'} is taken, {folder / 'e.wav'} is not)"]


def test_too_few_speakers_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    for number in range(10):
        write_audio(folder / "anna" / f"{number}.wav", text="words")
    found = prepare(folder)
    assert {split: len(cuts) for split, cuts in found.items()} == {"train": 8, "dev": 1, "test": 1}
    warnings = report(folder)["warnings"]
    assert warnings[0].startswith("too few speakers to draw dev and test by speaker")
    for number in range(2, 10):
        (folder / "anna" / f"{number}.wav").unlink()
    with pytest.raises(UserError, match="2 transcribed files are too few"):
        prepare(folder)


def test_each_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(folder: Path) -> str:
        assert cli.main(["prepare", "dir", str(folder), str(tmp_path / "out")]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "there is no folder" in error_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no audio that can be used" in error_of(tmp_path / "empty")
    write_subset(tmp_path / "libri" / "dev", ("1",), 1)
    assert "use `w2vbert prepare corpus`" in error_of(tmp_path / "libri")
    write_audio(tmp_path / "table" / "a.wav")
    (tmp_path / "table" / "list.csv").write_text("name,words\na.wav,ONE\n")
    assert "list.csv, row 1: no column names the audio file" in error_of(tmp_path / "table")
    (tmp_path / "table" / "list.csv").write_bytes(b"path,text\na.wav,\xff\n")
    assert "is not UTF-8 text" in error_of(tmp_path / "table")
    (tmp_path / "table" / "list.csv").write_text(f"path,text\na.wav,{'A' * 200_000}\n")
    assert "list.csv, line 2: field larger than field limit" in error_of(tmp_path / "table")
    (tmp_path / "table" / "list.csv").rename(tmp_path / "table" / "list.jsonl")
    (tmp_path / "table" / "list.jsonl").write_text("{\n")
    assert "list.jsonl, line 1: not valid JSON" in error_of(tmp_path / "table")
    assert not (tmp_path / "out").exists()


def test_a_labelled_part_without_transcripts_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for part in ("train", "dev", "test"):
        write_audio(folder / part / "a.wav", text="WORDS")
        (folder / part / "wav.scp").write_text(f"a-{part} a.wav\n")
        (folder / part / "text").write_text(f"a-{part} WORDS\n")
    assert set(prepare(folder)) == {"train", "dev", "test"}
    (folder / "dev" / "text").unlink()
    with pytest.raises(UserError, match="none of the 1 utterances of dev has a transcript, but dev needs them"):
        prepare(folder)
    with pytest.raises(UserError, match="part train is named twice"):
        prepare(folder, train=["train"], dev=["train"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,text,split\na.wav,ONE,trian\n", "'trian' is no split"),
        ("file_name,text\na.wav,HELLO, MY WORLD\n", "line 2: 3 values for 2 columns: quote values with commas"),
        ('file_name,text\na.wav,"ONE\nb.wav,TWO\n', "metadata.csv, line 3: "),
    ],
    ids=["split", "comma", "quote"],
)
def test_a_table_that_would_be_read_wrongly_is_refused(tmp_path: Path, content: str, message: str) -> None:
    for name in "ab":
        write_audio(tmp_path / "in" / f"{name}.wav")
    (tmp_path / "in" / "metadata.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "in")


def test_values_of_split_may_have_blanks_and_trailing_commas(tmp_path: Path) -> None:
    rows = "".join(f"{n}.wav,WORD {n}, {split} ,\n" for n, split in enumerate(["train", "Dev", "test"]))
    for n in range(3):
        write_audio(tmp_path / "in" / f"{n}.wav")
    (tmp_path / "in" / "metadata.csv").write_text("file_name,text,split\n" + rows)
    assert {split: [*ids] for split, ids in prepare(tmp_path / "in").items()} == {
        "train": ["0"],
        "dev": ["1"],
        "test": ["2"],
    }


def test_splits_of_inner_folders_are_kept(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_audio(tmp_path / "in" / "data" / split / f"{split}.wav")
        (tmp_path / "in" / "data" / split / "metadata.csv").write_text(f"file_name,text\n{split}.wav,WORD\n")
    found = prepare(tmp_path / "in")
    assert {split: len(ids) for split, ids in found.items()} == {"train": 1, "dev": 1, "test": 1}
    assert [*found["dev"]] == ["data-validation-validation"]


def test_what_no_manifest_can_hold_is_left_out_and_named(tmp_path: Path) -> None:
    for name in "abcd":
        write_audio(tmp_path / "in" / f"{name}.wav")
    (tmp_path / "in" / "e\udce9.wav").write_bytes((tmp_path / "in" / "a.wav").read_bytes())
    rows = [{"file_name": "a.wav", "text": "ONE"}, {"file_name": "b.wav", "text": "T\ud800"}]
    rows += [
        {"file_name": "c.wav", "text": "T\0O"},
        {"file_name": "/", "text": "X"},
        {"file_name": "d.wav", "text": "D"},
    ]
    (tmp_path / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(tmp_path / "in", DirConfig(dev_share=0.0, test_share=0.0))
    dropped = report(tmp_path / "in")["splits"]["train"]["dropped"]
    assert {reason: len(names) for reason, names in dropped.items()} == {
        "audio file is missing": 1,
        "name that is not UTF-8": 1,
        "text or speaker that is no Unicode text": 2,
    }


def test_a_table_without_a_column_of_text_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_audio(tmp_path / "in" / "a.wav", 1.5)
    (tmp_path / "in" / "metadata.csv").write_text("file_name,txt\na.wav,ONE\n")
    prepare(tmp_path / "in")
    assert "no column of" in caplog.text and "(file_name, txt)" in caplog.text


def test_kaldis_folders_may_lie_deeper(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        audio = write_audio(tmp_path / "in" / "audio" / f"{split}.wav")
        folder = tmp_path / "in" / "data" / split
        folder.mkdir(parents=True)
        (folder / "wav.scp").write_text(f"{split} {audio}\n")
        (folder / "text").write_text(f"{split} WORD\n")
    assert {split: [*ids] for split, ids in prepare(tmp_path / "in").items()} == {
        "train": ["train"],
        "dev": ["dev"],
        "test": ["test"],
    }
