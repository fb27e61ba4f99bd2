"""WikiText's tokenized text -> text as people write it, on which GPT-2's perplexities are measured."""

import re

RULES = [
    (re.compile(r" @([-,.])@ "), r"\1"),  # 1 @,@ 000 -> 1,000
    (re.compile(r" ([:;.!?,)\]}]|'s\b|'(?=s ))"), r"\1"),
    (re.compile(r"([(\[{]) "), r"\1"),
    (re.compile(r"\" ([^\"]*?) \""), r'"\1"'),
    (re.compile(r"' ([^']*?) '"), r"'\1'"),
    (re.compile(r"= = = ="), "===="),
    (re.compile(r"= = ="), "==="),
    (re.compile(r"= ="), "=="),
    (re.compile(r" (N|°) "), r" \1"),
    (re.compile(r" \n"), "\n"),
    (re.compile(r"\n "), "\n"),
]


def detokenize_wikitext(text: str) -> str:
    """Undo the spaces and markers that WikiText puts around punctuation, numbers and headings."""
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text
