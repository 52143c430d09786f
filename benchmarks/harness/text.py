"""The text that everyone trains on: words of a made-up language, written with the 65 characters of Tiny Shakespeare."""

import random
import string

CHARACTERS = sorted("\n !$&',-.3:;?" + string.ascii_letters)
LENGTH = 400_000


def generate(length=LENGTH):
    """A text of `length` characters in which each of `CHARACTERS` occurs; always the same."""
    draw = random.Random(1)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 9))) for _ in range(3000)]
    # Word r occurs about 1/r as often as the first, as in a language.
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    pieces = ["".join(CHARACTERS)]
    size = len(pieces[0])
    while size < length:
        sentence = draw.choices(words, weights, k=draw.randint(3, 12))
        sentence[0] = sentence[0].capitalize()
        pieces.append(" ".join(sentence) + draw.choice([".", "!", "?", ";", ",", ":"]) + draw.choice([" ", "\n"]))
        size += len(pieces[-1])
    return "".join(pieces)[:length]
