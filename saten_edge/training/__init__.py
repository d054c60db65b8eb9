"""Fine-tune a model: on labels, towards the dense model it was made from, or both.

Cores, residual values and what stayed dense are trained; masks stay fixed unless they are told to move.
"""
