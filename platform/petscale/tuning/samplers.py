"""Optuna's samplers by name, with draws that depend on the seed and the trial's number alone."""

import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from storage.errors import InputError

GENERATION = 10  # of NSGA-II: Optuna's 50 would be a random search for as many trials as a sweep can afford


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():  # conditional spaces need groups, which Optuna calls experimental
        warnings.filterwarnings("ignore", message=".*``group``", category=ExperimentalWarning)
        return TPESampler(multivariate=True, group=True, seed=seed)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(population_size=GENERATION, seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": _random, "nsga2": _nsga2}


class _Keyed(BaseSampler):
    """A sampler whose draws depend on the seed, the trial's number and the trials before it, on nothing else.

    A sampler that was merely seeded would begin its draws anew in every session and propose the first ones again.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        key = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)
        self._sampler = self._make(int(key[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


def sampler_of(name: str, seed: int) -> BaseSampler:
    """Return the sampler of a name, its draws keyed by ``seed`` and the trial's number.

    Raises:
        InputError: TUNE_SAMPLER.
    """
    if name not in SAMPLERS:
        near = get_close_matches(name.lower(), SAMPLERS, n=1, cutoff=0)[0]
        raise InputError(
            "TUNE_SAMPLER",
            where=f"sampler {name}",
            found="no such sampler",
            remedy=f"did you mean {near}? One of {', '.join(SAMPLERS)}",
        )
    return _Keyed(SAMPLERS[name], seed)
