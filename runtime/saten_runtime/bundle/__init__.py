"""A bundle on disk: manifest, graph, layers. Nothing of it is believed before it was checked."""
