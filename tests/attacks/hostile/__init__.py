"""Hostile inputs as a table, and the process that tries them."""
