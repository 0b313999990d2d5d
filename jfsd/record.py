"""Frozen records that cost next to nothing to define.

`@dataclass(frozen=True)` compiles seven methods for each class, half a millisecond in every start
of the program, and a server has thirty such classes. The classes of this kind share their methods,
which go by a table of fields. To make a record takes longer in exchange: what is made for each
request is a dataclass or a NamedTuple.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar, dataclass_transform

_Made = TypeVar("_Made", bound="Record")

_REQUIRED: Any = object()


class _Field(NamedTuple):
    default: Any = _REQUIRED
    factory: Callable[[], Any] | None = None
    shown: bool = True


def field(
    *,
    default: Any = _REQUIRED,  # noqa: ANN401 - of the field's type, which a checker compares
    default_factory: Callable[[], Any] | None = None,
    repr: bool = True,  # noqa: A002 - as dataclasses have it
) -> Any:  # noqa: ANN401
    """Return what a class says of a field whose default is made anew, or that is never shown."""
    return _Field(default, default_factory, repr)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record:
    """Values with names, which stay as they are; equal if class and values are.

    A subclass names its fields with their types, as a dataclass does; `__post_init__` is called
    when all are there.
    """

    _table: ClassVar[dict[str, _Field]] = {}

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        """Make the table of the class's fields."""
        del kw_only  # for the type checker, PEP 681
        table = dict(cls._table)
        for name in cls.__annotations__:
            said = vars(cls).get(name, _REQUIRED)
            if isinstance(said, _Field):
                delattr(cls, name)
            table[name] = said if isinstance(said, _Field) else _Field(said)
        cls._table = table

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        table, values = self._table, self.__dict__
        values.update(zip(table, args, strict=False))
        for name, each in table.items():
            if name in values:
                continue
            if name in kwargs:
                values[name] = kwargs.pop(name)
            elif each.factory is not None:
                values[name] = each.factory()
            elif each.default is not _REQUIRED:
                values[name] = each.default
            else:
                raise TypeError(f"{type(self).__name__}: {name} is missing")
        if kwargs or len(args) > len(table):
            raise TypeError(f"{type(self).__name__}: too many values: {', '.join(kwargs)}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values; nothing to do here."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} stays as it is")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} stays")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        shown = (name for name, each in self._table.items() if each.shown)
        words = ", ".join(f"{name}={self.__dict__[name]!r}" for name in shown)
        return f"{type(self).__name__}({words})"


def replace(record: _Made, **changes: Any) -> _Made:  # noqa: ANN401
    """Return the record with other values for some fields; it is checked like any other."""
    return type(record)(**{**record.__dict__, **changes})


def names(kind: type[Record]) -> tuple[str, ...]:
    """Return the names of a class's fields, in their order."""
    return tuple(kind._table)  # noqa: SLF001 - a part of the class


def as_dict(record: Record) -> dict[str, Any]:
    """Return the values by name; they are the record's own, not copies."""
    return dict(record.__dict__)
