"""What pydantic reports becomes one sentence: the setting as the user writes it, the value, the remedy."""

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from selfdistill.errors import RecipeError
from selfdistill.methods import build
from selfdistill.validation import explain, setting_types

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Words:
    heading: str = "a"
    closing: str = "b"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Small:
    kind: Literal["small"] = "small"
    size: int = Field(default=1, ge=1, le=9)
    words: Words = Words()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Large:
    kind: Literal["large"] = "large"
    mode: Literal["fast", "slow", "off"] = "fast"

    @model_validator(mode="after")
    def _check(self) -> "Large":
        if self.mode == "slow":
            raise ValueError("mode is 'slow', which large things cannot be; choose fast")
        return self


class Section(BaseModel):
    model_config = STRICT
    steps: int = Field(ge=1)
    stops: int = 1
    name: str = "x"
    pair: tuple[int, int] = (1, 2)

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value == "y":
            raise ValueError("name='y' is taken; choose another")
        return value


class Root(BaseModel):
    model_config = STRICT
    thing: Annotated[Small | Large, Field(discriminator="kind")] = Small()
    section: Section = Section(steps=1)
    maybe: Section | None = None


def explained(**data: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Root.model_validate(data)
    sentence = explain(caught.value, Root)
    assert "\n" not in sentence and "pydantic" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"thng": {}}, "unknown setting 'thng' (did you mean 'thing'?)"),
        ({"section": {"steps": 1, "nme": "z"}}, "unknown setting 'section.nme' (did you mean 'name'?)"),
        ({"maybe": {"steps": 1, "nme": "z"}}, "unknown setting 'maybe.nme' (did you mean 'name'?)"),
        ({"thing": {"kind": "small", "sise": 2}}, "unknown setting 'thing.sise' (did you mean 'size'?)"),
        (
            {"thing": {"kind": "small", "words": {"headng": "x"}}},
            "unknown setting 'thing.words.headng' (did you mean 'heading'?)",
        ),
        ({"thing": {"kind": "small", "zzz": 2}}, "unknown setting 'thing.zzz' (valid: kind, size, words)"),
    ],
)
def test_a_typo_at_any_depth_names_its_place_and_the_nearest_setting(data: dict[str, Any], sentence: str) -> None:
    assert explained(**data) == sentence


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        ({"kind": "smal"}, "thing: unknown kind 'smal' (did you mean 'small'?)"),
        ({"kind": "zzz"}, "thing: unknown kind 'zzz' (valid: large, small)"),
        ({"size": 2}, "thing names no kind; write one of small, large"),
        (None, "thing is null: write a kind (small, large) or a mapping of settings"),
        (7, "thing is 7: write a kind (small, large) or a mapping of settings"),
    ],
)
def test_a_wrong_kind_names_the_valid_ones(thing: Any, sentence: str) -> None:
    assert explained(thing=thing) == sentence


def test_a_wrong_word_names_the_nearest() -> None:
    sentence = explained(thing={"kind": "large", "mode": "fest"})
    assert sentence == "thing.mode is 'fest': input should be 'fast', 'slow' or 'off' (did you mean 'fast'?)"


def test_an_unquoted_off_is_explained() -> None:
    assert explained(thing={"kind": "large", "mode": False}).endswith(
        "(YAML reads a bare off as false; put it in quotes)"
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"thing": {"kind": "small", "size": 0}}, "thing.size is 0: input should be greater than or equal to 1"),
        ({"thing": {"kind": "small", "size": 10}}, "thing.size is 10: input should be less than or equal to 9"),
        ({"thing": {"kind": "small", "size": None}}, "thing.size is null: input should be a valid integer"),
        ({"section": {"steps": 0}}, "section.steps is 0: input should be greater than or equal to 1"),
        ({"section": {"steps": {"a": 1}}}, "section.steps is a mapping: input should be a valid integer"),
        ({"section": {"steps": 1, "pair": [1]}}, "section.pair.1 is missing"),
        ({"section": {}}, "section.steps is missing"),
        ({"section": 3}, "section is 3: write a mapping of settings (steps, stops, name, pair)"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_setting(data: dict[str, Any], sentence: str) -> None:
    assert explained(**data) == sentence


def test_a_typo_is_named_before_what_it_leaves_missing() -> None:
    assert explained(section={"stepps": 1}) == "unknown setting 'section.stepps' (did you mean 'steps'?)"


def test_messages_of_our_own_are_passed_on_behind_the_path_of_their_part() -> None:
    assert explained(section={"steps": 1, "name": "y"}) == "section: name='y' is taken; choose another"
    assert explained(thing={"kind": "large", "mode": "slow"}).startswith("thing: mode is 'slow', which large things")


def test_settings_are_listed_with_their_types() -> None:
    assert list(setting_types(Root)) == ["thing", "section", "maybe"]
    assert setting_types(Words) == {"heading": str, "closing": str}
    assert setting_types(int) == {} and setting_types(None) == {}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PARTS = ["source", "routing", "reduction", "context", "teacher", "weighting", "distillation", "policy", "imitation"]


@settings(deadline=None)
@given(
    st.sampled_from(["paint", "sc_sdpo", "srpo", "sft"]), st.dictionaries(st.sampled_from(PARTS), ANYTHING, max_size=2)
)
def test_whatever_a_recipe_holds_is_either_a_method_or_one_sentence(name: str, settings: dict[str, Any]) -> None:
    try:
        build(name, **settings)
    except RecipeError as error:
        assert str(error).startswith(f"method {name!r}")
