"""Zawgyi: the old font encoding of Burmese that shares Unicode's code points and means other letters by them.

A tokenizer reads Zawgyi as Burmese nonsense, so a model trained on it learns nonsense. Such rows are left out of the
training sample and counted; nothing is converted, since a conversion that guesses wrong corrupts good text in silence.
"""

from __future__ import annotations

import re

# Letters are stacked on letters of their own row of the alphabet (and la, sa on themselves).
_ROWS = ("\u1000-\u1004", "\u1005-\u100a", "\u100b-\u100f", "\u1010-\u1014", "\u1015-\u1019")
_STRAY_STACK = "|".join(f"[{row}]\u1039(?![{row}])" for row in _ROWS)
_CONSONANT = "\u1000-\u1021\u1023-\u1027\u1029\u102a\u103f"

# What no correctly ordered Unicode Burmese contains. Zawgyi stores letters in the order they look: the vowel E (U+1031)
# and medial RA (its U+103B) stand before their consonant, stacked letters have code points of their own.
_ZAWGYI = re.compile(
    "[\u1033\u1034\u105a\u1060-\u1097]"  # stacked letters and doubled vowel signs (Mon, Karen and Shan in Unicode)
    f"|(?<![{_CONSONANT}\u103b-\u103e\u1039\u200c])\u1031"  # vowel E with no consonant before it
    f"|(?<![{_CONSONANT}])\u103b"  # medial YA with no consonant before it: Zawgyi's RA
    f"|\u1039(?![{_CONSONANT}])"  # a stacking sign that stacks nothing: Zawgyi's asat
    f"|\u1039[\u101a\u101b\u101d\u101f-\u1021]|\u101a\u1039|{_STRAY_STACK}"  # or a pair that is never stacked
    "|\u103a[\u102b-\u1032\u1036\u103b-\u103e]"  # asat followed by a vowel or medial: Zawgyi's medial YA
    "|\u103d\u103c|\u103c\u103b"  # medials in an order that Unicode does not have
)
# What Zawgyi does not contain, or hardly.
_UNICODE = re.compile(
    "[\u103e\u103f]"  # medial HA and great SA: unused in Zawgyi
    # An asat that ends a syllable; only on letters that do not take medial YA, which Zawgyi writes the same way.
    f"|[\u1004\u1005\u1009\u100a\u1010\u1014\u101a]\u103a(?=[{_CONSONANT}\u1037\u1038\\s\u104a\u104b]|$)"
    "|\u1004\u103a\u1039"  # kinzi
    # Vowel E after its consonant, with none to follow.
    f"|[{_CONSONANT}\u103b-\u103e]\u1031(?![{_CONSONANT}\u103b\u103c\u107e-\u1084\u108f\u1090])"
)


def looks_zawgyi(text: str) -> bool:
    """Whether Burmese text is in Zawgyi: it has more Zawgyi-only than Unicode-only sequences.

    Text without Burmese letters, and text too short to tell, is not Zawgyi. For Burmese only: Mon, Karen and Shan use
    some of the counted code points rightly.
    """
    zawgyi = len(_ZAWGYI.findall(text))
    return zawgyi > 0 and zawgyi > len(_UNICODE.findall(text))
