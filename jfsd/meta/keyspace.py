"""Names of all keys of a volume, in one place (format.md §5).

Every name takes the volume's prefix: empty, or `{db}` on a cluster (format.md §2.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jfsd.types import Ino


class Keys:
    """Key names of one volume; immutable. Attributes are fixed keys, methods take numbers.

    Reference tools act on keys by their first letter (format.md §5): the only key of ours that
    the format does not know is `jfsd<mount id>`, whose `j` none of them looks at.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix.encode()
        p = self.prefix
        self.setting = p + b"setting"
        self.next_inode = p + b"nextinode"
        self.next_chunk = p + b"nextchunk"
        self.next_session = p + b"nextsession"
        self.next_trash = p + b"nextTrash"
        self.used_space = p + b"usedSpace"
        self.total_inodes = p + b"totalInodes"
        self.acl_max_id = p + b"aclMaxId"
        self.acl = p + b"acl"
        self.delfiles = p + b"delfiles"
        self.slice_ref = p + b"sliceRef"
        self.del_slices = p + b"delSlices"
        self.all_sessions = p + b"allSessions"
        self.session_infos = p + b"sessionInfos"
        self.legacy_sessions = b"sessions"
        self.dir_data_length = p + b"dirDataLength"
        self.dir_used_space = p + b"dirUsedSpace"
        self.dir_used_inodes = p + b"dirUsedInodes"
        self.dir_quota = p + b"dirQuota"
        self.dir_quota_used_space = p + b"dirQuotaUsedSpace"
        self.dir_quota_used_inodes = p + b"dirQuotaUsedInodes"
        self.user_quota = p + b"userQuota"
        self.user_quota_used_space = p + b"userQuotaUsedSpace"
        self.user_quota_used_inodes = p + b"userQuotaUsedInodes"
        self.group_quota = p + b"groupQuota"
        self.group_quota_used_space = p + b"groupQuotaUsedSpace"
        self.group_quota_used_inodes = p + b"groupQuotaUsedInodes"
        self.detached_nodes = p + b"detachedNodes"
        self.last_cleanup_sessions = p + b"lastCleanupSessions"
        self.last_cleanup_files = p + b"lastCleanupFiles"
        self.next_cleanup_slices = p + b"nextCleanupSlices"
        self.last_cleanup_trash = p + b"lastCleanupTrash"

    def attr(self, ino: Ino) -> bytes:
        """Attribute record of a node (string)."""
        return b"%si%d" % (self.prefix, ino)

    def attrs(self, inos: Iterable[Ino]) -> list[bytes]:
        """Attribute records of many nodes."""
        prefix = self.prefix
        return [b"%si%d" % (prefix, ino) for ino in inos]

    def directory(self, ino: Ino) -> bytes:
        """Entries of a directory (hash); absent when empty."""
        return b"%sd%d" % (self.prefix, ino)

    def parents(self, ino: Ino) -> bytes:
        """Link counts per parent of a file that has or had hard links (hash)."""
        return b"%sp%d" % (self.prefix, ino)

    def chunk(self, ino: Ino, index: int) -> bytes:
        """Slice records of one chunk in commit order (list)."""
        return b"%sc%d_%d" % (self.prefix, ino, index)

    def symlink(self, ino: Ino) -> bytes:
        """Target of a symlink (string)."""
        return b"%ss%d" % (self.prefix, ino)

    def xattrs(self, ino: Ino) -> bytes:
        """Extended attributes of a node (hash)."""
        return b"%sx%d" % (self.prefix, ino)

    def sustained(self, sid: int) -> bytes:
        """Inodes that were unlinked while open in a session (set)."""
        return b"%ssession%d" % (self.prefix, sid)

    def locked(self, sid: int) -> bytes:
        """Names of the lock keys in which a session holds something (set)."""
        return b"%slocked%d" % (self.prefix, sid)

    def flocks(self, ino: Ino) -> bytes:
        """BSD locks of a node (hash)."""
        return b"%slockf%d" % (self.prefix, ino)

    def plocks(self, ino: Ino) -> bytes:
        """POSIX locks of a node (hash)."""
        return b"%slockp%d" % (self.prefix, ino)

    def operations(self, mount_id: str) -> bytes:
        """Results of a mount's operations that are not answered yet, and its generation (hash)."""
        return b"%sjfsd%s" % (self.prefix, mount_id.encode())
