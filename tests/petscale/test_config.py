"""A configuration survives JSON, is set by name, as the sources advise, and splits patients, never scans."""

import ast
import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from petscale import config as configs
from petscale.config import RunConfig, from_json, override, to_json
from petscale.experiments.runs import demo
from petscale.splits import Roles, SplitConfig, split_cases
from storage.errors import InputError
from storage.reader import open_cohort
from trainers.engine import EngineConfig
from trainers.loop import LoopConfig
from trainers.systems import RECIPES

ROOT = Path(__file__).parents[2]


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
            "feed.source=low_drf4,low_drf20",
            "recipe.rois=()",
            "recipe.lr=1",
            "recipe.content=l2",
            "recipe.use_noise=False",
            "recipe.halo=None",
            "loop.seed=7",
        ],
    )
    assert config.model.patch == (32, 32, 40)
    assert config.feed.source == ("low_drf4", "low_drf20")
    assert config.model.rois == ()
    assert isinstance(config.model.lr, float)
    assert (config.model.content, config.model.use_noise, config.model.halo) == ("l2", False, None)
    assert config.loop.seed == 7
    assert override(config, []) == config
    assert override(RunConfig(), ["recipe.patch=[32, 32, 40]"]).model.patch == (32, 32, 40)
    assert override(RunConfig(), ["recipe.rois=liver"]).model.rois == ("liver",)
    assert override(RunConfig(), ["feed.source=low_drf4"]).feed.source == ("low_drf4",)
    # The later of two settings of one field holds.
    assert override(RunConfig(), ["loop.seed=1", "loop.seed=2"]).loop.seed == 2


def test_true_is_not_a_zero_stage() -> None:
    config = override(RunConfig(), ["engine.zero_stage=True"])
    assert json.dumps(to_json(config)["engine"]["zero_stage"]) == "1"


def advised() -> Iterator[tuple[str, str]]:
    """Every setting that a text of the sources shows after --set, with its file; what is to be filled in as "..."."""
    for path in sorted([*(ROOT / "trainers").rglob("*.py"), *(ROOT / "platform").rglob("*.py")]):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if "--set " in source else ():
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
            for run in re.findall(r"--set ((?:\w+\.\w+=(?:\"[^\"]*\"|\(\)|[^\s()]+)\s?)+)", text):
                for setting in shlex.split(run):
                    name, _, value = setting.rstrip(",;:").partition("=")
                    yield str(path.relative_to(ROOT)), f"{name}={'...' if '...' in value else value.rstrip('.')}"


ADVISED = sorted(set(advised()))


def refusals(file: str, setting: str) -> set[str]:
    """Codes under which the recipe of a file refuses a setting, or every recipe where the file is none's; or ''."""
    codes = set()
    for recipe in [name for name in RECIPES if name in Path(file).with_suffix("").parts] or RECIPES:
        try:
            override(RunConfig(recipe=recipe), [setting])
            codes.add("")
        except InputError as error:
            codes.add(error.code)
    return codes


@pytest.mark.parametrize(("file", "setting"), ADVISED)
def test_what_a_remedy_advises_is_accepted(file: str, setting: str) -> None:
    assert refusals(file, setting) - {"CFG_FIELD", "CFG_SET"}
    assert setting.endswith("=...") or "" in refusals(file, setting)


def test_advice_is_found_and_wrong_advice_would_be_refused() -> None:
    files = {file for file, _ in ADVISED}
    assert {
        "trainers/systems/cg_3dsrgan.py",
        "trainers/systems/s3pet.py",
        "platform/petscale/training/planning.py",
    } <= files
    assert ("trainers/systems/cg_3dsrgan.py", "recipe.doses=4,20") in ADVISED  # the second after one --set
    assert ("trainers/perceptual.py", "recipe.vgg16_sha256=...") in ADVISED
    assert refusals("trainers/systems/cg_3dsrgan.py", "recipe.refine=false") == {"CFG_VALUE"}
    assert refusals("trainers/systems/s3pet.py", "recipe.refine=False") == {"CFG_FIELD"}
    assert refusals("trainers/feed.py", "recipe.rooms=()") == {"CFG_FIELD"}


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


def split(config: SplitConfig, **wanted: bool) -> Roles:
    return split_cases(People(), config, **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "settings", [{"test_fraction": 0.3}, {"folds": 3, "fold": 1}, {"test": ("case-03", "case-05")}]
)
def test_no_patient_has_two_roles(seed: int, settings: dict[str, Any]) -> None:
    config = SplitConfig(seed=seed, unpaired_fraction=0.5, **settings)
    roles = split(config, unpaired=True, validation=True)
    people = [{People().case(n).subject for n in group} for group in dataclasses.astuple(roles)]
    assert all(people)
    assert sum(map(len, people)) == len(set.union(*people))
    if "test" not in settings:  # scans of a tested patient that were not named are nobody's
        assert sorted(roles.everyone) == list(People().cases)
    assert split(config, unpaired=True, validation=True) == roles


@pytest.mark.parametrize("seed", range(3))
def test_folds_test_every_patient_once_whatever_a_recipe_wants_besides(seed: int) -> None:
    tests = [split(SplitConfig(seed=seed, folds=3, fold=fold)).test for fold in range(3)]
    assert sorted(name for test in tests for name in test) == list(People().cases)
    again = [split(SplitConfig(seed=seed, folds=3, fold=f), unpaired=True, validation=True).test for f in range(3)]
    assert again == tests


def test_roles_that_no_recipe_wants_take_no_patient() -> None:
    roles = split(SplitConfig(test_fraction=0.3))
    assert (len(roles.train), roles.unpaired, roles.validation) == (13 - len(roles.test), (), ())
    assert len({People().case(n).subject for n in roles.test}) == 2  # 0.3 of 7 patients


def test_named_unpaired_cases_take_their_patient_and_never_a_test_patient() -> None:
    roles = split(SplitConfig(test=("case-03",), unpaired=("case-00", "case-10")), unpaired=True)
    assert roles.unpaired == ("case-00", "case-07")
    assert roles.test == ("case-03",)


def test_one_patient_stays_to_be_trained_on() -> None:
    roles = split(SplitConfig(test_fraction=0.7, validation_fraction=0.9, unpaired_fraction=0.9), unpaired=True)
    assert len({People().case(n).subject for n in roles.train}) == 1


def test_a_split_of_earlier_runs_is_drawn_as_it_was() -> None:
    assert split(SplitConfig(unpaired_fraction=0.8), unpaired=True, validation=True) == Roles(
        train=("case-03", "case-10"),
        unpaired=("case-01", "case-04", "case-05", "case-08", "case-11", "case-12"),
        validation=("case-02", "case-09"),
        test=("case-00", "case-06", "case-07"),
    )


def test_the_seed_decides_the_split() -> None:
    assert len({split(SplitConfig(seed=s)).test for s in range(8)}) > 3


def test_named_test_cases_take_their_patient_out_of_training() -> None:
    roles = split(SplitConfig(test=("case-03",)))
    assert roles.test == ("case-03",)
    assert "case-10" not in roles.train  # the same patient
    assert len(roles.train) == 11


def test_no_test_patients_when_none_are_wanted() -> None:
    roles = split(SplitConfig(test_fraction=0.0))
    assert (len(roles.train), roles.test) == (13, ())


def test_splits_that_cannot_be() -> None:
    for config, code in (
        (SplitConfig(test=("nobody",)), "SET_NO_CASE"),
        (SplitConfig(test_fraction=0.99), "SET_TOO_SMALL"),
        (SplitConfig(test=tuple(f"case-{n:02d}" for n in range(7))), "SET_TOO_SMALL"),
    ):
        with pytest.raises(InputError) as refused:
            split(config)
        assert refused.value.code == code


def test_a_case_that_is_left_out_has_no_role_and_is_never_opened() -> None:
    class Damaged(People):
        def case(self, name: str) -> OneCase:
            assert name != "case-03"
            return super().case(name)

    for settings in ({"test_fraction": 0.3}, {"folds": 3, "fold": 1}, {"test": ("case-05",)}):
        config = SplitConfig(leave_out=("case-03",), **settings)
        roles = split_cases(Damaged(), config, unpaired=True, validation=True)  # type: ignore[arg-type]
        assert "case-03" not in roles.everyone
        assert "case-10" in roles.everyone  # another scan of the same patient
    with pytest.raises(InputError, match=r"SET_NO_CASE split.leave_out: case-99"):
        split(SplitConfig(leave_out=("case-99",)))
    with pytest.raises(InputError, match="CFG_CONTRADICTION"):
        SplitConfig(leave_out=("case-03",), test=("case-03",))


@dataclass(frozen=True)
class TracerCase:
    """One scan of a patient whose tracer and lesions are known."""

    name: str
    subject: str
    tracer: str
    lesions: int

    images = ("body", "full")
    labels = MappingProxyType({1: "lesion 1"})
    tags = MappingProxyType({"cancer": "b"})

    @property
    def sampling_maps(self) -> Any:
        return SimpleNamespace(rois={"lesion 1": np.full((2, 2, 2), self.lesions)})

    def image(self, name: str) -> Any:
        grid = SimpleNamespace(spacing_mm=(2.0, 1.0, 1.0))
        return SimpleNamespace(provenance={"truth": {"nuclide": self.tracer}}, dose=None, grid=grid)


@dataclass(frozen=True)
class TracerPeople:
    """Eight patients: every second one with Ga-68 (four), one of two of each kind with lesions; one scanned twice."""

    @property
    def cases(self) -> tuple[str, ...]:
        return (*(f"case-{number}" for number in range(8)), "case-7-again")

    def case(self, name: str) -> TracerCase:
        number = int(name.split("-")[1])
        return TracerCase(name, f"s{number}", ("F-18", "Ga-68")[number % 2], number // 2 % 2)


@pytest.mark.parametrize("seed", range(4))
def test_every_fold_has_its_share_of_what_is_stratified_by(seed: int) -> None:
    people = TracerPeople()

    def stratified(**settings: Any) -> Roles:
        config = SplitConfig(seed=seed, stratify=("tracer", "label:lesion"), **settings)
        return split_cases(people, config, validation=True)  # type: ignore[arg-type]

    folds = [stratified(folds=2, fold=fold, validation_fraction=0.5) for fold in range(2)]
    assert sorted(name for roles in folds for name in roles.test) == sorted(people.cases)
    for roles in folds:
        kinds = {
            (people.case(name).subject, people.case(name).tracer, people.case(name).lesions) for name in roles.test
        }
        assert sorted(kind[1:] for kind in kinds) == [("F-18", 0), ("F-18", 1), ("Ga-68", 0), ("Ga-68", 1)]
        assert sorted({people.case(n).tracer for n in roles.validation}) == ["F-18", "Ga-68"]
        subjects = [{people.case(name).subject for name in group} for group in dataclasses.astuple(roles)]
        assert len(set.union(*subjects)) == sum(map(len, subjects))
    drawn = stratified(test_fraction=0.5)
    assert {people.case(name).tracer for name in drawn.test} == {"F-18", "Ga-68"}
    assert len({people.case(name).subject for name in drawn.test}) == 4
    assert stratified(test_fraction=0.5) == drawn
    assert {people.case(n).tracer for n in stratified(test_fraction=0.25).test} == {"F-18", "Ga-68"}


@pytest.mark.parametrize(
    ("stratify", "code"),
    [
        (("colour",), "CFG_CHOICE"),
        (("label",), "CFG_CHOICE"),
        (("tracer:x",), "CFG_CHOICE"),
        (("scanner",), "SET_NO_FACT"),
        (("label:brain",), "SET_NO_FACT"),
        (("tag:stage",), "SET_NO_FACT"),
    ],
)
def test_a_fact_that_nothing_can_be_stratified_by_is_refused(stratify: tuple[str, ...], code: str) -> None:
    with pytest.raises(InputError, match=code):
        split_cases(TracerPeople(), SplitConfig(stratify=stratify))  # type: ignore[arg-type]


def test_a_real_cohort_is_stratified_by_what_it_states(cohort: Path) -> None:
    for fact in ("drf", "voxel_size", "label:liver"):
        roles = split_cases(open_cohort(cohort), SplitConfig(stratify=(fact,), folds=2))
        assert (len(roles.train), len(roles.test)) == (2, 2)


def test_runs_of_before_there_was_a_choice_are_the_same_runs() -> None:
    known = configs.RunConfig().identity()
    assert {
        name: fields if name == "recipe" else set(fields) for name, fields in known.items() if name in configs.SECTIONS
    } == {
        # What commit d3f2ffb's runs state, whatever is added to the classes.
        "recipe": "sgsgan",
        "feed": {"source", "target", "suv_scale", "seed", "cases_per_step"},
        "engine": {"zero_stage", "precision", "gradient_clipping"},
        "split": {
            *("test", "test_fraction", "folds", "fold", "validation_fraction", "unpaired", "unpaired_fraction", "seed")
        },
    }
    changed = configs.RunConfig(split=SplitConfig(leave_out=("p01",))).identity()["split"]
    assert changed == {**known["split"], "leave_out": ["p01"]}


def test_a_systems_setting_that_came_later_is_stated_where_it_is_chosen() -> None:
    plain = configs.from_json({"recipe": "s3pet"})
    assert "residual" not in plain.identity()["model"]
    changed = override(plain, ["recipe.residual=low"]).identity()
    assert changed["model"] == {**plain.identity()["model"], "residual": "low"}


def test_settings_of_practice_are_filled_in_when_asked_for_and_are_a_run_of_their_own() -> None:
    paper, practice = from_json({"recipe": "sgsgan"}), from_json({"recipe": {"name": "sgsgan", "defaults": "practice"}})
    assert paper == RunConfig()
    stated = {"beyond": "mirror"}, {"ema_decay": 0.998}, {"residual": "gaussian"}
    known = paper.identity()
    merged = zip(("feed", "engine", "model"), stated, strict=True)
    assert practice.identity() == known | {section: known[section] | fields for section, fields in merged}
    assert from_json(to_json(practice)) == practice
    # What an earlier version recorded lacks the later settings, and means what it meant.
    record = to_json(paper)
    for section, name in (("feed", "beyond"), ("engine", "ema_decay"), ("recipe", "residual")):
        del record[section][name]
    assert from_json(record) == paper
    with pytest.raises(InputError, match=r"CFG_VALUE recipe.defaults: unknown 'papr'; did you mean 'paper'"):
        from_json({"recipe": {"name": "sgsgan", "defaults": "papr"}})


def test_a_run_says_which_of_its_systems_departures_it_makes() -> None:
    practice = from_json({"recipe": {"name": "sgsgan", "defaults": "practice"}})
    words = "mirrored borders, averaged weights and a residual on the Gaussian of the dose"
    assert configs.defaults_said(practice) == [f"sgsgan with {words}, which its paper does not have."]
    assert configs.defaults_said(RunConfig()) == [f"sgsgan as in its paper: without {words}."]
    assert configs.defaults_said(override(RunConfig(), ["engine.ema_decay=0.9"])) == [
        "sgsgan with averaged weights, which its paper does not have.",
        "sgsgan as in its paper: without mirrored borders and a residual on the Gaussian of the dose.",
    ]
    assert configs.defaults_said(RunConfig(recipe="restore")) == []


@pytest.mark.parametrize("recipe", [name for name in RECIPES if configs.practice_of(name)])
def test_the_page_on_training_has_a_row_of_every_departure(recipe: str) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to-train.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    paper = RunConfig(recipe=recipe).sections
    for departure in configs.practice_of(recipe):
        section, _, name = departure.name.partition(".")
        (row,) = [row for row in rows if f"`{recipe}`" in row[0] and row[1] == f"`{departure.name}`"]
        before = getattr(paper[section], name)
        assert row[2] == (f"`{before}`" if isinstance(before, str) else f"{before:g}")
        value = f"`{departure.value}`" if isinstance(departure.value, str) else f"{departure.value:g}"
        assert row[3].startswith(f"{value}: ")


@pytest.mark.parametrize(
    ("setting", "section", "stated"),
    [
        ("feed.augment=flips", "feed", {"augment": "flips"}),
        ("feed.beyond=mirror", "feed", {"beyond": "mirror"}),
        ("engine.ema_decay=0.9", "engine", {"ema_decay": 0.9}),
        ("engine.warm_up_steps=3", "engine", {"warm_up_steps": 3}),
        ("engine.lr_decay=cosine", "engine", {"lr_decay": "cosine"}),
        ("loop.validate_every=5", "loop", {"validate_every": 5}),
        ("loop.validation_patches=3", "loop", {"validation_patches": 3}),
    ],
)
def test_a_setting_that_came_later_is_stated_where_it_is_chosen(
    setting: str, section: str, stated: dict[str, Any]
) -> None:
    known = configs.RunConfig().identity()
    found = override(configs.RunConfig(), [setting]).identity()
    assert found == known | {section: known.get(section, {}) | stated}


def test_patience_without_validation_is_refused() -> None:
    with pytest.raises(InputError, match=r"CFG_RANGE loop.patience.*none is made"):
        override(RunConfig(), ["loop.patience=3"])
    assert override(RunConfig(), ["loop.patience=3", "loop.validate_every=5"]).loop.patience == 3


def test_a_system_may_state_defaults_of_the_loop_and_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = LoopConfig(validate_every=50, patience=4), EngineConfig(ema_decay=0.99, lr_decay="cosine")
    monkeypatch.setattr(RECIPES["red_cnn"], "LOOP", stated[0], raising=False)
    monkeypatch.setattr(RECIPES["red_cnn"], "ENGINE", stated[1], raising=False)
    for config in (RunConfig(recipe="red_cnn"), from_json({"recipe": "red_cnn"})):
        assert (config.loop, config.engine) == stated
    chosen = from_json({"recipe": "red_cnn", "loop": {"patience": 2}, "engine.ema_decay": 0})
    assert chosen.loop == replace(stated[0], patience=2)
    assert chosen.engine == replace(stated[1], ema_decay=0.0)
    assert from_json(to_json(chosen)) == chosen
    assert RunConfig().loop == LoopConfig()
    assert RunConfig().engine == EngineConfig()
    assert RunConfig(recipe="red_cnn").identity()["loop"] == {"validate_every": 50, "patience": 4}


def test_a_real_cohort_splits(cohort: Path) -> None:
    roles = split_cases(open_cohort(cohort), SplitConfig())
    assert len(roles.train) == 3
    assert len(roles.test) == 1


def test_ranges_hold_however_a_configuration_is_composed() -> None:
    base = RunConfig()
    with pytest.raises(InputError, match="CFG_WORKERS"):
        replace(base, cluster=replace(base.cluster, workers=3))
    with pytest.raises(InputError, match="CFG_RANGE"):
        replace(base, feed=replace(base.feed, suv_scale=0.0))
