"""What the person exporting chose, and what the cost model chooses: settings, targets, prices."""
