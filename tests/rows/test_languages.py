from __future__ import annotations

import sys

import pytest

from hpcgemma.errors import InputError
from hpcgemma.rows.languages import language_name


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("en", "English"),
        ("hau", "Hausa"),
        ("de_DE", "German"),
        ("cs_CZ", "Czech"),
        ("ukr", "Ukrainian"),
        ("pt-BR", "Portuguese"),
        ("pt_PT", "Portuguese (Portugal)"),
        ("zh_CN", "Chinese"),
        ("zh-Hant", "Chinese (Traditional)"),
        ("en_GB", "English (United Kingdom)"),
        ("klingonish", "klingonish"),
        ("qqq", "qqq"),
        ("", ""),
    ],
)
def test_a_code_has_its_english_name_or_is_its_own(code: str, name: str) -> None:
    assert language_name(code) == name


def test_without_the_packages_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langcodes", None)
    with pytest.raises(InputError) as raised:
        language_name("sw")
    assert raised.value.hint == "pip install 'hpcgemma[data]'"
