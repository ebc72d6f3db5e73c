"""What a word is told from: common words, above all those that the text encoder finds like it."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sae_models.concepts import Concept
from sae_models.errors import SaeError
from sae_models.learning import words
from sae_models.learning.prompts import Subject, expand

CAT, DOG = Subject("cat", "object", "cat"), Subject("Dog", "object", "dog")
DOG_TYPED = Subject("dog", "object", "dog")
INK = Subject("ink style", "style", "ink style")
LIKE_CAT = ("dog", "bird", "fish", "bear", "cow", "rabbit", "horse", "frog")


@pytest.mark.parametrize(("word", "kind", "said"), [
    ("Paul Cézanne", "style", "Paul Cézanne"), ("by van Gogh", "style", "by van Gogh"),
    ("watercolor", "style", "watercolor"),
    ("Cat", "object", "Cat"), ("Van Gogh STYLE", "style", "Van Gogh STYLE"),
    ("hatsune miku (vocaloid)", "object", r"hatsune miku \(vocaloid\)"),
    (r"saber_\(fate\)", "object", r"saber_\(fate\)"),
])
def test_a_word_is_said_as_it_is_typed_and_its_brackets_are_no_emphasis(word, kind, said):
    assert words.subject(word) == Subject(word, kind, said)
    assert said in expand("a photo of {}\n{} by the sea", [words.subject(word), DOG])[0].text


KNOWN = tuple(Concept(name, (i,), "object") for i, name in enumerate(("cat", "salt and pepper", "Van Gogh")))


@pytest.mark.parametrize(("text", "found"), [
    ("CAT:0.5, dog", [DOG_TYPED]),
    ("cat, salt and pepper", []),
    ("Cat -> dog", [DOG_TYPED]),
    ("Van Gogh; cat (object)", []),
    ("Van Gogh (style):0,5", [Subject("Van Gogh", "style", "Van Gogh")]),
])
def test_what_is_not_known_or_is_known_as_another_kind_is_to_be_found(text, found):
    assert words.missing(text, KNOWN) == found


WORD = Concept("ink", (0,), "style", pictures=32, told_from=("Pencil style", "dog"))


@pytest.mark.parametrize(("concept", "also", "pictures", "anew"), [
    (WORD, "", 32, False), (WORD, "", 8, False), (WORD, "", 33, True),
    (WORD, "pencil style, Ink", 32, False), (WORD, "DOG = a dog", 32, False), (WORD, "dog\nfox", 32, True),
    (KNOWN[0], "fox", 1000, False),
])
def test_a_word_is_found_anew_from_more_pictures_or_told_from_more_but_no_other_concept_is(concept, also, pictures,
                                                                                           anew):
    kept = Subject(concept.name, concept.kind, concept.name)
    assert words.missing(concept.name, [concept], also, pictures) == [kept] * anew


def test_what_is_asked_for_itself_need_not_have_been_told_from():
    assert words.missing("ink, fox", [WORD, replace(WORD, name="fox", kind="object")], "Fox, ink, dog") == []


@pytest.mark.parametrize(("text", "line"), [
    ("red, white and blue flag", "write 'red white and blue flag' if it is one, or each on a line of its own"),
    ("cat;dog", "write 'cat, dog'"), ("(cat)", "write 'cat'"), ("cat = a cat", "write 'cat' here"),
])
def test_what_can_be_read_in_two_ways_is_not_painted(text, line):
    with pytest.raises(SaeError, match=line):
        words.missing(text, ())


def vectors(texts):
    """An encoder to which animals are alike, and everything else is unlike them."""
    return torch.tensor([[1.0, 0.1] if text in (*LIKE_CAT, "cat") else [0.0, 1.0] for text in texts])


def names(wanted):
    return [subject.name for subject in words.told_from(wanted, vectors)]


def test_what_the_encoder_finds_alike_comes_first_and_other_things_are_there_too():
    found = names([CAT])
    assert set(found[:words.NEAR]) == set(LIKE_CAT)
    assert len(found) == len(set(found)) == words.NEAR + words.OTHERS
    assert found == names([CAT])


def test_a_word_is_not_told_from_itself_whatever_its_case():
    assert not {"cat", "dog"} & set(names([CAT, DOG]))


def test_a_style_is_told_from_styles_and_shown_on_objects():
    found = words.told_from([INK], vectors)
    assert {subject.kind for subject in found} == {"object", "style"}
    prompts = expand(words.templates([INK, *found]), [INK, *found])
    assert any(0 in prompt.said and len(prompt.said) > 1 for prompt in prompts)


def test_every_subject_is_said_also_of_a_kind_of_its_own():
    sadness = Subject("sadness", "mood", "sadness")
    subjects = [sadness, *words.told_from([sadness], vectors)]
    said = {i for prompt in expand(words.templates(subjects), subjects) for i in prompt.said}
    assert said == set(range(len(subjects)))


def test_words_that_are_found_together_note_the_pictures_that_were_asked_for():
    """More are painted then, and a user who raises the number by a little wants them found anew all the same."""
    painter = SimpleNamespace(painting=words.painting("sd15"), vectors=lambda texts: torch.ones(len(texts), 2))
    what = words.search([CAT, INK], "", painter, 32)
    assert what.lesson.pictures > 32 and what.found_with["pictures"] == 32
