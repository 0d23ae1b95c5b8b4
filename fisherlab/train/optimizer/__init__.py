"""What trains: optimizers by name, learning-rate schedules, and the built-in recipes."""
