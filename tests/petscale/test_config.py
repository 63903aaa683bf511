"""A configuration survives JSON, is set by name, and splits patients, never scans."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from petscale import config as configs
from petscale.config import RunConfig, SplitConfig, from_json, override, to_json
from petscale.experiments import demo
from storage.errors import InputError
from storage.reader import open_cohort


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        demo(3),
        override(RunConfig(), ["recipe.modulated=1,3", "recipe.halo=2", "engine.zero_stage=2", "split.test=a,b"]),
    ],
)
def test_json_there_and_back(config: RunConfig, tmp_path: Path) -> None:
    content = json.loads(json.dumps(to_json(config)))
    assert from_json(content) == config
    assert hash(from_json(content)) == hash(config)  # lists came back as tuples
    # A configuration file and a run's record are read alike.
    (tmp_path / "plain.json").write_text(json.dumps(content))
    (tmp_path / "run.json").write_text(json.dumps({"config": content, "command": "petscale train"}))
    assert configs.read(tmp_path / "plain.json") == configs.read(tmp_path / "run.json") == config


def test_what_is_left_out_has_its_default() -> None:
    assert from_json({}) == RunConfig()
    assert from_json({"loop": {"seed": 4}}) == override(RunConfig(), ["loop.seed=4"])


def test_settings() -> None:
    config = override(
        RunConfig(),
        [
            "recipe.patch=32,32,40",
            "feed.low=low_drf4,low_drf20",
            "recipe.rois=()",
            "recipe.lr=1",
            "recipe.content=l2",
            "recipe.use_noise=False",
            "recipe.halo=None",
            "loop.seed=7",
        ],
    )
    assert config.model.patch == (32, 32, 40)
    assert config.feed.low == ("low_drf4", "low_drf20")
    assert config.model.rois == ()
    assert isinstance(config.model.lr, float)
    assert (config.model.content, config.model.use_noise, config.model.halo) == ("l2", False, None)
    assert config.loop.seed == 7
    assert override(config, []) == config
    assert override(RunConfig(), ["recipe.patch=[32, 32, 40]"]).model.patch == (32, 32, 40)
    assert override(RunConfig(), ["recipe.rois=liver"]).model.rois == ("liver",)
    assert override(RunConfig(), ["feed.low=low_drf4"]).feed.low == ("low_drf4",)
    # The later of two settings of one field holds.
    assert override(RunConfig(), ["loop.seed=1", "loop.seed=2"]).loop.seed == 2


def test_true_is_not_a_zero_stage() -> None:
    config = override(RunConfig(), ["engine.zero_stage=True"])
    assert json.dumps(to_json(config)["engine"]["zero_stage"]) == "1"


def test_identity_is_what_decides_the_result() -> None:
    base = RunConfig()
    for same in ("cluster.workers=2", "cluster.cpus_per_worker=2", "loop.log_every=1", "loop.save_every=9"):
        assert override(base, [same]).identity() == base.identity(), same
    for other in ("recipe.lr=1e-3", "feed.seed=1", "feed.suv_scale=2", "loop.seed=1", "split.seed=1"):
        assert override(base, [other]).identity() != base.identity(), other
    assert json.loads(json.dumps(base.identity())) == base.identity()


@dataclass(frozen=True)
class OneCase:
    subject: str


@dataclass(frozen=True)
class People:
    """Thirteen scans of seven patients: what ``split_cases`` asks of a cohort."""

    folder: Path = Path()

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(sorted(f"case-{number:02d}" for number in range(13)))

    def case(self, name: str) -> OneCase:
        if name not in self.cases:
            raise InputError("SET_NO_CASE", where=name, found="absent", remedy="name another")
        return OneCase(f"subject-{int(name[-2:]) % 7}")


@pytest.mark.parametrize("seed", range(8))
def test_no_patient_is_on_both_sides(seed: int) -> None:
    people = People()
    train, test = configs.split_cases(people, SplitConfig(seed=seed, test_fraction=0.3))  # type: ignore[arg-type]
    assert sorted([*train, *test]) == list(people.cases)
    assert not {people.case(n).subject for n in train} & {people.case(n).subject for n in test}
    assert len({people.case(n).subject for n in test}) == 2  # 0.3 of 7 patients
    again = configs.split_cases(people, SplitConfig(seed=seed, test_fraction=0.3))  # type: ignore[arg-type]
    assert again == (train, test)


def test_the_seed_decides_the_split() -> None:
    splits = {tuple(configs.split_cases(People(), SplitConfig(seed=s))[1]) for s in range(8)}  # type: ignore[arg-type]
    assert len(splits) > 3


def test_named_test_cases_take_their_patient_out_of_training() -> None:
    train, test = configs.split_cases(People(), SplitConfig(test=("case-03",)))  # type: ignore[arg-type]
    assert test == ["case-03"]
    assert "case-10" not in train  # the same patient
    assert len(train) == 11


def test_no_test_patients_when_none_are_wanted() -> None:
    train, test = configs.split_cases(People(), SplitConfig(test_fraction=0.0))  # type: ignore[arg-type]
    assert (len(train), test) == (13, [])


def test_splits_that_cannot_be() -> None:
    for split, code in (
        (SplitConfig(test=("nobody",)), "SET_NO_CASE"),
        (SplitConfig(test_fraction=0.99), "SET_TOO_SMALL"),
        (SplitConfig(test=tuple(f"case-{n:02d}" for n in range(7))), "SET_TOO_SMALL"),
    ):
        with pytest.raises(InputError) as refused:
            configs.split_cases(People(), split)  # type: ignore[arg-type]
        assert refused.value.code == code


def test_a_real_cohort_splits(cohort: Path) -> None:
    train, test = configs.split_cases(open_cohort(cohort), SplitConfig())
    assert len(train) == 3
    assert len(test) == 1


def test_ranges_hold_however_a_configuration_is_composed() -> None:
    base = RunConfig()
    with pytest.raises(InputError, match="CFG_WORKERS"):
        replace(base, cluster=replace(base.cluster, workers=3))
    with pytest.raises(InputError, match="CFG_RANGE"):
        replace(base, feed=replace(base.feed, suv_scale=0.0))
