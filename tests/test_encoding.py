"""Text is UTF-8 whatever the locale, and a terminal that knows less of it is no reason to die."""

from __future__ import annotations

import ast
import fcntl
import gzip
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.tasks.conftest import Prepared, prepared  # noqa: F401

NAME = "Gr\u00fc\u00dfe \u4f60 \U0001d11e"
PACKAGE = Path(__file__).parents[1] / "w2vbert"
C = {"LC_ALL": "C"}
ASCII = C | {"PYTHONIOENCODING": "ascii"}
BARE = ASCII | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as with a Python that does not mend the locale C


def without_locale() -> dict[str, str]:
    locale = ("LANG", "LC_", "PYTHONIOENCODING", "PYTHONUTF8")
    return {name: value for name, value in os.environ.items() if not name.startswith(locale)}


def w2vbert(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a locale of which nothing but these variables is known."""
    command = [sys.executable, "-m", "w2vbert", *(os.fsencode(str(a)) for a in arguments)]
    done = subprocess.run(command, env=without_locale() | environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Unicode" not in done.stderr, done.stderr.decode()
    return done


@pytest.mark.parametrize("environment", [C, ASCII, BARE])
def test_help_speaks(environment: dict[str, str]) -> None:
    assert b"Commands:" in w2vbert("--help", **environment).stdout
    assert b"pretrain" in w2vbert("pretrain", "--help", **environment).stdout


@pytest.mark.parametrize("environment", [ASCII, BARE])
def test_doctor_speaks(environment: dict[str, str]) -> None:
    assert json.loads(w2vbert("doctor", "--json", **environment).stdout)["w2vbert"]


LATIN = """
import locale, sys
locale.getencoding = lambda: "iso-8859-1"
from w2vbert.files import use_utf8
use_utf8()
print(sys.flags.utf8_mode, sys.argv[1])
"""


@pytest.mark.parametrize("chosen", [None, "0"])
def test_lhotse_finds_utf8_in_other_locales(chosen: str | None) -> None:
    """Of which there are few on a machine: it is pretended."""
    environment = without_locale() | {"LC_ALL": "C.UTF-8"} | ({} if chosen is None else {"PYTHONUTF8": chosen})
    command = [sys.executable, "-c", LATIN, NAME]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.decode() == f"{int(chosen is None)} {NAME}\n"


def test_any_text_is_read_and_any_folder_described(prepared: Prepared, tmp_path: Path) -> None:  # noqa: F811
    """What is printed as JSON is JSON, and says the same everywhere."""
    corpus, out, environment = tmp_path / NAME, tmp_path / f"{NAME} out", ASCII
    shutil.copytree(prepared.corpus, corpus)
    words = "GR\u00dcSSE \u4f60"
    for path in (corpus / "a-train").rglob("*.trans.txt"):
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(f"{name} {words}\n" for name in names), encoding="utf-8")
    w2vbert("prepare", "corpus", corpus, out, "--train", "a-train", "--dev", "a-dev", **environment)
    with gzip.open(out / "cuts_train.jsonl.gz", "rt", encoding="utf-8") as file:
        assert {json.loads(line)["supervisions"][0]["text"] for line in file} == {words}
    description = json.loads(w2vbert("info", out, "--json", **environment).stdout)
    assert os.fsencode(description["config"]["corpus"]) == os.fsencode(str(corpus))
    assert b"corpus: " in w2vbert("info", out, **environment).stdout


@pytest.mark.parametrize("environment", [ASCII, BARE])
def test_recordings_with_any_name_are_decoded(
    prepared: Prepared,  # noqa: F811
    tmp_path: Path,
    environment: dict[str, str],
) -> None:
    audio = tmp_path / f"{NAME}.flac"
    shutil.copyfile(next(prepared.corpus.rglob("*.flac")), audio)
    command = ("decode", "--model", prepared.model, audio)
    done = w2vbert(*command, "--format", "jsonl", **environment)
    assert os.fsencode(json.loads(done.stdout)["id"]) == os.fsencode(str(audio))


BAR = """
from w2vbert.log import logger, progress, setup_logging
setup_logging()
for _ in progress(range(20), desc="Gr\\u00fc\\u00dfe", unit="\\u4f60"):
    logger.info("\\u4f60")
"""


@pytest.mark.parametrize("environment", [C, ASCII, BARE])
def test_a_bar_is_drawn_on_any_terminal(environment: dict[str, str]) -> None:
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = without_locale() | environment | {"TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", BAR], stdin=end, stdout=end, stderr=end, env=environment)
    os.close(end)
    drawn = b""
    while process.poll() is None or select.select([terminal], [], [], 0)[0]:
        try:
            drawn += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
    os.close(terminal)
    assert process.wait(20) == 0 and b"20/20" in drawn and b"Error" not in drawn, drawn.decode(errors="replace")


def test_files_are_opened_as_utf8() -> None:
    """Each call that opens text says so."""
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and opens_text(node):
                if not any(keyword.arg == "encoding" for keyword in node.keywords):
                    missing.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert missing == []


def opens_text(call: ast.Call) -> bool:
    """Whether a call is one of `open`, `gzip.open`, `Path.open`, `read_text` and `write_text`, and not binary."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return True
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name != "open" or owner in ("os", "tarfile", "self", "labelling"):
        return False
    modes = [ast.unparse(argument) for argument in call.args]
    return not any("b" in mode for mode in modes[owner == "gzip" :]) and not (owner == "gzip" and len(modes) == 1)
