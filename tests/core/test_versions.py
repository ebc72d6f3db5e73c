"""What a comparison paints: texts and actuators of each version."""
import pytest

from sae_models import Actuator, SaeError
from sae_models.versions import Across, versions

STRENGTHS = "0, .5; 1"


def texts(across: Across, text: str, actuator: Actuator = Actuator.ABLATE) -> list[str]:
    return [version.text for version in versions(across, text, actuator, STRENGTHS)]


def test_one_strength_takes_the_place_of_all_that_are_written():
    assert texts(Across.STRENGTHS, "cat:0.3, ink (style)") == \
        ["cat:0, ink (style):0", "cat:0.5, ink (style):0.5", "cat:1, ink (style):1"]
    assert texts(Across.STRENGTHS, "cat -> dog")[1] == "cat:0.5 -> dog"


def test_each_concept_stands_alone_with_what_is_written_of_it():
    assert texts(Across.CONCEPTS, "cat:0.3, rose -> dog\nink") == ["cat:0.3", "rose -> dog", "ink"]


@pytest.mark.parametrize(("actuator", "text"), [(Actuator.ABLATE, "cat:0.5, dog"), (Actuator.STEER, "cat:-0.5, dog")])
def test_each_actuator_erases_as_much_as_the_chosen_one(actuator, text):
    found = versions(Across.ACTUATORS, text, actuator, "")
    assert {one.actuator.value: one.text for one in found} == {
        "ablate": "cat:0.5, dog", "steer": "cat:-0.5, dog", "replace": "cat:0.5, dog", "amount": "cat:0.5, dog",
        "thorough": "cat:0.5, dog"}
    unguided = versions(Across.ACTUATORS, text, actuator, "", guided=False)
    assert [one.actuator.value for one in unguided] == ["amount", "ablate", "steer", "replace"]
    assert found[2].label == "steer: cat:-0.5, dog"


@pytest.mark.parametrize(("across", "text", "strengths", "sentence"), [
    (Across.AFTER, " ", "", "no concept is chosen"),
    (Across.STRENGTHS, "cat", " ", "no strengths are given to compare"),
    (Across.STRENGTHS, "cat", "0.5, half", "'half' in the strengths to compare is no number"),
    (Across.STRENGTHS, "cat", "1 " * 51, "51 strengths are asked for, and a sheet has room for 50"),
])
def test_a_mistake_is_one_sentence(across, text, strengths, sentence):
    with pytest.raises(SaeError, match=sentence):
        versions(across, text, Actuator.ABLATE, strengths)
