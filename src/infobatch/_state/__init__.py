"""The state on disk: written, checked, read, and put together from the parts of several ranks."""
