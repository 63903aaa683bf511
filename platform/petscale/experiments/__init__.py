"""``petscale experiment``: ablation tables of papers, repeated on simulated patients; this dict is the registry.

An experiment is one table: one run per row and fold on one simulated cohort, the paper's own numbers, and the orderings
that they show.  ``design`` says what an experiment is, ``runner`` trains and scores, ``table`` writes.

Three sizes.  ``small``: two to five minutes per run on one core, networks and volumes shrunk; orderings may be asked of
it, the paper's values may not.  ``laptop``: an evening per table on two cores, with finer volumes, more patients, wider
networks and longer trainings than ``small``.  ``paper``: the published networks, lengths and weights, for GPUs, on
phantoms at 4 mm and on fewer patients than the papers had.  Cohorts are phantoms at every size, so absolute values are
no target.
"""

from collections.abc import Callable, Mapping

from petscale.experiments import from_ct, low_dose
from petscale.experiments.design import Experiment
from petscale.experiments.rows import Size

EXPERIMENTS: Mapping[str, Callable[[Size], Experiment]] = {
    "sgsgan_table1": low_dose.sgsgan_table1,
    "sgsgan_table2": low_dose.sgsgan_table2,
    "sgsgan_table3": low_dose.sgsgan_table3,
    "sgsgan_table4": low_dose.sgsgan_table4,
    "sgsgan_table5": low_dose.sgsgan_table5,
    "sgsgan_table6": low_dose.sgsgan_table6,
    "sgsgan_table7": low_dose.sgsgan_table7,
    "sgsgan_table8": low_dose.sgsgan_table8,
    "sgsgan_table9": low_dose.sgsgan_table9,
    "cg_3dsrgan_table1": low_dose.cg_3dsrgan_table1,
    "cg_3dsrgan_table2": low_dose.cg_3dsrgan_table2,
    "s3pet_table1": low_dose.s3pet_table1,
    "s3pet_table2": low_dose.s3pet_table2,
    "sgsgan_resized": low_dose.sgsgan_resized,
    "cascade_table4": from_ct.cascade_table4,
    "virtual_pet": from_ct.virtual_pet_rows,
}
