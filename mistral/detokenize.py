"""tokenized WikiText -> plain English: spaces that its tokenizer put in are taken out again.

The same effect as the detokenizer that Megatron-LM and the published GPT-2 evaluations use, so that perplexities can be
compared with theirs.
"""

import re

# In this order: a later replacement may act on what an earlier one left.
NUMBERS_AND_PUNCTUATION = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
)
PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
HEADINGS_AND_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def _pattern(left: str, right: str) -> re.Pattern[str]:
    # Possessive: without a closing mark there is nothing to try again.
    return re.compile(rf"{re.escape(left)}\s*+([^{re.escape(right)}]*+){re.escape(right)}")


PATTERNS = tuple((_pattern(left, right), left, right) for left, right in PAIRS)


def detokenize_wikitext(text: str) -> str:
    """Undo WikiText's tokenization: ` @-@ `, spaces around punctuation and inside brackets, `= = Heading = =`."""
    text = _replace_all(text, NUMBERS_AND_PUNCTUATION)
    for pattern, left, right in PATTERNS:
        text = _close(text, pattern, left, right)
    return _replace_all(text, HEADINGS_AND_REST)


def _close(text: str, pattern: re.Pattern[str], left: str, right: str) -> str:
    """Take the spaces away inside one kind of brackets."""
    end = text.rfind(right) + 1  # opening marks beyond it would each search the rest of the text in vain
    return pattern.sub(lambda found: left + found[1].rstrip() + right, text[:end]) + text[end:]


def _replace_all(text: str, replacements: tuple[tuple[str, str], ...]) -> str:
    for old, new in replacements:
        text = text.replace(old, new)
    return text
