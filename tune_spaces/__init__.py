"""Search spaces over the papers' Config fields, by Optuna trial; no torch, no Ray."""
