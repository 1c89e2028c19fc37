"""The other processes: that all stand at the same place, and what they tell each other."""
