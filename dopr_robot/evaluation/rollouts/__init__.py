"""A policy in its environments: what is evaluated, episodes, and their records."""
