"""Which characters a person sees for what they are; every other one is written as an escape wherever text is shown."""

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs", "Mn", "Me"}
_BLANK = "\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u034f\u00ad\ufffc"


def seen(char: str) -> bool:
    """Whether this character is seen, where it stands, and changes nothing about the others."""
    return " " <= char <= "~" or (unicodedata.category(char) not in _HIDDEN and char not in _BLANK)
