"""The command line: options in, settings out, errors in words."""
