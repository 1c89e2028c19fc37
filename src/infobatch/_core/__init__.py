"""The method: scores, selections, plans. Pure functions of numbers, in numpy."""
