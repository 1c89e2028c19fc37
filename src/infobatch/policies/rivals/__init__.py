"""The published methods that pick samples, one file each, under the name of its paper."""
