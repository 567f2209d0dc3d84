"""Tables gathered from the modules of a package, where each module is a family's."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

__all__ = ["gather"]


def gather(package: str, families: Iterable[str], attribute: str, name: str) -> dict[str, Any]:
    """Every table of the lists called `attribute` in the modules `package.family`, by its field `name`, in order."""
    modules = (importlib.import_module(f"{package}.{family}") for family in families)
    return {getattr(table, name): table for module in modules for table in getattr(module, attribute)}
