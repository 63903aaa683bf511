"""``petscale tune``: a sweep of trials by Ray Tune and Optuna, scored on validation patients."""
