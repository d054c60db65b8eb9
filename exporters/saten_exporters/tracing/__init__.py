"""From a torch model to a graph: signatures, samples, attention, the trace."""
