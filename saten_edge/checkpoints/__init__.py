"""Model folders: families, Saten layers in torch, reading and writing, compressing a whole model."""
