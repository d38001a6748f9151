"""English names of languages, by the codes that data of translations carry."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from hpcgemma.errors import InputError


@functools.cache
def language_name(code: str) -> str:
    """Return the English name of a language; a code that nobody knows is its own name.

    Script and territory are named only where they are not those that Unicode's CLDR takes for granted (its likely
    subtags): de_DE is German, en_GB is English (United Kingdom), zh-Hant is Chinese (Traditional).

    Args:
        code: As in WMT's and other data: en, hau, de_DE, pt-BR, zh-Hant.

    Raises:
        InputError: The packages with the names are not installed.
    """
    try:
        langcodes: Any = importlib.import_module("langcodes")
        importlib.import_module("language_data")
    except ImportError:
        raise InputError(
            f"the name of the language {code!r} needs the packages langcodes and language_data, and one is missing",
            "pip install 'hpcgemma[data]'",
        ) from None
    try:
        language = langcodes.Language.get(code.strip().replace("_", "-"))
    except ValueError:
        return code
    if language.language is None or not langcodes.Language.make(language.language).is_valid():
        return code
    plain = langcodes.Language.make(language.language)
    likely = plain.maximize()
    meant = language.maximize()
    script = language.script if language.script != likely.script else None
    territory = language.territory if language.territory != likely.territory else None
    if meant.script == likely.script:
        script = None
    name = str(langcodes.Language.make(language.language, script=script, territory=territory).display_name("en"))
    return code if name.startswith("Unknown language") else name
