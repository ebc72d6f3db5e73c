"""Concept lists and templates that people write, and the prompts they become."""
import contextlib
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_models.errors import SaeError
from sae_models.learning import prompts
from sae_models.learning.prompts import Subject, default_templates, expand, parse_subjects, understood

CANVAS = "cat = a cat\noctopus = an octopus\nnoto style, mono style"


def test_lines_and_commas_name_concepts_with_their_words():
    assert parse_subjects("cat, dog\nnoto style\nnudity (body) = a nude woman | a woman") == [
        Subject("cat", "object", "cat"), Subject("dog", "object", "dog"), Subject("noto style", "style", "noto style"),
        Subject("nudity", "body", "a nude woman", "a woman")]


@pytest.mark.parametrize(("text", "read"), [
    ("hatsune miku (vocaloid)", [Subject("hatsune miku (vocaloid)", "object", r"hatsune miku \(vocaloid\)")]),
    ("saber_(fate)", [Subject("saber_(fate)", "object", r"saber_\(fate\)")]),
    ("saber_(fate) = saber", [Subject("saber_(fate)", "object", "saber")]),
    ("Van Gogh (style); Van Gogh style", [Subject("Van Gogh", "style", "Van Gogh"),
                                          Subject("Van Gogh style", "style", "Van Gogh style")]),
    ("cat (OBJECT)", [Subject("cat", "object", "cat")]),
    ("night (mood) = at night", [Subject("night", "mood", "at night")]),
    ("flag = a red, white and blue flag", [Subject("flag", "object", "a red, white and blue flag")]),
    ("cat\nsun and moon", [Subject("cat", "object", "cat"), Subject("sun and moon", "object", "sun and moon")]),
])
def test_names_as_people_type_them(text, read):
    assert parse_subjects(text) == read


def test_what_was_understood_is_said_as_it_can_be_written():
    text = "cat = a cat | an animal\nnight (mood) = at night\nsaber_(fate), ink style"
    said = understood(parse_subjects(text))
    assert said == "cat (object) = a cat | an animal, night (mood) = at night, saber_(fate) (object), ink style (style)"
    assert parse_subjects(said.replace(", ", "\n")) == parse_subjects(text)


@pytest.mark.parametrize(("text", "line"), [
    ("red, white and blue flag", "write 'red white and blue flag' if it is one, or each on a line of its own"),
    ("(cat:1.2)", "write 'cat'"), ("((cat))", "write 'cat'"), ("[cat]", "write 'cat'"),
    ("cat (cute", "write 'cat cute'"), ("cat;dog", "write 'cat, dog'"), ("Van Gogh (style):1", r"'Van Gogh \(style\)'"),
    ("DOG:0,5", "write 'DOG'"), ("rem (re:zero)", r"write 'rem \(re zero\)'"),
    ("#12", "write '12'"), ("c\u0007at", "cannot be seen"), ("cat = a c\ud800at", "cannot be seen"),
])
def test_what_cannot_be_read_is_answered_with_the_line_that_would_be(text, line):
    with pytest.raises(SaeError, match=line):
        parse_subjects(text)


@pytest.mark.parametrize("text", ["cat{}(style)", "cat{}(mood) = {}x{}|{}y", "{}= a", "(cat{}", "a;{}b",
                                  "a{}and b"])
def test_reading_takes_time_in_proportion_to_the_text(text):
    began = time.monotonic()
    with contextlib.suppress(SaeError):
        parse_subjects(text.replace("{}", 200_000 * " "))
    assert time.monotonic() - began < 1


def test_every_choice_of_concepts_is_a_prompt_with_each_left_out_once():
    made = expand("{object}, {style}", parse_subjects(CANVAS))
    assert len(made) == 4
    assert made[2].text == "an octopus, noto style" and made[2].said == (1, 2)
    assert made[2].without == ("noto style", "an octopus")


def test_words_instead_of_a_concept_take_its_place():
    [prompt, _] = expand("a photo of {} on grass\n{}", parse_subjects("cat = a cat | an animal"))
    assert prompt.without == ("a photo of an animal on grass",)


def test_a_concept_that_is_said_in_several_ways_is_one_concept():
    subjects = parse_subjects("nudity = naked / nude/topless | dressed\nfate / stay night")
    made = expand("a {} woman", subjects)
    assert [(prompt.text, prompt.said, prompt.without) for prompt in made] == [
        ("a naked woman", (0,), ("a dressed woman",)), ("a nude/topless woman", (0,), ("a dressed woman",)),
        ("a fate/stay night woman", (1,), ("a woman",))]
    assert [subject.name for subject in subjects] == ["nudity", "fate / stay night"]
    assert len(expand("{} beside {}", parse_subjects("cat = a cat / a kitten\ndog = a dog / a puppy / a hound"))) == 12
    assert parse_subjects("cat = a cat / embedding:my-cat")[0].ways == ("a cat", "embedding:my-cat")


@pytest.mark.parametrize("line", ["cat = a cat /", "cat = / a cat", "cat = a cat / / a kitten"])
def test_a_way_to_say_it_has_words(line):
    with pytest.raises(SaeError, match="'cat' has nothing on one side of '/'"):
        parse_subjects(line)


def test_two_slots_of_a_kind_never_say_the_same_concept():
    texts = [prompt.text for prompt in expand("{} and {}", parse_subjects("cat, dog"))]
    assert texts == ["cat and dog", "dog and cat"]


@pytest.mark.parametrize("concepts, templates, sentence", [
    ("", "{}", "no concept to train"),
    ("cat, CAT", "{}", "'CAT' is listed twice|'cat' is listed twice"),
    ("cat = | an animal", "{}", "'cat' has no words"),
    ("(object) = x", "{}", "cannot read the concept"),
    ("a:b = x", "{}", "concept name without"),
    ("cat -> dog", "{}", "chosen when erasing: write 'cat, dog'"),
    ("cat, dog", "a photo", "says no concept"),
    ("cat, dog", "{style}", "kind 'style', and none is listed; kinds: object"),
    ("cat, noto style", "{object}\na {object}", "no prompt says 'noto style'"),
    ("cat", "{}", "at least 2 prompts"),
    (", ".join(f"c{i}" for i in range(30)), "{} {} {}", "makes 24360 prompts"),
    (", ".join(f"c{i}" for i in range(1000)), "{} {} {} {} {}", "makes over a million million prompts"),
    (", ".join(f"c{i}" for i in range(10_001)), "{}", "at most 10000 can be learned at once"),
])
def test_a_mistake_gets_a_sentence(concepts, templates, sentence):
    with pytest.raises(SaeError, match=sentence):
        expand(templates, parse_subjects(concepts))


@pytest.mark.parametrize("concepts", ["cat", "noto style", CANVAS, "nudity (body)\nnight (mood)"])
def test_default_templates_fit_whatever_kinds_there_are(concepts):
    assert len(expand(default_templates(parse_subjects(concepts)), parse_subjects(concepts))) >= 2


words = st.text(st.characters(exclude_characters="=|,:#(){}>\u2192\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
                              exclude_categories=("Cs", "Z", "C")), min_size=1, max_size=8)
ways = words.filter(lambda text: text != "/")


@given(st.lists(st.tuples(words, ways, words), min_size=1, max_size=4, unique_by=lambda t: t[0].casefold()))
def test_what_is_written_is_read_back(items):
    text = "\n".join(f"{name} (thing) = {said} | {instead}" for name, said, instead in items)
    assert parse_subjects(text) == [Subject(name, "thing", said, instead) for name, said, instead in items]


@given(st.text(max_size=60), st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_sentence(concepts, templates):
    try:
        made = expand(templates, parse_subjects(concepts))
    except SaeError:
        return
    assert all(len(prompt.said) == len(prompt.without) >= 1 for prompt in made)


def test_words_that_joined_what_is_left_out_go_with_it():
    subjects = parse_subjects("a cat, a dog")
    made = expand("a photo of {object} and {object}\na street with {object}\n{} by the sea", subjects)
    both, street, sea = made[0], made[2], made[4]
    assert both.text == "a photo of a cat and a dog"
    assert both.without == ("a photo of a dog", "a photo of a cat")
    assert street.without == ("a street",)
    assert sea.without == ("by the sea",)


@pytest.mark.parametrize(("slots", "kinds"), [
    (["object", ""], {"object": 2, "style": 1}), (["", "object", "style"], {"object": 2, "style": 2}),
    (["", ""], {"object": 1}), (["object"] * 3, {"object": 2, "style": 5}), ([""] * 40, {"object": 39, "style": 1}),
])
def test_prompts_are_counted_before_they_are_made(slots, kinds):
    subjects = [Subject(f"{kind} {i}", kind, "x") for kind, count in kinds.items() for i in range(count)]
    template, began = " ".join(f"{{{slot}}}" for slot in slots), time.monotonic()
    if len(slots) < 5:
        choices = [[i for i, s in enumerate(subjects) if slot in ("", s.kind)] for slot in slots]
        picks = [pick for pick in itertools.product(*choices) if len(set(pick)) == len(pick)]
        assert [prompt.said for prompt in prompts._filled(template, subjects)] == picks
    with contextlib.suppress(SaeError):
        expand(template, subjects)
    assert time.monotonic() - began < 1


def test_templates_that_make_too_many_prompts_together_are_refused(monkeypatch):
    monkeypatch.setattr(prompts, "MOST_OF_ALL", 20)
    with pytest.raises(SaeError, match="the templates make more than 20 prompts"):
        expand("{} and {}\n{} with {}", parse_subjects("cat, dog, bear, fox"))
