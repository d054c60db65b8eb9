"""The machine that runs a bundle: what it is, its memory and power, processes of their own, its lock."""
