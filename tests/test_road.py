"""The whole road through the command line, as a user walks it: synthetic speech to a table, tiny but real."""

import gzip
import json
import logging
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from w2vbert import cli
from w2vbert.files import read_json
from w2vbert.stages import STAMP

SPLITS = ("unlabelled", "train", "dev", "test")
HOURS = dict(zip(SPLITS, (0.006, 0.012, 0.004, 0.004), strict=True))  # 94 s
ENCODER = {
    "subsampling": {"num_mel_bins": 80, "channels": [8, 8]},
    "block": {"dim": 32, "heads": 2, "feed_forward_dim": 64, "positions": "rotary", "dropout_prob": 0.0},
    "contrastive_blocks": 1,
    "masked_blocks": 1,
}
PRETRAIN = {
    "model": {"encoder": ENCODER, "quantizer": {"codes": 16, "dim": 16}, "mask_span_frames": 4, "num_distractors": 10},
    "train": {"max_steps": 12, "validate_every_steps": 6, "save_every_steps": 6, "log_every_steps": 6, "threads": 1},
    "optim": {"learning_rate": 3e-3, "warmup_steps": 4},
    "batch_seconds": 8,
}
FINETUNE = {
    "encoder": ENCODER,
    "predictor": {"dim": 32, "layers": 1, "dropout_prob": 0.0},
    "projection_dim": 32,
    "joiner_dim": 32,
    "loss": {"prune_range": 4, "warmup_steps": 10, "ctc_weight": 0.3},
    "train": {
        "max_steps": 160,
        "validate_every_steps": 80,
        "save_every_steps": 80,
        "log_every_steps": 20,
        "threads": 1,
    },
    "encoder_optim": {"learning_rate": 5e-3, "warmup_steps": 5, "schedule": "constant"},
    "decoder_optim": {"learning_rate": 5e-3, "warmup_steps": 5, "schedule": "constant"},
    "spec_augment": {"frequency_masks": 0, "time_masks": 0},
    "batch_seconds": 8,
}
BEAM = ("--set", "search.method=beam", "--set", "search.length_bonus=1.0")
UNFILTERED = ("--set", "dev_quantile=0", "--set", "rate_quantile=0")


def make_commands() -> dict[str, list[str]]:
    """The commands of the road, as `recipes/mini/run.sh` calls them."""
    synth = [f"{split}_hours={hours}" for split, hours in HOURS.items()]
    synth += ["lm_sentences=100", *(f"{split}_speakers=2" for split in SPLITS)]
    tune, student = ("--tokenizer", "tok", "--config", "finetune.yaml"), "gen1/model"
    decode = ("--data", "fbank", "--split", "dev", "--split", "test")
    settings = [part for value in synth for part in ("--set", value)]
    names = [part for split in SPLITS for part in (f"--{split}", split)]
    few = ("--set", "train.max_steps=20")
    return {
        "synth": ["prepare", "synth", "synth", *settings],
        "corpus": ["prepare", "corpus", "synth", "manifests", *names],
        "features": ["features", "manifests", "fbank"],
        "tokenizer": ["tokenizer", "manifests", "tok", "--set", "model_type=char"],
        "lm": [
            "lm",
            "ngram",
            "manifests",
            "lm",
            "--tokenizer",
            "tok",
            "--text",
            "synth/lm-text.txt.gz",
            "--set",
            "ngram.order=3",
        ],
        "pretrain": ["pretrain", "fbank", "exp/pre", "--config", "pretrain.yaml"],
        "scratch": ["finetune", "fbank", "exp/scratch", *tune, "--init", "scratch", *few],
        "finetune": ["finetune", "fbank", "exp/tuned", *tune, "--init", "exp/pre"],
        "label": ["pseudo-label", "fbank", "gen1/labels", "--model", "exp/tuned", "--lm", "lm", *BEAM, *UNFILTERED],
        "student": ["finetune", "fbank", student, *tune, "--init", "exp/pre", "--pseudo", "gen1/labels", *few],
        "decode": ["decode", "--model", "exp/tuned", *decode, "--out", "exp/tuned/greedy"],
        "decode_lm": ["decode", "--model", "exp/tuned", *decode, "--out", "exp/tuned/lm", "--lm", "lm", *BEAM],
        "decode_student": ["decode", "--model", student, *decode, "--out", "gen1/greedy"],
    }


def run(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where all commands have been run."""
    folder = tmp_path_factory.mktemp("road")
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(PRETRAIN))
    (folder / "finetune.yaml").write_text(yaml.safe_dump(FINETUNE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in make_commands().values():
            run(*command)
    return folder


@pytest.fixture(autouse=True)
def inside(road: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(road)


def test_every_command_is_up_to_date_the_second_time(caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.read_bytes() for path in Path().rglob(STAMP)}
    assert len(before) >= len(make_commands())
    started = time.perf_counter()
    for name, command in make_commands().items():
        caplog.clear()
        with caplog.at_level(logging.INFO, "w2vbert"):
            run(*command)
        assert [r.getMessage() for r in caplog.records if "up to date" in r.getMessage()], name
    assert time.perf_counter() - started < 5.0
    assert {path: path.read_bytes() for path in Path().rglob(STAMP)} == before


def test_what_was_learned_shows() -> None:
    train = [json.loads(line) for line in Path("exp/tuned/metrics.jsonl").read_text().splitlines()]
    losses = [line["pruned_loss"] for line in train if line["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    texts = [json.loads(line)["text"] for line in Path("exp/tuned/lm/hyps-dev.jsonl").read_text().splitlines()]
    assert sum(len(text.split()) for text in texts) > len(texts)
    for kind, panel in (("pre", "contrastive_accuracy"), ("tuned", "wer")):
        assert Path(f"exp/{kind}/curves.png").read_bytes().startswith(b"\x89PNG")
        assert math.isfinite(read_json(Path(f"exp/{kind}/model.json"))["best"][panel])


def test_pseudo_labels_add_up() -> None:
    report = read_json(Path("gen1/labels/report.json"))
    with gzip.open("fbank/cuts_unlabelled.jsonl.gz", "rt") as file:
        assert report["labelled"] == len(file.readlines())
    with gzip.open("gen1/labels/cuts_pseudo.jsonl.gz", "rt") as file:
        assert report["kept"] == len(file.readlines()) == report["labelled"] - sum(report["dropped"].values()) > 0


def test_the_table_counts_all_trainings_of_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"scratch": "exp/tuned/greedy", "tuned + LM": "exp/tuned/lm", "student": "gen1/greedy"}
    run("report", "exp/RESULTS.md", *(part for name, folder in rows.items() for part in ("--row", f"{name}={folder}")))
    table, text = capsys.readouterr().out, Path("exp/RESULTS.md").read_text()
    assert text.startswith(table) and all(f"| {name} |" in table for name in rows)
    history = read_json(Path("gen1/greedy/wer.json"))["history"]
    assert history.keys() == {"exp/pre", "exp/tuned", "gen1/model"}
    assert all(f"![curves of {model}](" in text.removeprefix(table) for model in history)
    cards = [read_json(Path(model) / "model.json") for model in history]
    assert sum(cost["audio_hours"] for cost in history.values()) == pytest.approx(sum(c["audio_hours"] for c in cards))


def test_scoring_the_hypotheses_again_gives_the_same_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    references = [line for path in Path("synth/test").rglob("*.trans.txt") for line in path.read_text().splitlines()]
    (tmp_path / "ref.txt").write_text("\n".join(sorted(references)) + "\n")
    capsys.readouterr()
    run("score", tmp_path / "ref.txt", "exp/tuned/lm/hyps-test.jsonl", "--json")
    again, before = json.loads(capsys.readouterr().out), read_json(Path("exp/tuned/lm/wer.json"))["splits"]["test"]
    assert before.items() <= again.items()


def test_decoding_files_agrees_with_decoding_their_split(tmp_path: Path) -> None:
    """A model that has learned so little is now and then torn between two letters, and rounding decides.

    So a text in ten may differ; the middle one of the confidences must not.
    """
    run("decode", "--model", "exp/tuned", "synth/train", "-o", tmp_path / "out.jsonl")
    run("decode", "--model", "exp/tuned", "--data", "fbank", "--split", "train", "--out", tmp_path / "split")
    lines = map(json.loads, (tmp_path / "out.jsonl").open())
    found = {Path(line["id"]).stem: (line["text"], line["confidence"]) for line in lines}
    lines = map(json.loads, (tmp_path / "split/hyps-train.jsonl").open())
    split = {line["id"]: (line["text"], line["confidence"]) for line in lines}
    assert found.keys() == split.keys() and len(found) > 15
    assert sum(found[key][0] == split[key][0] for key in found) >= 0.9 * len(found)
    assert float(np.median([abs(found[key][1] - split[key][1]) for key in found])) < 1e-3


def test_minutes_of_speech_are_decoded_like_its_sentences(tmp_path: Path) -> None:
    files = sorted(Path("synth").rglob("*.flac"))
    rest = np.zeros(16000, dtype=np.float32)
    samples = [part for path in files * 3 for part in (soundfile.read(path, dtype="float32")[0], rest)]
    soundfile.write(tmp_path / "long.flac", np.concatenate(samples), 16000)
    run("decode", "--model", "exp/tuned", tmp_path / "long.flac", "-o", tmp_path / "out.jsonl")
    (line,) = map(json.loads, (tmp_path / "out.jsonl").open())
    seconds = soundfile.info(tmp_path / "long.flac").duration
    assert seconds > 240 and len(line["text"].split()) > seconds / 10


def test_every_folder_can_be_described(capsys: pytest.CaptureFixture[str]) -> None:
    for stamp in Path().rglob(STAMP):
        capsys.readouterr()
        run("info", stamp.parent, "--json")
        description = json.loads(capsys.readouterr().out)
        assert description["step"] and description["finished"]
        assert ("parameters" in description) == (stamp.parent / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prepare corpus nowhere out --train train", "there is no corpus folder"),
        ("prepare corpus synth out --train unlabelled", "has no transcripts (*.trans.txt): name a labelled subset"),
        ("prepare corpus synth out --train tarin", "there is no subset tarin in"),
        ("features manifests out --set num_mel_bin=40", "unknown key num_mel_bin, did you mean num_mel_bins?"),
        ("features synth out", "has no cuts_*.jsonl.gz"),
        ("tokenizer synth out", "needs the text of a train split"),
        ("lm ngram manifests out --tokenizer fbank", "is not a tokenizer"),
        ("pretrain manifests out", "holds cuts without features"),
        (
            "finetune fbank out --tokenizer tok --init exp/scratch --config finetune.yaml",
            "a w2v-bert or encoder model is needed",
        ),
        ("decode --model exp/pre synth/test", "a transducer model is needed"),
        ("decode --model fbank synth/test", "fbank is not a model folder"),
        ("decode --model exp/tuned synth/test --lm lm", "a language model needs a beam search"),
        ("decode --model exp/tuned --data fbank --split unlabelled --out out", "has no transcripts to score against"),
        ("pseudo-label fbank out --model exp/tuned --nonsense", "no such option: --nonsense"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_leaves_nothing(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in Path().iterdir())
    assert cli.main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1].startswith("error: ") and message in captured.err
    assert captured.err.count("error: ") == 1 and sorted(path.name for path in Path().iterdir()) == before


def test_bad_utterances_are_dropped_and_counted_all_along_the_road(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree("synth", tmp_path / "synth", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree("tok", tmp_path / "tok")
    shutil.copy("finetune.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    chapter = next(Path("synth/train").glob("*/*"))
    files = sorted(chapter.glob("*.flac"))
    files[0].write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
    soundfile.write(files[1], np.zeros(800, dtype=np.float32), 16000)
    transcripts = next(chapter.glob("*.trans.txt"))
    lines = transcripts.read_text().splitlines()
    transcripts.write_text("\n".join([*lines[:2], lines[2].split()[0], *lines[3:]]) + "\n")
    run(*make_commands()["corpus"])
    report = read_json(Path("manifests/report.json"))["splits"]["train"]
    dropped = report["dropped"]
    assert sorted(id for ids in dropped.values() for id in ids) == [path.stem for path in files[:3]]
    assert "empty transcript" in dropped and len(dropped) == 3
    run(*make_commands()["features"])
    run(*make_commands()["scratch"], "--set", "train.max_steps=2")
    assert any(r.getMessage().endswith(f" h, {report['utterances']} utterances") for r in caplog.records)


def test_a_changed_input_makes_all_that_follows_from_it_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = Path(shutil.copytree("gen1/labels", tmp_path / "labels"))
    command = [*make_commands()["student"][:2], str(labels.parent / "model"), *make_commands()["student"][3:]]
    command[command.index("gen1/labels")] = str(labels)
    run(*command, "--set", "train.max_steps=2")
    stamp = read_json(labels / STAMP)
    (labels / STAMP).write_text(json.dumps(stamp | {"fingerprint": "changed"}))
    caplog.clear()
    run(*command, "--set", "train.max_steps=2")
    assert not any("up to date" in record.getMessage() for record in caplog.records)
    assert any("have changed" in record.getMessage() for record in caplog.records)
