"""petscale track: a run's settings, records and scores copied into the store of MLflow or Weights & Biases, offline."""
