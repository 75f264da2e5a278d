"""Runnable recipes, one file each, and the command line on top of them."""
