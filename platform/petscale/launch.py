"""The only door to Ray Train: a run folder and a configuration in, trained weights out; the same command resumes."""

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist

from petscale import config as configs
from petscale import nodes
from petscale.config import Roles, RunConfig
from petscale.gauges import sending
from petscale.progress import Reporter, Watch, picture
from storage import integrity, layout, remote
from storage.errors import InputError
from storage.reader import Cohort, open_cohort
from trainers import checkpoint, feed, loop
from trainers.engine import deepspeed_engines, plain_engine
from trainers.recipe import Recipe, Validated
from trainers.systems import RECIPES

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the driver of a submitted job
ROOM_TRIES = 5  # times that workers are waited for, a minute each by Ray's default; a lost node may come back
FENCE_S = 240.0  # a node that is cut off takes minutes to notice; less than the other ranks wait (300 s)
SESSION, DASHBOARD, TOKEN = "petscale-ray-", "dashboard.json", "token"  # a private cluster's folder, and files in it
CHECKPOINTS, WEIGHTS, CONFIG = "checkpoints", "weights.safetensors", "config.json"


def worker_environment(config: RunConfig) -> dict[str, str]:
    """Environment of the workers: threads and accelerator fixed, no telemetry."""
    threads = str(config.cluster.cpus_per_worker)
    return {
        "DS_ACCELERATOR": config.cluster.device,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **nodes.SILENT,
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # glibc would return every large tensor to the system and fault its pages in again: a third of a step on a CPU.
        # One arena, for a worker trains in a thread, whose own arena would be cut into pieces of 64 MB.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
        "MALLOC_TOP_PAD_": str(256 * 2**20),
    }


def runtime_env(config: RunConfig) -> dict[str, Any]:
    """What a worker needs: its environment, and on a cluster the driver's code unless its job has brought it."""
    environment: dict[str, Any] = {"env_vars": worker_environment(config)}
    if nodes.joined():
        environment["worker_process_setup_hook"] = "petscale.nodes.use_cluster_network"
        if key := os.environ.get("PETSCALE_SITE_KEY"):  # the file's name: patients are hashed alike everywhere
            environment["env_vars"]["PETSCALE_SITE_KEY"] = key
        environment |= {} if os.environ.get(IN_JOB) else nodes.code()
    else:
        environment["env_vars"]["HOME"] = str(Path.home())  # not Ray's, see ``_homeless``
    return environment


@dataclass(frozen=True)
class Plan:
    """A run that passed every check that can be made before a cluster starts.

    Args:
        run: its folder.
        config: its configuration, files from elsewhere by their names.
        num_steps: of all phases together.
        facts: what its record says.
        settings: what a worker needs, plain JSON.
    """

    run: Path
    config: RunConfig
    num_steps: int
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]

    def record(self, command: str) -> None:
        """Write the run's record, and forget what went wrong before."""
        integrity.write_json(self.run / CONFIG, {**self.facts, "command": command})
        (self.run / "error.json").unlink(missing_ok=True)
        if held := remote.holding(remote.origin(self.run)):  # the workers' nodes bring it to themselves
            remote.publish(self.run, held.url, held, without=("error.json",))


def train(cohort: Path, run: Path, config: RunConfig, *, command: str) -> Path:
    """Train, or go on training, and return the exported weights.

    Args:
        cohort: a committed cohort.
        run: the run's folder; made if it does not exist, continued if it does.
        command: what the user typed, for the record.

    Raises:
        InputError: any mistake, before the cluster starts where it can be seen then; TRAIN_FAILED when workers keep
            dying.
    """
    plan = plan_run(cohort, run, config)
    if not nodes.joined():  # a private cluster has the GPUs of this machine, and as many workers as asked for
        require_resources({"CPU": math.inf, "GPU": torch.cuda.device_count()}, config)
    with integrity.exclusive(plan.run, purpose="train"):
        plan.record(command)
        cores = config.cluster.workers * config.cluster.cpus_per_worker
        with Watch(plan.run, plan.num_steps), session(config, cores, plan.run, cohort / "zarr.json"):
            train_on_ray(plan)
    return plan.run / WEIGHTS


def plan_run(cohort: Path, run: Path, config: RunConfig, *, validation: bool = False) -> Plan:
    """Check everything that can be checked before a cluster starts.

    Args:
        validation: keep validation patients apart even if the recipe's own schedule listens to nobody.

    Raises:
        InputError: any mistake.
    """
    cohort, run = cohort.absolute(), run.absolute()
    opened = open_cohort(cohort)
    spec = RECIPES[config.recipe]
    spec.check(config.model, config.feed)
    files = {field: path.absolute() for field, path in spec.files(config.model).items()}
    used = replace(config, model=replace(config.model, **{field: str(path) for field, path in files.items()}))
    # Records name files by their last component: folders above may name a patient.  The digest says which it was.
    config = replace(config, model=replace(config.model, **{field: path.name for field, path in files.items()}))
    recipe = _dry(used)
    specs = [recipe.batch_spec(start) for start in recipe.phase_starts.values()]
    roles = configs.split_cases(
        opened,
        config.split,
        unpaired="unpaired" in spec.ROLES,
        validation=validation or "validation" in spec.ROLES,
    )
    digests = {name: integrity.manifest(opened.case(name).folder)["root"] for name in roles.everyone}
    for path in files.values():
        _check_origin(path, config, {digests[name] for name in (*roles.validation, *roles.test)})
    identity = {**config.identity(), "files": {field: _digest(path) for field, path in files.items()}, "cases": digests}
    _check_run(run, identity)
    feed.check_cases(opened, roles.streams, config.feed, specs)
    if isinstance(recipe, Validated):
        _check_validation(opened, roles, config, recipe)
    facts = {"config": configs.to_json(config), **asdict(roles), "files": identity["files"], "cases": digests}
    facts["cohort"] = cohort.name
    settings = {**facts, "cohort": str(cohort), "run": str(run), "streams": roles.streams, "identity": identity}
    held = remote.holding(remote.origin(run))
    settings |= {"cohort_url": remote.origin(cohort), "lease": asdict(held) if held else None}
    settings["starts_from"] = json.dumps(_starts_from(opened, roles.train, config.feed.low[0]))
    settings["used"] = configs.to_json(used)
    return Plan(run, config, recipe.num_steps, facts, settings)


def _dry(config: RunConfig) -> Recipe:
    """The recipe with networks nobody trains: its phases and needs can be asked for before a cluster exists."""
    with torch.device("meta"):
        return RECIPES[config.recipe].build(
            config.model, make_engine=plain_engine, patches_per_step=config.patches_per_step
        )


def _starts_from(cohort: Cohort, cases: Sequence[str], image: str) -> dict[str, Any]:
    """What a scan must be like to be synthesized from: its unit, and the voxel size that most training cases have."""
    images = [cohort.case(name).image(image) for name in cases]
    spacings = np.array([found.grid.spacing_mm for found in images])
    return {"units": images[0].units, "spacing_mm": np.median(spacings, axis=0).round(4).tolist()}


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_origin(path: Path, config: RunConfig, kept_apart: Collection[str]) -> None:
    """Refuse networks of an earlier run that saw other intensities, or the patients that this one is judged on.

    Raises:
        InputError: CKPT_SCALE, CKPT_LEAK, CKPT_DOSES.
    """
    facts = checkpoint.facts(path)
    if "config" not in facts:  # not petscale's
        return
    if set(json.loads(facts.get("trained_on", "[]"))) & set(kept_apart):
        raise InputError(
            "CKPT_LEAK",
            where=path.name,
            found="these networks were trained on cases that this run tests or validates on",
            remedy="use the split of the run that made them, or train them anew",
        )
    theirs = configs.from_json(json.loads(facts["config"])).feed
    doses, ours = ({layout.drf_of(name) for name in feed.low} for feed in (theirs, config.feed))
    if doses != ours:
        raise InputError(
            "CKPT_DOSES",
            where=path.name,
            found=f"trained on {', '.join(theirs.low)}, this run is fed {', '.join(config.feed.low)}",
            remedy="use networks of the same dose reduction factor, or train them anew",
        )
    scale = theirs.suv_scale
    if scale != config.feed.suv_scale:
        raise InputError(
            "CKPT_SCALE",
            where=path.name,
            found=f"trained on SUV / {scale:g}, this run uses SUV / {config.feed.suv_scale:g}",
            remedy=f"use the same scale (--set feed.suv_scale={scale:g}) or other weights",
        )


def _check_validation(cohort: Cohort, roles: Roles, config: RunConfig, recipe: Validated) -> None:
    """Refuse a run whose schedule would have nobody to listen to.

    Raises:
        InputError: SET_NO_VALIDATION, and those of ``feed.check_cases``.
    """
    if not roles.validation:
        raise InputError(
            "SET_NO_VALIDATION",
            where="split",
            found=f"{config.recipe} follows its scores on patients kept apart for that, and there are none",
            remedy="give it some (--set split.validation_fraction=0.1), or ingest more patients",
        )
    feed.check_cases(cohort, {"paired": roles.validation}, config.feed, [recipe.validation_batch])


def _check_run(run: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to continue a run under other settings or on other voxels, before anything starts."""
    if (run / CONFIG).is_file():
        found = configs.read(run / CONFIG).identity()
        facts = json.loads((run / CONFIG).read_bytes())
        held = {"files": facts.get("files", {}), "cases": facts.get("cases", {})}
        checkpoint.check_same_run({**found, **held}, identity)
    elif run.exists() and any(path.name != ".lock" for path in run.iterdir()):
        raise InputError(
            "CFG_RUN_FOLDER",
            where=run.name,
            found="the folder holds files that are not a run",
            remedy="choose a new or empty folder for --run",
        )


@contextmanager
def session(config: RunConfig, cpus: int, folder: Path, *read: Path, dashboard: bool = False) -> Iterator[None]:
    """A Ray cluster for as long as the block lasts: the one that this process was submitted to, else a private one.

    Args:
        cpus: cores of a private one.
        folder: where work will be written, which every node of a cluster must see.
        read: files that every node must be able to read.
        dashboard: whether a private one has Ray's, which ``ray_dashboard`` finds; a cluster has its own.

    Raises:
        InputError: CFG_RESOURCES; CLU_VERSIONS, CLU_STORAGE, CLU_NODE_SILENT: all before any work starts.  A cluster
            that grows (``nodes.SCALE_UP_S``) has had its time to by then.

    A private cluster's folder stays behind, for its logs, when the block ends in an error that is not a user's mistake.
    """
    os.environ |= {**nodes.SILENT, "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    address = nodes.joined()
    if not address:
        # A private cluster of one secret of its own; an existing one brings its own token.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Ray's name for it: every socket on loopback.  Its metrics would else be open to the whole network.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        # Ray would look for new log files ten times a second, to print them; nobody asked it to.
        os.environ |= {"RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0", "LOG_NAME_UPDATE_INTERVAL_S": "3600"}
    import ray

    temporary = _session_folder()
    environment = runtime_env(config)
    private = {
        "num_cpus": cpus,
        "include_dashboard": dashboard,
        "object_store_memory": 100 * 2**20,
        "_temp_dir": f"{temporary}/r",  # Ray opens this folder to all users; the one above it stays ours
    }
    try:
        with nullcontext() if address else _homeless():
            started = ray.init(
                address=address or "local",
                runtime_env=environment,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else private),
            )
    except ConnectionError:
        raise InputError(
            "CLU_UNREACHABLE",
            where="RAY_ADDRESS",
            found="no Ray cluster answers there",
            remedy="start it, or unset the variable to work on this machine alone",
        ) from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    if dashboard and not address:
        (Path(temporary) / TOKEN).touch(0o600)
        (Path(temporary) / TOKEN).write_text(os.environ["RAY_AUTH_TOKEN"])
        shown = {"folder": str(folder.absolute()), "port": int(started.dashboard_url.rpartition(":")[2])}
        integrity.write_json(Path(temporary) / DASHBOARD, shown)
    keep = True
    worker = {"CPU": config.cluster.cpus_per_worker} | ({"GPU": 1} if config.cluster.device == "cuda" else {})
    try:
        with nodes.room([worker] * config.cluster.workers):
            require_resources(ray.cluster_resources(), config)
            if address:
                nodes.check_alike()
                read = tuple(path.absolute() for path in read if not remote.origin(path.parent))
                if url := remote.origin(folder):
                    nodes.on_every_node(remote.check_writable, url)
                else:
                    nodes.check_shared(folder.absolute(), *read)
            yield
        keep = False
    except InputError as error:
        keep = error.code == "TRAIN_FAILED"
        raise
    finally:
        ray.shutdown()
        if not keep:
            shutil.rmtree(temporary, ignore_errors=True)


def train_on_ray(plan: Plan, *, until: int | None = None) -> None:
    """Train by Ray Train's workers on the cluster that is there, to the end or until a step.

    Raises:
        InputError: what a worker refused; TRAIN_FAILED when workers keep dying.
    """
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    # Who gives the workers' place back when the controller dies asks the dashboard every second.  A private cluster has
    # one for a sweep's trials alone, and ends with its driver anyway.
    guarded = until is not None or nodes.joined()

    class Unguarded(TorchTrainer):  # type: ignore[misc,unused-ignore]
        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if not isinstance(c, PlacementGroupCleanerCallback)]

    run, cluster = plan.run, plan.config.cluster
    trainer = (TorchTrainer if guarded else Unguarded)(
        train_worker,
        train_loop_config={**plan.settings, "until": until},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.device == "cuda",
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.device == "cuda" else {}),
        ),
        torch_config=TorchConfig(timeout_s=300),
        run_config=RayRunConfig(
            # A fresh name: Ray's own notion of a latest checkpoint is never asked, our manifests are.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(run / "ray"),
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=ROOM_TRIES - 1),
        ),
    )
    failure: Exception | None = None
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        failure = error
    finally:
        shutil.rmtree(run / "ray", ignore_errors=True)
    if held := remote.holding(remote.origin(run)):  # what rank 0 published, maybe from another node
        remote.fetch(held.url, held=held)
    raise_refusal(run)
    if failure:
        (run / "failure.log").write_text(str(failure))
        if isinstance(failure, ray.train.ControllerError):
            raise InputError(
                "CLU_NO_ROOM",
                where=run.name,
                found=f"{cluster.workers} workers could not be started within {ROOM_TRIES} minutes; see failure.log",
                remedy="bring lost nodes back (ray up), or run the same command with fewer workers: it continues",
            )
        raise InputError(
            "TRAIN_FAILED",
            where=run.name,
            found=f"workers died {cluster.max_failures + 1} times; the first error is in failure.log",
            remedy="run the same command again to continue from the last checkpoint",
        )


def raise_refusal(run: Path) -> None:
    """Raise what a worker refused, if any did (InputError)."""
    if (run / "error.json").is_file():
        raise InputError(**json.loads((run / "error.json").read_bytes()))


def ray_dashboard(folder: Path) -> tuple[int, Path] | None:
    """Port of Ray's dashboard, and the file with its token, of the private cluster that works in ``folder`` now."""
    for place in Path(tempfile.gettempdir()).glob(f"{SESSION}*"):
        if place.stat().st_uid == os.getuid() and psutil.pid_exists(_owner(place)) and (place / DASHBOARD).exists():
            shown = json.loads((place / DASHBOARD).read_bytes())
            if shown["folder"] == str(folder.absolute()):
                return int(shown["port"]), place / TOKEN
    return None


def _owner(session_folder: Path) -> int:
    pid = session_folder.name.removeprefix(SESSION).split("-")[0]
    return int(pid) if pid.isdecimal() else 0  # somebody else's idea of a name: nobody's process


@contextmanager
def _homeless() -> Iterator[None]:
    """Start processes that have no home: Ray's dashboard looks there for the cloud that it is in, and where it finds no
    file it asks the network."""
    home = os.environ.get("HOME")
    os.environ["HOME"] = os.devnull
    try:
        yield
    finally:
        del os.environ["HOME"]
        os.environ |= {} if home is None else {"HOME": home}


def _session_folder() -> str:
    """A short path (Ray's sockets lie below it) that names its owner, so that a killed driver's can be removed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SESSION}*"):
        if not psutil.pid_exists(_owner(folder)):
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{SESSION}{os.getpid()}-")


def require_resources(found: Mapping[str, float], config: RunConfig) -> None:
    """Ray would wait for ever for cores that do not exist.

    Raises:
        InputError: CFG_RESOURCES.
    """
    cluster = config.cluster
    wanted = {"CPU": cluster.workers * cluster.cpus_per_worker}
    if cluster.device == "cuda":
        wanted["GPU"] = cluster.workers
    for name, amount in wanted.items():
        if found.get(name, 0) < amount:
            raise InputError(
                "CFG_RESOURCES",
                where="cluster.workers",
                found=f"{amount} {name} wanted, the cluster has {found.get(name, 0):g}",
                remedy="ask for fewer workers or a bigger cluster",
            )


def _silent(record: Mapping[str, Any]) -> None:
    """What other ranks than 0 report."""


@contextmanager
def _brought(settings: Mapping[str, Any]) -> Iterator[tuple[Path, Path, Callable[[], None]]]:
    """The cohort and the run on this node, and what rank 0 calls after each commit; paths are mounted by all nodes.

    Every rank resumes from what is published, nothing else: nodes must not differ in their newest checkpoint.
    """
    cohort, run = Path(settings["cohort"]), Path(settings["run"])
    publish: Callable[[], None] = _nothing
    with ExitStack() as stack:
        if settings["lease"]:
            held = remote.Lease(**settings["lease"])
            if dist.get_rank() == 0:
                held = stack.enter_context(remote.succession(held))  # an attempt still dying publishes no more
            _together(_nothing)
            run = _together(partial(remote.fetch, held.url, held=held))
            publish = partial(remote.publish, run, held.url, held)
        if settings["cohort_url"]:
            cohort = _together(partial(remote.fetch, settings["cohort_url"]))
        yield cohort, run, publish


def _together(work: Callable[[], Any]) -> Any:
    """Do ``work`` on all ranks; who is done waits for the others, however long, without a collective timing out.

    Raises:
        InputError: the same on every rank: what was refused on any.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        busy = torch.ones(1, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        while busy.item():
            wait([future], timeout=5)
            busy.fill_(not future.done())
            dist.all_reduce(busy, op=dist.ReduceOp.MAX)
    refused: list[BaseException | None] = [None] * dist.get_world_size()
    dist.all_gather_object(refused, future.exception())
    for error in filter(None, refused):
        raise error
    return future.result()


def _nothing() -> None:
    """Where all nodes mount one path there is nothing to bring."""


def _publishing(report: loop.Report, publish: Callable[[], None]) -> loop.Report:
    """A report that publishes after each committed checkpoint; one that cannot be brought comes with the next."""

    def told(record: dict[str, Any]) -> None:
        report(record)
        if record["event"] == "checkpoint":
            try:
                publish()
            except InputError as error:
                if error.code != "CLU_UNREACHABLE":
                    raise
                print(f"petscale: checkpoint not published yet ({error})", file=sys.stderr)

    return told


@contextmanager
def _fence(run: Path) -> Iterator[None]:
    """Hold the checkpoints alone.  Whoever does not let go in time is no user's mistake: the workers start again."""
    with ExitStack() as stack:
        try:
            stack.enter_context(integrity.exclusive(run / CHECKPOINTS, purpose="this attempt", wait_s=FENCE_S))
        except InputError as error:
            if error.code == "STORE_BUSY":
                raise RuntimeError(str(error)) from None
            raise
        yield


def train_worker(settings: dict[str, Any]) -> None:
    """One worker: the process group is up; everything else is built here from plain JSON.

    What it refuses stands in the run's ``error.json`` afterwards.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    config, run = configs.from_json(settings["used"]), Path(settings["run"])
    publish: Callable[[], None] = _nothing
    rank, world = dist.get_rank(), dist.get_world_size()
    device = (
        torch.device("cuda", torch.cuda.current_device()) if config.cluster.device == "cuda" else torch.device("cpu")
    )
    torch.set_num_threads(config.cluster.cpus_per_worker)
    torch.manual_seed(config.loop.seed)  # the networks' first weights
    try:
        with ExitStack() as stack:
            place, run, publish = stack.enter_context(_brought(settings))
            if rank == 0:  # an attempt that is still dying must have let go of the checkpoints before this touches them
                stack.enter_context(_fence(run))
                report = _publishing(stack.enter_context(sending(run, config.recipe, Reporter(run))), publish)
            else:
                report = _silent
            cohort = open_cohort(place)
            recipe = RECIPES[config.recipe].build(
                config.model,
                make_engine=deepspeed_engines(config.engine, device=device),
                patches_per_step=config.patches_per_step,
            )
            reads = partial(feed.Feed, cohort, rank=rank, world=world, device=device)
            source = reads(settings["streams"], config.feed, recipe.batch_spec)
            validation = None
            if isinstance(recipe, Validated):
                spec = recipe.validation_batch
                validation = reads({"paired": settings["validation"]}, config.feed, lambda batch: spec)
            shown = cohort.case((settings["test"] or settings["train"])[0])
            about = {"recipe": config.recipe, "config": json.dumps(settings["config"])}
            about["starts_from"] = settings["starts_from"]
            seen = sorted(settings["cases"][name] for name in (*settings["train"], *settings["unpaired"]))
            origin = {**about, "trained_on": json.dumps(seen)}
            loop.fit(
                recipe,
                source,
                config.loop,
                folder=run / CHECKPOINTS,
                meta=settings["identity"],
                report=report,
                picture=picture(run / "pictures", shown, config.feed, device),
                patches_per_step=config.patches_per_step,
                validation=validation,
                export=lambda name, tensors: checkpoint.write_weights(run / f"{name}.safetensors", tensors, origin),
                until=settings["until"],
            )
            weights = recipe.weights()
            if rank == 0:
                checkpoint.write_weights(run / WEIGHTS, weights, about)
                publish()
    except InputError as error:
        # Told to the user once by the driver, not retried: it would fail again.
        if rank == 0 or not (run / "error.json").exists():
            facts = {"code": error.code, "where": error.where, "found": error.found, "remedy": error.remedy}
            integrity.write_json(run / "error.json", facts)
            if rank == 0:
                with suppress(InputError):  # the driver may have lost the lease, or the store be away
                    publish()
