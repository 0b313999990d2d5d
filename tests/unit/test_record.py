"""Records behave as frozen dataclasses do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jfsd.record import Record, as_dict, field, names, replace


class Place(Record):
    """With everything that a field can have."""

    path: str
    size: int = 4
    secret: str = field(default="", repr=False)
    words: list[str] = field(default_factory=list)

    @property
    def doubled(self) -> int:
        """Twice the size."""
        return self.size * 2


@dataclasses.dataclass(frozen=True)
class Twin:
    """The same as a dataclass."""

    path: str
    size: int = 4
    secret: str = dataclasses.field(default="", repr=False)
    words: list[str] = dataclasses.field(default_factory=list)


GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("/a",), {}),
    (("/a", 5), {}),
    ((), {"path": "/a", "size": 6}),
    (("/a",), {"words": ["x"], "secret": "s"}),
    (("/a", 1, "s", ["y"]), {}),
]


@pytest.mark.parametrize(("args", "kwargs"), GIVEN)
def test_values_and_repr_are_those_of_a_dataclass(args, kwargs):
    record, twin = Place(*args, **kwargs), Twin(*args, **kwargs)
    assert as_dict(record) == dataclasses.asdict(twin)
    assert repr(record) == repr(twin).replace("Twin", "Place")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), (("/a", 1, "s", [], 2), {}), (("/a",), {"other": 1}), (("/a",), {"path": "/b"})],
)
def test_wrong_values_are_refused(args, kwargs):
    for kind in (Place, Twin):
        with pytest.raises(TypeError):
            kind(*args, **kwargs)


def test_a_record_stays_as_it_is():
    place = Place("/a")
    with pytest.raises(AttributeError):
        place.size = 5
    with pytest.raises(AttributeError):
        del place.size
    with pytest.raises(AttributeError):
        place.other = 5
    assert place == Place("/a")


def test_records_are_equal_if_class_and_values_are():
    class Other(Place):
        pass

    assert Place("/a") == Place("/a", 4)
    assert Place("/a") != Place("/b")
    assert Place("/a") != Other("/a")
    assert Place("/a") != Twin("/a")


def test_equal_records_are_one_key_and_unhashable_values_are_none():
    class Key(Record):
        a: int
        b: int = 0

    assert {Key(1), Key(b=0, a=1), replace(Key(5), a=1)} == {Key(1)}
    with pytest.raises(TypeError):
        hash(Place("/a"))


def test_defaults_are_made_anew():
    one, other = Place("/a"), Place("/b")
    one.words.append("x")
    assert other.words == []


def test_a_changed_record_is_checked():
    class Even(Record):
        number: int = 0

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("odd")

    assert replace(Even(), number=2) == Even(2)
    with pytest.raises(ValueError, match="odd"):
        replace(Even(), number=3)
    with pytest.raises(TypeError):
        replace(Even(), colour=3)


def test_fields_follow_those_of_the_class_above():
    class Below(Place):
        depth: int = 1

    class Same(Place):
        """Without fields of its own."""

    assert names(Below) == ("path", "size", "secret", "words", "depth")
    assert Below("/a", depth=2).doubled == 8
    assert names(Same) == names(Place)
