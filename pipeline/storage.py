"""Files at fsspec URLs (``s3://``, ``gs://``, ``memory://``, …) beside local paths: what the rest of the
pipeline needs of it, in one place.

``urls`` has the filesystem of a URL and its errors, ``file_cache`` the local copies
(``cache_space``: their room), ``uploads`` the way
back, ``mirror`` job folders. See docs/storage.md.
"""

from __future__ import annotations

from .cache_space import release, trim
from .file_cache import localise
from .mirror import Mirror
from .uploads import upload
from .urls import exists, filesystem, is_url, join_url, local_path, shown

__all__ = [
    "Mirror",
    "exists",
    "filesystem",
    "is_url",
    "join_url",
    "local_path",
    "localise",
    "release",
    "shown",
    "trim",
    "upload",
]
