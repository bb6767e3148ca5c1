"""The command line: instant help, one line for each error the user can mend, exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from w2vbert import cli
from w2vbert.errors import UserError

COMMANDS = (
    "prepare features shards tokenizer lm import pretrain finetune average pseudo-label self-train decode score "
    "tune-fusion report info doctor"
).split()


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[object, ...]]]:
    """Puts a task module in place whose function notes its arguments, or raises."""

    def replace(module: str, function: str, error: BaseException | None = None) -> list[tuple[object, ...]]:
        calls: list[tuple[object, ...]] = []

        def work(*arguments: object) -> None:
            calls.append(arguments)
            if error is not None:
                raise error

        fake = types.ModuleType(f"w2vbert.tasks.{module}")
        setattr(fake, function, work)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        monkeypatch.setattr(sys.modules["w2vbert.tasks"], module, fake, raising=False)
        return calls

    import w2vbert.tasks  # noqa: F401  the package whose modules are replaced

    return replace


def test_help_lists_every_command_and_is_quick() -> None:
    before = os.times()
    result = subprocess.run([sys.executable, "-m", "w2vbert", "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    words = result.stdout.split()
    assert [command for command in COMMANDS if command not in words] == [] and result.stderr == ""
    assert seconds < 0.8, "0.2 s of processor time, whatever else the machine does"


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "torch torchaudio pydantic lhotse numpy yaml matplotlib tqdm kenlm".split()
    code = "import sys, w2vbert.cli; print(*[name for name in sys.argv[1:] if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0 and "Commands:" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.startswith("w2vbert ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--foo"], "error: no such option: --foo (try w2vbert --help)"),
        (["decode", "--foo"], "(try w2vbert decode --help)"),
        (["prepare", "synth", "--foo"], "(try w2vbert prepare synth --help)"),
        (["transcribe"], "error: no such command 'transcribe' (try w2vbert --help)"),
        (["features", "a"], "error: missing argument 'OUT' (try w2vbert features --help)"),
        (["features", "a", "b", "--nj", "many"], "error: invalid value for '--nj'"),
        (["decode", "--model", "m"], "error: name audio to decode"),
        (["decode", "--model", "m", "--data", "d", "--split", "dev"], "error: --data needs --split and --out"),
        (["prepare", "corpus", "a", "b"], "error: name the subsets"),
        (["report", "a.md", "--row", "x"], "error: --row x: write NAME=DIR"),
        (["decode", "--model", "m", ""], "error: an argument after m is empty: is a variable of your shell not set?"),
        (["prepare", "corpus", "a", "", "--train", ""], "error: an argument after a is empty"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and message in captured.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("no corpus at x"), "error: no corpus at x\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"), "error: a/b: no space left on device\n"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "c"), "error: c: no such file or directory\n"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "d"), "error: d: permission denied\n"),
        (MemoryError(), "error: out of memory: make batches (batch_seconds), the model or --nj smaller\n"),
        (
            RuntimeError("CUDA out of memory."),
            "error: out of memory: make batches (batch_seconds), the model or --nj smaller\n",
        ),
        (
            RuntimeError("Storage size calculation overflowed with sizes=[3, 1]"),
            "error: out of memory: make batches (batch_seconds), the model or --nj smaller\n",
        ),
    ],
)
def test_errors_of_a_task_are_one_line(
    tasks: Callable[..., list[tuple[object, ...]]],
    error: Exception,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks("pretrain", "pretrain", error)
    assert cli.main(["pretrain", "data", "out"]) == 2 and capsys.readouterr().err == message
    monkeypatch.setenv("W2VBERT_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["pretrain", "data", "out"])


def test_interruption_is_130(
    tasks: Callable[..., list[tuple[object, ...]]], capsys: pytest.CaptureFixture[str]
) -> None:
    tasks("pretrain", "pretrain", KeyboardInterrupt())
    assert cli.main(["pretrain", "data", "out"]) == 130 and capsys.readouterr().err == "interrupted\n"


SLOW = """
import sys, time, types
import w2vbert.tasks
from pathlib import Path
from w2vbert.files import atomic_dir
fake = types.ModuleType("w2vbert.tasks.pretrain")
def pretrain(data, out, *rest):
    with atomic_dir(out) as folder:
        print("ready", flush=True)
        time.sleep(60)
fake.pretrain = pretrain
sys.modules[fake.__name__] = w2vbert.tasks.pretrain = fake
from w2vbert import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGTERM, 143, "terminated\n"), (signal.SIGINT, 130, "interrupted\n")]
)
def test_signals_leave_nothing_behind(number: signal.Signals, code: int, line: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, "pretrain", "data", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert os.listdir(tmp_path) == [".partial.out"]
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", line)
    assert process.returncode == code and os.listdir(tmp_path) == []


def test_an_interruption_while_loading_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, "-m", "w2vbert", "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_call_that_has_been_made_loads_nothing(tmp_path: Path) -> None:
    command = ["prepare", "synth", str(tmp_path / "out")]
    for split in ("unlabelled", "train", "dev", "test"):
        command += ["--set", f"{split}_hours=0.0005", "--set", f"{split}_speakers=1"]
    (tmp_path / "c.yaml").write_text("lm_sentences: 5\n")
    command += ["--config", str(tmp_path / "c.yaml")]
    assert cli.main(command) == 0
    code = "import sys; from w2vbert.cli import main; print(main(sys.argv[1:]), 'numpy' in sys.modules)"
    run = [sys.executable, "-c", code]
    done = subprocess.run([*run, *command], capture_output=True, text=True, check=True)
    assert done.stdout == "0 False\n" and "prepare synth: up to date (" in done.stderr
    forced = subprocess.run([*run, *command, "--force"], capture_output=True, text=True, check=True)
    assert forced.stdout == "0 True\n" and "up to date" not in forced.stderr
    (tmp_path / "c.yaml").write_text("lm_sentences: 6\n")
    changed = subprocess.run([*run, *command], capture_output=True, text=True, check=True)
    assert changed.stdout == "0 True\n" and "config or inputs have changed" in changed.stderr


def test_a_mistake_of_ours_is_not_hidden(tasks: Callable[..., list[tuple[object, ...]]]) -> None:
    tasks("pretrain", "pretrain", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["pretrain", "data", "out"])


def test_arguments_reach_the_tasks(tasks: Callable[..., list[tuple[object, ...]]]) -> None:
    from w2vbert.tasks.fusion import LanguageModels
    from w2vbert.tasks.outputs import Output

    calls = tasks("prepare", "prepare_corpus")
    assert cli.main("prepare corpus C O --train a,b --unlabelled e --nj 2 --force".split()) == 0
    assert calls == [(Path("C"), Path("O"), {"train": ["a", "b"], "dev": [], "test": [], "unlabelled": ["e"]}, 2, True)]
    calls = tasks("finetune", "finetune")
    command = "finetune D O --tokenizer T --init scratch --config c.yaml --set a=1 --set b=2 --max-hours 1.5"
    assert cli.main(command.split()) == 0
    assert calls == [(Path("D"), Path("O"), Path("T"), "scratch", None, Path("c.yaml"), ["a=1", "b=2"], False, 1.5)]
    calls = tasks("decode", "decode_splits")
    assert cli.main("decode --model M --lm L --data D --split dev --split test --out O".split()) == 0
    assert calls == [(Path("M"), Path("D"), ["dev", "test"], Path("O"), LanguageModels((Path("L"),)), None, [], False)]
    calls = tasks("recognize_files", "decode_files")
    assert cli.main("decode --model M a.wav b -o out.jsonl".split()) == 0
    output = Output(Path("out.jsonl"))
    assert calls == [(Path("M"), [Path("a.wav"), Path("b")], output, LanguageModels(), None, [])]
    calls = tasks("report", "write_report")
    assert cli.main(["report", "R.md", "--row", "a=b=exp/a", "--row", "c=d"]) == 0
    assert calls == [(Path("R.md"), [("a=b", Path("exp/a")), ("c", Path("d"))], None)]


def test_doctor_reports_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["w2vbert"]
