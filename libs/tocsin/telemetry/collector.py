"""Keep the garbage collector out of a process's way.

CPython's collector looks at every container object again and again: with what a router and a host import (64,000
objects) a full collection stops the process for 24 to 32 ms. What is there when a process begins stays until its
end, so it is set aside; and messages free what they made by reference counts, so the collector may come rarely.
"""

from __future__ import annotations

import gc

NEW_OBJECTS = 20_000
"""Containers made and not freed that start a collection of the youngest (CPython's default is 700)."""
OLDER_EACH = 20
"""Collections of one generation that start one of the next older (CPython's default is 10)."""


def set_aside() -> None:
    """Set aside what was imported, and collect rarely from here on. For a process that begins."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, OLDER_EACH, OLDER_EACH)
