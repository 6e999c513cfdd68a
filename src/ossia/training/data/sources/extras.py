"""Packages of the extra `ossia[data]`, and with `extra="ray"` of `ossia[ray]`."""

from __future__ import annotations

from functools import partial

from ossia.core import extras

need = partial(extras.need, extra="data")
