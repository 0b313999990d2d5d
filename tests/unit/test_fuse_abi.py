"""Records of the kernel's protocol, against bytes written out by hand."""

from __future__ import annotations

import os
import struct

from jfsd.fuse import abi


def test_lock_request_keeps_64_bits_and_ends_at_the_largest_offset():
    body = struct.pack("<QQQQIIII", 5, (1 << 64) - 3, 10, (1 << 64) - 1, 1, 77, 1, 0)
    assert abi.lock_request(body) == (5, (1 << 64) - 3, 10, (1 << 63) - 1, 1, 77, True)


def test_lock_reply():
    assert abi.lock_reply(1, 2, 3, 4) == struct.pack("<QQII", 2, 3, 1, 4)


def test_other_bodies():
    assert abi.fallocate_request(struct.pack("<QQQII", 1, 2, 3, 4, 0)) == (1, 4, 2, 3)
    assert abi.lseek_request(struct.pack("<QQII", 1, 2, 3, 0)) == (1, 2, 3)
    assert abi.lseek_reply(1 << 40) == struct.pack("<Q", 1 << 40)
    assert abi.copy_request(struct.pack("<7Q", 1, 2, 3, 4, 5, 6, 7)) == (1, 2, 4, 5, 6, 7)
    assert abi.setxattr_flags(struct.pack("<IIII", 100, 2, 0, 0)) == 2


def test_init_flags_have_64_bits():
    header = bytes(40)
    init_in = header + struct.pack("<IIIII", 7, 45, 131072, 1 << 30 | 1, 1 << 7) + bytes(44)
    assert abi.init_offer(init_in) == 1 << 30 | 1 | abi.INIT_HAS_RESEND
    init_out = struct.pack("<IiQ", 80, 0, 2) + struct.pack(
        "<IIIIHHIIHHI7I", 7, 38, 1 << 20, 1 << 30, 128, 96, 1 << 20, 1, 256, 0, 1 << 4, *[0] * 7
    )
    agreed = abi.init_reply(init_out)
    assert agreed.flags == 1 << 30 | abi.INIT_DIRECT_IO_ALLOW_MMAP
    assert (agreed.max_background, agreed.max_write, agreed.max_pages) == (128, 1 << 20, 256)
    assert abi.init_reply(struct.pack("<IiQ", 16, -71, 2)).error == -71


def test_resend_writes_the_notification():
    reader, writer = os.pipe()
    assert abi.resend(writer)
    assert os.read(reader, 100) == struct.pack("<IiQ", 16, 7, 0)
    os.close(writer)
    assert not abi.resend(reader)
    os.close(reader)
