"""Extended attributes, and the POSIX ACLs behind two of their names (format.md §9.15, §15).

Every change is one script that is repeated safely: SIGKILL leaves an attribute set or not set.
"""

from __future__ import annotations

import asyncio
import errno
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Final

from jfsd.meta import acl, codec
from jfsd.meta.acl import ACCESS_XATTR, DEFAULT_XATTR, Rule
from jfsd.meta.engine import Engine, fail
from jfsd.types import MAX_NAME_BYTES, MAX_XATTR_VALUE_BYTES, TRASH_INO

if TYPE_CHECKING:
    from jfsd.types import Attr, Caller, Ino

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

_CACHED_RULES: Final = 10_000


class AclKind(Enum):
    """Which of a node's two ACLs is meant."""

    ACCESS = "access"
    DEFAULT = "default"


_ACLS: Final = {ACCESS_XATTR: AclKind.ACCESS, DEFAULT_XATTR: AclKind.DEFAULT}


class Xattrs(Engine):
    """Extended attributes of one mount; names and values are bytes."""

    @cached_property
    def _rules(self) -> dict[int, Rule]:
        return {}

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Return the value of an attribute.

        Raises:
            OSError: ENODATA, there is none; ERANGE or EINVAL, no such name can be.
        """
        _check_name(name)
        if (kind := _ACLS.get(name)) is not None:
            rule = await self.get_acl(ino, kind)
            if rule is None:
                fail(errno.ENODATA)
            return acl.to_kernel(rule)
        value: bytes | None = await self.connection.call("HGET", self.keys.xattrs(ino), name)
        if value is None:
            fail(errno.ENODATA)
        return value

    async def listxattr(self, ino: Ino) -> list[bytes]:
        """Return the names of all attributes, in no order."""
        if not self.acl:
            return list(await self.connection.call("HKEYS", self.keys.xattrs(ino)))
        stored, record = await asyncio.gather(
            self.connection.call("HKEYS", self.keys.xattrs(ino)),
            self.connection.call("GET", self.keys.attr(ino)),
        )
        names = list(stored)
        if record is not None:
            attr = codec.decode_attr(record)
            names += [name for name, kind in _ACLS.items() if _acl_id(attr, kind)]
        return names

    async def setxattr(
        self, caller: Caller, ino: Ino, name: bytes, value: bytes, flags: int = 0
    ) -> None:
        """The attribute has this value. No time of the node changes.

        Raises:
            OSError: EEXIST or ENODATA, what XATTR_CREATE or XATTR_REPLACE demands; ERANGE,
                name or value too long; EINVAL, other flags, an empty name or a malformed ACL;
                ENOTSUP, ACLs are off; EPERM, an ACL of a node that is not the caller's.
        """
        _check_name(name)
        if len(value) > MAX_XATTR_VALUE_BYTES:
            fail(errno.ERANGE)
        if flags not in (0, XATTR_CREATE, XATTR_REPLACE):
            fail(errno.EINVAL)
        if (kind := _ACLS.get(name)) is not None:
            await self.set_acl(caller, ino, kind, acl.from_kernel(value))
            return
        await self.mutate("setxattr", caller, ino, name, value, flags)

    async def removexattr(self, caller: Caller, ino: Ino, name: bytes) -> None:
        """The attribute is gone. No time of the node changes.

        Raises:
            OSError: ENODATA, there was none; the others as `setxattr`.
        """
        _check_name(name)
        if (kind := _ACLS.get(name)) is not None:
            await self.set_acl(caller, ino, kind, Rule())
            return
        await self.mutate("removexattr", caller, ino, name)

    async def get_acl(self, ino: Ino, kind: AclKind) -> Rule | None:
        """Return a node's ACL, or None if it has none or ACLs are off.

        Raises:
            OSError: ENOENT, no such node; EIO, the rule is missing.
        """
        if not self.acl:
            return None
        record: bytes | None = await self.connection.call("GET", self.keys.attr(ino))
        if record is None:
            if ino in (1, TRASH_INO):
                return None
            fail(errno.ENOENT)
        number = _acl_id(codec.decode_attr(record), kind)
        return await self.acl_rule(number) if number else None

    async def acl_rule(self, number: int) -> Rule:
        """Return the rule of an id; rules never change, so they are kept.

        Raises:
            OSError: EIO, there is no such rule.
        """
        if (rule := self._rules.get(number)) is None:
            stored: bytes | None = await self.connection.call("HGET", self.keys.acl, number)
            if stored is None:
                fail(errno.EIO)
            if len(self._rules) >= _CACHED_RULES:
                self._rules.clear()
            rule = self._rules[number] = Rule.decode(stored)
        return rule

    async def set_acl(self, caller: Caller, ino: Ino, kind: AclKind, rule: Rule) -> Attr:
        """The node has this ACL, or none if the rule is empty; an access ACL sets its mode.

        Raises:
            OSError: ENOTSUP, ACLs are off; EPERM, the caller is neither root nor owner, or
                the node is immutable or the trash; ENOENT.
        """
        if not self.acl:
            fail(errno.ENOTSUP)
        encoded = b"" if rule.is_empty else rule.encode()
        (record,) = await self.mutate(
            "setacl", caller, ino, kind.value, encoded, caller.uid, f" {caller.gid} "
        )
        return codec.decode_attr(record)


def _acl_id(attr: Attr, kind: AclKind) -> int:
    return attr.access_acl if kind is AclKind.ACCESS else attr.default_acl


def _check_name(name: bytes) -> None:
    if not name:
        fail(errno.EINVAL)
    if len(name) > MAX_NAME_BYTES:
        fail(errno.ERANGE)
