from __future__ import annotations

import pytest

from ossia.training.data.filters.language import identify, language_reason

TEXTS = {
    "en": "The children walked along the river until they came to the old bridge, and there they sat down to eat "
    "the bread that their mother had given them in the morning.",
    "de": "Die Kinder gingen am Fluss entlang, bis sie zu der alten Brücke kamen, und dort setzten sie sich hin, um "
    "das Brot zu essen, das ihnen ihre Mutter am Morgen gegeben hatte.",
    "fr": "Les enfants marchèrent le long de la rivière jusqu'au vieux pont, et là ils s'assirent pour manger le pain "
    "que leur mère leur avait donné le matin même.",
    "es": "Los niños caminaron por la orilla del río hasta que llegaron al viejo puente, y allí se sentaron a comer el "
    "pan que su madre les había dado por la mañana.",
}


@pytest.mark.parametrize("code", TEXTS)
def test_languages(code: str) -> None:
    found = identify(TEXTS[code])
    assert found.code == code
    assert found.probability > 0.9


def test_reasons() -> None:
    assert language_reason(TEXTS["en"], languages=("en",), confidence=0.5) is None
    assert language_reason(TEXTS["de"], languages=("en",), confidence=0.5) == "in de"
    assert language_reason(TEXTS["de"], languages=("en", "de"), confidence=0.5) is None
    assert language_reason(TEXTS["de"], languages=(), confidence=0.5) is None
    assert language_reason(TEXTS["en"], languages=("en",), confidence=1.1) == "language unclear"


def test_short_texts_are_not_judged() -> None:
    assert language_reason("Guten Tag, mein Freund!", languages=("en",), confidence=0.5) is None
