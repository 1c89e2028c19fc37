"""What trains and writes results."""
