"""How much each key may ask: requests and tokens a minute (token buckets), and requests at once.

A bucket holds a minute's worth and fills evenly. Requests are paid for in advance; tokens afterwards, when they are
known, so a bucket of tokens can go into debt, and the next request waits until it is paid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ossia.server.auth import Caller
from ossia.server.errors import ApiError
from ossia.server.settings import Limits

_IDLE_SECONDS = 600.0
_MAX_ACCOUNTS = 10_000


@dataclass(slots=True)
class _Bucket:
    per_minute: int
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(float(self.per_minute), self.level + (now - self.at) * self.per_minute / 60)
        self.at = now

    def seconds_until(self, level: float) -> float:
        return max(0.0, (level - self.level) * 60 / self.per_minute)


@dataclass(slots=True)
class _Account:
    buckets: dict[str, _Bucket] = field(default_factory=dict[str, _Bucket])
    num_open: int = 0
    used_at: float = 0.0


class Limiter:
    """Keeps the accounts of all keys. Used by one event loop."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def admit(self, caller: Caller) -> None:
        """Open a request; `release` must follow when it is over.

        Raises:
            ApiError: too many (429); says when to come again.
        """
        now = self._clock()
        account = self._account(caller, now)
        allowed = self._choose(caller.concurrency, self._limits.concurrency)
        if allowed and account.num_open >= allowed:
            raise _too_many(f"{account.num_open} requests at once, of {allowed} allowed", seconds=1.0)
        for kind, level in (("tokens", 0.0), ("requests", 1.0)):
            bucket = account.buckets.get(kind)
            if bucket is not None:
                bucket.fill(now)
                if bucket.level < level or (kind == "tokens" and bucket.level <= 0):
                    wait = bucket.seconds_until(max(level, 1.0))
                    raise _too_many(f"{bucket.per_minute} {kind} a minute", seconds=wait)
        if (bucket := account.buckets.get("requests")) is not None:
            bucket.level -= 1
        account.num_open += 1

    def release(self, caller: Caller) -> None:
        """Close a request that was admitted."""
        account = self._accounts.get(caller.key_id)
        if account is not None:
            account.num_open -= 1

    def charge(self, caller: Caller, num_tokens: int) -> None:
        """Take tokens that were used."""
        now = self._clock()
        bucket = self._account(caller, now).buckets.get("tokens")
        if bucket is not None:
            bucket.fill(now)
            bucket.level -= num_tokens

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """What is left, in the headers that OpenAI's clients read."""
        account = self._accounts.get(caller.key_id)
        found: dict[str, str] = {}
        for kind, bucket in account.buckets.items() if account else ():
            found[f"x-ratelimit-limit-{kind}"] = str(bucket.per_minute)
            found[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(bucket.level)))
            found[f"x-ratelimit-reset-{kind}"] = f"{bucket.seconds_until(bucket.per_minute):.3f}s"
        return found

    def _account(self, caller: Caller, now: float) -> _Account:
        account = self._accounts.get(caller.key_id)
        if account is None:
            if len(self._accounts) >= _MAX_ACCOUNTS:
                self._forget_idle(now)
            account = self._accounts[caller.key_id] = _Account()
        wanted = {
            "requests": self._choose(caller.requests_per_minute, self._limits.requests_per_minute),
            "tokens": self._choose(caller.tokens_per_minute, self._limits.tokens_per_minute),
        }
        for kind, per_minute in wanted.items():
            bucket = account.buckets.get(kind)
            if not per_minute:
                account.buckets.pop(kind, None)
            elif bucket is None or bucket.per_minute != per_minute:
                account.buckets[kind] = _Bucket(per_minute, float(per_minute), now)
        account.used_at = now
        return account

    def _forget_idle(self, now: float) -> None:
        for key, account in list(self._accounts.items()):
            if account.num_open == 0 and now - account.used_at > _IDLE_SECONDS:
                del self._accounts[key]

    @staticmethod
    def _choose(own: int | None, default: int) -> int:
        return default if own is None else own


def _too_many(what: str, *, seconds: float) -> ApiError:
    wait = max(1, math.ceil(seconds))
    return ApiError(
        f"this key's limit is reached ({what}); try again in {wait} s",
        status=429,
        code="rate_limit_exceeded",
        type="rate_limit_error",
        headers={"Retry-After": str(wait)},
    )
