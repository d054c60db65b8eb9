"""`python -m saten_runtime` is `saten-run`."""

from __future__ import annotations

import sys

from saten_runtime.cli import main

sys.exit(main())
