"""File contents: chunks, slices, blocks, the write buffer and the caches."""
