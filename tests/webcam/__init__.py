"""A simulated camera for processes that preload driver.c."""
