"""Longer prompts to learn from: words around that say nothing of what is learned, the same with and without it."""
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from sae_models.learning.dressing import AROUND, FEW, LONGEST, dressed
from sae_models.learning.lesson import search
from sae_models.learning.painting import Painting
from sae_models.learning.prompts import default_templates, expand, parse_subjects

MANY = "cat, dog, bear, castle, rose, boat, key, frog, fish, hat, noto style, ink style"


def prompts_of(concepts: str):
    subjects = parse_subjects(concepts)
    return subjects, expand(default_templates(subjects), subjects)


def test_half_of_many_prompts_get_words_around_and_few_come_both_ways():
    subjects, prompts = prompts_of(MANY)
    assert len(prompts) >= FEW
    found = dressed(prompts, subjects)
    assert len(found) == len(prompts) and sum(a == b for a, b in zip(prompts, found, strict=True)) == len(prompts) // 2
    assert found == dressed(prompts, subjects)
    subjects, prompts = prompts_of("cat, dog")
    found = dressed(prompts, subjects)
    assert found[:len(prompts)] == prompts and len(found) == 2 * len(prompts)
    assert not {one.text for one in found[len(prompts):]} & {one.text for one in prompts}


def test_the_same_words_stand_around_the_prompt_without_a_concept():
    subjects, prompts = prompts_of(MANY)
    for plain, long in zip(prompts, dressed(prompts, subjects), strict=True):
        before, found, after = long.text.partition(plain.text)
        assert found and long.said == plain.said and len(long.text) <= max(LONGEST, len(plain.text))
        for without, was in zip(long.without, plain.without, strict=True):
            assert without == ((before + was + after) if was else ", ".join(filter(None, (before[:-2], after[2:]))))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(AROUND), min_size=1, max_size=4, unique=True), st.booleans())
def test_no_word_of_a_concept_stands_around(names, as_words):
    lines = [f"thing {i} (object) = {name}" if as_words else f"{name} (style)" for i, name in enumerate(names)]
    subjects, prompts = prompts_of("\n".join([*lines, "cat (object) = a cat | a tabby"]))
    taken = {word for name in names for word in re.findall(r"\w+", name)}
    for plain, long in zip(prompts + prompts, dressed(prompts, subjects), strict=False):
        around = long.text.replace(plain.text, "", 1)
        assert not taken & set(re.findall(r"\w+", around))


def test_a_search_learns_from_long_prompts_and_is_measured_on_others():
    templates = "\n".join(f"{where} {{}}" for where in ("a photo of", "a sketch of", "behind", "above", "under", "two"))
    what = search("cat", "dog, bear, rose", templates, (), Painting(), 32)
    texts = [[prompt.text for prompt in part] for part in (what.lesson.prompts, what.lesson.held_out)]
    for part in texts:
        assert any("," in text for text in part) and any("," not in text for text in part)
    assert not set(texts[0]) & set(texts[1])
