"""Names of the files in a run's folder and in a study's folder; on disk they never change."""

# A run: `petscale train RUN`
CONFIG = "config.json"  # its configuration and record
WEIGHTS = "weights.safetensors"  # what inference needs
GUIDE = "segmenter.safetensors"  # SGSGAN's segmentation network, where organs guided
CHECKPOINTS = "checkpoints"  # committed states, for resuming
STOPPED = "stopped.json"  # where a run stopped to keep its time limit, until it goes on
METRICS = "metrics.jsonl"  # one record per line
EVENTS = "tb"  # TensorBoard's copy of them
PICTURES = "pictures"  # of a held-out patch, during training
SYNTHESIS = "synthesis"  # per source image: a cohort of synthesized volumes
EVALUATION = "evaluation"  # per source image: scores and baselines
CASES = "cases"  # per source image, and in a trial's run per budget: scores of single cases, until all are there
PATIENTS = "patients.json"  # in it: who the run's patients are, as keyed hashes, and their nuclides
CALIBRATION = "calibration"  # per mean of images: of its standard deviation, and how well it holds
EXTERNAL = "external"  # per other cohort: what synthesis, evaluation and the report are for the run's own
SEGMENTER = "judge"  # in it: the organ segmenter of the Unet-score
REPORT = "report.html"  # of a run or a study

# Folds: `petscale folds --run RUN`; beside these, SYNTHESIS and EVALUATION as in a run
FOLDS = "folds.json"  # the split of all folds, made once
FOLD = "fold-{}"  # a run per fold, by number

# A study: `petscale tune --study STUDY`
ROLES = "roles.json"  # which patients train and validate all trials
TRIALS = "trials"  # a run per trial, by number
SCORED = "judged.json"  # in a trial's run: the objectives after each budget
BEST = "best.json"  # the best trial's configuration
