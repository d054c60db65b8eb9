"""saten-edge."""
