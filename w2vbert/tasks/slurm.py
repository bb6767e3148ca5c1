"""Slurm: a command as a job, or as an array of them; what became of each, told in one line."""

import getpass
import hashlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from w2vbert.errors import REQUEUE_EXIT_CODE, UserError
from w2vbert.files import atomic_file
from w2vbert.log import logger
from w2vbert.tasks.parts import Ended, Work, run_parts, tail, tell_error

WARNING_SECONDS = 120
"""So long before its time limit a job is told (SIGUSR1): a training then saves and goes on in a new turn."""

MAX_TURNS = 1000
"""So often a job asks for another turn; more would be one that does nothing in its turns."""

POLLS_UNTIL_LOST = 3
FINAL = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
}
BEGIN = "w2vbert: begins "  # of the line in the log at which a turn of a job begins
MEMORY = re.compile(r"exceeded .*memory limit|oom[-_ ]?kill", re.IGNORECASE)  # lines of slurmstepd in a job's log
TIME = re.compile(r"CANCELLED AT .* DUE TO TIME LIMIT")

# Signals go to the command; what ends with 75 takes another turn, unless Slurm itself is ending it (SIGTERM).
SCRIPT = """#!/bin/bash
# {name}: written by w2vbert submit
part=${{SLURM_ARRAY_TASK_ID:-1}}
status={folder}/$part
mkdir -p {folder}
rm -f "$status"
cd {cwd} || exit 2
echo "{begin}$(date '+%F %T'), job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, turn $((${{SLURM_RESTART_COUNT:-0}} + 1))"
signals=0 warned= ending=
trap 'signals=$((signals + 1)) warned=warned; kill -USR1 "$child"' USR1
trap 'signals=$((signals + 1)) ending=yes; kill -TERM "$child"' TERM
{command} &
child=$!
while true; do
  before=$signals
  wait "$child"
  code=$?
  [ "$signals" = "$before" ] && break
done
if [ "$code" = {requeue} ] && [ -z "$ending" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {turns} ]; then
  scontrol requeue "$SLURM_JOB_ID" && exit {requeue}
fi
echo "$code $warned" >"$status.partial" && mv "$status.partial" "$status"
exit "$code"
"""


@dataclass(frozen=True)
class Resources:
    """What each job asks for.

    Attributes:
        nodes: machines; with more than one the command is begun on each (`srun`), and is to be `w2vbert-launch`.
        gpus: GPUs on each.
        cpus: processor cores on each.
        options: more options of sbatch, which go before all others; SBATCH_PARTITION and the like work, too.
    """

    nodes: int = 1
    gpus: int = 0
    cpus: int = 1
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A line of the queue.

    Attributes:
        job: number of the job, or of the array.
        state: as Slurm calls it, such as PENDING.
        reason: why it waits, or has failed.
        nodes: where it runs.
    """

    job: int
    state: str
    reason: str
    nodes: str


class SlurmQueue:
    """Parts as jobs of Slurm.

    A job's name holds a hash of its command and the current folder: a second call finds the jobs of a first one that
    was killed, and waits for them instead of submitting them once more.
    """

    def __init__(self, work: Work, resources: Resources) -> None:
        """Submits nothing yet."""
        self.work = work
        self._resources = resources
        self._folder = work.folder.absolute()
        digest = hashlib.sha256(json.dumps([os.getcwd(), work.command, work.parts]).encode()).hexdigest()[:8]
        self._job_name = f"{work.name}-{digest}"
        self._status = self._folder / f".{self._job_name}"
        self._jobs: dict[int, int] = {}  # part -> the job to look at; older ones of that name are history
        self._absent: dict[int, int] = {}  # part -> so often it was looked for in vain
        self._told: dict[int, str] = {}  # part -> state that was logged
        self._unsent: list[int] = []  # parts that could not be submitted because Slurm did not answer
        self._silent = False

    def attach(self) -> set[int]:
        """Parts that wait or run."""
        entries = self._read_queue()
        if entries is None:
            raise UserError("Slurm does not answer (squeue): try again when `sinfo` shows its nodes")
        self._jobs = {part: entry.job for part, entry in entries.items()}  # older ones are history
        return {part for part, entry in entries.items() if entry.state not in FINAL}

    def submit(self, parts: Sequence[int]) -> None:
        """Submits one job, or one array.

        Raises:
            UserError: there is no Slurm, or it refuses the job.
        """
        if not parts:
            return
        for part in parts:
            (self._status / str(part)).unlink(missing_ok=True)
        script = self._folder / f"{self.work.name}.sh"
        with atomic_file(script) as aside:
            aside.write_text(self._write_script(), encoding="utf-8")
        array = [] if self.work.parts is None else [f"--array={_join_ranges(parts)}"]
        try:
            job = int(_call("sbatch", "--parsable", *self._options(), *array, str(script)).split(";")[0])
        except ConnectionError as error:
            logger.warning(f"{self.work.name}: Slurm does not answer, tried again later: {error}")
            self._unsent = list(parts)
            return
        self._unsent = []
        self._jobs |= dict.fromkeys(parts, job)
        self._absent = {part: 0 for part in self._absent if part not in parts}
        what = self.work.log(0).name.replace(".0.", ".*.") if self.work.parts is not None else self.work.log(1).name
        number = f" ({len(parts)} parts)" if self.work.parts is not None else ""
        logger.info(f"{self.work.name}: job {job}{number}, log {self.work.folder / what}")

    def poll(self) -> Mapping[int, Ended | None]:
        """How each part has ended, by Slurm's word and by the exit code that its script has left."""
        entries = self._read_queue()
        if entries is None:  # Slurm does not answer: wait
            return dict.fromkeys(self._jobs)
        if self._unsent:  # Slurm may have taken them all the same
            taken = {part: entry.job for part, entry in entries.items() if entry.job > self._jobs.get(part, 0)}
            self._jobs |= {part: job for part, job in taken.items() if part in self._unsent}
            self.submit([part for part in self._unsent if part not in taken])
        return {part: self._judge(part, entries.get(part)) for part in self._jobs}

    def cancel(self) -> None:
        """Ends the jobs of this name."""
        live = [part for part, entry in (self._read_queue() or {}).items() if entry.state not in FINAL]
        if live:
            logger.info(f"{self.work.name}: its jobs are taken back")
            subprocess.run(["scancel", "-u", getpass.getuser(), "--name", self._job_name], check=False)

    def _judge(self, part: int, entry: Entry | None) -> Ended | None:
        if entry is not None and entry.job < self._jobs[part]:
            entry = None
        if entry is not None and entry.state not in FINAL:
            self._tell_state(part, entry)
            return None
        code, warned = self._read_status(part)
        if entry is None and code is None:
            self._absent[part] = self._absent.get(part, 0) + 1
            if self._absent[part] < POLLS_UNTIL_LOST:
                return None
        return explain(entry, code, warned, self.work.log(part))

    def _tell_state(self, part: int, entry: Entry) -> None:
        """A log line when a single job begins, waits or begins anew; of arrays only what holds them up."""
        told = f"waits ({entry.reason})" if entry.state == "PENDING" else f"{entry.state.lower()} on {entry.nodes}"
        stuck = entry.state == "PENDING" and ("held" in entry.reason.lower() or "Never" in entry.reason)
        if self._told.get(part) != told and (self.work.parts is None or stuck):
            logger.info(f"{self.work.describe(part)}: job {entry.job} {told}")
        self._told[part] = told

    def _read_status(self, part: int) -> tuple[int | None, bool]:
        """Exit code that the script has left, if any, and whether the job was told that its time is ending."""
        try:
            code, *warned = (self._status / str(part)).read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return None, False
        return int(code), bool(warned)

    def _read_queue(self) -> dict[int, Entry] | None:
        """The newest job of each part, by number of the part; None if Slurm does not answer."""
        columns = "%F|%K|%T|%r|%N"
        command = ["-h", "-r", "-t", "all", "-u", getpass.getuser(), "--name", self._job_name, "-o", columns]
        try:
            lines = _call("squeue", *command).splitlines()
        except ConnectionError as error:
            if not self._silent:
                logger.warning(f"Slurm does not answer, waiting for it: {error}")
            self._silent = True
            return None
        self._silent = False
        found: dict[int, Entry] = {}
        for line in lines:
            job, part, state, reason, nodes = line.split("|")
            entry = Entry(int(job), state, reason, nodes)
            number = int(part) if part.isdecimal() else 1
            if number not in found or entry.job >= found[number].job:
                found[number] = entry
        return found

    def _options(self) -> list[str]:
        need = self._resources
        log = str(self._folder / self.work.log(1).name).replace("%", "%%")
        if self.work.parts is not None:
            log = log.removesuffix(".1.log") + ".%a.log"
        gpus = [f"--gpus-per-node={need.gpus}"] if need.gpus else []
        return [
            f"--job-name={self._job_name}",
            f"--output={log}",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR1@{WARNING_SECONDS}",
            f"--nodes={need.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={need.cpus}",
            *gpus,
            *need.options,
        ]

    def _write_script(self) -> str:
        words = [shlex.quote(word).replace("{part}", "'\"$part\"'") for word in self.work.command]
        if self._resources.nodes > 1:
            words = ["srun", "--kill-on-bad-exit=1", f"--cpus-per-task={self._resources.cpus}", *words]
        return SCRIPT.format(
            name=self.work.name,
            folder=shlex.quote(str(self._status)),
            cwd=shlex.quote(os.getcwd()),
            begin=BEGIN,
            command=" ".join(words),
            requeue=REQUEUE_EXIT_CODE,
            turns=MAX_TURNS,
        )


def explain(entry: Entry | None, code: int | None, warned: bool, log: Path) -> Ended:
    """How a job has ended.

    Args:
        entry: what Slurm says; None if it has forgotten the job.
        code: exit code that the job's script has left; None if it came to no end of its own.
        warned: whether the job was told that its time is ending.
        log: of the job.
    """
    state = "" if entry is None else entry.state
    if state == "COMPLETED" or (entry is None and code == 0):
        return Ended(0)
    if state == "CANCELLED":
        return Ended(code, "was cancelled")
    if code == REQUEUE_EXIT_CODE:
        return Ended(code, free=True, again=True)
    if state == "OUT_OF_MEMORY" or any(MEMORY.search(line) for line in _last_turn(log)):
        return Ended(code, "was killed for memory: ask for more (sbatch's --mem), or make batch_seconds smaller")
    late = any(TIME.search(line) for line in _last_turn(log))
    if late or state in ("TIMEOUT", "DEADLINE") or (warned and code is not None and code > 128):
        return Ended(code, "has reached its time limit: ask for more (sbatch's --time), or for more parts")
    if code == 2:
        return Ended(code, tell_error(log))
    if state == "NODE_FAIL" or code is None:
        why = f"was lost ({state}, {entry.reason} on {entry.nodes})" if entry else "was lost (Slurm has forgotten it)"
        return Ended(code, why, again=True)
    return Ended(code, f"ended with exit code {code}", again=True)


def submit_command(work: Work, resources: Resources) -> None:
    """Runs a command as a job or an array of jobs, and waits for its end.

    Raises:
        UserError: Slurm refuses it, or a part of it has failed for good.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    run_parts(SlurmQueue(work, resources), work.numbers)


def _last_turn(log: Path) -> list[str]:
    lines = tail(log)
    begins = [number for number, line in enumerate(lines) if line.startswith(BEGIN)]
    return lines[begins[-1] :] if begins else lines


def _call(program: str, *arguments: str) -> str:
    """What a program of Slurm prints.

    Raises:
        UserError: it is not there, or refuses.
        ConnectionError: the controller does not answer.
    """
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no Slurm here (no {program} on PATH): use --cmd local, or log in where it is"
        ) from error
    if done.returncode == 0:
        return done.stdout
    lines = [line.split("error: ", 1)[-1] for line in done.stderr.splitlines() if line.strip()]
    message = "; ".join(dict.fromkeys(lines)) or f"exit code {done.returncode}"
    if "Unable to contact" in message or "timed out" in message.lower():
        raise ConnectionError(message)
    raise UserError(f"Slurm refuses it ({program}): {message}")


def _join_ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 becomes 1-3,7: the arrays of a thousand parts fit into a command line."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
