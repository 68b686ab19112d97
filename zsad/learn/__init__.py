"""Losses, data pools and training loops in plain torch: no Ray, no job."""
