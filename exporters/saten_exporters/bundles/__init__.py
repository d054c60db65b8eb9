"""From a graph to a folder: files, card, verification, layouts of other programs, the hub."""
