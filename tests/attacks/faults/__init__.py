"""Failing disks and killed processes: a library that makes them, and the process that suffers them."""
