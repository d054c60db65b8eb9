"""What users would pick instead, measured beside our bundles: the same texts, turns and statistics for all."""
