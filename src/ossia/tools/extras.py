"""Packages of the extra `ossia[tools]`."""

from __future__ import annotations

from functools import partial

from ossia.core import extras

need = partial(extras.need, extra="tools")
