"""The kernel's side: mount, INIT, decoding of calls and their replies."""
