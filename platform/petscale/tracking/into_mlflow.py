"""MLflow's store: a SQLite file and a folder of artifacts; `mlflow ui` shows it, nothing is sent anywhere."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petscale.tracking.copying import About, Tracker, batches, loaded

EXPERIMENT = "petscale"
KEY = "petscale.run"  # the tag by which a run is found again
MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 500  # of one request; characters of a value


class MlflowRun:
    """A run in MLflow's store: a ``Tracker``.

    Args:
        client: MLflow's.
        run: its identifier.
        entities: MLflow's module of records.
    """

    def __init__(self, client: Any, run: str, entities: Any) -> None:
        self._client, self._run, self._entities = client, run, entities
        self._metrics: list[Any] = []

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._metrics += [self._entities.Metric(name, value, now, step) for name, value in values.items()]

    def picture(self, step: int, name: str, file: Path) -> None:
        self._client.log_artifact(self._run, str(file), artifact_path=name)

    def close(self) -> None:
        for part in batches(self._metrics, MOST_METRICS):
            self._client.log_batch(self._run, metrics=part)
        self._client.set_terminated(self._run)


def open_mlflow(store: Path, about: About) -> Tracker:
    """Begin a run in MLflow's store, in place of an earlier copy of it.

    Raises:
        InputError: CFG_PACKAGE.
    """
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}  # it would tell its makers of its use
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    tracking, entities = loaded("mlflow.tracking", "mlflow"), loaded("mlflow.entities", "mlflow")
    loaded("alembic", "mlflow")
    place = store.resolve()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    known = client.get_experiment_by_name(EXPERIMENT)
    if known is None:
        experiment = client.create_experiment(EXPERIMENT, artifact_location=(place / "artifacts").as_uri())
    else:
        experiment = known.experiment_id
        for earlier in client.search_runs([experiment], filter_string=f"tags.`{KEY}` = '{about.key}'"):
            client.delete_run(earlier.info.run_id)
    run = client.create_run(experiment, run_name=about.name).info.run_id
    params = [entities.Param(name, value[:LONGEST]) for name, value in about.settings.items()]
    tags = [entities.RunTag(name, value[:LONGEST]) for name, value in {KEY: about.key, **about.tags}.items()]
    for part in batches(params, MOST_PARAMS):
        client.log_batch(run, params=part)
    client.log_batch(run, tags=tags)
    return MlflowRun(client, run, entities)
