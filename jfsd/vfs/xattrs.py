"""Extended attributes and, under their kernel names, POSIX ACLs."""

from __future__ import annotations

import errno

from jfsd.meta.acl import ACCESS_XATTR, DEFAULT_XATTR
from jfsd.types import Caller, Ino
from jfsd.vfs.core import Core, fail

_ACLS = (ACCESS_XATTR, DEFAULT_XATTR)
_UNSUPPORTED = (b"security.capability", b"security.selinux")


class XattrOps(Core):
    """getxattr(2) and its family.

    With attributes and ACLs both off the answer is ENOSYS, after which the kernel
    does not ask again: that spares a request for every write.
    """

    async def getxattr(self, caller: Caller, ino: Ino, name: bytes) -> bytes:  # noqa: ARG002
        """Return the value.

        Raises:
            OSError: ENODATA if there is none, ENOSYS if the mount has no attributes.
        """
        self._check_enabled(name)
        if name in _UNSUPPORTED:
            fail(errno.ENODATA)
        return await self.meta.getxattr(self.volume_ino(ino), name)

    async def listxattr(self, ino: Ino) -> list[bytes]:
        """Return the names of all attributes, ACLs included."""
        self._check_enabled(b"")
        return await self.meta.listxattr(self.volume_ino(ino))

    async def setxattr(
        self, caller: Caller, ino: Ino, name: bytes, value: bytes, flags: int
    ) -> None:
        """Create (flags 1), replace (2) or set (0) an attribute.

        Raises:
            OSError: EEXIST, ENODATA, ERANGE (too long), ENOTSUP.
        """
        self._check_enabled(name)
        self.check_writable()
        if name in _UNSUPPORTED or (name in _ACLS and not self.options.acls):
            fail(errno.ENOTSUP)
        await self.meta.setxattr(caller, self.volume_ino(ino), name, value, flags)
        self.note_touched(self.volume_ino(ino), None)  # an ACL changes the mode

    async def removexattr(self, caller: Caller, ino: Ino, name: bytes) -> None:
        """Remove an attribute.

        Raises:
            OSError: ENODATA if there is none.
        """
        self._check_enabled(name)
        self.check_writable()
        await self.meta.removexattr(caller, self.volume_ino(ino), name)
        self.note_touched(self.volume_ino(ino), None)

    def _check_enabled(self, name: bytes) -> None:
        if self.options.xattrs or (self.options.acls and (name in _ACLS or not name)):
            return
        fail(errno.ENOTSUP if self.options.acls else errno.ENOSYS)
