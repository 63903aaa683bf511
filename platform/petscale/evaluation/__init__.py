"""``petscale evaluate``: test cases synthesized and scored beside baselines that need no network."""
