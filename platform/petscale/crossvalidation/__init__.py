"""petscale folds and petscale best: a run per fold, every patient scored once, systems compared patient by patient."""
