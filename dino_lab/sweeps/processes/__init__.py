"""Trials in processes of their own, copies of the process that planned them."""
