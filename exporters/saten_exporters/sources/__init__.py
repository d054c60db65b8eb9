"""What a model's files say: every setting they may have, and what becomes of it."""
