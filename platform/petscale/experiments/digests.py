"""Short digests by which the folders of experiments are named."""

import hashlib
import json


def digest_of(content: object) -> str:
    """Return the first 12 hex digits of the SHA-256 of ``content`` as JSON.

    Example:
        >>> digest_of({"a": 1}) == digest_of({"a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
