"""Write requirements.lock: what pip would install for this checkout, each file with its SHA-256 (`make lock`).

Reads pip's report of an installation that it did not carry out.  torch is left out, and what comes with it alone: its
file is another one for CPUs and for every CUDA.
"""

import json
import re
import sys
from pathlib import Path

LEFT_OUT = re.compile(r"torch|triton|nvidia-.*|cuda-.*|petscale")
HEAD = """\
# Written by `make lock`: the versions of constraints.txt, the SHA-256 of each file; Python {python}, Linux, x86-64.
#   pip install torch=={torch}                  # first, from where you trust: its file differs between CPUs and CUDA
#   pip install --no-deps --require-hashes -r requirements.lock
#   pip install --no-deps --no-build-isolation -e .
"""


def name_of(item: dict[str, dict[str, str]]) -> str:
    """Name of a package as an index spells it."""
    return re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()


report = json.loads(Path(sys.argv[1]).read_bytes())
found = {name_of(item): item for item in report["install"]}
lines = [
    f"{name}=={item['metadata']['version']} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}"
    for name, item in sorted(found.items())
    if not LEFT_OUT.fullmatch(name)
]
python = report["environment"]["python_version"]
head = HEAD.format(python=python, torch=found["torch"]["metadata"]["version"].partition("+")[0])
Path("requirements.lock").write_text(head + "\n".join(lines) + "\n")
