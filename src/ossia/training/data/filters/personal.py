"""Replacing personal data by placeholders: addresses, phone numbers, cards, accounts, national identity numbers.

Only what carries a proof of being one is replaced: check digits (Luhn, ISO 7064), a number plan (phonenumbers), an
address that is routed. Names, streets and birthdays are not found; a source that is full of them must be left out.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ossia.training.data.sources.extras import need

PLACEHOLDERS = {
    "email": "[email]",
    "phone": "[phone]",
    "ip": "[ip address]",
    "card": "[card number]",
    "iban": "[account number]",
    "national_id": "[identity number]",
}
CONTEXT = 40
"""Numbers that are nothing but digits are taken for identity numbers only if so many characters before them say so."""

_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.%+-]{1,64}(?:@|\s?[\[(]at[\])]\s?)(?:[\w-]{1,63}(?:\.|\s?[\[(]dot[\])]\s?)){1,8}[^\W\d_]{2,24}(?![\w-])",
    re.IGNORECASE,
)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}:[0-9a-fA-F:]{2,34}(?![\w:])")
_VERSION_BEFORE = re.compile(r"(?:\b(?:version|release|section|chapter|clause|paragraph)\s*|\w/)$", re.IGNORECASE)
MIN_OCTET = 30
"""Four numbers all below it are a version of something far more often than somebody's address."""
_CARD = re.compile(r"(?<![\w.,+-])\d(?:[ -]?\d){12,18}(?![\d-]|[.,]\d)")
_CARD_PREFIX = re.compile(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|35|3(?:0[0-5]|[68])|6(?:011|4[4-9]|5)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_YEARS = re.compile(r"[12]\d{3} ?[-–/] ?[12]\d{3}")
_PHONE_LIKE = re.compile(r"\d(?:[^\S\n]?[().+/-]{0,2}[^\S\n]?\d){6}")


class _Identity(NamedTuple):
    """A national number: how it is written, the module of stdnum that checks it, and words that must come before."""

    pattern: re.Pattern[str]
    module: str
    context: re.Pattern[str] | None = None


_IDENTITIES = (
    _Identity(re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), "us.ssn"),
    _Identity(re.compile(r"(?<!\w)[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z](?!\w)"), "it.codicefiscale"),
    _Identity(re.compile(r"(?<![\w-])(?:\d{8}|[XYZ]\d{7})-?[A-Z](?!\w)"), "es.nif"),
    _Identity(re.compile(r"(?<!\w)[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?!\w)"), "fr.nir"),
    _Identity(re.compile(r"(?<![\w.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\w)"), "br.cpf"),
    _Identity(re.compile(r"(?<![\w-])\d{6}[-+]\d{4}(?![\w-])"), "se.personnummer"),
    _Identity(re.compile(r"(?<![\w-])\d{6}[-+A]\d{3}[0-9A-Y](?![\w-])"), "fi.hetu"),
    _Identity(re.compile(r"(?<!\w)\d{4} \d{4} \d{4}(?! ?\w)"), "in_.aadhaar"),
    _Identity(re.compile(r"(?<!\w)\d{2} ?\d{3} ?\d{3} ?\d{3}(?!\w)"), "de.idnr", re.compile(r"steuer|idnr|tax", re.I)),
    _Identity(re.compile(r"(?<!\w)\d{9}(?!\w)"), "nl.bsn", re.compile(r"\bbsn\b|burgerservice|sofi", re.I)),
    _Identity(re.compile(r"(?<!\w)\d{11}(?!\w)"), "pl.pesel", re.compile(r"pesel", re.I)),
    _Identity(re.compile(r"(?<!\w)\d{3} ?\d{3} ?\d{4}(?!\w)"), "gb.nhs", re.compile(r"\bnhs\b", re.I)),
)
_NINO = re.compile(
    r"(?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)"
)
RESERVED_DOMAINS = re.compile(r"[@.](?:example\.(?:com|net|org)|example|invalid|test|localhost)$", re.IGNORECASE)
"""RFC 2606 keeps these for documentation: nobody has such an address."""


class Scrubbed(NamedTuple):
    """A text without what was found, and how many of each kind were."""

    text: str
    counts: Counter[str]


class PersonalDataScrubber:
    """Replaces personal data of some kinds.

    Args:
        kinds: of PLACEHOLDERS.
        regions: countries (ISO 3166) whose national phone numbers are known, beside those with a + in front.

    Raises:
        MissingExtraError: phonenumbers or python-stdnum is not installed.
    """

    def __init__(self, *, kinds: Iterable[str], regions: tuple[str, ...] = ("US", "GB")) -> None:
        finders: dict[str, Callable[[str], str]] = {
            "email": _scrub_emails,
            "iban": _scrub_ibans,
            "card": _scrub_cards,
            "national_id": _scrub_identities,
            "ip": _scrub_addresses,
            "phone": lambda text: _scrub_phones(text, regions=regions),
        }
        wanted = set(kinds)
        self._finders = [finder for kind, finder in finders.items() if kind in wanted]
        if wanted & {"iban", "card", "national_id"}:
            need("stdnum.luhn", package="python-stdnum")
        if "phone" in wanted:
            need("phonenumbers")

    def scrub(self, text: str) -> Scrubbed:
        """Replace what is found. Placeholders that the text had already are not counted."""
        before = {kind: text.count(placeholder) for kind, placeholder in PLACEHOLDERS.items()}
        for finder in self._finders:
            text = finder(text)
        counts = Counter({kind: text.count(placeholder) - before[kind] for kind, placeholder in PLACEHOLDERS.items()})
        return Scrubbed(text, +counts)


def _scrub_emails(text: str) -> str:
    def replace(found: re.Match[str]) -> str:
        return found[0] if RESERVED_DOMAINS.search(found[0]) else PLACEHOLDERS["email"]

    return _EMAIL.sub(replace, text)


def _scrub_addresses(text: str) -> str:
    def replace(found: re.Match[str]) -> str:
        try:
            is_routed = ipaddress.ip_address(found[0]).is_global
        except ValueError:
            return found[0]
        is_version = _VERSION_BEFORE.search(text[max(0, found.start() - 20) : found.start()]) or (
            ":" not in found[0] and all(int(part) < MIN_OCTET for part in found[0].split("."))
        )
        return PLACEHOLDERS["ip"] if is_routed and not is_version else found[0]

    text = _IPV4.sub(replace, text)
    return _IPV6.sub(replace, text)


def _scrub_cards(text: str) -> str:
    luhn = need("stdnum.luhn", package="python-stdnum")

    def replace(found: re.Match[str]) -> str:
        digits = re.sub(r"[ -]", "", found[0])
        is_card = _CARD_PREFIX.match(digits) and len(set(digits)) > 1 and luhn.is_valid(digits)
        return PLACEHOLDERS["card"] if is_card else found[0]

    return _CARD.sub(replace, text)


def _scrub_ibans(text: str) -> str:
    iban = need("stdnum.iban", package="python-stdnum")

    def replace(found: re.Match[str]) -> str:
        groups = found[0].split(" ")
        for count in range(len(groups), 0, -1):  # the pattern may have taken capitals that follow
            if iban.is_valid("".join(groups[:count])):
                return " ".join([PLACEHOLDERS["iban"], *groups[count:]])
        return found[0]

    return _IBAN.sub(replace, text)


def _scrub_identities(text: str) -> str:
    for identity in _IDENTITIES:
        if identity.pattern.search(text):
            checker = need(f"stdnum.{identity.module}", package="python-stdnum")
            text = identity.pattern.sub(_identity_replacer(text, identity, checker), text)
    return _NINO.sub(PLACEHOLDERS["national_id"], text)


def _identity_replacer(text: str, identity: _Identity, checker: Any) -> Callable[[re.Match[str]], str]:
    def replace(found: re.Match[str]) -> str:
        before = text[max(0, found.start() - CONTEXT) : found.start()]
        has_context = identity.context is None or identity.context.search(before)
        return PLACEHOLDERS["national_id"] if has_context and checker.is_valid(found[0]) else found[0]

    return replace


def _scrub_phones(text: str, *, regions: tuple[str, ...]) -> str:
    lines = text.split("\n")
    return "\n".join(_scrub_line(line, regions) if _PHONE_LIKE.search(line) else line for line in lines)


def _scrub_line(text: str, regions: tuple[str, ...]) -> str:
    phonenumbers = need("phonenumbers")
    for region in regions or (None,):  # each knows numbers with a + as well
        pieces: list[str] = []
        done = 0
        matcher = phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.STRICT_GROUPING)
        for found in matcher:
            raw = found.raw_string
            skipped = raw.startswith("(") and ")" not in raw  # the bracket of a remark, not of an area code
            raw = raw[skipped:]
            if raw.isdecimal() or _YEARS.fullmatch(raw):
                continue  # a bare number is an identifier or a sum of money
            pieces += [text[done : found.start + skipped], PLACEHOLDERS["phone"]]
            done = found.end
        text = "".join([*pieces, text[done:]])
    return text
