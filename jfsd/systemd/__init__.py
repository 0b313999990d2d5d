"""The service manager: notifications and the file descriptor store."""
