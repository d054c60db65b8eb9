"""The command line of `saten-edge`."""
