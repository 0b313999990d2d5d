"""What can be set: flags, settings and the volume format."""
