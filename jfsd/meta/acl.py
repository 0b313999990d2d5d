"""POSIX ACL rules: their stored form, the kernel's form, and what they do to modes (format.md §15).

Pure. `scripts/lib/acl.lua` does the same arithmetic where it must be atomic with a mutation;
tests compare the two on random rules.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from jfsd.record import Record, replace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

UNSET: Final = 0xFFFF
"""Value of a permission that a rule does not state."""

ACCESS_XATTR: Final = b"system.posix_acl_access"
DEFAULT_XATTR: Final = b"system.posix_acl_default"

KERNEL_VERSION = 2
_ID_NONE = 0xFFFFFFFF
_TAG_OWNER, _TAG_USER, _TAG_GROUP, _TAG_NAMED_GROUP, _TAG_MASK, _TAG_OTHER = 1, 2, 4, 8, 0x10, 0x20
_SINGLETONS = {_TAG_OWNER: "owner", _TAG_GROUP: "group", _TAG_MASK: "mask", _TAG_OTHER: "other"}

_HEAD = struct.Struct(">HHHH")
_COUNT = struct.Struct(">I")
_NAMED = struct.Struct(">IH")
_KERNEL_HEAD = struct.Struct("<I")
_KERNEL_ENTRY = struct.Struct("<HHI")

Named = tuple[tuple[int, int], ...]


class Rule(Record):
    """One ACL rule; equal rules share an id. Named entries are (id, permission) in given order."""

    owner: int = UNSET
    group: int = UNSET
    mask: int = UNSET
    other: int = UNSET
    users: Named = ()
    groups: Named = ()

    @property
    def is_minimal(self) -> bool:
        """True if the rule says no more than mode bits can."""
        return not self.users and not self.groups and self.mask == UNSET

    @property
    def is_empty(self) -> bool:
        """True if the rule says nothing: setting it removes the node's rule."""
        return self.is_minimal and self.owner == self.group == self.other == UNSET

    @property
    def permission_bits(self) -> int:
        """Mode bits of a node under this rule: owner, mask (group if minimal), other."""
        middle = self.group if self.mask == UNSET else self.mask
        return (self.owner & 7) << 6 | (middle & 7) << 3 | self.other & 7

    def encode(self) -> bytes:
        """Return the stored form (format.md §15.1)."""
        return b"".join(
            (
                _HEAD.pack(self.owner, self.group, self.mask, self.other),
                _COUNT.pack(len(self.users)),
                *(_NAMED.pack(*entry) for entry in self.users),
                _COUNT.pack(len(self.groups)),
                *(_NAMED.pack(*entry) for entry in self.groups),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Rule:
        """Return the rule of a stored value.

        Raises:
            OSError: EIO; the value is damaged.
        """
        try:
            users, position = _named(data, _HEAD.size)
            groups, position = _named(data, position)
            owner, group, mask, other = _HEAD.unpack_from(data)
        except struct.error as error:
            raise _error(errno.EIO) from error
        if position != len(data):
            raise _error(errno.EIO)
        return cls(owner, group, mask, other, users, groups)

    def filled(self, mode: int) -> Rule:
        """Return the rule with unset owner, group and other taken from `mode`."""
        return replace(
            self,
            owner=mode >> 6 & 7 if self.owner == UNSET else self.owner,
            group=mode >> 3 & 7 if self.group == UNSET else self.group,
            other=mode & 7 if self.other == UNSET else self.other,
        )

    def after_chmod(self, mode: int) -> Rule:
        """Return the access rule of a node after chmod to `mode`."""
        owner, middle, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
        if self.is_minimal:
            return replace(self, owner=owner, group=middle, other=other)
        return replace(self, owner=owner, mask=middle, other=other)

    def permits(self, uid: int, gids: Collection[int], owner: int, group: int, want: int) -> bool:
        """Say whether a caller may do `want` (r=4 w=2 x=1) on a node of `owner`:`group` (§15.3)."""
        if uid == owner:
            return self.owner & want == want
        mask = 7 if self.mask == UNSET else self.mask
        for named, permission in self.users:
            if named == uid:
                return permission & mask & want == want
        entries = [(group, self.group), *self.groups]
        matching = [permission for gid, permission in entries if gid in gids]
        if matching:
            return any(permission & mask & want == want for permission in matching)
        return self.other & want == want


def inherit(default: Rule, mode: int) -> tuple[int, Rule | None]:
    """Return mode and access rule of a node made with `mode` under a parent's default rule.

    The umask has no part in it; None means that the node has no access rule. Symlinks do not
    inherit.
    """
    if default.is_minimal:
        return mode & (default.permission_bits | 0xFE00), None
    child = replace(
        default,
        owner=mode >> 6 & 7 & default.owner,
        mask=mode >> 3 & 7 & default.mask,
        other=mode & 7 & default.other,
    )
    return mode & 0xFE00 | child.permission_bits, child


def from_kernel(value: bytes) -> Rule:
    """Return the rule of an xattr value as the kernel sends it (format.md §15.4).

    Raises:
        OSError: EINVAL; version, length, tags or permissions are wrong, an entry of which
            there is only one occurs twice, or named entries lack a mask.
    """
    if len(value) % 8 != 4 or _KERNEL_HEAD.unpack_from(value) != (KERNEL_VERSION,):
        raise _error(errno.EINVAL)
    single: dict[str, int] = {}
    users: list[tuple[int, int]] = []
    groups: list[tuple[int, int]] = []
    for tag, permission, number in _KERNEL_ENTRY.iter_unpack(value[4:]):
        name = _SINGLETONS.get(tag)
        if permission > 7 or (name is not None and name in single):
            raise _error(errno.EINVAL)
        if name is not None:
            single[name] = permission
        elif tag == _TAG_USER:
            users.append((number, permission))
        elif tag == _TAG_NAMED_GROUP:
            groups.append((number, permission))
        else:
            raise _error(errno.EINVAL)
    if (users or groups) and "mask" not in single:
        raise _error(errno.EINVAL)
    return Rule(users=tuple(users), groups=tuple(groups), **single)


def to_kernel(rule: Rule) -> bytes:
    """Return the xattr value of a rule, its entries in the order that the kernel demands."""
    entries: list[tuple[int, int, int]] = [(_TAG_OWNER, rule.owner, _ID_NONE)]
    entries += ((_TAG_USER, permission, uid) for uid, permission in rule.users)
    entries.append((_TAG_GROUP, rule.group, _ID_NONE))
    entries += ((_TAG_NAMED_GROUP, permission, gid) for gid, permission in rule.groups)
    entries.append((_TAG_MASK, rule.mask, _ID_NONE))
    entries.append((_TAG_OTHER, rule.other, _ID_NONE))
    return _KERNEL_HEAD.pack(KERNEL_VERSION) + b"".join(_stated(entries))


def _stated(entries: Iterable[tuple[int, int, int]]) -> Iterable[bytes]:
    return (_KERNEL_ENTRY.pack(*entry) for entry in entries if entry[1] != UNSET)


def _named(data: bytes, position: int) -> tuple[Named, int]:
    (count,) = _COUNT.unpack_from(data, position)
    position += _COUNT.size
    end = position + count * _NAMED.size
    if end > len(data):
        raise struct.error
    return tuple((a, b) for a, b in _NAMED.iter_unpack(data[position:end])), end


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
