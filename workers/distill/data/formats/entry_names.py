"""Read the names of entries of an archive whose bytes are not said to be Unicode.

Programs of Windows write names in the code page of their country and do not say which. UTF-8 is
tried first; then the code page under which the names look most like words.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

_EAST_ASIAN = {
    # Lead bytes of the characters in common use, by the standards' own order of frequency.
    "gb18030": (0xB0, 0xD7, 0xA1),
    "big5": (0xA4, 0xC6, 0x40),
    "cp949": (0xB0, 0xC8, 0xA1),
}
LEAST_COMMON = 0.5
"""Share of common characters from which on a text is taken for Chinese or Korean."""


def decode(names: Sequence[bytes], *, is_dos: bool) -> tuple[list[str], str | None]:
    """Return the names as text, and the code page that was guessed; None where they are UTF-8.

    All names are those of one archive, and have one code page; `is_dos` says that the program that
    wrote them may have used one of DOS, as zip programs of Windows do. Where none fits, `cp437` is
    named, in which every byte is a character: that of the first zip archives.
    """
    try:
        return [name.decode() for name in names], None
    except UnicodeDecodeError:
        page = _guess([name for name in names if not name.isascii()], is_dos=is_dos)
        return [name.decode(page) for name in names], page


def _guess(names: Sequence[bytes], *, is_dos: bool) -> str:
    # The DOS pages first: their letters lie where other pages have rare characters.
    for page, is_letter in (("cp437", _is_latin), ("cp850", _is_latin), ("cp866", _is_cyrillic)):
        if is_dos and _all_letters(names, page, is_letter):
            return page
    if _all_letters(names, "cp932", _is_japanese):
        return "cp932"
    if _all_letters(names, "cp1251", _is_cyrillic) and _are_words(names, "cp1251"):
        return "cp1251"
    if _all_letters(names, "cp1252", _is_latin):
        return "cp1252"
    scores = {page: _common_share(names, page) for page in _EAST_ASIAN}
    best = max(scores, key=lambda page: scores[page])
    if scores[best] >= LEAST_COMMON:
        return best
    return "cp1251" if _all_letters(names, "cp1251", _is_cyrillic) else "cp437"


def _text(names: Sequence[bytes], page: str) -> str | None:
    try:
        return "/".join(name.decode(page) for name in names)
    except UnicodeDecodeError:
        return None


def _all_letters(names: Sequence[bytes], page: str, is_letter: Callable[[str], bool]) -> bool:
    text = _text(names, page)
    return text is not None and all(letter.isascii() or is_letter(letter) for letter in text)


def _is_latin(letter: str) -> bool:
    return letter.isalpha() and unicodedata.name(letter, "").startswith("LATIN")


def _is_cyrillic(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("CYRILLIC")


def _is_japanese(letter: str) -> bool:
    # Not the half-width signs: single bytes of other pages look like them.
    name = unicodedata.name(letter, "")
    return name.startswith(("HIRAGANA", "KATAKANA", "CJK UNIFIED", "IDEOGRAPHIC", "FULLWIDTH"))


def _are_words(names: Sequence[bytes], page: str) -> bool:
    """Return whether each word is of one script, and has capitals where words have them."""
    words = re.findall(r"[^\W\d_]+", _text(names, page) or "")
    return all(
        word.isascii() or not (re.search("[A-Za-z]", word) or re.search("[а-яё][А-ЯЁ]", word))
        for word in words
    )


def _common_share(names: Sequence[bytes], page: str) -> float:
    """Return which share of the characters beyond ASCII is common; 0 for names of another page."""
    text = _text(names, page)
    if text is None:
        return 0.0
    first, last, trail = _EAST_ASIAN[page]
    characters = [letter.encode(page) for letter in text if not letter.isascii()]
    usual = sum(
        len(code) == 2 and first <= code[0] <= last and code[1] >= trail for code in characters
    )
    return usual / len(characters)
