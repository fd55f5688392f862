"""Ways to train a student: one file a paper."""
