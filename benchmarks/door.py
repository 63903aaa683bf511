"""Bad and odd input by kinds: every member of tests/lab/door.py through ``petscale ingest``, as a page.

    python benchmarks/door.py > docs/results/door.md

tests/test_door.py asserts each row.  ``off`` is the largest difference between the SUV that is stored and the one that
went in (or the multiple of it that decay or another mass tells), as part of the largest SUV.
"""

import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/lab"))


def main() -> None:
    """Ingest every member and print the page."""
    import door

    rows, worst, refused = [], 0.0, 0
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PETSCALE_SITE_KEY"] = str(Path(scratch, "site.key"))
        for number, member in enumerate(door.MEMBERS):
            found = door.run(member, Path(scratch, str(number)))
            rows.append(door.outcome_line(member, found))
            worst, refused = max(worst, 0.0 if found.off != found.off else found.off), refused + bool(found.code)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    print("# Bad and odd input\n")
    print(
        f"`python benchmarks/door.py`, commit {commit}, {datetime.datetime.now(datetime.UTC).date()}, "
        f"{platform.machine()}: {len(rows)} members of {len({m.kind for m in door.MEMBERS})} kinds; {refused} refused, "
        f"{len(rows) - refused} read, their SUV off by at most {worst:.1e} of the largest.\n"
    )
    print("What users have is made here in small: files that lie, lack something, or are unusual and right.")
    print("`off` is the largest difference between the SUV that is stored and the one that went in.")
    print("`tests/test_door.py` asserts every row; 10,000 damaged files are in [damaged files](mutated_files.md),")
    print("and every note is explained in [notes](../notes.md).\n")
    print("| kind | member | what it gives | off |\n|---|---|---|---|")
    print("\n".join(sorted(rows, key=lambda row: row.split("|")[1])))


if __name__ == "__main__":
    main()
