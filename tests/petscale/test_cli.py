"""The command line as it is typed: what is recorded, printed and returned; mistakes are in test_wrong_input."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import pytest

from petscale import commands
from petscale import config as configs
from petscale.cli import main, version
from petscale.commands import COMMANDS
from petscale.config import RunConfig
from petscale.console import bar
from petscale.crossvalidation import folds
from petscale.folders import WEIGHTS
from petscale.training import driver
from petscale.training.progress import Watch
from petscale.tuning import sweep
from storage.errors import InputError


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        (["verify", "/data/DOE^JANE/cohort"], "petscale verify cohort"),
        (["verify", "../clinic/cohort/"], "petscale verify cohort"),
        (["verify", "cohort"], "petscale verify cohort"),
        (["train", "/a/b/c", "--run", "/not/made/yet"], "petscale train c --run yet"),
        (
            ["train", "c", "--run=/home/jane/run", "--set", "loop.seed=1"],
            "petscale train c --run=run --set loop.seed=1",
        ),
        (["train", "/x/k=v/c", "--config", "/x/a=b/c=d.json"], "petscale train c --config c=d.json"),
        (
            ["train", "c", "--set", "cluster.address=ray://head:10001"],
            "petscale train c --set cluster.address=ray://head:10001",
        ),
        (["train", "c", "--set", "recipe.rois=()"], "petscale train c --set 'recipe.rois=()'"),
        (["verify", "."], "petscale verify ."),
    ],
)
def test_the_recorded_command_names_no_folders(
    typed: list[str], recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/petscale", *typed])
    assert commands.recorded() == recorded


limits: list[float | None] = []  # what `petscale train` handed on as its time limit


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that ``petscale train`` hands on."""
    seen: list[RunConfig] = []
    limits.clear()

    def train(
        cohort: Path,
        run: Path,
        config: RunConfig,
        *,
        command: str,
        others: Sequence[Path],
        time_limit_s: float | None,
        init: Path | None,
    ) -> Path:
        seen.append(config)
        limits.append(time_limit_s)
        return run / WEIGHTS

    monkeypatch.setattr(driver, "train", train)
    return seen


def test_settings_may_be_given_together_or_one_by_one(trained: list[RunConfig]) -> None:
    main(
        ["train", "c", "--run", "r", "--set", "loop.seed=1", "recipe.patch=32,32,32", "feed.source=low_drf4,low_drf20"]
    )
    main(
        [
            "train",
            "c",
            "--run",
            "r",
            "--set",
            "loop.seed=1",
            "--set",
            "recipe.patch=32,32,32",
            "feed.source=low_drf4,low_drf20",
        ]
    )
    practice = configs.from_json({"recipe": {"name": "sgsgan", "defaults": "practice"}})
    wanted = configs.override(practice, ["loop.seed=1", "recipe.patch=32,32,32", "feed.source=low_drf4,low_drf20"])
    assert trained == [wanted, wanted]


def test_options_win_over_the_file(trained: list[RunConfig], tmp_path: Path) -> None:
    base = configs.override(RunConfig(), ["loop.seed=5", "cluster.workers=2"])
    (tmp_path / "mine.json").write_text(json.dumps(configs.to_json(base)))
    main(["train", "c", "--run", "r", "--config", str(tmp_path / "mine.json"), "--workers", "1", "--device", "cuda"])
    assert trained[0].loop.seed == 5
    assert (trained[0].cluster.workers, trained[0].cluster.device) == (1, "cuda")


def test_help_lists_every_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "petscale", "--help"], capture_output=True, text=True, check=True)
    assert all(name in ended.stdout for name in COMMANDS)
    assert ended.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"petscale {command}" in shown
    assert "(required)" in shown or "(default:" in shown


def test_the_version_is_told_with_the_commit_where_a_checkout_knows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = f"petscale {metadata.version('petscale')}"
    main(["--version"])
    assert capsys.readouterr().out.startswith(installed)
    assert version(tmp_path) == installed
    (tmp_path / ".git").write_text("gitdir: nowhere")  # a worktree whose repository is gone
    assert version(tmp_path) == installed
    (tmp_path / ".git").unlink()

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        ended = subprocess.run(["git", "-C", tmp_path, *who, *words], capture_output=True, text=True, check=True)
        return ended.stdout.strip()

    git("init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "HEAD")[:12]
    (tmp_path / "notes.txt").write_text("untracked")
    assert version(tmp_path) == f"{installed} (commit {commit})"
    (tmp_path / "code.py").write_text("2")
    assert version(tmp_path) == f"{installed} (commit {commit}, with changes)"


def test_verify_lists_the_cases_on_stdout(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(cohort)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == ["phantom-000", "phantom-001", "phantom-002", "phantom-003"]
    assert lines[-1].endswith("4 cases, whole")


def test_verify_names_the_damaged_piece(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    main(["ingest", str(scans / "suv.nii.gz"), str(tmp_path / "cohort"), "--case", "one"])
    shard = tmp_path / "cohort/cases/one/full/0/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path / "cohort")])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "damaged: one/full/0/c/0/0/0: content differs" in err
    assert err.splitlines()[-1].startswith("petscale: STORE_DAMAGED cohort: 1 of 1 cases")


def test_a_time_limit_is_handed_on_in_seconds_or_refused(
    trained: list[RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "c", "--run", "r"])
    main(["train", "c", "--run", "r", "--time-limit", "3h50m"])
    assert limits == [None, 13800.0]
    for wrong in ("3:50", "0m", "50m3h", "1.5h", "h", "-3h", "3 h"):
        with pytest.raises(SystemExit) as ended:
            main(["train", "c", "--run", "r", f"--time-limit={wrong}"])
        assert ended.value.code == 2
        assert f"petscale: CFG_DURATION --time-limit: '{wrong}'" in capsys.readouterr().err
    assert len(trained) == 2


def test_folds_and_sweeps_have_the_same_time_limit(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    told: list[float | None] = []

    def heard(*_: object, time_limit_s: float | None, **__: object) -> list[Path]:
        told.append(time_limit_s)
        return []

    monkeypatch.setattr(folds, "train_folds", heard)
    monkeypatch.setattr(sweep, "sweep", heard)
    for words in (["folds", "c", "--run", "r"], ["tune", "c", "--study", "s"]):
        main(words)
        main([*words, "--time-limit", "3h50m"])
        assert refused(*words, "--time-limit=3:50").startswith("CFG_DURATION --time-limit: '3:50'")
    assert told == [None, 13800.0] * 2


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_how_to_go_on(
    by: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    cohort: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(driver, "train", lambda *_, **__: signal.raise_signal(by))
    with pytest.raises(SystemExit) as ended:
        main(["train", str(cohort), "--run", "never-made"])
    assert ended.value.code == code
    assert signal.getsignal(signal.SIGTERM) == before
    assert "run the same command again to continue" in capsys.readouterr().err


def test_our_own_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, cohort: Path) -> None:
    def defect(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(driver, "train", defect)
    with pytest.raises(ZeroDivisionError):
        main(["train", str(cohort), "--run", "never-made"])


def test_a_bar_says_nothing_of_work_that_was_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        with bar("work", 3):
            raise InputError("CFG_TEST", where="here", found="nothing", remedy="go on")

    with pytest.raises(InputError):
        refuse()
    assert capsys.readouterr().err == ""
    with bar("work", 3) as advance:
        for done in range(4):
            advance(done, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: 0/3"
    assert lines[-1].startswith("work: 3/3 in ")


def test_the_watch_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with Watch(tmp_path, 10):
        record = {"event": "log", "step": 10, "phase": "gan", "patches_per_s": 2.0, "wait_share": 0.1, "loss/l1": 0.5}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + '\n{"event": "lo')  # a line half written
    assert threading.active_count() == before
    err = capsys.readouterr().err
    assert "train: 0/10" in err
    assert "train: 10/10" in err
    assert "l1 0.5" in err


def test_an_unknown_shell_has_no_completion(refused: Callable[..., str]) -> None:
    assert refused("--tyro-print-completion", "foo").startswith("CFG_CHOICE --tyro-print-completion: foo; choose one")
    assert refused("--tyro-print-completion").startswith("CFG_CHOICE --tyro-print-completion: no shell")
    assert refused("--tyro-write-completion", "bash").startswith("CFG_ARGUMENT --tyro-write-completion: no file; name")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script_that_completes_commands_and_settings(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--tyro-print-completion", shell])
    assert end.value.code in (None, 0)
    script = capsys.readouterr().out
    assert not [name for name in COMMANDS if name not in script]
    assert "cases-per-step" in script


def test_a_command_leaves_no_dump_makes_private_files_and_gives_the_umask_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def show_help(console: object) -> None:
        (tmp_path / "made").touch()
        seen.append(((tmp_path / "made").stat().st_mode & 0o777, resource.getrlimit(resource.RLIMIT_CORE)[0]))

    monkeypatch.setattr("petscale.cli.show_help", show_help)
    before = os.umask(0o022)
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        main([])
        assert seen == [(0o600, 0)]
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
        resource.setrlimit(resource.RLIMIT_CORE, limits)


def test_wrong_arguments_of_a_submitted_command_are_told_before_any_cluster_is_asked(
    refused: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []

    def submit(words: Sequence[str], *_: object, **__: object) -> str:
        asked.append(words)
        return "job"

    monkeypatch.setattr("petscale.cluster.jobs.submit", submit)
    assert refused("submit", "train", "cohort", "--run", "r", "--bogus", "1").startswith("CFG_ARGUMENT petscale train")
    assert refused("submit", "--detach", "evaluate", "r").startswith("CFG_ARGUMENT petscale evaluate")
    with pytest.raises(SystemExit) as ended:
        main(["submit", "train", "cohort", "--help"])
    assert (ended.value.code, asked) == (0, [])
    assert "petscale train" in capsys.readouterr().out
    words = ["train", "cohort", "--run", "r", "--config", "only-there.yaml"]
    main(["submit", *words])  # a file of the cluster's is no mistake here
    assert [list(one) for one in asked] == [words]


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "c", "--json"],
        ["inspect", "c", "--page"],
        ["compare", "c", "d", "--json"],
        ["compare", "r", "s", "--page"],
        ["best", "r", "--json"],
        ["plan", "c", "--json"],
    ],
)
def test_no_command_writes_its_page_or_json_over_a_file_that_is_there(
    refused: Callable[..., str], tmp_path: Path, words: list[str]
) -> None:
    there = tmp_path / "CATALOG.json"
    there.write_text("{}")
    assert refused(*words, str(there)).startswith("DISK_EXISTS CATALOG.json: exists already; choose another --")
    assert there.read_text() == "{}"
