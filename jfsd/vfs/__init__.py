"""The file system itself, without a kernel: handles, directories, operations."""
