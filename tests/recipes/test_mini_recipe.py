"""recipes/mini/run.sh with the real command line, tiny: killed again and again on its way to the table, then changed.

`test_run_sh.py` tests the script itself, with a command line that only notes its calls.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from w2vbert import cli
from w2vbert.files import read_json
from w2vbert.log import setup_logging
from w2vbert.stages import CALL, STAMP

SCRIPT = Path(__file__).parents[2] / "recipes" / "mini" / "run.sh"
COMMANDS = Path(sys.executable).parent
SETPRIV = ["setpriv", "--pdeathsig", "KILL"]
TIED = SETPRIV if subprocess.run(["sh", "-c", f"{' '.join(SETPRIV)} true"], check=False).returncode == 0 else []
"""Lets the script die with the test; empty where a killed script cannot take its commands along (old util-linux)."""

SPLITS = ("unlabelled", "train", "dev", "test")
HOURS = (0.004, 0.005, 0.003, 0.003)  # 54 s
STUDENT = "exp/self_train/gen1/model"
LABELS = "exp/self_train/gen1/labels"
DATA = {"data/synth", "data/manifests", "data/fbank", "data/tokenizer", "data/lm"}
SELF_TRAIN = "exp/self_train"
DEV_LABELS = {"exp/self_train/gen0/dev", "exp/self_train/gen1/dev"}
TRAININGS = {"exp/pretrain", "exp/scratch", "exp/finetune", STUDENT}
DECODINGS = {
    "exp/scratch/decode_greedy",
    "exp/finetune/decode_greedy",
    "exp/finetune/decode_lm",
    f"{SELF_TRAIN}/decode_lm",
}
STEPS = DATA | TRAININGS | {LABELS, SELF_TRAIN} | DEV_LABELS | DECODINGS
INSIDE = {LABELS, STUDENT} | DEV_LABELS
"""Steps of self-training, which does not look at them while its own result is up to date."""

OPTIM = {"learning_rate": 3e-2, "warmup_steps": 2}  # high, to forget the unknown piece in a few steps
BEAM = {"method": "beam", "beam_size": 2, "length_bonus": 4.0}
FUSION = {"ngram": 0.5}  # finds words even with a model that has learned next to nothing
ENCODER = {
    "subsampling": {"num_mel_bins": 80, "channels": [4, 4]},
    "block": {"dim": 16, "heads": 2, "feed_forward_dim": 32, "positions": "rotary", "dropout_prob": 0.1},
    "contrastive_blocks": 1,
    "masked_blocks": 1,
}


def training(steps: int) -> dict[str, object]:
    """Settings of a loop that saves often."""
    return {"max_steps": steps, "save_every_steps": 2, "validate_every_steps": 8, "log_every_steps": 3, "threads": 1}


TRANSDUCER = {
    "predictor": {"dim": 16, "layers": 1, "dropout_prob": 0.1},
    "projection_dim": 16,
    "joiner_dim": 16,
    "loss": {"prune_range": 4, "warmup_steps": 4, "ctc_weight": 0.3},
    "train": {**training(8), "average_decay": 0.5},
    "encoder_optim": OPTIM,
    "decoder_optim": OPTIM,
    "freeze_feature_encoder": False,
    "join_utterances": 2,
    "batch_seconds": 10,
}
CONF: dict[str, dict[str, Any]] = {
    "synth": {
        **{f"{split}_hours": hours for split, hours in zip(SPLITS, HOURS, strict=True)},
        **{f"{split}_speakers": 1 for split in SPLITS},
        "lm_sentences": 50,
    },
    "tokenizer": {"model_type": "char"},
    "lm": {"ngram": {"order": 2}},
    "pretrain": {
        "model": {"encoder": ENCODER, "quantizer": {"codes": 8, "dim": 8}, "mask_span_frames": 4, "num_distractors": 5},
        "train": training(6),
        "optim": OPTIM,
        "batch_seconds": 10,
    },
    "finetune": {"encoder": ENCODER, **TRANSDUCER},
    "self_train": {
        "generations": 1,
        "labels": {
            "search": BEAM,
            "fusion": FUSION,
            "keep_share": 0.9,
            "max_words_per_second": 100.0,
            "rate_quantile": 0.0,
            "dev_quantile": 0.0,
        },
        "student": TRANSDUCER,
    },
    "decode": {"search": BEAM},
    "decode_lm": {"search": BEAM, "fusion": FUSION},
}
# Options of a call, a file or folder at whose appearance the script is killed, and the step that this interrupts.
KILLS = (
    ("--nj 1", "data/.partial.synth/*/*/*/*.flac", "data/synth"),
    ("--nj 1", "data/.partial.fbank", "data/fbank"),
    ("--nj 2", "exp/pretrain/checkpoints/step-*", "exp/pretrain"),
    ("--nj 2 --stage 3", "exp/scratch/checkpoints/step-*", "exp/scratch"),
    ("--nj 2 --stage 4", "exp/self_train/gen1/.partial.labels", LABELS),
    ("--nj 2 --stage 5", "exp/finetune/.partial.decode_lm", "exp/finetune/decode_lm"),
)
LAST_CALL = "--nj 2 --stage 6"

pytestmark = pytest.mark.slow


class Recipe:
    """The recipe, and a folder for its settings, data, results and logs."""

    def __init__(self, folder: Path) -> None:
        assert (COMMANDS / "w2vbert").is_file(), "the project is not installed beside this Python: see bin/setup"
        self.folder = folder.resolve()
        self.logs: list[str] = []
        (self.folder / "conf").mkdir()
        for name in CONF:
            self.configure(name)

    def configure(self, name: str, **changes: object) -> None:
        """Writes a file of settings."""
        (self.folder / "conf" / f"{name}.yaml").write_text(yaml.safe_dump(CONF[name] | changes))

    def start(self, options: str) -> subprocess.Popen[bytes]:
        """Starts the script in a session of its own."""
        command = [*TIED, str(SCRIPT), *"--data-dir data --expdir exp --conf conf".split(), *options.split()]
        environment = os.environ | {"PATH": f"{COMMANDS}:{os.environ['PATH']}"}
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def read_log(self) -> str:
        """What the last call has said so far."""
        return (self.folder / "log").read_text()

    def run(self, options: str) -> None:
        """Runs the script to its end."""
        script = self.start(options)
        try:
            code = script.wait(timeout=300)
        finally:
            end_session(script.pid)
        assert code == 0, self.read_log()
        self.logs.append(self.read_log())

    def kill(self, options: str, moment: str, step: str) -> None:
        """Runs the script until `moment` appears, in the midst of `step`, and kills it: its commands die, too."""

        def is_here() -> bool:
            assert script.poll() is None, self.read_log()
            return bool(glob.glob(moment, root_dir=self.folder))

        assert not glob.glob(moment, root_dir=self.folder)
        script = self.start(options)
        try:
            wait_until(is_here, 120)
            script.kill()
            assert script.wait() == -signal.SIGKILL
            if TIED:
                wait_until(lambda: not session_of(script.pid), 10)
        finally:
            end_session(script.pid)
        assert not (self.folder / step / STAMP).exists()
        self.logs.append(self.read_log())

    def commands(self) -> list[list[str]]:
        """The commands of all calls, each once, in order."""
        lines = [line for log in self.logs for line in re.findall(r"\$ (w2vbert.+)", log)]
        return [shlex.split(line) for line in dict.fromkeys(lines)]

    def up_to_date(self) -> set[str]:
        """Folders that the last call found up to date."""
        return set(re.findall(rf"up to date \({re.escape(str(self.folder))}/(.+)\)", self.read_log()))

    def times(self) -> dict[str, int]:
        """When each file of data and results, but the table, was changed."""
        paths = [path for top in ("data", "exp") for path in (self.folder / top).rglob("*") if path.is_file()]
        return {str(p.relative_to(self.folder)): p.stat().st_mtime_ns for p in paths if p.name != "RESULTS.md"}

    def results(self) -> dict[str, object]:
        """Weights, texts, scores and the table without its minutes."""
        found: dict[str, object] = {"rows": self._rows()}
        for name in TRAININGS:
            found[name] = hashlib.sha256((self.folder / name / "model.safetensors").read_bytes()).hexdigest()
        for name in DECODINGS:
            found[name] = read_json(self.folder / name / "wer.json")["splits"]
            for path in (self.folder / name).glob("hyps-*.jsonl"):
                found[f"{name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def _rows(self) -> dict[str, str]:
        lines = (self.folder / "exp" / "RESULTS.md").read_text().splitlines()
        rows = [line.strip("|").split("|", 1) for line in lines[2:] if line.startswith("|")]
        return {name.strip(): cells.rpartition("|")[0] for name, cells in rows}


@dataclass(frozen=True)
class Finished:
    """The recipe after calls that were killed and a last one that was not, and its results at that time."""

    recipe: Recipe
    results: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    recipe = Recipe(tmp_path_factory.mktemp("recipe"))
    for options, moment, step in KILLS:
        recipe.kill(options, moment, step)
    recipe.run(LAST_CALL)
    return Finished(recipe, recipe.results())


def test_all_stages_lead_to_the_table(finished: Finished) -> None:
    folder = finished.recipe.folder
    assert {str(stamp.parent.relative_to(folder)) for stamp in folder.rglob(STAMP)} == STEPS
    assert list(finished.results["rows"]) == [
        "trained from scratch",
        "pre-trained",
        "pre-trained + LM",
        "+ self-training + LM",
    ]
    for name in ("exp/finetune/decode_lm", f"{SELF_TRAIN}/decode_lm"):
        assert all(score["deletions"] < score["words"] for score in finished.results[name].values())


def test_kills_change_no_result(finished: Finished, tmp_path: Path) -> None:
    killed, undisturbed = finished.recipe, Recipe(tmp_path)
    resumed = {name for log in killed.logs for name in re.findall(r"/(\w+): resumed at step", log)}
    assert resumed >= {"pretrain", "scratch"}
    for command in killed.commands():
        program, *arguments = [word.replace(str(killed.folder), str(undisturbed.folder)) for word in command]
        if program == "w2vbert":
            assert cli.main(arguments) == 0
        else:  # several processes
            subprocess.run([COMMANDS / program, *arguments], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    setup_logging()  # closes the log file of the last training
    assert finished.results == undisturbed.results()
    assert not [path for path in killed.folder.rglob(".*") if path.name.startswith((".partial.", ".old."))]


def test_a_second_call_changes_nothing(finished: Finished) -> None:
    before, results = finished.recipe.times(), finished.recipe.results()
    finished.recipe.run("--nj 2")
    assert finished.recipe.up_to_date() == STEPS - INSIDE
    assert finished.recipe.times() == before and finished.recipe.results() == results


def test_changed_settings_redo_what_depends_on_them_and_nothing_else(finished: Finished) -> None:
    recipe = finished.recipe
    before = recipe.times()
    recipe.configure("self_train", labels=CONF["self_train"]["labels"] | {"keep_share": 0.5})
    recipe.run("--nj 2 --stage 3 --stop-stage 5")
    assert re.findall(r"stage (\d): ", recipe.read_log()) == ["3", "4", "5"]
    assert recipe.up_to_date() == TRAININGS - {STUDENT} | {"exp/self_train/gen0/dev"}
    after = recipe.times()
    redone = {name for name in STEPS if after.get(f"{name}/{STAMP}") != before[f"{name}/{STAMP}"]}
    assert redone == {LABELS, STUDENT, SELF_TRAIN, "exp/self_train/gen1/dev"}
    own = tuple(f"{SELF_TRAIN}/{name}" for name in ("gen1/", "report.json", STAMP, CALL))
    kept = [name for name in before | after if not name.startswith(own)]
    assert [name for name in kept if after.get(name) != before.get(name)] == []


def session_of(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            state, _, _, session = Path(path).read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.split("/")[2]))
    return found


def end_session(leader: int) -> None:
    """Ends what a failing test leaves running."""
    for process in session_of(leader):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
