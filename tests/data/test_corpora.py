import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data.corpus_factory import noise, truncate, write_corpus, write_subset, write_utterance
from w2vbert.data.audio_files import check_audio
from w2vbert.data.corpora import CorpusConfig, check_subsets, read_split, shared_speakers, shared_utterances
from w2vbert.errors import UserError


def config_of(corpus: Path, **splits: str) -> CorpusConfig:
    return CorpusConfig(corpus, {split: tuple(names.split(",")) for split, names in splits.items()})


def test_a_sound_subset_gives_what_lhotses_own_recipe_gives(tmp_path: Path) -> None:
    from lhotse.recipes import prepare_librispeech

    corpus = write_corpus(tmp_path)
    split = read_split(config_of(corpus, train="a-train"), "train", jobs=1)
    theirs = prepare_librispeech(corpus, dataset_parts=["a-train"])["a-train"]
    assert split.recordings == sorted(theirs["recordings"], key=lambda r: r.id)
    assert split.supervisions == sorted(theirs["supervisions"], key=lambda s: s.id)
    assert split.dropped == {}


def test_several_subsets_join_and_unlabelled_ones_have_speakers_but_no_text(tmp_path: Path) -> None:
    config = config_of(write_corpus(tmp_path), train="a-train,b-train", unlabelled="a-more")
    train, more = (read_split(config, split, jobs=1) for split in ("train", "unlabelled"))
    assert {s.speaker for s in train.supervisions} == {"11", "12", "13"} and len(train.recordings) == 8
    assert {s.speaker for s in more.supervisions} == {"41", "42"}
    assert [s.text for s in more.supervisions] == [None] * 4
    cuts = list(train.cuts())
    assert [cut.id for cut in cuts] == [s.id for s in train.supervisions]
    assert cuts[0].supervisions[0].text == "SPEAKER SAYS A" and cuts[0].load_audio().shape == (1, 4800)


def test_unlabelled_speech_alone_loses_the_silence_at_its_ends(tmp_path: Path) -> None:
    samples = np.concatenate([0.01 * noise(2.0), noise(1.0), 0.01 * noise(1.5)])
    for subset in ("a", "b"):
        write_utterance(tmp_path / subset, "1-1-0000", "WORD", samples)
        write_utterance(tmp_path / subset, "1-1-0001", "WORD", np.repeat(samples, 3), 48_000)
    config = config_of(tmp_path, train="a", unlabelled="b")
    write_utterance(tmp_path / "b", "1-1-0002", None, np.zeros(16_000, dtype=np.float32))
    splits = {split: read_split(config, split, jobs=1) for split in ("train", "unlabelled")}
    assert splits["unlabelled"].dropped == {"digital silence": ["1-1-0002"]}
    whole, trimmed = (list(split.cuts()) for split in splits.values())
    assert [(cut.start, cut.duration) for cut in whole] == [(0.0, 4.5)] * 2
    for before, after in zip(whole, trimmed, strict=True):
        assert after.id == before.id and after.start == pytest.approx(1.85) and after.end == pytest.approx(3.15)
        loaded = before.load_audio()[:, round(after.start * 16_000) :][:, : round(after.duration * 16_000)]
        np.testing.assert_allclose(after.load_audio(), loaded, atol=1e-3)


def test_what_cannot_be_used_is_dropped_for_a_reason(tmp_path: Path) -> None:
    subset = tmp_path / "odd"
    write_utterance(subset, "1-1-0000", "GOOD ONE")
    write_utterance(subset, "1-1-0001", "")
    write_utterance(subset, "1-1-0002", None)
    truncate(write_utterance(subset, "1-1-0003", "TRUNCATED", noise(2)), 0.7)
    write_utterance(subset, "1-1-0004", "EMPTY").write_bytes(b"")
    write_utterance(subset, "1-1-0005", "SHORT", noise(0.09))
    write_utterance(subset, "1-1-0006", "LONG", noise(61))
    write_utterance(subset, "1-1-0007", "GONE").unlink()
    soundfile.write(write_utterance(subset, "1-1-0008", "STEREO"), np.stack([noise(0.5)] * 2, axis=1), 16000)
    write_utterance(subset, "1-1-0009", "NO AUDIO").write_text("not audio")
    soundfile.write(subset / "1" / "1" / "1-1-0000.wav", noise(0.5), 16000)
    write_utterance(subset, "1-1-0010", "ONE THING\n1-1-0010 ANOTHER")
    write_utterance(subset, "1-1-0011", "SAID TWICE\n1-1-0011 SAID TWICE")
    write_utterance(subset, "1-1-0012", "ODD RATE", noise(0.5), 44101)
    soundfile.write(subset / "1" / "1" / "1-1-0013.wav", 20000 * noise(0.5), 16000, subtype="FLOAT")
    with (subset / "1" / "1" / "1-1.trans.txt").open("a") as file:
        file.write("1-1-0013 INTEGERS AS FLOATS\n")
    (subset / "2" / "1").mkdir(parents=True)
    split = read_split(config_of(tmp_path, train="odd"), "train", jobs=1)
    assert [r.id for r in split.recordings] == ["1-1-0000", "1-1-0011"]
    assert split.dropped == {
        "id is there twice": ["1-1-0000"],
        "two different transcripts": ["1-1-0010"],
        "sampling rate that cannot be used": ["1-1-0012"],
        "samples far beyond -1 and 1": ["1-1-0013"],
        "speaker without audio": ["2"],
        "empty transcript": ["1-1-0001"],
        "no transcript": ["1-1-0002"],
        "transcript without audio": ["1-1-0007"],
        "damaged or truncated": ["1-1-0003", "1-1-0009"],
        "empty file": ["1-1-0004"],
        "shorter than 0.1 s": ["1-1-0005"],
        "longer than 60 s": ["1-1-0006"],
        "more than one channel": ["1-1-0008"],
    }


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_flac_is_found_though_its_header_tells_the_full_length(tmp_path: Path, share: float) -> None:
    path = write_utterance(tmp_path, "1-1-0000", None, noise(3))
    assert check_audio(path).problem is None
    truncate(path, share)
    assert check_audio(path).problem in ("damaged or truncated", "truncated")


def test_a_truncated_wav_and_samples_that_are_no_numbers_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    samples = noise(1)
    samples[5000] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    assert check_audio(path).problem == "samples that are no numbers"
    soundfile.write(path, samples[:0], 16000)
    assert check_audio(path).problem == "no samples"
    for subtype in ("PCM_16", "FLOAT"):
        soundfile.write(path, noise(1), 16000, subtype=subtype)
        assert check_audio(path).problem is None
        truncate(path, 0.5)
        assert check_audio(path).problem == "truncated"


def test_a_wav_from_a_pipe_tells_no_length_and_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1), 16000)
    content = path.read_bytes()
    for size in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):  # as ffmpeg and sox write it
        path.write_bytes(content[:4] + size + content[8:40] + size + content[44:])
        assert check_audio(path).problem is None


def test_a_file_that_may_not_be_read_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = write_utterance(tmp_path / "a", "1-1-0000", "TEXT")
    path.chmod(0)
    obey = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []  # as root, too
    if obey and subprocess.run([*obey, "true"], check=False, capture_output=True).returncode:
        pytest.skip("root reads all files here")
    code = "import sys; from pathlib import Path; from w2vbert.data.audio_files import check_audio as check\n"
    command = [*obey, sys.executable, "-c", f"{code}print(check(Path(sys.argv[1])).problem)", str(path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "no permission to read\n"


def test_other_sampling_rates_are_resampled_when_loaded(tmp_path: Path) -> None:
    write_utterance(tmp_path / "slow", "1-1-0000", "EIGHT", noise(1, 8000), 8000)
    split = read_split(config_of(tmp_path, train="slow"), "train", jobs=1)
    assert split.resampled == ["1-1-0000"]
    (cut,) = split.cuts()
    assert (cut.sampling_rate, cut.num_samples) == (16000, 16000) and cut.load_audio().shape == (1, 16000)


def test_the_same_id_in_two_subsets_is_taken_once(tmp_path: Path) -> None:
    for subset in ("one", "two"):
        write_subset(tmp_path / subset, ("5",), 2)
    split = read_split(config_of(tmp_path, train="one,two"), "train", jobs=1)
    assert len(split.recordings) == 2 and split.dropped == {"id is there twice": ["5-7-0000", "5-7-0001"]}


def test_files_without_librispeechs_names_get_ids_from_their_folders(tmp_path: Path) -> None:
    for book in ("tales", "poems"):
        write_utterance(tmp_path / "light", "100-1-0000", None).rename(tmp_path / "light" / "01.flac")
        (tmp_path / "light" / "100" / book).mkdir()
        (tmp_path / "light" / "01.flac").rename(tmp_path / "light" / "100" / book / "01.flac")
    split = read_split(config_of(tmp_path, unlabelled="light"), "unlabelled", jobs=1)
    assert [r.id for r in split.recordings] == ["100-poems-01", "100-tales-01"]
    assert {s.speaker for s in split.supervisions} == {"100"}


def test_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    config = config_of(write_corpus(tmp_path), train="a-train,b-train")
    assert read_split(config, "train", jobs=1) == read_split(config, "train", jobs=2)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": "nowhere"}, r"no subset nowhere in .* \(there are: a-dev, a-more, a-test, a-train, b-train\)"),
        ({"train": "a-more"}, r"train: .*a-more has no transcripts"),
        ({"dev": "a-more"}, r"dev: .* name a labelled subset, or use this one with --unlabelled"),
    ],
)
def test_a_wrong_subset_is_refused_before_anything_is_read(tmp_path: Path, splits: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_subsets(config_of(write_corpus(tmp_path), **splits))


def test_a_missing_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no corpus folder .*nowhere"):
        check_subsets(config_of(tmp_path / "nowhere", train="a"))


def test_a_split_without_a_usable_utterance_is_refused(tmp_path: Path) -> None:
    write_utterance(tmp_path / "bad", "1-1-0000", "")
    write_utterance(tmp_path / "bad", "1-1-0001", "SHORT", noise(0.05))
    with pytest.raises(
        UserError, match="no utterance is left in dev .bad.: empty transcript: 1, shorter than 0.1 s: 1"
    ):
        read_split(config_of(tmp_path, dev="bad"), "dev", jobs=1)


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="no audio in .*void"):
        read_split(config_of(tmp_path, unlabelled="void"), "unlabelled", jobs=1)


@pytest.mark.parametrize("splits", [{}, {"train": ()}, {"train": ("a", "a")}, {"valid": ("a",)}])
def test_contradictory_splits_are_refused(tmp_path: Path, splits: dict) -> None:
    with pytest.raises(UserError):
        CorpusConfig(tmp_path, splits)


def test_speakers_and_utterances_in_two_splits_are_found(tmp_path: Path) -> None:
    for subset, speakers in {"a": ("1", "2"), "b": ("2", "3"), "c": ("4",), "d": ("5", "1")}.items():
        write_subset(tmp_path / subset, speakers, 1)
    write_utterance(tmp_path / "c", "3-8-0000", "ANOTHER CHAPTER")
    config = config_of(tmp_path, train="a", dev="b", test="c", unlabelled="d,c")
    splits = [read_split(config, split, jobs=1) for split in config.splits]
    assert shared_speakers(splits) == [
        ("train", "dev", ["2"]),
        ("dev", "test", ["3"]),
        ("dev", "unlabelled", ["3"]),
        ("test", "unlabelled", ["3", "4"]),
    ]
    assert shared_utterances(splits) == [
        ("train", "dev", ["2-7-0000"]),
        ("test", "unlabelled", ["3-8-0000", "4-7-0000"]),
    ]


def test_linked_folders_and_marks_of_windows_are_no_obstacle(tmp_path: Path) -> None:
    write_utterance(tmp_path / "real", "1-1-0000", "GOOD ONE")
    transcripts = tmp_path / "real" / "1" / "1" / "1-1.trans.txt"
    transcripts.write_bytes(b"\xef\xbb\xbf" + transcripts.read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "1").symlink_to(tmp_path / "real" / "1")
    (tmp_path / "real" / "1" / "loop").symlink_to(tmp_path / "linked")
    split = read_split(config_of(tmp_path, train="linked"), "train", jobs=1)
    assert [s.text for s in split.supervisions] == ["GOOD ONE"] and split.dropped == {}


def test_names_that_no_manifest_can_hold_are_dropped(tmp_path: Path) -> None:
    write_utterance(tmp_path / "odd", "1-1-0000", None)
    path = write_utterance(tmp_path / "odd", "1-1-0001", None)
    path.rename(path.with_name(os.fsdecode(b"1-1-\xff.flac")))
    split = read_split(config_of(tmp_path, unlabelled="odd"), "unlabelled", jobs=1)
    assert [r.id for r in split.recordings] == ["1-1-0000"]
    assert split.dropped == {"name that is not UTF-8": [os.fsdecode(b"1-1-\xff")]}
    odd = tmp_path / os.fsdecode(b"\xff")
    (tmp_path / "odd").rename(odd)
    odd.mkdir(exist_ok=True)
    with pytest.raises(UserError, match="is not UTF-8: rename it"):
        check_subsets(config_of(odd, unlabelled="1"))
