"""How right: data, measures, metrics, and the comparison with torch."""
