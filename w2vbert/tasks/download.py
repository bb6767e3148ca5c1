"""Download of LibriSpeech and Libri-Light: goes on after an interruption, checks what has come, unpacks it whole."""

import hashlib
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from w2vbert.errors import UserError
from w2vbert.files import PARTIAL, check_space, lock_folder, naming, real_path, remove_tree
from w2vbert.log import logger, progress

BLOCK_BYTES = 1 << 20
TRIES = 5
"""Connections in a row that may break without a byte before the download gives up."""

WAIT_SECONDS = 2.0  # before the second try; twice as long before each of the next
TIMEOUT_SECONDS = 60.0  # of a connection that says nothing

OPENSLR = "https://www.openslr.org/resources"
LIBRILIGHT = "https://dl.fbaipublicfiles.com/librilight/data"


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        file: its name.
        base: URL of the folder that it is in.
        md5: checksum that its publisher tells.
        folder: what it unpacks to; a file that is not unpacked has its own name here.
    """

    file: str
    base: str
    md5: str
    folder: str


def _librispeech(name: str, number: int, md5: str) -> tuple[str, Archive]:
    return name, Archive(f"{name}.tar.gz", f"{OPENSLR}/{number}", md5, f"LibriSpeech/{name}")


def _librilight(name: str, suffix: str, md5: str) -> tuple[str, Archive]:
    return name, Archive(f"{name}{suffix}", LIBRILIGHT, md5, name)


ARCHIVES = dict(
    (
        _librispeech("train-clean-100", 12, "2a93770f6d5c6c964bc36631d331a522"),
        _librispeech("train-clean-360", 12, "c0e676e450a7ff2f54aeade5171606fa"),
        _librispeech("train-other-500", 12, "d1a0fd59409feb2c614ce4d30c387708"),
        _librispeech("dev-clean", 12, "42e2234ba48799c1f50f24a7926300a1"),
        _librispeech("dev-other", 12, "c8d0bcc9cca99d4f8b62fcc847357931"),
        _librispeech("test-clean", 12, "32fa31d27d2e1cad72775fee3f4849a9"),
        _librispeech("test-other", 12, "fb5a50374b501bb3bac4815ee91d3135"),
        _librispeech("train-clean-5", 31, "5df7d4e78065366204ca6845bb08f490"),
        _librispeech("dev-clean-2", 31, "6d7ab67ac6a1d2c993d050e16d61080d"),
        _librilight("small", ".tar", "c49207eb86a8e8ac895561c37232041e"),
        _librilight("medium", ".tar", "c75e7ac62471bfbf2db77528d62a9b74"),
        _librilight("large", ".tar", "4dfbac018f50b99797ece101fc9f0c30"),
        _librilight("librispeech_finetuning", ".tgz", "7f83024cb1334bfa372d1af2c75c3a77"),
    )
)
ARCHIVES["lm-text"] = Archive(
    "librispeech-lm-norm.txt.gz", f"{OPENSLR}/11", "c83c64c726a1aedfe65f80aa311de402", "librispeech-lm-norm.txt.gz"
)


def download(out: Path, names: Sequence[str], mirror: str | None = None) -> None:
    """Downloads archives and unpacks them in `out`; what is there already stays.

    LibriSpeech's subsets come to `out/LibriSpeech`, all else to `out` itself. An unpacked archive is removed.

    Args:
        names: of `ARCHIVES`.
        mirror: URL of a folder with the same files, instead of their publishers'.

    Raises:
        UserError: an unknown name, no connection, a file that is not there or not what it should be, or a full disk.
    """
    unknown = [name for name in names if name not in ARCHIVES]
    if unknown:
        raise UserError(f"unknown data {', '.join(unknown)}: there are {', '.join(ARCHIVES)}")
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise UserError(f"--mirror {mirror} is no address: write https://HOST/FOLDER")
    out = real_path(out)
    out.mkdir(parents=True, exist_ok=True)
    hold = lock_folder(out, out)
    try:
        for name in dict.fromkeys(names):
            archive = ARCHIVES[name]
            if (out / archive.folder).exists():
                logger.info("%s: is there (%s)", name, out / archive.folder)
                continue
            base = mirror.rstrip("/") if mirror else archive.base
            fetched = fetch(f"{base}/{archive.file}", out / archive.file, archive.md5)
            if archive.folder != archive.file:
                unpack(fetched, out, archive.folder)
                fetched.unlink()
    finally:
        os.close(hold)


def fetch(url: str, target: Path, md5: str) -> Path:
    """Downloads a file, or the rest of it, and checks it.

    What has come stands in `TARGET.part`; an interrupted download goes on from there.

    Raises:
        UserError: it cannot be had, is not what it should be, or the disk is full.
    """
    if target.is_file():
        if _md5(target) == md5:
            return target
        raise UserError(f"{target} is not the file that it should be (wrong MD5): remove it, and it is fetched anew")
    part = target.with_name(f"{target.name}.part")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            with naming(target, part):
                whole = _fetch_rest(url, part)
            if whole:
                break
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(f"{url}: the server says {error.code} {error.reason}: is the mirror right?") from error
            reason = f"the server says {error.code} {error.reason}"
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        failures = 1 if after > before else failures + 1
        if failures >= TRIES:
            raise UserError(f"{url}: {reason}, after {after / 2**20:.1f} MiB; the same command goes on from there")
        logger.info("%s: %s after %.1f MiB, trying again", target.name, reason, after / 2**20)
        time.sleep(WAIT_SECONDS * 2 ** (failures - 1))
    if _md5(part) != md5:
        part.unlink()
        raise UserError(f"{url} is not the file that it should be (wrong MD5), and was removed: try another --mirror")
    part.rename(target)
    return target


def _fetch_rest(url: str, part: Path) -> bool:
    """Appends to `part` what is missing, as far as the connection lasts; whether it is whole."""
    there = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and there:  # nothing is missing, or what is there is longer than the file: MD5 tells
            return True
        raise
    with response:
        if response.status != 206:
            there = 0  # a server that sends the whole file again
        size = int(response.headers["Content-Length"] or 0)
        check_space(part.parent, size)
        with part.open("ab" if there else "wb") as file:
            blocks = iter(lambda: response.read(BLOCK_BYTES), b"")
            name = part.name.removesuffix(".part")
            for block in progress(blocks, total=-(-size // BLOCK_BYTES) or None, desc=f"fetching {name}", unit="MiB"):
                file.write(block)
    return not size or part.stat().st_size == there + size


def unpack(archive: Path, out: Path, folder: str) -> None:
    """Unpacks a tar archive so that `out/folder` appears whole or not at all.

    Raises:
        UserError: the archive is damaged, does not hold the folder, or the disk is full.
    """
    logger.info("unpacking %s", archive.name)
    check_space(out, archive.stat().st_size)
    aside = out / f"{PARTIAL}{archive.name}"
    remove_tree(aside)
    try:
        try:
            with naming(out / folder, aside), tarfile.open(archive) as tar:
                tar.extractall(aside, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(f"{archive} is damaged ({error}): remove it, and it is fetched anew") from error
        if not (aside / folder).is_dir():
            raise UserError(f"{archive} holds no folder {folder}: remove it, and it is fetched anew")
        (out / folder).parent.mkdir(parents=True, exist_ok=True)
        for extra in (aside / folder).parent.iterdir():  # LibriSpeech's README and list of speakers
            if extra.is_file():
                shutil.copyfile(extra, (out / folder).parent / extra.name)
        (aside / folder).rename(out / folder)
    finally:
        remove_tree(aside)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
