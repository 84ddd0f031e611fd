"""What is known of a surface before its photographs are looked at.

A prior acts on a model through two hooks only: it initialises the model, and it regularises it during training.
"""
