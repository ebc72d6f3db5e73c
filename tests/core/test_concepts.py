"""Choosing concepts by text, and finding them in a table."""
import contextlib
import json
import math
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_models.concepts import (
    ARROW,
    Choice,
    Concept,
    Statistics,
    find,
    format_choices,
    mentioned,
    parse,
    refuse_twice,
)
from sae_models.errors import SaeError

NAMES = st.text(st.characters(blacklist_characters=",:#\n\r", blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Zs")),
                min_size=1, max_size=12).filter(lambda name: not re.search(ARROW, name))
STRENGTHS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
REPO = Path(__file__).parents[2]
CASES = json.loads((REPO / "tests" / "choices.json").read_text("utf-8"))
TABLE = (Concept("cat", (3,), "object"), Concept("dog", (5, 8), "object"), Concept("noto style", (1,), "style"))


@given(st.lists(st.builds(Choice, NAMES, STRENGTHS), min_size=1, unique_by=lambda c: c.name.casefold()))
def test_what_is_written_is_read_back(choices):
    assert parse(format_choices(choices)) == choices


@given(st.text())
def test_any_text_is_choices_or_one_sentence(text):
    try:
        assert parse(text)
    except SaeError as error:
        assert "\n" not in str(error) or "\n" in text


def test_names_may_hold_spaces_and_stand_on_lines():
    assert parse(" noto style : 0.5,\ncat\n") == [Choice("noto style", 0.5), Choice("cat")]


@pytest.mark.parametrize(("text", "says"), [
    ("", "no concept is chosen"), (" , \n", "no concept is chosen"), ("cat:loud", "is not a strength"),
    ("cat:nan", "is not a strength"), ("cat:inf", "is not a strength"), (":0.5", "has no concept name"),
    ("cat, Cat:0.5", "listed twice"),
])
def test_a_slip_is_one_clear_sentence(text, says):
    with pytest.raises(SaeError, match=says):
        parse(text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"]))
def test_what_people_type_is_understood_or_answered_with_the_line_that_would_be(case):
    if "says" in case:
        with pytest.raises(SaeError, match=case["says"]):
            parse(case["text"])
    else:
        assert parse(case["text"]) == [Choice(*choice[:3], *(Choice(*into) for into in choice[3:]))
                                       for choice in case["choices"]]


@given(st.lists(st.builds(Choice, NAMES.map("a{}z".format), STRENGTHS, st.sampled_from(["", "object", "style"])),
                min_size=1, unique_by=lambda c: c.name.casefold()))
def test_a_kind_that_is_written_is_read_back(choices):
    assert parse(format_choices(choices)) == choices


def test_a_name_that_ends_in_a_semicolon_is_read_back_with_its_kind():
    choices = [Choice("wink ;", 0.5, "object"), Choice("cat", None, "style")]
    assert parse(format_choices(choices)) == choices


PUT = st.builds(Choice, NAMES.map("b{}y".format), st.none(), st.sampled_from(["", "object", "style"]))


@given(st.lists(st.builds(Choice, NAMES.map("a{}z".format), STRENGTHS, st.sampled_from(["", "style"]), st.none() | PUT),
                min_size=1, unique_by=lambda c: c.name.casefold()))
def test_swaps_are_read_back_and_everything_they_name_is_mentioned_once(choices):
    assert parse(format_choices(choices)) == choices
    names = [one.name.casefold() for one in mentioned(choices)]
    assert len(names) == len(set(names))
    assert set(names) == {one.name.casefold() for c in choices for one in (c, c.into) if one}


@pytest.mark.parametrize("text", ["cat{}(style)", "cat:{}1,2", "{}:1", "cat (style{})", "({}", "cat:1{},", "a;{}b",
                                  "cat{}->dog", "cat->{}:1", "cat:1,1{}->"])
def test_reading_takes_time_in_proportion_to_the_text(text):
    began = time.monotonic()
    with contextlib.suppress(SaeError):
        parse(text.format(200_000 * " "))
    assert time.monotonic() - began < 1


def test_concepts_are_found_in_any_case_and_latents_by_number():
    assert find(TABLE, "CAT", 10, "x").latents == (3,)
    assert find(TABLE, "#7", 10, "x").latents == (7,)


@pytest.mark.parametrize(("name", "says"), [
    ("catt", "x has no concept 'catt'; nearest: cat"), ("noto", "nearest: noto style"),
    ("#10", "latents #0 to #9"), ("#x", "latents #0 to #9"), ("#" + 4301 * "1", "latents #0 to #9, got '#111"),
    ("#\u0661", "latents #0 to #9"),
])
def test_an_unknown_concept_names_the_nearest(name, says):
    with pytest.raises(SaeError, match=says):
        find(TABLE, name, 10, "x")


def test_statistics_are_linear_in_log_sigma_and_constant_beyond_the_ends():
    statistics = Statistics((0.1, 10.0), torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))
    at = [float(statistics.at(sigma, statistics.thresholds)) for sigma in (0.01, 0.1, 1.0, 10.0, math.inf)]
    assert at == pytest.approx([1, 1, 2, 3, 3])


TWO_LEVELS = Statistics((0.1, 10.0), torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 50.0])
def test_joined_statistics_are_those_of_each(sigma):
    other = Statistics((0.5, 3.0, 20.0), torch.tensor([[5.0, 1.0, 2.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    joined = TWO_LEVELS.joined(other)
    both = [float(part.at(sigma, part.thresholds)) for part in (TWO_LEVELS, other)]
    assert joined.at(sigma, joined.thresholds).tolist() == pytest.approx(both)


def test_stepped_statistics_are_constant_around_each_level():
    stepped = TWO_LEVELS.stepped()
    at = [float(stepped.at(sigma, stepped.thresholds)) for sigma in (0.01, 0.1, 0.99, 1.01, 10.0, math.inf)]
    assert at == pytest.approx([1, 1, 1, 3, 3, 3])
    as_stored = tuple(torch.tensor(stepped.sigmas).tolist())
    assert stepped.joined(replace(stepped, sigmas=as_stored)).sigmas == stepped.sigmas  # added to a file a second time


@pytest.mark.parametrize("text", ["cat:{}", "{}:loud", "c\x07{}", "({}:1.2)"])
def test_a_sentence_repeats_little_of_what_somebody_wrote_and_nothing_that_cannot_be_seen(text):
    with pytest.raises(SaeError) as raised:
        parse(text.format(10_000 * "x"))
    assert len(str(raised.value)) < 850 and str(raised.value).isprintable()


def test_many_names_are_compared_in_proportion_to_their_number():
    began = time.monotonic()
    with pytest.raises(SaeError, match="'c5' is listed twice"):
        refuse_twice([*(f"c{i}" for i in range(20_000)), "C5"])
    assert time.monotonic() - began < 1


@pytest.mark.skipif(not shutil.which("node"), reason="node is not here; tests/host/test_widget.py asks the page")
def test_the_page_reads_the_cases_as_python_does():
    code = """const { key, parse } = await import(process.argv[1]), texts = JSON.parse(process.argv[2])
        console.log(JSON.stringify(texts.map(parse).map((items) => items.some(({ refused }) => refused) ? null
            : items.map(({ name, strength, kind, into }) => [key(name), strength ? Number(strength) : null, kind,
                ...(into ? [[into.name, null, into.kind]] : [])]))))"""
    said = subprocess.run(["node", "--input-type=module", "-e", code, str(REPO / "web" / "js" / "concept_text.js"),
                           json.dumps([case["text"] for case in CASES])], capture_output=True, text=True, check=True)
    for case, items in zip(CASES, json.loads(said.stdout), strict=True):
        folded = [[name.casefold(), *rest] for name, *rest in case.get("choices", [])]
        twice = items is not None and len({name for name, *_ in items}) < len(items)
        assert (not items or twice) if "says" in case else items == folded, case
