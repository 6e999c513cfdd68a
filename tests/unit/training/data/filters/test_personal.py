from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn

from ossia.training.data.filters.personal import PLACEHOLDERS, PersonalDataScrubber

SCRUBBER = PersonalDataScrubber(kinds=PLACEHOLDERS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+x@mail.co.uk.", "Write to [email]."),
        ("Or to john [at] gmail [dot] com!", "Or to [email]!"),
        ("müller@straße.de", "[email]"),
        ("Call +44 20 7946 0958 now", "Call [phone] now"),
        ("(415) 555-2671, 415-555-2671", "[phone], [phone]"),
        ("Server 93.184.216.34, or 2001:4860:4860::8888.", "Server [ip address], or [ip address]."),
        ("See http://93.184.216.34/x.", "See http://[ip address]/x."),
        ("Call us (1-800-782-4362) now", "Call us ([phone]) now"),
        ("Card 4111 1111 1111 1111, 5500-0000-0000-0004", "Card [card number], [card number]"),
        ("Amex 378282246310005", "Amex [card number]"),
        ("DE89 3704 0044 0532 0130 00 IS MINE", "[account number] IS MINE"),
        ("GB82WEST12345698765432", "[account number]"),
        ("FR14 2004 1010 0505 0001 3M02 606 THIS", "[account number] THIS"),
        ("SSN 123-45-6789", "SSN [identity number]"),
        ("NINO AB 12 34 56 C", "NINO [identity number]"),
        ("RSSMRA85T10A562S", "[identity number]"),
        ("DNI 12345678Z, NIE X1234567L", "DNI [identity number], NIE [identity number]"),
        ("CPF 529.982.247-25", "CPF [identity number]"),
        ("BSN 111222333", "BSN [identity number]"),
        ("NHS number 943 476 5919", "NHS number [identity number]"),
    ],
)
def test_what_is_replaced(text: str, expected: str) -> None:
    assert SCRUBBER.scrub(text).text == expected


@pytest.mark.parametrize(
    "text",
    [
        "Write to user@example.com, admin@shop.example or root@localhost.",  # RFC 2606
        "The decorator @property, a@b, and 5 apples @ 2 dollars.",
        "Versions v8.8.4.4 and version 1.2.3.4, private 10.0.0.1, 192.168.0.1, 127.0.0.1, bad 999.1.1.1.",
        "Firefox/2.0.0.11 and Agent/120.31.40.50 use zlib 1.2.2.1, and the server is 8.8.8.8.",
        "She was canonized in 1870 (1412-1431), and fromInteger (2147483648::Integer) overflows.",
        "std::vector<int>, at 12:30:45, a::b, fe80::1.",
        "No card: 4111 1111 1111 1112, 0000 0000 0000 0000, 1234567890123456.",
        "ISBN 978-3-16-148410-0, EAN 4006381333931 0.",
        "No account: GB82 WEST 1234 5698 7654 33.",
        "No identity: 000-12-3456, 666-12-3456, 12345678A, 123.456.789-00, 111222333, 9434765919.",
        "In 1999 2000 2001 there were 3,141,592,653 things on pages 12-34 and 100-200-300.",
        "The number 1234567890 and the year 2024-11-24 12:00:00, pi is 3.14159265358979323846.",
        "2 x 3 = 6; 10000 + 20000 = 30000; 12 / 24 / 2026.",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    scrubbed = SCRUBBER.scrub(text)
    assert scrubbed.text == text
    assert not scrubbed.counts


def test_counts_and_kinds() -> None:
    text = "[email] a@web.de b@web.de 93.184.216.34"
    assert SCRUBBER.scrub(text).counts == {"email": 2, "ip": 1}
    only = PersonalDataScrubber(kinds=["ip"]).scrub(text)
    assert only.text == "[email] a@web.de b@web.de [ip address]"
    assert only.counts == {"ip": 1}
    assert PersonalDataScrubber(kinds=[]).scrub(text).text == text


@given(seed=st.integers(0, 10**6), gap=st.sampled_from(["", " ", "-"]))
@settings(deadline=None)
def test_every_card_is_found_and_its_neighbours_are_not(seed: int, gap: str) -> None:
    rng = random.Random(seed)
    body = "4" + "".join(rng.choices("0123456789", k=14))
    card = body + luhn.calc_check_digit(body)
    wrong = body + str((int(card[-1]) + 1 + rng.randrange(9)) % 10)
    write = lambda digits: gap.join(digits[i : i + 4] for i in range(0, 16, 4))  # noqa: E731
    scrubber = PersonalDataScrubber(kinds=["card"])
    assert scrubber.scrub(f"card {write(card)}, thanks").text == "card [card number], thanks"
    assert scrubber.scrub(f"card {write(wrong)}, thanks").counts == {}


@given(seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_every_german_account_is_found(seed: int) -> None:
    body = "".join(random.Random(seed).choices("0123456789", k=18))
    number = f"DE{iban.calc_check_digits('DE00' + body)}{body}"
    spaced = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    for written in (number, spaced):
        assert SCRUBBER.scrub(f"to {written} please").text == "to [account number] please"


@given(st.text(alphabet=string.printable + "äé中", max_size=200))
@settings(deadline=None)
def test_scrubbing_twice_finds_nothing_new(text: str) -> None:
    once = SCRUBBER.scrub(text)
    assert not SCRUBBER.scrub(once.text).counts
