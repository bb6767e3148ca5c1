"""recipes/mini/run.sh with a w2vbert that only notes how it was called: options, stages, order, failures, signals."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPES = Path(__file__).parent.parent.parent / "recipes"
# Notes its arguments; `fail-on` holds a pattern and an exit code, `hang-on` a pattern.
FAKE = """#!/usr/bin/env bash
here=$(dirname "$0")
echo "$*" >>"$here/calls"
echo "working on $1" >&2
if [ -f "$here/hang-on" ] && [[ $* == $(cat "$here/hang-on") ]]; then
  echo $$ >>"$here/hanging"
  exec sleep 60
fi
if [ -f "$here/fail-on" ]; then
  read -r pattern code <"$here/fail-on"
  if [[ $* == $pattern ]]; then sleep 0.2; echo "error: no luck" >&2; exit "$code"; fi
fi
"""


# `w2vbert-launch --nproc-per-node N COMMAND`, the second program that recipes call.
FAKE_LAUNCH = """#!/usr/bin/env bash
shift 2
exec "$(dirname "$0")/w2vbert" "$@"
"""


class Recipe:
    """A copy of the recipe in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.fake = folder / "bin"
        self.fake.mkdir()
        for name, text in (("w2vbert", FAKE), ("w2vbert-launch", FAKE_LAUNCH)):
            (self.fake / name).write_text(text)
            (self.fake / name).chmod(0o755)
        self.folder = folder / "the project" / "recipes" / "mini"
        for name in ("mini", "shared"):
            source, target = RECIPES / name, self.folder.parent / name
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("data", "exp", "conf"))
        (self.folder / "conf").mkdir()
        self.script = str(self.folder / "run.sh")

    def environment(self) -> dict[str, str]:
        """The caller's, with the fake first on PATH."""
        return {**os.environ, "PATH": f"{self.fake}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs it to its end, by default from its own folder."""
        command = [self.script, *arguments]
        environment = self.environment()
        return subprocess.run(
            command, cwd=cwd or self.folder, env=environment, capture_output=True, text=True, check=False, timeout=30
        )

    def calls(self) -> list[str]:
        """Arguments of all calls of w2vbert so far, which are then forgotten."""
        record = self.fake / "calls"
        if not record.exists():
            return []
        lines = record.read_text().splitlines()
        record.unlink()
        return lines

    def refusal(self, *arguments: str) -> str:
        """The one line of an error of the user; nothing has been called."""
        result = self.run(*arguments)
        assert result.returncode == 2 and result.stdout == "" and not self.calls()
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
        return result.stderr[len("error: ") : -1]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path)


def test_all_stages_in_order(recipe: Recipe) -> None:
    result = recipe.run("--nj", "1")
    assert result.returncode == 0, result.stderr
    settings = "--tokenizer data/tokenizer --config conf/finetune.yaml --set train.threads=1"
    decode = "--data data/fbank --split dev --split test --config conf/decode"
    assert recipe.calls() == [
        "prepare synth data/synth --config conf/synth.yaml",
        "prepare corpus data/synth data/manifests --nj 1 --train train --dev dev --test test --unlabelled unlabelled",
        "features data/manifests data/fbank --nj 1",
        "tokenizer data/manifests data/tokenizer --config conf/tokenizer.yaml",
        "lm ngram data/manifests data/lm --tokenizer data/tokenizer --config conf/lm.yaml",
        "pretrain data/fbank exp/pretrain --config conf/pretrain.yaml",
        f"finetune data/fbank exp/scratch {settings} --init scratch",
        f"finetune data/fbank exp/finetune {settings} --init exp/pretrain",
        "self-train data/fbank exp/self_train --tokenizer data/tokenizer --init exp/pretrain --model exp/finetune "
        "--lm data/lm --config conf/self_train.yaml",
        f"decode --model exp/scratch {decode}.yaml --out exp/scratch/decode_greedy",
        f"decode --model exp/finetune {decode}.yaml --out exp/finetune/decode_greedy",
        f"decode --model exp/finetune {decode}_lm.yaml --lm data/lm --out exp/finetune/decode_lm",
        f"decode --model exp/self_train/best {decode}_lm.yaml --lm data/lm --out exp/self_train/decode_lm",
        "report exp/RESULTS.md --row trained from scratch=exp/scratch/decode_greedy "
        "--row pre-trained=exp/finetune/decode_greedy --row pre-trained + LM=exp/finetune/decode_lm "
        "--row + self-training + LM=exp/self_train/decode_lm",
    ]
    stages = [line.split()[2] for line in result.stderr.splitlines() if line.split()[1:2] == ["stage"]]
    assert stages == ["0:", "1:", "2:", "3:", "4:", "5:", "6:"]
    assert f"{recipe.folder}/exp/RESULTS.md" in result.stderr


def test_printed_commands_can_be_typed_again(recipe: Recipe) -> None:
    result = recipe.run("--nj", "1", "--stage", "6")
    printed = [line.split("$ w2vbert ", 1)[1] for line in result.stderr.splitlines() if "$ w2vbert " in line]
    assert [" ".join(shlex.split(line)) for line in printed] == recipe.calls()


def test_on_slurm_each_command_is_submitted(recipe: Recipe) -> None:
    (recipe.fake / "sbatch").touch(0o755)
    cmd = recipe.folder / "cmd.sh"
    cmd.write_text(cmd.read_text().replace("training_options=()", "training_options=(--time=60)"))
    result = recipe.run(*"--cmd slurm --num-nodes 2 --ngpu 8 --nj 3 --stage 2 --stop-stage 6".split())
    assert result.returncode == 0, result.stderr
    calls = [call.split(" -- ") for call in recipe.calls()]
    jobs = {asked.split()[4]: (asked, command) for asked, *rest in calls for command in rest}
    launch = "w2vbert-launch --nproc-per-node 8"
    asked, command = jobs["3-pretrain"]
    assert asked == "submit --log exp/log --name 3-pretrain --nodes 2 --gpus 8 --cpus 3 --option=--time=60"
    assert command == f"{launch} pretrain data/fbank exp/pretrain --config conf/pretrain.yaml"
    assert jobs["2-features"][0].endswith("--nodes 1 --gpus 0 --cpus 3")
    features = "w2vbert features data/manifests data/fbank --nj 3"
    assert jobs["2-features-parts"][0].endswith("--nodes 1 --gpus 0 --cpus 1 --parts 3")
    assert jobs["2-features-parts"][1] == f"{features} --nj 1 --shard {{part}}/3" and jobs["2-features"][1] == features
    assert list(jobs)[:2] == ["2-features-parts", "2-features"]
    assert jobs["4-scratch"][0].startswith("submit --log exp/log --name 4-scratch --nodes 2 --gpus 8 ")
    assert jobs["6-student+lm"][0].endswith("--nodes 1 --gpus 1 --cpus 3")
    assert jobs["4-finetune"][1].startswith(f"{launch} finetune ")
    assert [asked for asked, *rest in calls if not rest] == [call for (call, *_) in calls if call.startswith("report ")]


def test_stages_are_chosen(recipe: Recipe) -> None:
    def commands(*arguments: str) -> set[str]:
        assert recipe.run(*arguments).returncode == 0
        return {call.split()[0] for call in recipe.calls()}

    assert commands("--stage", "3", "--stop-stage", "5") == {"pretrain", "finetune", "self-train"}
    assert commands("--stop_stage", "0") == {"prepare"}
    assert commands("--stage", "02", "--stop-stage", "2") == {"features", "tokenizer", "lm"}
    assert recipe.refusal("--stage", "4", "--stop-stage", "3").startswith("nothing to do: ")


def test_same_commands_at_once_and_in_turn(recipe: Recipe) -> None:
    recipe.run("--nj", "1", "--stage", "4", "--stop-stage", "4")
    in_turn = recipe.calls()
    result = recipe.run("--nj", "2", "--stage", "4", "--stop-stage", "4")
    assert sorted(recipe.calls()) == sorted(in_turn)
    assert "[scratch] working on finetune\n" in result.stderr and "[finetune] working on finetune\n" in result.stderr


def test_help_tells_options_and_defaults(recipe: Recipe) -> None:
    result = recipe.run("--help")
    assert result.returncode == 0 and result.stderr == "" and not recipe.calls()
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines() if line.startswith("  --")]
    declared = {words[0]: words[2] for words in lines if len(words) == 3}
    assert declared["--stop-stage"] == "last stage to run [6]"
    assert set(declared) > {"--stage", "--nj", "--ngpu", "--corpus", "--expdir", "--data-dir", "--config"}
    assert "stage 3  pre-training" in result.stdout and "shellcheck" not in result.stdout


def test_refused_options(recipe: Recipe) -> None:
    assert recipe.refusal("--foo-bar", "1") == "unknown option --foo-bar (see ./run.sh --help)"
    assert recipe.refusal("--PATH", "x") == "unknown option --PATH (see ./run.sh --help)"
    assert recipe.refusal("--synthetic", "x").startswith("unknown option")  # a variable, but not an option
    assert recipe.refusal("--stage=3") == "write --stage 3 instead of --stage=3"
    assert recipe.refusal("--stage").startswith("--stage needs a value")
    assert recipe.refusal("--expdir", "--stage", "1").startswith("--expdir needs a value")
    assert recipe.refusal("--stage", "three") == "--stage must be a whole number, not 'three'"
    assert recipe.refusal("--nj", "0") == "--nj must be at least 1"
    assert recipe.refusal("3").startswith("unexpected argument 3")
    assert recipe.refusal("--ngpu", "2").startswith("--ngpu 2: ")
    assert recipe.refusal("--cmd", "pbs") == "--cmd pbs: choose local or slurm"
    assert recipe.refusal("--num-nodes", "2") == "--num-nodes 2 needs --cmd slurm"
    assert recipe.refusal("--corpus", "nowhere") == "corpus folder nowhere does not exist"
    assert recipe.refusal("--conf", "nowhere").startswith("folder of settings nowhere does not exist")
    assert recipe.refusal("--config", "nowhere.conf").endswith("nowhere.conf does not exist")


def test_values_are_of_the_kind_of_the_default(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(
        "set -euo pipefail\n"
        "fast=false  # BOOL  no thinking\nrate=0.5    # X     of change\nname=       # NAME  of it\nhidden=1\n"
        f'. "{RECIPES}/shared/parse_options.sh"\n'
        'later=1     # N     declared too late\necho "$fast,$rate,$name,$hidden"\n'
    )

    def output(*arguments: str) -> str:
        command = ["bash", "run.sh", *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == (2 if result.stderr else 0)
        return (result.stdout or result.stderr).strip()

    assert output() == "false,0.5,,1"
    assert output("--fast", "true", "--rate", "-2", "--name", "it's $x; *") == "true,-2,it's $x; *,1"
    assert output("--name", "") == "false,0.5,,1"
    assert output("--fast", "yes") == "error: --fast must be true or false, not 'yes'"
    assert output("--rate", "1e") == "error: --rate must be a number, not '1e'"
    for name in ("hidden", "later"):
        assert output(f"--{name}", "2") == f"error: unknown option --{name} (see ./run.sh --help)"


def test_config_file_comes_before_the_command_line(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "my.conf").write_text("stage=1\nstop_stage=1\nnj=7\ntrain=a,b\nexpdir=results\n")
    assert recipe.run("--nj", "3", "--config", "my.conf", cwd=tmp_path).returncode == 0
    (call,) = recipe.calls()
    assert "--nj 3 --train a,b --dev dev" in call
    recipe.run("--config", "my.conf", "--stage", "3", "--stop-stage", "3", cwd=tmp_path)
    assert f"data/fbank {tmp_path}/results/pretrain" in recipe.calls()[0]
    config = tmp_path / "bad.conf"
    for text, problem in (
        ("njj=3\n", f"{config} sets njj, which is no option (see ./run.sh --help)"),
        ("nj=many\n", "--nj must be a whole number, not 'many'"),
        ("nj=(\n", f"config file {config} is not made of lines such as nj=8"),
    ):
        config.write_text(text)
        assert recipe.refusal("--config", str(config)) == problem


def test_works_from_another_folder(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "lm-text.txt.gz").touch()
    (tmp_path / "other" / "conf").mkdir(parents=True)
    (tmp_path / "other" / "conf" / "features.yaml").touch()
    arguments = ["--corpus", "speech", "--conf", "other/conf", "--expdir", "exp", "--stop-stage", "3"]
    result = recipe.run(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    prepare, features, _, lm, pretrain = recipe.calls()  # no synthetic speech
    conf = tmp_path / "other" / "conf"
    assert prepare.startswith(f"prepare corpus {tmp_path}/speech data/manifests ")
    assert features.endswith(f" --config {conf}/features.yaml")
    assert lm.endswith(f" --text {tmp_path}/speech/lm-text.txt.gz")
    assert pretrain == f"pretrain data/fbank {tmp_path}/exp/pretrain --config {conf}/pretrain.yaml"


def tools_alone(recipe: Recipe) -> Path:
    """A folder with all of PATH that is needed, without any w2vbert and Slurm."""
    tools = recipe.fake.parent / "tools"
    tools.mkdir()
    for name in "bash dirname env nproc setpriv sh true tr sleep sed mkdir cp cat".split():
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    return tools


def test_without_slurm_one_line_says_so(recipe: Recipe) -> None:
    environment = {"PATH": f"{recipe.fake}:{tools_alone(recipe)}"}
    command = [recipe.script, "--cmd", "slurm"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 2 and result.stdout == "" and not recipe.calls()
    assert result.stderr.startswith("error: --cmd slurm: there is no Slurm here (no sbatch on PATH): ")
    assert result.stderr.count("\n") == 1


def test_without_w2vbert_on_path_the_project_is_set_up(recipe: Recipe) -> None:
    project = recipe.folder.parent.parent
    (project / "bin").mkdir()
    setup = project / "bin" / "setup"
    setup.write_text("#!/bin/sh\nexit 2\n")
    setup.chmod(0o755)
    tools = tools_alone(recipe)

    def run() -> int:
        command = [recipe.script, "--stage", "3", "--stop-stage", "3"]
        environment = {"PATH": str(tools)}
        return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=30).returncode

    assert run() == 2 and not recipe.calls()
    setup.write_text(f"#!/bin/sh\nmkdir -p '{project}/.venv/bin'\ncp '{recipe.fake}/w2vbert'* '{project}/.venv/bin'\n")
    assert run() == 0
    assert (project / ".venv" / "bin" / "calls").read_text().startswith("pretrain ")


def test_failure_ends_the_script_with_its_code(recipe: Recipe) -> None:
    (recipe.fake / "fail-on").write_text("tokenizer* 7\n")
    result = recipe.run("--nj", "1")
    assert result.returncode == 7 and recipe.calls()[-1].startswith("tokenizer")
    assert "error: no luck" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("stopped in stage 2 with exit code 7")


@pytest.mark.parametrize("failing", ["scratch", "finetune"])
def test_failure_ends_what_runs_beside_it(recipe: Recipe, failing: str) -> None:
    other = {"scratch": "finetune", "finetune": "scratch"}[failing]
    (recipe.fake / "fail-on").write_text(f"finetune*exp/{failing}* 5\n")
    (recipe.fake / "hang-on").write_text(f"finetune*exp/{other}*")
    began = time.monotonic()
    result = recipe.run("--nj", "2", "--stage", "4")
    assert result.returncode == 5 and time.monotonic() - began < 20
    assert len(recipe.calls()) == 2
    assert f"[{failing}] error: no luck\n" in result.stderr
    assert f"[{failing}] failed in stage 4 with exit code 5" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("stopped in stage 4 with exit code 5")
    assert not any(is_alive(process) for process in hanging(recipe, 1))


@pytest.mark.parametrize("command", ["pretrain", "finetune*exp/scratch"])
def test_what_the_user_can_mend_is_the_last_line(recipe: Recipe, command: str) -> None:
    (recipe.fake / "fail-on").write_text(f"{command}* 2\n")
    (recipe.fake / "hang-on").write_text("finetune*exp/finetune*")
    result = recipe.run("--nj", "2", "--stage", "3")
    assert result.returncode == 2 and result.stderr.splitlines()[-1] == "error: no luck"


@pytest.mark.parametrize("stage", ["3", "4"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_command_outlives_the_script(recipe: Recipe, stage: str, end: signal.Signals) -> None:
    if end == signal.SIGKILL and subprocess.run(["setpriv", "--pdeathsig", "KILL", "true"], check=False).returncode:
        pytest.skip("needs setpriv of util-linux 2.33")
    (recipe.fake / "hang-on").write_text("*")
    arguments = [recipe.script, "--nj", "2", "--stage", stage]
    environment = recipe.environment()
    script = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes = hanging(recipe, {"3": 1, "4": 2}[stage])
    script.send_signal(end)
    _, errors = script.communicate(timeout=10)
    wait_until(lambda: not any(is_alive(process) for process in processes))
    if end == signal.SIGKILL:
        assert script.returncode == -signal.SIGKILL
    else:
        assert script.returncode == 128 + end
        assert errors.splitlines()[-1].endswith(f"stopped in stage {stage} with exit code {128 + end}")


def test_no_command_begins_after_the_script_was_killed(recipe: Recipe) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None or subprocess.run([setpriv, "--pdeathsig", "KILL", "true"], check=False).returncode:
        pytest.skip("needs setpriv of util-linux 2.33")
    started, tied = recipe.fake / "started", recipe.fake / "tied"
    slow = recipe.fake / "setpriv"  # comes to its work only when the script is gone
    slow.write_text(
        f'#!/bin/bash\n[ "${{*: -1}}" = true ] || {{ touch "{started}"; while kill -0 $PPID; do sleep 0.02; done; }}\n'
        f'[ ! -e "{started}" ] || touch "{tied}"\nexec {setpriv} "$@"\n'
    )
    slow.chmod(0o755)
    script = subprocess.Popen([recipe.script, "--stage", "3"], env=recipe.environment(), stderr=subprocess.DEVNULL)
    wait_until(started.exists)
    script.kill()
    script.wait()
    wait_until(tied.exists)
    time.sleep(0.3)
    assert not recipe.calls()


def hanging(recipe: Recipe, count: int) -> list[int]:
    """Processes of the calls that hang; waits until there are `count`."""
    file = recipe.fake / "hanging"
    wait_until(lambda: file.exists() and file.read_text().count("\n") == count)
    return [int(line) for line in file.read_text().split()]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def test_text_that_is_missing_is_told_before_the_first_stage(recipe: Recipe) -> None:
    assert recipe.refusal("--lm-text", "/nope") == "text for the language model, /nope, does not exist (--lm-text)"


@pytest.mark.parametrize("option", ["--data-dir", "--expdir"])
def test_folders_to_write_are_named(recipe: Recipe, option: str) -> None:
    """An unset variable of the caller's shell would otherwise make them folders at the root of the disk."""
    assert recipe.refusal(option, "") == f"{option} is empty: is a variable of your shell not set?"
