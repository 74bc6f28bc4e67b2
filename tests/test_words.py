"""The vocabulary is that of the field, and lines of Markdown are wrapped."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CODE = [*ROOT.glob("*.py"), *(path for room in ("metafew", "scripts", "tests") for path in (ROOT / room).rglob("*.py"))]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
TEXTS = sorted({*CODE, *PAGES, *(ROOT / "conf").rglob("*.yaml")} - {Path(__file__)})
WIDTH = 120


class Word(NamedTuple):
    """A word that has a better one.

    Attributes:
        refused: the word, as a pattern; letters beside it make it another word, underscores do not.
        instead: what to write.
        in_tests: whether tests may not have it either.
    """

    refused: str
    instead: str
    in_tests: bool = True

    def found(self, text: str) -> list[str]:
        """Return the lines of ``text`` that have the word."""
        pattern = re.compile(rf"(?<![A-Za-z])(?:{self.refused})(?![A-Za-z])")
        return [
            f"line {number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)
        ]


OF_A_NORM = r"\w+\.{0}|def {0}\(self|{0}(?:: bool)? = (?:True|False)"
"""An attribute; the English words are fine, and so is ``norm.over=apart``."""
WORDS = {
    "sentence": Word("[Ss]entences?", "an error message, or: Raises UsageError", in_tests=False),
    "is a sentence": Word(
        "(?:[Bb]ecomes?|[Ii]s|[Aa]re|[Bb]e|[Rr]aises?|in|with)[ _](?:a[ _]|one[ _])?sentences?",
        "is refused, raises UsageError",
    ),
    "told": Word(
        "tellers?|telling(?! apart)|[Tt]old(?! apart| from)|[Tt]ells(?!.* apart)",
        "rank_zero, report_once; reports, returns, says",
    ),
    "blind": Word("[Bb]lind", "fixed_moments"),
    "alone": Word(OF_A_NORM.format("alone"), "per_image"),
    "apart": Word(OF_A_NORM.format("apart"), "context_and_targets_separate"),
    "whole": Word(OF_A_NORM.format("whole"), "pooled_moments"),
    "known": Word(
        r"Known|Embedded|known features|[Ff]eatures (?:that )?(?:are |is )?(?:already )?known|embedded features",
        "cached features, PrecomputedFeatures, FeatureCache",
    ),
    "severed": Word("[Ss]ever(?:s|ed)?", "detached"),
    "bent": Word("[Bb]ent|[Hh]eard|[Ss]pared|[Aa]dopted", "what happens: rotated, received, skipped, copied"),
    "as_they_are": Word("(?<!stay_)as_they_are", "a parameter or class that says what it does"),
    "keep_large": Word(r"keep_large|metafew\.pages", "allocator, use_huge_pages"),
    "trust": Word(r"metafew\.(?:typed|trust)|test_trust", "option_types, allowlist"),
    "ink": Word("knows? bright ink|drawings knows?", "expects bright ink on a dark background"),
}
MODULES = {
    "across_runs": "training_curves",
    "beside": "comparison_plots",
    "ending": "graceful_stop",
    "known": "feature_cache",
    "layout": "rows_and_columns",
    "pages": "allocator",
    "saving": "checkpoints",
    "sheet": "table",
    "telling": "report_once",
    "travel": "weight_distance",
    "trust": "allowlist",
    "typed": "option_types",
}
"""Names of modules that said nothing to a newcomer, and what they are called now."""


@pytest.mark.parametrize("name", WORDS)
def test_a_word_of_our_own_is_replaced_by_that_of_the_field(name):
    word = WORDS[name]
    texts = [path for path in TEXTS if word.in_tests or ROOT / "tests" not in path.parents]
    found = [f"{path.relative_to(ROOT)} {line}" for path in texts for line in word.found(path.read_text("utf-8"))]
    assert not found, f"say instead: {word.instead}\n" + "\n".join(found)


def test_modules_are_named_after_what_they_are_for():
    names = {path: path.stem.removeprefix("test_") for path in CODE if path.name != "test_layout.py"}  # of the package
    found = [f"{path.relative_to(ROOT)} -> {MODULES[name]}" for path, name in names.items() if name in MODULES]
    assert not found, "rename\n" + "\n".join(found)


def prose(page: Path):
    """Yield the number and the text of each line that can be wrapped: no table, no code; links without their target."""
    code = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and not line.lstrip().startswith("|"):
            yield number, re.sub(r"\]\([^)]*\)", "]", line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_a_page_are_wrapped(page):
    long = [f"line {number}: {len(line)} characters" for number, line in prose(page) if len(line) > WIDTH]
    assert not long, f"wrap at {WIDTH}:\n" + "\n".join(long)


def test_the_words_are_found():
    """The patterns match what they are for, and nothing else."""
    assert WORDS["sentence"].found("becomes a sentence") and WORDS["is a sentence"].found("in_one_sentence_before")
    assert WORDS["alone"].found("    alone = True") and WORDS["alone"].found("if not backbone.alone or x:")
    assert not WORDS["alone"].found("depends on the seed alone = 3") and not WORDS["apart"].found('over: str = "apart"')
    assert not WORDS["apart"].found("norm.over=apart") and not WORDS["severed"].found("several")
    assert WORDS["known"].found("class Known(nn.Module):") and not WORDS["known"].found("unknown words")
