"""Classes of sounds (stops, vowels, ...) of the symbols of a phoneme set, in ARPABET or IPA, and its silence."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

ORDER = ("vowels", "approximants", "nasals", "fricatives", "affricates", "stops", "silence")
# Of the CMU dictionary and of TIMIT, whose closures (bcl, ...) are the first halves of stops.
ARPABET = {
    "vowels": "aa ae ah ao aw ax axh axr ay eh er ey ih ix iy ow oy uh uw ux",
    "approximants": "l r w y el hw",
    "nasals": "m n ng em en eng nx",
    "fricatives": "f v th dh s z sh zh hh hv",
    "affricates": "ch jh",
    "stops": "p b t d k g q dx bcl dcl gcl kcl pcl tcl",
}
IPA = {
    "vowels": "i y ɨ ʉ ɯ u ɪ ʏ ʊ e ø ɘ ɵ ɤ o ə ɛ œ ɜ ɞ ʌ ɔ æ ɐ a ɶ ɑ ɒ ɚ ɝ ᵻ ᵿ",
    "approximants": "ʋ ɹ ɻ j ɰ l ɭ ʎ ʟ w ɥ ɫ r ʀ ʙ ɾ ɽ ɺ ʍ",
    "nasals": "m ɱ n ɳ ɲ ŋ ɴ",
    "fricatives": "ɸ β f v θ ð s z ʃ ʒ ʂ ʐ ç ʝ x ɣ χ ʁ ħ ʕ h ɦ ɬ ɮ ɕ ʑ",
    "affricates": "ts dz tʃ dʒ tɕ dʑ ʈʂ ɖʐ pf ʧ ʤ ʦ ʣ ʨ ʥ",
    "stops": "p b t d ʈ ɖ c ɟ k g ɡ q ɢ ʔ ɓ ɗ ɠ",
}
SILENT = "sil sp spn nsn pau epi h# # _ <eps> silence <sil> noise breath laughter"
SILENCE = frozenset(SILENT.split())


def is_silence(symbol: str) -> bool:
    """Whether a symbol stands for no speech sound: silence, a pause, noise."""
    return symbol.lower() in SILENCE or symbol.strip("[]").lower() in SILENCE


def sound_classes(symbols: Sequence[str]) -> list[str] | None:
    """The class of every symbol, one of ORDER; None where the set is neither ARPABET nor IPA."""
    for table, plain in ((ARPABET, _plain_arpabet), (IPA, _plain_ipa)):
        known = {sound: name for name, sounds in table.items() for sound in sounds.split()}
        classes = ["silence" if is_silence(symbol) else known.get(plain(symbol)) for symbol in symbols]
        found = [name for name in classes if name is not None]
        if len(found) == len(classes):
            return found
    return None


def _plain_arpabet(symbol: str) -> str:
    """In lower case, without brackets, stress digits and Kaldi's position in the word (AH0_B)."""
    return re.sub(r"\d*(_[BIES])?$", "", symbol.strip("[]")).lower().replace("-", "")


def _plain_ipa(symbol: str) -> str:
    """The letters alone; a diphthong or a long sound is what its first letter is."""
    letters = [c for c in unicodedata.normalize("NFD", symbol) if c in _IPA_LETTERS]
    pair = "".join(letters[:2])
    return pair if pair in _AFFRICATES else "".join(letters[:1])


_IPA_LETTERS = frozenset("".join(IPA.values())) - {" "}
_AFFRICATES = frozenset(IPA["affricates"].split())
