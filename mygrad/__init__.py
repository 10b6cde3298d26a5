"""mygrad: a lazy tensor compiler that one person can read."""
