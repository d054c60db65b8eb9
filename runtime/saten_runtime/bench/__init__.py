"""How fast and how large: plan, worker processes, statistics, floor, profile, verdict."""
