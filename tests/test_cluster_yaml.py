"""cluster.yaml: valid for this Ray, and nothing in it opens a door."""

from pathlib import Path

import yaml

CLUSTER = Path(__file__).parents[1] / "cluster.yaml"


def test_ray_accepts_it() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(CLUSTER.read_text())))


def test_it_is_safe_by_default() -> None:
    content = yaml.safe_load(CLUSTER.read_text())
    assert "0.0.0.0" not in CLUSTER.read_text()
    setup = next(command for command in content["setup_commands"] if "cat > ~/.petscale.sh" in command)
    for safe in (
        "RAY_AUTH_MODE=token",
        "RAY_USAGE_STATS_ENABLED=0",
        "RAY_USAGE_STATS_REPORT_URL=none",
        "umask 077",
        "ulimit -c 0",
        "chmod 600 ~/.ray/auth_token ~/.config/petscale/site.key",
    ):
        assert safe in setup
    assert "PETSCALE_SITE_KEY=$PETSCALE_STORAGE" not in setup  # a copy of the storage would hold the key too
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (command for command in content[key] if "ray start" in command)
        assert start.startswith(". ~/.petscale.sh && ")
        assert ("--dashboard-host=127.0.0.1" in start) == ("--head" in start)
