"""Downloads from a server on this machine."""

import errno
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from w2vbert import cli
from w2vbert.errors import UserError
from w2vbert.tasks import download as task
from w2vbert.tasks.download import Archive, download, fetch


class Server:
    """Serves `files`; the next answers break off after so many bytes as `breaks` says, or have a status of `errors`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.errors: list[int] = []
        self.ranges = True
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        data = self.files.get(request.path.removeprefix("/"))
        wanted = request.headers.get("Range", "")
        self.asked.append(wanted)
        status = 404 if data is None else self.errors.pop(0) if self.errors else 200
        if status != 200 or data is None:
            request.send_error(status)
            return
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if first >= len(data) > 0:
            request.send_error(416)
            return
        request.send_response(206 if wanted and self.ranges else 200)
        request.send_header("Content-Length", str(len(data) - first))
        request.end_headers()
        request.wfile.write(data[first:][: self.breaks.pop(0) if self.breaks else None])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(task, "WAIT_SECONDS", 0.0)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def make_archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    return buffer.getvalue()


def offer(server: Server, monkeypatch: pytest.MonkeyPatch, data: bytes, md5: str = "") -> None:
    """The server has `data` as dev-clean."""
    server.files["dev-clean.tar.gz"] = data
    digest = md5 or hashlib.md5(data).hexdigest()
    archive = Archive("dev-clean.tar.gz", "http://127.0.0.1:1", digest, "LibriSpeech/dev-clean")
    monkeypatch.setitem(task.ARCHIVES, "dev-clean", archive)


FILES = ("LibriSpeech/README.TXT", "LibriSpeech/dev-clean/1/2/1-2-0000.flac", "LibriSpeech/dev-clean/1/2/1-2.trans.txt")


def test_a_subset_is_fetched_and_unpacked_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, make_archive(*FILES))
    out = tmp_path / "download"
    for _ in range(2):
        assert cli.main(["download", str(out), "dev-clean", "--mirror", f"{server.url}/"]) == 0
    assert server.asked == [""]
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(FILES)


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    server.files["f"] = data
    server.breaks = [1000, 500]
    server.errors = [503]
    fetch(f"{server.url}/f", tmp_path / "f", hashlib.md5(data).hexdigest())
    assert (tmp_path / "f").read_bytes() == data and server.asked == ["", "", "bytes=1000-", "bytes=1500-"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_later_call_goes_on_too(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_archive(*FILES)
    offer(server, monkeypatch, data)
    server.breaks = [50] + [0] * task.TRIES
    with pytest.raises(
        UserError, match=r"dev-clean\.tar\.gz: the connection broke.*the same command goes on from there"
    ):
        download(tmp_path, ["dev-clean"], server.url)
    assert (tmp_path / "dev-clean.tar.gz.part").stat().st_size == 50
    server.breaks.clear()
    download(tmp_path, ["dev-clean"], server.url)
    assert server.asked[-1] == "bytes=50-" and (tmp_path / "LibriSpeech" / "dev-clean").is_dir()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path, ranges: bool) -> None:
    data = b"abc" * 1000
    server.files["f"], server.ranges, server.breaks = data, ranges, [100]
    assert fetch(f"{server.url}/f", tmp_path / "f", hashlib.md5(data).hexdigest()).read_bytes() == data


def test_what_is_not_the_file_is_removed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, make_archive(*FILES), md5="0" * 32)
    with pytest.raises(UserError, match=r"wrong MD5\), and was removed: try another --mirror"):
        download(tmp_path, ["dev-clean"], server.url)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "dev-clean.tar.gz").write_bytes(b"of another download")
    with pytest.raises(UserError, match=r"wrong MD5\): remove it"):
        download(tmp_path, ["dev-clean"], server.url)


def test_a_longer_rest_than_the_file_is_noticed(server: Server, tmp_path: Path) -> None:
    server.files["f"] = b"abc"
    (tmp_path / "f.part").write_bytes(b"abcdef")
    with pytest.raises(UserError, match="wrong MD5"):
        fetch(f"{server.url}/f", tmp_path / "f", hashlib.md5(b"abc").hexdigest())
    fetch(f"{server.url}/f", tmp_path / "f", hashlib.md5(b"abc").hexdigest())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (make_archive("LibriSpeech/README.TXT"), "holds no folder LibriSpeech/dev-clean"),
        (make_archive(*FILES)[:100], "is damaged"),
        (make_archive("../outside", *FILES), "is damaged"),
    ],
    ids=["another folder", "cut off", "leads outside"],
)
def test_archives_that_do_not_unpack_leave_nothing_half(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    offer(server, monkeypatch, data)
    with pytest.raises(UserError, match=message):
        download(tmp_path / "out", ["dev-clean"], server.url)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dev-clean.tar.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_each_mistake_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(server, monkeypatch, make_archive(*FILES))

    def error_of(*arguments: str) -> str:
        assert cli.main(["download", str(tmp_path), *arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        return lines[-1]

    assert "unknown data dev-clear: there are train-clean-100" in error_of("dev-clear")
    assert "the server says 404" in error_of("test-clean", "--mirror", server.url)
    assert "is no address" in error_of("dev-clean", "--mirror", "somewhere")
    assert "refused, after 0.0 MiB; the same command goes on" in error_of("dev-clean")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    assert "MiB are free there" in error_of("dev-clean", "--mirror", server.url)


@pytest.mark.parametrize("step", ["fetch", "unpack"])
@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no space left on device"), (errno.EDQUOT, "disk quota")])
def test_a_disk_that_fills_up_is_one_line_and_what_has_come_stays(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, words: str
) -> None:
    data = make_archive(*FILES)
    offer(server, monkeypatch, data)

    def fill_up(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*{"fetch": (task, "progress"), "unpack": (tarfile.TarFile, "extractall")}[step], fill_up)
        target = {"fetch": "dev-clean.tar.gz", "unpack": "LibriSpeech/dev-clean"}[step]
        with pytest.raises(UserError, match=f"^cannot write {tmp_path}/{target}: {words}"):
            download(tmp_path, ["dev-clean"], server.url)
    kept = {"fetch": "dev-clean.tar.gz.part", "unpack": "dev-clean.tar.gz"}[step]
    assert [path.name for path in tmp_path.iterdir()] == [kept]
    download(tmp_path, ["dev-clean"], server.url)
    assert [path.name for path in tmp_path.iterdir()] == ["LibriSpeech"]


def test_text_is_not_unpacked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "librispeech-lm-norm.txt.gz"
    server.files[name] = b"text"
    monkeypatch.setitem(task.ARCHIVES, "lm-text", Archive(name, "", hashlib.md5(b"text").hexdigest(), name))
    download(tmp_path, ["lm-text"], server.url)
    download(tmp_path, ["lm-text"], server.url)
    assert (tmp_path / name).read_bytes() == b"text" and server.asked == [""]
