"""A sweep survives its trials and its driver; trials are scored on validation patients and stopped between budgets."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import S3PET, leave_group

from petscale import config as configs
from petscale.cli import main
from petscale.cluster import session as sessions
from petscale.cluster.session import ray_dashboard
from petscale.folders import BEST, CONFIG, METRICS, SCORED, TRIALS, WEIGHTS
from petscale.splits import split_cases
from petscale.training import worker
from petscale.training.planning import fitted
from petscale.training.progress import read_metrics
from petscale.tuning import search as searching
from petscale.tuning import sweep as sweeps
from petscale.tuning.search import SweepConfig
from petscale.tuning.study import read_study
from petscale.tuning.sweep import sweep
from petscale.tuning.trial import TrialJob, Work, ends, train_and_score
from petscale.tuning.trials import history
from storage.errors import InputError
from storage.reader import open_cohort
from trainers import checkpoint
from trainers.engine import plain_engines
from trainers.systems import s3pet
from tune_spaces import SPACES


def base() -> configs.RunConfig:
    return configs.override(configs.from_json({"recipe": "s3pet"}), S3PET)


def toy(log: Path, spoil: str = "") -> Work:
    """Work that trains nothing: a parabola in mask_full, one line per budget worked on, and one mishap."""

    def work(job: TrialJob, rung: int) -> dict[str, float]:
        import os
        import signal

        from storage.errors import InputError

        share = job.settings["recipe.mask_full"]
        with log.open("a") as file:
            file.write(f"{job.folder.rpartition('/')[2]} {rung} {share}\n")
        if spoil == "refuse" and share > 0.65:
            raise InputError("TRAIN_NONFINITE", where="step 3", found="l1 is not finite", remedy="none")
        mark = log.with_suffix(".killed")
        if spoil == "kill" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if spoil.isupper() and not mark.exists():
            mark.touch()
            raise InputError(spoil, where="here", found="trouble", remedy="none")
        return dict.fromkeys(job.objectives, -((share - 0.5) ** 2) * (1 + rung))

    return work


def lines(log: Path) -> list[tuple[int, int, float]]:
    return [(int(a), int(b), float(c)) for a, b, c in (line.split() for line in log.read_text().splitlines())]


def search(cohort: Path, folder: Path, work: Work, **settings: Any) -> list[Path]:
    config = SweepConfig(**{"spaces": ("masking",), "at_once": 2, **settings})
    return sweep(cohort, folder, base(), config, command="petscale tune", work=work)


def trials(folder: Path) -> list[dict[str, Any]]:
    return history(read_study(folder))


def test_budgets_end_with_the_whole_run_and_grow_by_the_factor() -> None:
    assert ends(100, 1, 3) == [100]
    assert ends(90, 3, 3) == [10, 30, 90]
    assert ends(5, 4, 3) == [1, 5]
    assert ends(1, 3, 2) == [1]


@pytest.mark.slow
def test_small_trials_share_a_gpu(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is told of a GPU that is not there; the trials do not use it. Three of them wait for each other."""
    import ray

    log, start = tmp_path / "log", ray.init

    def work(job: TrialJob, rung: int) -> dict[str, float]:
        import os
        import time

        def say(word: str) -> None:
            with log.open("a") as file:
                file.write(f"{word} {os.environ['CUDA_VISIBLE_DEVICES']}\n")

        say("begin")
        until = time.monotonic() + 120
        while log.read_text().count("begin") < 3 and time.monotonic() < until:
            time.sleep(0.05)
        say("end")
        return dict.fromkeys(job.objectives, 1.0)

    monkeypatch.setattr(ray, "init", lambda **words: start(**{**words, "num_cpus": 8, "num_gpus": 1}))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    on_gpu = configs.override(base(), ["cluster.device=cuda"])
    config = SweepConfig(spaces=("masking",), trials=6, gpus=0.3)
    sweep(cohort, tmp_path / "sweep", on_gpu, config, command="petscale tune", work=work)
    said = [line.split() for line in log.read_text().splitlines()]
    assert Counter(word for word, _ in said) == {"begin": 6, "end": 6}
    assert {gpu for _, gpu in said} == {"0"}
    at_once = accumulate(1 if word == "begin" else -1 for word, _ in said)
    assert max(at_once) == 3, "one GPU holds 0.3 three times"


DRIVER = """
import sys, time
from pathlib import Path
from petscale import config as configs
from petscale.tuning.search import SweepConfig
from petscale.tuning.sweep import sweep

log = Path(sys.argv[3])

def work(job, rung):
    with log.open("a") as file:
        file.write(f"begin {job.folder.rpartition('/')[2]} {job.settings['recipe.mask_full']}\\n")
    time.sleep(0.5)
    with log.open("a") as file:
        file.write(f"end {job.folder.rpartition('/')[2]}\\n")
    return {name: job.settings["recipe.mask_full"] for name in job.objectives}

if __name__ == "__main__":
    base = configs.override(configs.from_json({"recipe": "s3pet"}), sys.argv[4:])
    config = SweepConfig(spaces=("masking",), trials=9, at_once=1)
    sweep(Path(sys.argv[1]), Path(sys.argv[2]), base, config, command="petscale tune", work=work)
"""


def asked(address: str, token: str) -> int:
    """What a dashboard answers to somebody with this token."""
    words = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(words, timeout=30) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_ended_drivers_lose_and_repeat_no_finished_trial(cohort: Path, tmp_path: Path) -> None:
    """The first is killed, the second interrupted by Ctrl-C, the third left alone."""
    script, log, folder = tmp_path / "driver.py", tmp_path / "log", tmp_path / "sweep"
    script.write_text(DRIVER)
    words = [sys.executable, str(script), str(cohort), str(folder), str(log), *S3PET]

    def worked() -> Counter[str]:
        """How often each trial began."""
        told = log.read_text().splitlines() if log.exists() else []
        return Counter(line.split()[1] for line in told if line.startswith("begin"))

    def begun() -> int:
        return worked().total()

    finished: dict[str, int] = {}
    for how in (signal.SIGKILL, signal.SIGINT):
        before = begun()
        ended = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 240  # other tests may run beside this one
        while begun() < before + 3 and time.monotonic() < until:
            time.sleep(0.05)
        shown = ray_dashboard(folder)
        assert shown
        assert shown[1].stat().st_mode & 0o077 == 0
        assert [
            asked(f"http://127.0.0.1:{shown[0]}/api/jobs/", token) for token in (shown[1].read_text(), "1" * 64, "")
        ] == [200, 403, 401]
        ended.send_signal(how)
        assert ended.wait(60) == -how
        assert ray_dashboard(folder) is None
        assert not (folder / "report.html").exists()
        done = {str(trial["folder"]) for trial in trials(folder) if trial["state"] == "COMPLETE"}
        finished |= {number: worked()[number] for number in done - {*finished}}
        assert before or {*finished.values()} <= {1}
        assert begun() >= before + 3
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=240)
    found = trials(folder)
    assert sum(trial["state"] == "COMPLETE" for trial in found) == 9
    assert finished
    assert all(worked()[number] == count for number, count in finished.items()), "none after its end"
    assert all(count <= 2 for count in worked().values())
    assert {trial["state"] for trial in found} <= {"COMPLETE", "FAIL"}


# ---- from here on the sweeps share a cluster: what they start with is tested above ----------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with sessions.session(base(), 4, tmp_path_factory.mktemp("cluster"), dashboard=True):
        yield


@pytest.fixture
def started(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster that a sweep would start is there already."""
    monkeypatch.setattr(sessions, "session", lambda *_, **__: nullcontext())


@pytest.mark.slow
def test_a_sweep_goes_on_repeats_nothing_and_hands_over_its_best(
    cohort: Path, tmp_path: Path, started: None, capsys: pytest.CaptureFixture[str]
) -> None:
    log, folder = tmp_path / "log", tmp_path / "sweep"
    search(cohort, folder, toy(log), trials=3)
    first = lines(log)
    assert len(first) == 3
    assert {number: share for number, _, share in first}[0] == s3pet.Config().mask_full, "the paper's come first"
    written = search(cohort, folder, toy(log), trials=5, rungs=1)
    assert lines(log)[:3] == first
    assert sorted(Counter(number for number, _, _ in lines(log)).items()) == [(n, 1) for n in range(5)]
    assert written == [folder / BEST, folder / "report.html"]
    best = configs.read(folder / BEST)
    nearest = min(lines(log), key=lambda line: abs(line[2] - 0.5))
    assert best.model.mask_full == nearest[2]
    assert best.model.mask_low >= best.model.mask_full
    assert "petscale train" in (folder / "report.html").read_text()
    capsys.readouterr()
    search(cohort, folder, toy(log), trials=5)
    assert len(lines(log)) == 5, "nothing is left to do"
    ready = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert ready[:4] == ["petscale", "train", str(cohort), "--config"]
    assert configs.read(Path(ready[4])) == best


@pytest.mark.slow
def test_poor_trials_stop_between_budgets_and_refused_ones_are_told(
    cohort: Path, tmp_path: Path, started: None
) -> None:
    log, folder = tmp_path / "log", tmp_path / "sweep"
    search(cohort, folder, toy(log, "refuse"), trials=12, rungs=3, factor=2)
    found = trials(folder)
    assert len(found) == 12
    states = Counter(trial["state"] for trial in found)
    assert states["PRUNED"] >= 3
    assert states["COMPLETE"] >= 2
    rungs = Counter(number for number, _, _ in lines(log))
    for trial in found:
        if trial["state"] == "COMPLETE":
            assert rungs[trial["number"]] == 3
        share = trial["settings"]["recipe.mask_full"]
        if share > 0.65:
            assert (trial["state"], rungs[trial["number"]]) == ("PRUNED", 1)


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_tried_again(cohort: Path, tmp_path: Path, started: None) -> None:
    log, folder = tmp_path / "log", tmp_path / "sweep"
    search(cohort, folder, toy(log, "kill"), trials=3, at_once=1)
    assert Counter(trial["state"] for trial in trials(folder)) == {"COMPLETE": 3}
    assert len(lines(log)) == 4


@pytest.mark.slow
def test_what_no_trial_is_to_blame_for_ends_the_sweep_and_costs_no_trial(
    cohort: Path, tmp_path: Path, started: None
) -> None:
    log, folder = tmp_path / "log", tmp_path / "sweep"
    with pytest.raises(InputError, match="CLU_NO_ROOM here"):
        search(cohort, folder, toy(log, "CLU_NO_ROOM"), trials=3, rungs=2, at_once=1)
    assert [trial["state"] for trial in trials(folder)] == ["RUNNING"]
    search(cohort, folder, toy(log, "CLU_NO_ROOM"), trials=3, rungs=2, at_once=1)
    found = trials(folder)
    assert [trial["note"] for trial in found if trial["state"] == "FAIL"] == ["interrupted"]
    assert sum(trial["state"] in ("COMPLETE", "PRUNED") for trial in found) == 3
    assert {trial["folder"] for trial in found} == {0, 2, 3}, "the interrupted trial continues in its folder"


@pytest.mark.slow
def test_a_sweep_within_a_time_limit_goes_on(
    cohort: Path, tmp_path: Path, started: None, capsys: pytest.CaptureFixture[str]
) -> None:
    log, folder = tmp_path / "log", tmp_path / "sweep"
    held = tmp_path / "held"
    toyed = toy(log)

    def work(job: TrialJob, rung: int) -> dict[str, float] | None:
        assert job.stop_in_s
        if not held.exists() and rung == 1:
            held.touch()
            return None  # as if its time were over
        return toyed(job, rung)

    config = SweepConfig(spaces=("masking",), trials=3, rungs=2, at_once=1)
    call = partial(sweep, cohort, folder, base(), config, command="petscale tune", work=work)
    assert call(time_limit_s=10.0) == [folder]  # near from the beginning: one trial begins
    assert "stopped in time after 0 of 3 trials; the same command continues" in capsys.readouterr().err
    assert [trial["state"] for trial in trials(folder)] == ["RUNNING"]
    assert call(time_limit_s=3600.0) == [folder / BEST, folder / "report.html"]
    found = trials(folder)
    assert (found[0]["state"], found[0]["note"]) == ("FAIL", "interrupted")
    assert sum(trial["state"] in ("COMPLETE", "PRUNED") for trial in found) == 3
    assert found[1]["folder"] == 0, "the interrupted trial continues in its folder"


@pytest.mark.slow
def test_a_trial_whose_workers_keep_dying_is_tried_once_more(cohort: Path, tmp_path: Path, started: None) -> None:
    log, folder = tmp_path / "log", tmp_path / "sweep"
    search(cohort, folder, toy(log, "TRAIN_FAILED"), trials=2, at_once=1)
    assert [trial["state"] for trial in trials(folder)] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "TRAIN_FAILED" in trials(folder)[0]["note"]


@pytest.mark.slow
@pytest.mark.parametrize("call", ["ask", "tell"])
def test_a_store_that_is_lost_while_a_sweep_runs_is_one_line(
    call: str, cohort: Path, tmp_path: Path, started: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any, **__: Any) -> str:
        raise InputError("TUNE_STORAGE", where="--storage", found="lost", remedy="the same command")

    monkeypatch.setattr(searching, call, lost)
    with pytest.raises(InputError, match="TUNE_STORAGE --storage: lost"):
        search(cohort, tmp_path / "sweep", toy(tmp_path / "log"), trials=2)


@pytest.mark.slow
def test_a_real_trial_reads_validation_patients_only_and_goes_on_from_its_checkpoint(
    cohort: Path, tmp_path: Path, started: None
) -> None:
    folder = tmp_path / "sweep"
    settings = [
        "--trials",
        "2",
        "--rungs",
        "2",
        "--spaces",
        "losses",
        "--objectives",
        "psnr_body",
        "suvmax_bias_lesions",
    ]
    main(["tune", str(cohort), "--study", str(folder), "--recipe", "s3pet", *settings, "--set", *S3PET])
    found = trials(folder)
    assert [trial["state"] for trial in found] == ["COMPLETE"] * 2
    roles = split_cases(open_cohort(cohort), base().split, unpaired=True, validation=True)
    for number in range(2):
        run = folder / TRIALS / str(number)
        facts = json.loads((run / CONFIG).read_bytes())
        assert tuple(facts["validation"]) == roles.validation
        scored = json.loads((run / SCORED).read_bytes())
        assert list(scored) == ["0", "1"]
        assert list(scored["1"].values()) == found[number]["values"]
        assert not set(roles.test) & {path.name for path in run.rglob("*")}, "a test patient has left a trace"
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open() if "start" in line]
        assert steps == [0, 4], "the second budget continues where the first one ended"
    assert 'id="front"' in (folder / "report.html").read_text()


class Machine:
    """Stands in for Ray Tune: trials one after the other in this process, as its search and its actors ask for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sweeps, "run_trials", self.run_trials)
        self.at = 0.0  # the time on the driver's clock

    def run_trials(
        self, opened: Any, space: Any, base: Any, config: Any, common: Any, shown: Any, work: Any, limit: Any
    ) -> None:
        if limit:
            limit._ends, limit.clock = limit.left_s, lambda: self.at
        searcher = searching._searcher(opened, space, config.trials, common, shown, limit)
        actor: Any = object.__new__(searching._trainable(work))
        number = 0
        while (asked := searcher.suggest(str(number))) != "FINISHED":
            actor.reset_config(asked)
            while not (result := actor.step())["done"]:
                searcher.on_trial_result(str(number), result)
            searcher.on_trial_complete(str(number), result)
            number += 1
        assert searcher.halted is None


@pytest.mark.slow
def test_a_trial_of_two_workers_is_a_ray_train_job_per_budget_and_scores_alike(
    cohort: Path, tmp_path: Path, started: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of one worker, which trains in this process."""
    found = {}
    for workers in ("1", "2"):
        folder = tmp_path / workers
        asked = ["--trials", "1", "--rungs", "2", "--spaces", "losses", "--workers", workers, "--at-once", "2"]
        with monkeypatch.context() as patch:
            if workers == "1":
                Machine(patch)
            main(["tune", str(cohort), "--study", str(folder), "--recipe", "s3pet", *asked, "--set", *S3PET])
        leave_group()
        (trial,) = trials(folder)
        assert trial["state"] == "COMPLETE"
        found[workers] = trial["values"]
    assert found["2"] == pytest.approx(found["1"], rel=1e-3)
    run = tmp_path / "2" / TRIALS / "0"
    assert json.loads((run / CONFIG).read_bytes())["config"]["cluster"]["workers"] == 2
    assert not (run / "ray").exists()
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl") if r["event"] == "start"] == [0, 4]


def test_near_its_time_limit_a_sweep_begins_no_trial(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch)
    log, folder = tmp_path / "log", tmp_path / "sweep"
    toyed = toy(log)

    def slow(job: TrialJob, rung: int) -> dict[str, float] | None:
        machine.at += 100.0
        return toyed(job, rung)

    config = SweepConfig(spaces=("masking",), trials=4)
    call = partial(sweep, cohort, folder, base(), config, command="petscale tune", work=slow)
    assert call(time_limit_s=240.0) == [folder]
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "stopped in time after 2 of 4 trials; the same command continues"
    machine.at = 0.0
    assert call(time_limit_s=1e6) == [folder / BEST, folder / "report.html"]
    assert [number for number, _, _ in lines(log)] == [0, 1, 2, 3], "no finished trial is lost or repeated"
    assert [trial["state"] for trial in trials(folder)] == ["COMPLETE"] * 4


def test_a_real_trial_within_a_time_limit_goes_on_from_its_checkpoint_and_scores_as_without(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch)
    monkeypatch.setattr(worker, "deepspeed_engines", lambda config, device: plain_engines(config))
    settings = ["recipe.channels=2", "recipe.patch=1,32,32", "recipe.samples=16", "feed.cases_per_step=2"]
    settings += ["feed.source=low_drf4", "split.validation_fraction=0.3"]
    tiny = configs.override(configs.from_json({"recipe": "red_cnn"}), settings)
    config = SweepConfig(spaces=("losses",), trials=1, rungs=2, factor=2)  # budgets of 1 and 2 steps
    values, weights = [], []
    for folder, limit_s in ((tmp_path / "straight", None), (tmp_path / "limited", 1.0)):
        told: list[bool] = []
        while not (folder / BEST).exists():
            assert len(told) < 9
            sweep(cohort, folder, tiny, config, command="petscale tune", time_limit_s=limit_s)
            told.append("stopped in time after 0 of 1 trials" in capsys.readouterr().err)
        # Near from the beginning: a budget is trained in a command and scored in the next.
        assert told == ([False] if limit_s is None else [True, True, False])
        *interrupted, whole = trials(folder)
        assert [(one["state"], one["note"]) for one in interrupted] == [("FAIL", "interrupted")] * len(interrupted)
        assert (whole["state"], whole["folder"]) == ("COMPLETE", 0)
        values.append((whole["values"], whole["intermediate"]))
        weights.append(checkpoint.read_weights(folder / TRIALS / "0" / WEIGHTS)[0])
        starts = [r["step"] for r in read_metrics(folder / TRIALS / "0" / METRICS) if r["event"] == "start"]
        assert starts == ([0, 1] if limit_s is None else [0, 1, 1, 2])
    leave_group()
    assert values[0] == values[1]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--objectives", "psnr_bodi"], "TUNE_OBJECTIVE"),
        (["--objectives", "psnr_body", "psnr_body"], "TUNE_OBJECTIVE"),
        (["--spaces", "maskings"], "TUNE_SPACE --spaces"),
        (["--sampler", "grid"], "TUNE_SAMPLER"),
        (["--rungs", "0"], "CFG_RANGE --rungs"),
        (["--trials", "0"], "CFG_RANGE --trials"),
        (["--workers", "64", "--set", "feed.cases_per_step=64"], "CFG_RESOURCES"),
        (["--set", "split.validation_fraction=0"], "SET_NO_VALIDATION"),
        (["--set", "recipe.mask_full=0.1", "recipe.mask_low=0.1"], "CFG_RANGE"),
        (["--storage", "nowhere://host/base"], "TUNE_STORAGE"),
    ],
)
def test_mistakes_are_refused_before_any_trial(
    words: list[str], told: str, cohort: Path, tmp_path: Path, refused: Callable[..., str], no_ray: None
) -> None:
    chosen = ["--recipe", "s3pet", "--spaces", "masking", "--set", *S3PET]
    assert refused("tune", cohort, "--study", tmp_path / "sweep", *chosen, *words).startswith(told)
    assert not (tmp_path / "sweep" / TRIALS).exists()


def test_what_is_left_to_the_voxel_size_is_settled_before_a_space_is_asked(cohort: Path) -> None:
    practice = configs.from_json(
        {"recipe": {"name": "s3pet", "defaults": "practice"}, "feed": {"source": ["low_drf4"]}}
    )
    with pytest.raises(InputError, match="CFG_RANGE space 'tokens' of s3pet: '0' not in"):
        sweeps._joined(practice, ("tokens",))
    _, first = sweeps._joined(fitted(open_cohort(cohort), practice), ("tokens",))
    assert first["recipe.patch_size"] == 4


def test_a_system_without_a_space_is_refused(
    cohort: Path, tmp_path: Path, refused: Callable[..., str], no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(SPACES, "s3pet")
    chosen = ["--recipe", "s3pet", "--spaces", "masking", "--set", *S3PET]
    line = refused("tune", cohort, "--study", tmp_path / "sweep", *chosen)
    assert line.startswith("TUNE_SPACE system 's3pet': it brings no search space;")


def test_a_study_of_something_else_is_refused(
    cohort: Path, tmp_path: Path, refused: Callable[..., str], no_ray: None
) -> None:
    def begin(*words: str) -> list[str]:
        return ["tune", str(cohort), "--study", str(tmp_path / "sweep"), "--recipe", "s3pet", *words, "--set", *S3PET]

    with pytest.raises(AssertionError, match="the cluster was started"):
        main(begin("--spaces", "masking"))
    assert refused(*begin("--spaces", "losses")).startswith("TUNE_STUDY")
    assert refused(*begin("--spaces", "masking", "--objectives", "ssim_body")).startswith("TUNE_STUDY")
    assert refused(*begin("--spaces", "masking", "--rungs", "2")).startswith("TUNE_STUDY")
    assert refused(*begin("--spaces", "masking"), "recipe.lr=0.5").startswith("TUNE_STUDY")


def test_what_fails_in_a_trial_is_a_coded_line(cohort: Path, tmp_path: Path) -> None:
    job = TrialJob(
        folder=str(tmp_path / "0"),
        cohort=str(cohort),
        base=configs.to_json(base()),
        settings={"recipe.mask_low": 2.0},
        objectives=("psnr_body",),
        rungs=1,
        factor=3,
    )
    with pytest.raises(InputError, match="CFG_RANGE"):
        train_and_score(job, 0)
    assert os.listdir(tmp_path) == []
