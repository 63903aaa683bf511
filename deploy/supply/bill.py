"""Print a bill of materials (CycloneDX 1.6, JSON) of the environment that runs this: `make sbom`."""

import json
import re
from importlib import metadata

WORD = re.compile(r"^[A-Za-z0-9._-]+")


def spelt(name: str) -> str:
    """Name of a package as an index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def component(found: metadata.Distribution) -> dict[str, object]:
    """One package as CycloneDX describes it."""
    about = found.metadata
    told = about.get("License-Expression") or about.get("License") or ""
    name, version = spelt(about["Name"]), found.version
    purl = f"pkg:pypi/{name}@{version}"
    licence = {"licenses": [{"license": {"name": told.splitlines()[0][:200]}}]} if told.strip() else {}
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, **licence}


installed = {spelt(found.metadata["Name"]): found for found in metadata.distributions()}
parts = {name: component(found) for name, found in sorted(installed.items())}
ours = parts.pop("petscale", {"type": "application", "bom-ref": "petscale", "name": "petscale"}) | {
    "type": "application"
}
needs = []
for name, part in {"petscale": ours, **parts}.items():
    asked = installed[name].requires or [] if name in installed else []
    named = {spelt(match[0]) for line in asked if "extra ==" not in line and (match := WORD.match(line))}
    needs.append({"ref": part["bom-ref"], "dependsOn": sorted(str(parts[one]["bom-ref"]) for one in named & {*parts})})
bill = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "version": 1,
    "metadata": {"component": ours},
    "components": list(parts.values()),
    "dependencies": needs,
}
print(json.dumps(bill, indent=1))
