"""Bundles in other libraries, each of which is an extra."""
